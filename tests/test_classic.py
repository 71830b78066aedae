"""GilNet, AlexNet and VGG-Face against their publications, and the files that VGG-Face's weights come in."""

import keras
import numpy as np
import pytest
from scipy import io

from fag_utils import fast, models

PUBLISHED = models.CLASSIC_PUBLISHED
NARROW = 1 / 16  # of VGG-Face, in the tests of its files


def maps(model, kind):
    return [layer.output.shape[1:] for layer in model.layers if isinstance(layer, kind)]


# The layouts --------------------------------------------------------------------------------------------


def test_gilnet_has_the_maps_of_the_paper_and_the_parameters_of_its_definition():
    published = PUBLISHED["gilnet"]
    backbone = models.gilnet()
    assert maps(backbone, keras.layers.MaxPooling2D) == [(28, 28, 96), (14, 14, 256), (7, 7, 384)]
    assert [side for side, *_ in maps(backbone, keras.layers.MaxPooling2D)] == published["maps"]
    assert maps(backbone, models.LocalResponseNormalization) == [(28, 28, 96), (14, 14, 256)]  # after pooling
    cost = models.count(models.with_classes(backbone, published["classes"]))
    # kernels and biases, layer by layer: conv1, conv2, conv3, fc6, fc7, fc8
    kernels = [7 * 7 * 3 * 96, 5 * 5 * 96 * 256, 3 * 3 * 256 * 384, 7 * 7 * 384 * 512, 512 * 512, 512 * 8]
    assert cost["parameters"] == sum(kernels) + 96 + 256 + 384 + 512 + 512 + 8 == 11_415_048
    places = [56**2, 28**2, 14**2, 1, 1, 1]
    assert cost["multiply_adds"] == sum(k * n for k, n in zip(kernels, places, strict=True))


@pytest.mark.parametrize("name, build", [("alexnet", models.alexnet), ("vgg16", models.vgg_face)])
def test_parameters_and_multiply_adds_are_the_published(name, build):
    published = PUBLISHED[name]
    cost = models.count(models.with_classes(build(), published["classes"]))
    assert cost["parameters"] == published["parameters"]
    assert cost["multiply_adds"] == pytest.approx(published["multiply_adds"], rel=0.005)


def test_alexnet_normalises_before_it_pools_and_has_two_groups_in_three_layers():
    backbone = models.alexnet(width=1 / 8)
    assert [side for side, *_ in maps(backbone, keras.layers.MaxPooling2D)] == [27, 13, 6]
    assert [side for side, *_ in maps(backbone, models.LocalResponseNormalization)] == [55, 27]
    assert [row.name for row in models.ALEXNET if getattr(row, "groups", 1) == 2] == ["conv2", "conv4", "conv5"]


def test_local_response_normalisation_is_caffes():
    import tensorflow as tf

    x = np.random.default_rng(0).normal(0, 100, (2, 5, 4, 9)).astype("float32")
    expected = tf.nn.local_response_normalization(x, depth_radius=2, bias=1, alpha=1e-4 / 5, beta=0.75)
    np.testing.assert_allclose(models.LocalResponseNormalization()(x), expected, rtol=1e-5)


@pytest.mark.parametrize("build", [models.gilnet, models.alexnet, models.vgg_face])
def test_small_ones_learn_and_are_saved(build, tmp_path):
    """At another size and width, with both heads; AlexNet's groups learn on a CPU too."""
    keras.utils.set_random_seed(0)
    model = models.age_gender(build(size=64, width=1 / 8))
    x = np.random.default_rng(0).uniform(0, 255, (8, 64, 64, 3)).astype("float32")
    y = {"age": np.arange(8), "gender": np.eye(2)[np.arange(8) % 2]}
    model.compile("adam", {"age": "sparse_categorical_crossentropy", "gender": "categorical_crossentropy"},
                  jit_compile=False)
    losses = model.fit(x, y, epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for head, answer in model.predict(x, verbose=0).items():
        np.testing.assert_allclose(again.predict(x, verbose=0)[head], answer, atol=1e-6)


@pytest.mark.parametrize("build", [models.gilnet, models.alexnet, models.vgg_face])
def test_the_fast_step_computes_the_same(build):
    if not fast.available():
        pytest.skip("needs PyTorch and a C++ compiler")
    model = models.age_gender(build(size=75, width=1 / 8))
    x = np.random.default_rng(0).uniform(0, 255, (3, 75, 75, 3)).astype("float32")
    expected, answer = model.predict(x, verbose=0), fast.FastModel(model, mixed=False).probabilities(x)
    for head in expected:
        np.testing.assert_allclose(answer[head], expected[head], atol=1e-5)


@pytest.mark.parametrize("arguments, message", [({"size": 47}, "48 pixels"), ({"width": 5}, "width must lie")])
def test_what_they_cannot_build_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.gilnet(**arguments)


# VGG-Face's files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vgg():
    """A narrow VGG-Face, and its weights as {layer: (kernel, bias)}."""
    keras.utils.set_random_seed(0)
    model = models.vgg_face(224, width=NARROW)
    random = np.random.default_rng(0)
    return model, {
        layer.name: tuple(random.normal(0, 0.1, w.shape).astype("float32") for w in layer.weights)
        for layer in model.layers if layer.weights}


def as_mat(path, arrays, within, old=False):
    """A file as MatConvNet writes it: a cell of structs, dense layers as convolutions, ReLUs between them."""
    cells = []
    for name, (kernel, bias) in arrays.items():
        if name == "fc6":
            kernel = kernel.reshape(7, 7, -1, kernel.shape[-1])
        elif kernel.ndim == 2:
            kernel = kernel[None, None]
        weights = np.empty((1, 2), object)
        weights[0] = [kernel, bias[None]]
        layer = {"filters": kernel, "biases": bias[None]} if old else {"weights": weights}
        cells += [{"name": name, "type": "conv", "stride": [1.0, 1.0], **layer},
                  {"name": name.replace("conv", "relu"), "type": "relu"}]
    top = np.empty((1, len(cells)), object)
    top[0] = cells
    io.savemat(path, {"net": {"layers": top}} if within else {"layers": top, "meta": {"a": 1.0}})
    return path


def as_h5(path, arrays):
    """A file as keras-vggface's: a group for each layer, and in conv1_1 blue before green and red."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        for name, (kernel, bias) in arrays.items():
            group = file.create_group(f"{name}/{name}")
            group["kernel:0"] = kernel[:, :, ::-1] if name == "conv1_1" else kernel
            group["bias:0"] = bias
        file.create_group("pool1")
    return path


@pytest.mark.parametrize("make", [
    lambda path, arrays: as_mat(path / "vgg_face.mat", arrays, within=True),
    lambda path, arrays: as_mat(path / "vgg-face.mat", arrays, within=False),
    lambda path, arrays: as_mat(path / "old.mat", arrays, within=True, old=True),
    lambda path, arrays: as_h5(path / "rcmalli_vggface_tf_vgg16.h5", arrays),
], ids=["authors", "MatConvNet", "before 1.0", "keras-vggface"])
def test_each_published_kind_of_file_gives_every_weight(vgg, make, tmp_path):
    model, arrays = vgg
    people = {"fc8": (np.ones((256, 26), "float32"), np.zeros(26, "float32"))}  # only the file has these
    path = make(tmp_path, arrays | people)
    models.load_vgg_face(model, path)
    for name, expected in arrays.items():
        for one, other in zip(model.get_layer(name).get_weights(), expected, strict=True):
            np.testing.assert_array_equal(one, other)
    assert "fc8" in models.read_vgg_face(path)


def refusal(call, *arguments):
    """What a refusal says: the file, and where to get one that is right."""
    with pytest.raises(models.WeightsError) as refused:
        call(*arguments)
    text = str(refused.value)
    assert "robots.ox.ac.uk" in text and "keras-vggface" in text
    return text


def test_a_missing_file_says_where_to_get_it(tmp_path):
    assert "no file" in refusal(models.read_vgg_face, tmp_path / "vgg_face.mat")


@pytest.mark.parametrize("name", ["vgg_face.mat", "vgg.h5", "vgg.t7"])
def test_a_file_of_something_else_is_refused(name, tmp_path):
    (tmp_path / name).write_bytes(b"<html>Not found</html>" * 50)
    assert name in refusal(models.read_vgg_face, tmp_path / name)


def test_a_cut_file_is_refused(vgg, tmp_path):
    path = as_mat(tmp_path / "vgg_face.mat", vgg[1], within=True)
    path.write_bytes(path.read_bytes()[:100_000])
    assert "can't be read" in refusal(models.load_vgg_face, vgg[0], path)


def test_a_mat_file_of_something_else_is_refused(tmp_path):
    io.savemat(tmp_path / "other.mat", {"a": np.eye(3)})
    assert "can't be read as VGG-Face" in refusal(models.read_vgg_face, tmp_path / "other.mat")


def test_a_file_without_the_dense_layers_is_refused(vgg, tmp_path):
    """keras-vggface has one, called notop."""
    arrays = {name: value for name, value in vgg[1].items() if name.startswith("conv")}
    assert "no layer fc6" in refusal(models.load_vgg_face, vgg[0], as_h5(tmp_path / "notop.h5", arrays))


def test_channels_first_are_refused(vgg, tmp_path):
    """keras-vggface has a file for Theano."""
    arrays = {name: (kernel.T if kernel.ndim == 4 else kernel, bias) for name, (kernel, bias) in vgg[1].items()}
    assert "conv1_1" in refusal(models.load_vgg_face, vgg[0], as_mat(tmp_path / "th.mat", arrays, within=False))


def test_published_weights_bring_their_picture_size(tmp_path):
    """Pictures of any size are scaled to the 224 that the weights know."""
    refusal(models.vgg_face, 112, tmp_path / "vgg_face.mat")
    model = models.classic._build("vgg_face", models.VGG16, 112, NARROW, ("zeros", "zeros"), 224)
    assert model.get_layer("resize").output.shape == (None, 224, 224, 3)
