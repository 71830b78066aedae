"""SqueezeNet, MobileNetV2 and MobiFace against their published layouts and figures."""

import keras
import numpy as np
import pytest
from skimage import data

from fag_utils import models

PUBLISHED = models.MOBILE_PUBLISHED


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_squeezenet_has_the_published_parameters(version):
    published = PUBLISHED[f"squeezenet {version}"]
    cost = models.count(models.squeezenet_classifier(published["size"], version))
    assert cost["parameters"] == published["parameters"]
    if "multiply_adds" in published:
        assert cost["multiply_adds"] == pytest.approx(published["multiply_adds"], rel=0.01)


def test_squeezenet_halves_the_map_where_it_is_published_to():
    """At 224: the output sizes of the paper's table, and of the authors' 1.1."""
    pooled = {version: [layer.output.shape[1:] for layer in models.squeezenet(224, version).layers
                        if "pool" in layer.name] for version in models.SQUEEZENET}
    assert pooled == {"1.0": [(54, 54, 96), (27, 27, 256), (13, 13, 512)],
                      "1.1": [(55, 55, 64), (27, 27, 128), (13, 13, 256)]}


def test_squeezenet_is_the_network_of_the_authors_numbers():
    """Against the same layers in PyTorch, with its way of pooling over the edge: at even and odd sides."""
    torch = pytest.importorskip("torch")
    from torch import nn

    class Fire(nn.Module):
        def __init__(self, inputs, squeeze, expand):
            super().__init__()
            self.squeeze = nn.Conv2d(inputs, squeeze, 1)
            self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

        def forward(self, x):
            x = torch.relu(self.squeeze(x))
            return torch.cat([torch.relu(self.one(x)), torch.relu(self.three(x))], 1)

    torch.manual_seed(0)
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    theirs = nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool, Fire(64, 16, 64), Fire(128, 16, 64), pool, Fire(128, 32, 128),
        Fire(256, 32, 128), pool, Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256))
    for size in (62, 75, 112):
        ours = models.squeezenet(size)
        convolutions = [layer for layer in theirs.modules() if isinstance(layer, nn.Conv2d)]
        for layer, its in zip([each for each in ours.layers if each.weights], convolutions, strict=True):
            layer.set_weights([its.weight.detach().numpy().transpose(2, 3, 1, 0), its.bias.detach().numpy()])
        picture = np.random.default_rng(size).integers(0, 256, (2, size, size, 3)).astype("float32")
        scaled = torch.from_numpy((picture - 117) / 58).permute(0, 3, 1, 2)
        expected = theirs(scaled).mean(dim=(2, 3)).detach().numpy()
        np.testing.assert_allclose(ours.predict(picture, verbose=0), expected, atol=1e-4)


def test_mobilenet_v2_agrees_with_the_publication():
    backbone = models.mobilenet_v2(224)
    cost, head = models.count(backbone), 1280 * 1000
    published = PUBLISHED["mobilenet_v2"]
    assert backbone.output.shape == (None, 1280)
    assert cost["trainable"] + head + 1000 == 3_504_872
    assert cost["trainable"] + head == pytest.approx(published["parameters"], rel=0.035)
    assert cost["multiply_adds"] + head == pytest.approx(published["multiply_adds"], rel=0.01)


def test_mobilenet_v2_takes_imagenet_weights_of_keras_or_says_what_is_wrong(monkeypatch):
    asked = {}

    def theirs(input_tensor, weights, **others):
        asked.update(others, weights=weights)
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.applications, "MobileNetV2", theirs)
    with pytest.raises(models.WeightsError, match="network connection.*URL fetch failure"):
        models.mobilenet_v2(62, "imagenet")
    assert asked == {"weights": "imagenet", "alpha": 1.0, "include_top": False, "pooling": "avg"}


def test_mobiface_agrees_with_the_publication():
    """The rows of the paper's table, and its figures; the last layer is ours, see there."""
    model = models.mobiface()
    cost, last = models.count(model), 512 * 512
    published = PUBLISHED["mobiface"]
    assert cost["trainable"] - last < published["parameters"] < cost["trainable"]
    assert cost["trainable"] == pytest.approx(published["parameters"], rel=0.07)
    assert 2 * cost["multiply_adds"] == pytest.approx(published["flops"], rel=0.01)
    added = [layer.output.shape[1:] for layer in model.layers if isinstance(layer, keras.layers.Add)]
    assert added == [(28, 28, 64)] * 2 + [(14, 14, 128)] * 3 + [(7, 7, 256)] * 6
    assert model.output.shape == (None, 512)


BUILDERS = {"squeezenet": models.squeezenet, "mobilenet_v2": models.mobilenet_v2, "mobiface": models.mobiface}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_small_face_gives_age_and_gender_and_a_file_needs_no_custom_objects(name, tmp_path):
    model = models.age_gender(BUILDERS[name](62))
    model.save(tmp_path / "network.keras")
    again = keras.models.load_model(tmp_path / "network.keras")
    picture = data.astronaut()[:62, 180:242][None].astype("float32")
    before, after = (net.predict(picture, verbose=0) for net in (model, again))
    assert before["age"].shape == (1, 48) and np.isfinite(before["age"]).all()
    np.testing.assert_allclose(before["age"], after["age"], atol=1e-6)
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", BUILDERS)
def test_too_small_a_picture_is_refused(name):
    with pytest.raises(ValueError, match="32 pixels"):
        BUILDERS[name](31)


def test_what_they_cannot_build_is_said():
    with pytest.raises(ValueError, match="version must be one of"):
        models.squeezenet(62, "2.0")
    with pytest.raises(ValueError, match='None or "imagenet"'):
        models.mobilenet_v2(62, "faces")


def test_a_network_can_learn_who_wears_a_mask():
    """Even one that sees 8x8 pixels: in a few steps on drawn faces it gets much better than chance on others."""
    import pandas as pd
    import tensorflow as tf

    from fag_utils import batches
    from fag_utils.datasets import classroom

    keras.utils.set_random_seed(1)
    drawn, _ = classroom.sample(192, seed=4, size=62)
    crops = tf.image.resize(drawn, (50, 50)).numpy().round().astype("uint8")
    table = pd.DataFrame({"age": 30.0, "male": 1.0}, index=range(192))
    picture = keras.Input((32, 32, 3))
    features = keras.layers.Flatten()(keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 64, -2)(picture)))
    model = models.mask_classifier(keras.Model(picture, features, name="coarse"))
    model.compile(keras.optimizers.Adam(0.02), {"masked": "categorical_crossentropy"})
    half = batches.NO_AUGMENTATION._replace(mask=0.5)
    rows = np.concatenate([batches.shuffled(table.iloc[:128], 32, seed) for seed in range(10)])
    model.fit(batches.dataset(crops, table, rows, 32, half, seed=1, heads=["masked"]), verbose=0)
    ((pictures, targets, _),) = batches.dataset(crops, table, np.arange(128, 192)[None], 32, half, 2, ["masked"])
    told = model.predict(pictures, verbose=0)["masked"].argmax(axis=1)
    assert (told == targets["masked"].numpy().argmax(axis=1)).mean() > 0.75
