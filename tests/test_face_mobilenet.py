"""The public MobileNet that knows faces and ages, against the network as it was published."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_face_resnet import astronaut

from fag_utils import fast, models
from fag_utils.models.face_mobilenet import read_tfjs

KEPT = Path(__file__).resolve().parent.parent / "data" / "weights" / "face_mobilenet.npz"


def test_its_numbers_are_those_of_the_published_network():
    """Of `global_pooling/Mean` in faceres-deep for this picture, blue first and less its mean; kernels are kept as
    float16 here."""
    found = models.face_mobilenet(224, KEPT).predict(astronaut(224).astype("float32"), verbose=0)
    assert found.shape == (1, 1024) and found.dtype == np.float32
    np.testing.assert_allclose(found[0, [180, 658, 896, 620]], [1.7653, 1.4062, 1.3326, 1.2875], atol=1e-2)
    assert np.linalg.norm(found) == pytest.approx(10.160, rel=2e-3)


@pytest.mark.parametrize("size", [62, 112])
def test_any_size_gives_1024_features_of_the_same_face(size):
    large = models.face_mobilenet(224, KEPT).predict(astronaut(224).astype("float32"), verbose=0)
    found = models.face_mobilenet(size, KEPT).predict(astronaut(size).astype("float32"), verbose=0)
    assert found.shape == (1, 1024)
    assert np.corrcoef(found[0], large[0])[0, 1] > 0.8


def test_parameters_and_cost():
    """Those of MobileNet without its classifier (Howard et al. 2017: 4.2 million and 569 million with it)."""
    cost = models.count(models.face_mobilenet(224))
    assert cost["parameters"] == 4_253_864 - 1024 * 1000 - 1000
    assert cost["multiply_adds"] == pytest.approx(569e6 - 1.024e6, rel=0.005)


@pytest.mark.skipif(not fast.available(), reason="PyTorch or a C++ compiler is not installed")
def test_the_fast_step_computes_it():
    from fag_utils import training

    model, pictures = models.face_mobilenet(112, KEPT), np.repeat(astronaut(112).astype("uint8"), 3, axis=0)
    by_keras, fast_too = (training.embed(model, pictures, 112, engine) for engine in ("keras", "fast"))
    assert np.corrcoef(by_keras[0], fast_too[0])[0, 1] > 0.999


def test_a_size_and_weights_it_cannot_use_are_said(tmp_path):
    with pytest.raises(ValueError, match="size must be 32 pixels or more, got 20"):
        models.face_mobilenet(20)
    with pytest.raises(models.WeightsError, match="no weights can be read from .*nowhere.npz"):
        models.face_mobilenet(112, tmp_path / "nowhere.npz")
    with pytest.raises(models.WeightsError, match="no weights can be read from .*nowhere.json"):
        models.face_mobilenet(112, tmp_path / "nowhere.json")
    (tmp_path / "other.bin").write_bytes(b"1234")
    (tmp_path / "other.json").write_text(json.dumps({"weightsManifest": [{"paths": ["other.bin"], "weights": []}]}))
    with pytest.raises(models.WeightsError, match="beside other.json aren't those they should be"):
        read_tfjs(tmp_path / "other.json")
