"""dlib's face recognition network in Keras, against dlib itself and on faces."""

import importlib.util

import numpy as np
import pytest
from PIL import Image
from skimage import data

from fag_utils import datasets, faces, fast, models
from fag_utils.models.face_resnet import read_dlib


def astronaut(size=150):
    picture = Image.fromarray(data.astronaut())
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, (150, 20, 300, 170)))[None]


def test_its_numbers_are_those_of_dlib():
    """Of dlib 20.0's face_recognition_model_v1.compute_face_descriptor for this picture."""
    embedding = models.face_recogniser(150).predict(astronaut().astype("float32"), verbose=0)
    assert embedding.shape == (1, 128)
    np.testing.assert_allclose(embedding[0, :6], [-0.0833, 0.1414, 0.0557, -0.0147, -0.0781, -0.0470], atol=1e-4)
    assert np.linalg.norm(embedding) == pytest.approx(1.35426, abs=1e-4)


@pytest.mark.parametrize("size", [62, 112, 151])
def test_any_size_gives_256_features(size):
    model = models.age_gender(models.face_resnet(size, "faces"))
    assert model.get_layer("age_dropout").input.shape == (None, 256)
    assert model.predict(astronaut(size).astype("float32"), verbose=0)["age"].shape == (1, 48)


def test_parameters_and_cost():
    cost = models.count(models.face_recogniser())
    # dlib's file: 29 convolutions with bias and affine layer each, 128 x 256 at the end; the affine layers melt
    # into the convolutions, and the three 1x1 convolutions that widen are ours.
    channels = [32] * 7 + [64] * 8 + [128] * 6 + [256] * 8
    assert cost["parameters"] == 5_614_592 - 2 * sum(channels) + 32 * 64 + 64 * 128 + 128 * 256


def test_the_fast_step_computes_the_same():
    if not fast.available():
        pytest.skip("needs PyTorch and a C++ compiler")
    model = models.age_gender(models.face_resnet(112, "faces"))
    pictures = np.random.default_rng(0).uniform(0, 255, (4, 112, 112, 3)).astype("float32")
    expected, answer = model.predict(pictures, verbose=0), fast.FastModel(model, mixed=False).probabilities(pictures)
    for head in expected:
        np.testing.assert_allclose(answer[head], expected[head], atol=1e-5)


@pytest.mark.parametrize("arguments, message", [
    ({"size": 31}, "32 pixels"), ({"weights": "imagenet"}, 'None or "faces"'),
])
def test_what_it_cannot_build_is_said(arguments, message):
    with pytest.raises(ValueError, match=message):
        models.face_resnet(**arguments)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(models.WeightsError, match="pip install face-recognition-models"):
        models.face_resnet(64, "faces")


def test_another_file_is_refused(tmp_path):
    (tmp_path / "faces.dat").write_bytes(b"\x01\x02")
    with pytest.raises(models.WeightsError, match="faces.dat isn't the file"):
        read_dlib(tmp_path / "faces.dat")


def test_two_pictures_of_a_person_are_closer_than_those_of_two(fag_data):
    """On CelebA's small pictures: how often a pair of one person is closer than a pair of two."""
    celeba = datasets.read("celeba", fag_data / "celeba")
    several = celeba[celeba.groupby("identity")["identity"].transform("size") > 1].sort_values("identity")
    several = several.groupby("identity").head(2)[:60]
    crops = np.stack([faces.crop_framed(faces.read_picture(path), "celeba", 112) for path in several["path"]])
    embedding = models.face_recogniser().predict(crops.astype("float32"), verbose=0)
    distance = np.linalg.norm(embedding[:, None] - embedding[None], axis=-1)
    same = several["identity"].to_numpy()[:, None] == several["identity"].to_numpy()[None]
    one, two = distance[same & ~np.eye(len(same), dtype=bool)], distance[~same]
    assert (one[:, None] < two[None]).mean() > 0.97
