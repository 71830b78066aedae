"""The residual attention network and the ResNet against their publications, their ensemble, and where they look."""

import keras
import numpy as np
import pandas as pd
import pytest
from skimage import data

from fag_utils import batches, faces, fast, models, plots, training
from fag_utils.models import attention

PUBLISHED = models.ATTENTION_PUBLISHED


def classifier(backbone):
    return keras.Model(backbone.input, keras.layers.Dense(1000)(backbone.output))


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return models.tell_gender(models.residual_attention(62))


@pytest.fixture(scope="module")
def crops():
    picture = data.astronaut()[10:190, 135:315]
    return np.stack([faces.crop_framed(turned, size=62) for turned in (picture, picture[:, ::-1])])


# The networks -------------------------------------------------------------------------------------------


def test_attention_56_agrees_with_the_publication():
    backbone = models.residual_attention(224, "56")
    cost, published = models.count(classifier(backbone)), PUBLISHED["attention 56"]
    assert round(cost["parameters"] / 1e6, 1) == published["parameters"] / 1e6
    assert cost["multiply_adds"] == pytest.approx(published["multiply_adds"], rel=0.015)
    sides = [backbone.get_layer(f"stage{number}_module1_mask").output.shape[1:] for number in (1, 2, 3)]
    assert sides == [(56, 56, 256), (28, 28, 512), (14, 14, 1024)]
    smallest = [backbone.get_layer(f"stage{number}_module1_mask_bottom_add").output.shape[1] for number in (1, 2, 3)]
    assert smallest == [7, 7, 7]
    # The trunk's depth, 56: the first convolution, three in each unit outside the masks, and the classifier.
    units = {layer.name for layer in backbone.layers if layer.name.endswith("_3") and "_mask_" not in layer.name}
    assert 1 + 3 * len(units) + 1 == 56
    assert backbone.output.shape == (None, 2048)


@pytest.mark.parametrize("layers", ["18", "50"])
def test_resnet_agrees_with_the_publication(layers):
    cost, published = models.count(classifier(models.resnet(224, layers))), PUBLISHED[f"resnet {layers}"]
    assert cost["trainable"] == {"18": 11_689_512, "50": 25_557_032}[layers]
    assert round(cost["trainable"] / 1e6, 1) == published["parameters"] / 1e6
    assert cost["multiply_adds"] == pytest.approx(published["multiply_adds"], rel=0.02)


def test_a_module_strengthens_and_never_hides():
    """(1 + M) * T lies between T and 2 T."""
    keras.utils.set_random_seed(0)
    x = keras.Input((16, 16, 16))
    model = keras.Model(x, attention.attention_module(x, 2, 2, "module"))
    trunk, mask, product = (model.get_layer(f"module_{name}").output for name in ("trunk2_add", "mask", "add"))
    seen = np.random.default_rng(0).normal(size=(2, 16, 16, 16)).astype("float32")
    t, m, y = keras.Model(x, [trunk, mask, product]).predict(seen, verbose=0)
    assert 0 <= m.min() < m.max() <= 1
    np.testing.assert_allclose(y, (1 + m) * t, rtol=1e-4, atol=1e-4)
    assert model.output.shape == x.shape


def test_without_attention_the_trunk_stays(network):
    trunk = models.residual_attention(62, attention=False)
    names = {layer.name for layer in trunk.layers}
    missing = {layer.name for layer in network.layers} - names
    assert names <= {layer.name for layer in network.layers}
    assert all("module" in name for name in missing if "gender" not in name and "age" not in name)
    with pytest.raises(ValueError, match="no attention modules"):
        models.attention_maps(trunk, np.zeros((1, 62, 62, 3)))


@pytest.mark.parametrize("build", [models.residual_attention, models.resnet])
def test_what_they_cannot_build_is_said(build):
    with pytest.raises(ValueError, match="32 pixels"):
        build(31)
    with pytest.raises(ValueError, match="layout must be one of"):
        build(62, "57")


def test_age_is_told_the_gender(network, crops):
    """The same features with another gender beside them give another age."""
    inner = keras.Model(network.get_layer("features_and_gender").output, network.output["age"])
    features = np.random.default_rng(0).normal(size=(1, 258)).astype("float32")
    features[0, -2:] = 1, 0
    other = features.copy()
    other[0, -2:] = 0, 1
    assert not np.allclose(inner.predict(features, verbose=0), inner.predict(other, verbose=0))
    answers = network.predict(crops.astype("float32"), verbose=0)
    beside = keras.Model(network.input, network.get_layer("features_and_gender").output).predict(
        crops.astype("float32"), verbose=0)
    np.testing.assert_allclose(beside[:, -2:], answers["gender"], atol=1e-6)


def test_the_ensemble_answers_with_the_mean_and_can_be_saved(network, crops, tmp_path):
    other = models.age_gender(models.resnet(62))
    both = models.ensemble([network, other])
    both.save(tmp_path / "both.keras")
    pictures = crops.astype("float32")
    one, two, mean = (model.predict(pictures, verbose=0) for model in (
        network, other, keras.models.load_model(tmp_path / "both.keras")))
    for head in ("age", "gender"):
        np.testing.assert_allclose(mean[head], (one[head] + two[head]) / 2, atol=1e-6)


# Where they look ----------------------------------------------------------------------------------------


def test_maps_of_each_module_at_its_own_size(network, crops):
    maps = models.attention_maps(network, crops)
    assert {name: found.shape for name, found in maps.items()} == {
        "stage1_module1": (2, 31, 31), "stage2_module1": (2, 16, 16), "stage3_module1": (2, 8, 8)}
    assert all(0 < found.min() <= found.max() < 1 for found in maps.values())
    figure = plots.maps_over(crops, {**maps, "Grad-CAM": models.grad_cam(network, crops)})
    assert [ax.get_title() for ax in figure.axes[:5]] == ["picture", *maps, "Grad-CAM"]


@pytest.mark.parametrize("separate", [False, True])
def test_grad_cam_finds_the_corner_that_decides(separate):
    """A network whose second class is the green of a picture, by its only convolution: a map of the green corner."""
    x = keras.Input((32, 32, 3))
    y = keras.layers.Conv2D(2, 1, use_bias=False, name="c")(x)
    y = keras.layers.GlobalAveragePooling2D()(y)
    if separate:
        y = keras.layers.Softmax(name="gender")(keras.layers.Dense(2, name="logits")(y))
    else:
        y = keras.layers.Dense(2, "softmax", name="gender")(y)
    model = keras.Model(x, {"gender": y})
    model.get_layer("c").set_weights([np.array([[[[1.0, 0], [0, 1], [0, 0]]]])])
    model.get_layer("logits" if separate else "gender").set_weights([np.array([[0.1, 0], [0, 0.2]]), np.zeros(2)])
    picture = np.zeros((1, 32, 32, 3), "float32")
    picture[0, :8, :8, 1] = 200
    picture[0, 24:, 24:, 0] = 100
    found = models.grad_cam(model, picture, "gender", layer="c")[0]
    np.testing.assert_allclose(found[:8, :8], 200 * 0.2 / 32**2, rtol=1e-5)
    found[:8, :8] = 0
    assert not found.any()


def test_regions_lie_where_the_landmarks_are():
    picture = data.astronaut()
    crops = faces.crop_face(picture, faces.detect(picture).iloc[0], size=124)[None]
    points, sure = faces.crop_landmarks(crops)
    assert sure[0] > 0.9
    found = faces.regions(points, 124)[0]

    def at(x, y):
        return faces.REGIONS[found[int(y * 124), int(x * 124)]]

    left, right, nose, mouth_left, mouth_right = points[0]
    assert [at(*left), at(*right), at(*nose)] == ["eyes", "eyes", "nose"]
    assert at(*(mouth_left + mouth_right) / 2) == "mouth"
    assert at(left[0], (left[1] + mouth_left[1]) / 2 + 0.05) == "cheeks"
    assert at((left[0] + right[0]) / 2, left[1] - 0.22) == "forehead"
    assert at(0.02, 0.98) == "elsewhere"


def test_regions_turn_and_grow_with_the_face():
    turn = np.exp(0.4j) * 0.7
    z = (faces.FRAME - 0.5) @ [1, 1j] * turn
    upright = faces.regions(faces.FRAME[None], 200)[0]
    turned = faces.regions(np.stack([z.real, z.imag], axis=-1)[None] + 0.5, 200)[0]
    axis = (np.arange(200) + 0.5) / 200 - 0.5
    back = (axis[None] + 1j * axis[:, None]) / turn
    inside = (np.abs(back.real) < 0.49) & (np.abs(back.imag) < 0.49)
    column, row = (((part[inside] + 0.5) * 200).astype(int) for part in (back.real, back.imag))
    assert (upright[row, column] == turned[inside]).mean() > 0.97


def test_shares_of_a_map():
    regions = np.zeros((2, 62, 62), "uint8")
    regions[:, :31] = 1
    even, upper = np.ones((8, 8)), np.zeros((8, 8))
    upper[:2] = 1
    found = attention.shares(np.stack([even, upper]), regions, ["below", "above"])
    np.testing.assert_allclose(found, [[0.5, 0.5], [0, 1]], atol=1e-6)
    assert np.isnan(attention.shares(np.zeros((1, 8, 8)), regions[:1], ["below", "above"])).all()


# Training -----------------------------------------------------------------------------------------------


def test_a_network_with_both_heads_is_trained_as_it_is(tmp_path):
    """`train_multitask` takes it, learns, and refuses a recipe with other ages."""
    from PIL import Image

    random = np.random.default_rng(0)
    rows = []
    for i in range(160):
        picture = random.integers(0, 90, (40, 40, 3), dtype="uint8")
        picture[..., i % 2] += 120
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        rows.append({"path": f"{i}.png", "crop": str(tmp_path / f"{i}.jpg"), "age": 20.0 + i % 40,
                     "male": i % 2 * 1.0, "identity": str(i), "fold": "train", "keep": True, "region": "western"})
        Image.fromarray(picture).save(rows[-1]["crop"])
    x = keras.Input((32, 32, 3))
    y = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 64, -2)(x))
    model = models.tell_gender(keras.Model(x, y, name="colours"), dropout=0.0)
    recipe = training.OURS._replace(
        every_age=False, beside=0, learning_rate=0.05, augmentation=batches.NO_AUGMENTATION)
    trained, history = training.train_multitask(
        pd.DataFrame(rows), tmp_path / "run", model, epochs=6, recipe=recipe, progress=False)
    assert trained is model
    assert history["tune_accuracy"].iloc[-1] > 0.9
    with pytest.raises(ValueError, match="117 ages, and the network has 48"):
        training.train_multitask(pd.DataFrame(rows), tmp_path / "other", model, recipe=training.OURS)


@pytest.mark.skipif(not fast.available(), reason="needs PyTorch and a C++ compiler")
def test_the_fast_step_refuses_channels_it_would_overrun():
    x = keras.Input((8, 8, 3))
    y = keras.layers.BatchNormalization(name="norm")(keras.layers.Conv2D(12, 3)(x))
    model = keras.Model(x, {"gender": keras.layers.Dense(2, "softmax")(keras.layers.GlobalAveragePooling2D()(y))})
    with pytest.raises(ValueError, match="8 channels at once, and norm has 12"):
        fast.FastModel(model)
