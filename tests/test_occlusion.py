"""Ocular crops and drawn masks: on people's pictures, on drawn faces, and at training speed."""

import time

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from fag_utils import batches, faces, occlusion
from fag_utils.cleaning import CROP_MARGIN
from fag_utils.datasets import classroom

ASTRONAUT = data.astronaut()


@pytest.fixture(scope="module")
def face():
    return faces.detect(ASTRONAUT, thorough=False).iloc[0]


@pytest.fixture(scope="module")
def crops():
    """Twelve drawn faces in the frame, 62 pixels wide."""
    drawn, _ = classroom.sample(12, seed=5, size=62)
    return np.asarray(drawn)


def one(masks, i):
    return {name: value[i : i + 1] for name, value in masks.items()}


def eye_region(to_frame, size, points=faces.FRAME, tall=0.04, wide=0.09):
    """Which pixels show an eye: (size, size) bool."""
    y, x = np.mgrid[:size, :size]
    place = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.asarray(to_frame, "float64").T
    return np.any([((place - eye) / [wide, tall]) ** 2 @ [1, 1] <= 1 for eye in points[:2]], axis=0)


# --- masks


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(24, 100), st.floats(1, 1.3),
       st.lists(st.floats(-0.03, 0.03), min_size=10, max_size=10), st.floats(-0.09, 0.09))
def test_a_mask_covers_the_mouth_never_the_eyes_and_changes_nothing_beside(seed, size, margin, jitter, lean):
    """On any picture, for any head that is about upright."""
    points = faces.FRAME + np.reshape(jitter, (5, 2))
    points[2, 0] += lean
    pictures = tf.random.stateless_uniform((3, size, size, 3), [seed, 1], 0, 256)
    pictures = np.floor(pictures.numpy()).astype("uint8")
    to_frame = occlusion.framing(size, margin)
    drawn, opacity = (out.numpy() for out in occlusion.draw(
        pictures, occlusion.random_masks(3, [seed, 2]), to_frame, points))
    assert drawn.shape == pictures.shape and drawn.dtype == np.float32 and opacity.shape == pictures.shape[:3]
    assert drawn.min() >= 0 and drawn.max() <= 255 and opacity.min() >= 0 and opacity.max() <= 1 + 1e-6
    np.testing.assert_array_equal(drawn[opacity == 0], pictures[opacity == 0])
    assert not opacity[:, eye_region(to_frame, size, points)].any()
    x, y = (np.linalg.inv(np.vstack([to_frame, [0, 0, 1]])) @ [*points[3:].mean(axis=0), 1])[:2].round().astype(int)
    assert (opacity[:, y, x] > 0.99).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31 - 1), st.integers(1, 9))
def test_the_same_seed_gives_the_same_mask_whoever_else_is_in_the_batch(seed, n):
    drawn, _ = classroom.sample(n, seed=3, size=40)
    to_frame, masks = occlusion.framing(40), occlusion.random_masks(n, [seed, 0])
    whole, _ = occlusion.draw(drawn, masks, to_frame)
    again, _ = occlusion.draw(drawn, occlusion.random_masks(n, [seed, 0]), to_frame)
    np.testing.assert_array_equal(whole, again)
    for i in range(n):
        alone, _ = occlusion.draw(drawn[i : i + 1], one(masks, i), to_frame)
        np.testing.assert_allclose(alone[0], whole[i], atol=0.02)
    other, _ = occlusion.draw(drawn, occlusion.random_masks(n, [seed, 1]), to_frame)
    assert not np.array_equal(whole, other)


def test_what_is_asked_for_is_drawn(crops):
    to_frame = occlusion.framing(62)
    cloth = np.zeros((62, 62), bool)
    cloth[46:54, 22:40] = True  # below the mouth
    for colour, brighter in (("white", "black"), ((250, 250, 250), (20, 20, 20)), ("pink", "navy")):
        light, dark = (occlusion.draw(crops, occlusion.random_masks(12, [0, 0], colour=c, pattern="plain"),
                                      to_frame)[0] for c in (colour, brighter))
        assert (light.numpy()[:, cloth].mean(axis=(1, 2)) > dark.numpy()[:, cloth].mean(axis=(1, 2)) + 25).all()
    red, _ = occlusion.draw(crops, occlusion.random_masks(12, [0, 0], colour="red", pattern="plain"), to_frame)
    red = red.numpy()[:, cloth].mean(axis=1)
    assert (red[:, 0] > 1.5 * red[:, 1]).all()
    nose = [occlusion.draw(crops, occlusion.random_masks(12, [0, 0], nose=nose), to_frame)[1][:, 32, 31].numpy()
            for nose in (True, False)]
    assert (nose[0] > 0.99).all() and (nose[1] < 0.5).all(), "covered, free"
    roughness = {}
    for pattern in occlusion.PATTERNS:
        masks = occlusion.random_masks(12, [0, 0], kind="cloth", colour="white", pattern=pattern)
        drawn = occlusion.draw(crops, masks, to_frame)[0].numpy()[:, 42:54, 20:42].mean(axis=-1)
        roughness[pattern] = np.abs(np.diff(drawn, axis=2)).mean() + np.abs(np.diff(drawn, axis=1)).mean()
    assert min(rough for name, rough in roughness.items() if name != "plain") > 2 * roughness["plain"]


@pytest.mark.parametrize("choice", [{"kind": "scarf"}, {"colour": "octarine"}, {"pattern": "tartan"}])
def test_what_it_does_not_know_is_said(choice):
    (value,) = choice.values()
    with pytest.raises(ValueError, match=f"must be one of .*{value}"):
        occlusion.random_masks(1, [0, 0], **choice)


def test_all_kinds_colours_and_patterns_occur_as_often_as_they_should():
    masks = occlusion.random_masks(4000, [1, 2])
    kind = np.where(masks["pleats"] > 0, 0, np.where(masks["width"] < 0.86, 2, 1))
    assert 0.4 < (kind == 0).mean() < 0.5
    shares = np.mean(masks["pattern"], axis=0)
    assert (shares > 0.01).all() and 0.7 < shares[0] < 0.9
    assert 0.08 < np.mean(masks["top"] > 0.6) < 0.16, "worn below the nose"


def test_masks_are_as_bright_as_the_picture_and_grey_where_it_is(crops):
    masks, to_frame = occlusion.random_masks(12, [3, 3], colour="blue", pattern="plain"), occlusion.framing(62)
    mouth = np.s_[:, 44:52, 24:38]
    bright = occlusion.draw(crops, masks, to_frame)[0].numpy()[mouth]
    dark = occlusion.draw(crops * np.float32(0.4), masks, to_frame)[0].numpy()[mouth]
    assert (dark.mean(axis=(1, 2, 3)) < 0.6 * bright.mean(axis=(1, 2, 3))).all()
    grey = np.repeat(crops.mean(axis=-1, keepdims=True), 3, axis=-1)
    drawn = occlusion.draw(grey, masks, to_frame)[0].numpy()[mouth]
    assert np.ptp(drawn, axis=-1).max() < 2 < np.ptp(bright, axis=-1).min()


def test_a_mask_moves_with_the_face_in_augmentation(crops):
    """A mask on the turned crop is where the turned mask would be."""
    stored = tf.image.resize(crops, (97, 97)).numpy().round().astype("uint8")
    everything = batches.NO_AUGMENTATION._replace(flip=True, turn=25.0, scale=0.15, shift=0.06)
    bare = batches.see(stored, 62, everything, [4, 4]).numpy()
    seen = batches.see(stored, 62, everything._replace(mask=1.0), [4, 4]).numpy()
    # The same with a place of its own colour where the mouth is and where the eyes are: that is followed.
    marked = np.zeros((*stored.shape[:3], 3), "uint8")
    to_frame = occlusion.framing(97, CROP_MARGIN)
    marked[:, eye_region(to_frame, 97)] = 255, 0, 0
    y, x = np.mgrid[:97, :97]
    place = np.stack([x, y, np.ones_like(x)], axis=-1) @ to_frame.T
    marked[:, np.hypot(*(place - [0.49, 0.72]).transpose(2, 0, 1)) < 0.08] = 0, 255, 0
    where = batches.see(marked, 62, everything, [4, 4]).numpy()
    changed = np.abs(seen - bare).max(axis=-1) > 2
    assert not changed[where[..., 0] > 200].any(), "eyes"
    assert changed[where[..., 1] > 200].mean() > 0.97, "mouth"


@pytest.mark.parametrize("eyes", [*occlusion.EYES, None])
def test_an_ocular_network_sees_the_region_of_the_eyes_in_training(crops, eyes):
    """Unvaried it is the crop that the demo cuts; turned and shifted, the region of the turned and shifted face."""
    stored = tf.image.resize(crops, (134, 134)).numpy().round().astype("uint8")
    plain = batches.see(stored, 40, batches.NO_AUGMENTATION, [0, 0], eyes=eyes).numpy()
    if eyes:
        wanted = occlusion.ocular(stored, eyes, 40, CROP_MARGIN).numpy()
        assert plain.shape == wanted.shape
        assert np.abs(plain - wanted).mean() < 2
        photo = np.stack([faces.crop_eyes(face, faces.FOUND * 62, eyes, 40) for face in crops])
        bare = batches.see(tf.image.resize(crops, (62, 62)), 62, batches.NO_AUGMENTATION, [0, 0])
        assert photo.shape == wanted.shape and photo.dtype == np.uint8 and bare.shape[1] == 62
    moved = batches.NO_AUGMENTATION._replace(flip=True, turn=20.0, shift=0.05, scale=0.1)
    whole = batches.see(stored, 200, moved, [3, 3]).numpy()
    seen = batches.see(stored, 40, moved, [3, 3], eyes=eyes).numpy()
    left, top, right, bottom = faces.EYES[eyes] if eyes else (0, 0, 1, 1)
    part = whole[:, round(200 * top) : round(200 * bottom), round(200 * left) : round(200 * right)]
    assert np.abs(tf.image.resize(part, seen.shape[1:3], antialias=True) - seen).mean() < 4


def test_a_share_of_the_batch_is_masked_and_told(crops):
    table = pd.DataFrame({"age": [30.0] * 12, "male": [1.0] * 12})
    stored = tf.image.resize(crops, (97, 97)).numpy().round().astype("uint8")
    some = batches.NO_AUGMENTATION._replace(mask=0.5)
    rows = np.arange(12)[None]
    make = lambda augmentation, points=None: next(iter(batches.dataset(  # noqa: E731
        stored, table, rows, 62, augmentation, seed=8, heads=("age", "masked"), points=points)))
    pictures, targets, weights = make(some)
    bare, none, _ = make(batches.NO_AUGMENTATION)
    told = targets["masked"].numpy().argmax(axis=1).astype(bool)
    changed = np.abs(pictures - bare).max(axis=(1, 2, 3)) > 0
    np.testing.assert_array_equal(told, changed)
    assert 2 <= told.sum() <= 10 and not none["masked"].numpy()[:, 1].any()
    assert (weights["masked"].numpy() == 1).all()
    fitted, _, _ = make(some, np.tile(faces.FRAME + 0.02, (12, 1, 1)))
    assert not np.array_equal(fitted, pictures)


def test_crops_for_evaluation(crops):
    drawn = occlusion.wear_crops(crops, seed=1)
    assert drawn.dtype == np.uint8 and drawn.shape == crops.shape
    np.testing.assert_array_equal(drawn, occlusion.wear_crops(crops, seed=1))
    assert np.abs(drawn.astype(int) - crops).max(axis=(1, 2, 3)).min() > 0
    np.testing.assert_array_equal(occlusion.wear_crops(crops[:0]), crops[:0])


def test_drawing_is_fast(crops):
    """At least half of 2,000 pictures a second for one core: a machine that tests is often busy."""
    pictures = tf.constant(np.resize(crops, (128, 62, 62, 3)), tf.float32)
    function = tf.function(lambda seed: occlusion.wear(pictures, seed))
    function(tf.constant([0, 0]))
    seconds = []
    for i in range(4):
        start = time.process_time()
        function(tf.constant([0, i]))
        seconds.append(time.process_time() - start)
    assert 128 / min(seconds) > 1000


# --- photographs


def test_a_photograph_gets_a_mask_over_mouth_and_nose(face):
    masks = occlusion.random_masks(1, [0, 1], kind="surgical", colour="blue", pattern="plain", nose=True)
    drawn = occlusion.wear_photo(ASTRONAUT, face, masks)
    changed = np.abs(drawn.astype(int) - ASTRONAUT).max(axis=-1) > 3
    points = faces.points_of(face).round().astype(int)
    assert [bool(changed[y, x]) for x, y in points] == [False, False, True, True, True]
    rows, columns = np.nonzero(changed)
    side = 1.4 * face["height"]
    assert np.ptp(rows) < side and np.ptp(columns) < side
    assert drawn.dtype == np.uint8 and not np.shares_memory(drawn, ASTRONAUT)
    mouth = drawn[points[3:, 1].max() + 4, points[3:, 0].mean().astype(int)].astype(int)
    assert mouth[2] > mouth[0] + 10, "blue"


def test_the_mask_on_a_photograph_is_that_on_its_crop(face):
    masks = occlusion.random_masks(1, [0, 5], kind="cloth", colour="white", pattern="stripes", nose=True)
    from_photo = faces.crop_face(occlusion.wear_photo(ASTRONAUT, face, masks), face, 62).astype(float)
    points = faces.in_frame(faces.points_of(face))
    bare = faces.crop_face(ASTRONAUT, face, 62)
    on_crop = occlusion.draw(bare[None], masks, occlusion.framing(62), points)[0][0].numpy()
    # Its light is measured over another part of the photograph, so it is a little brighter or darker.
    assert np.abs(from_photo - on_crop).mean() < 0.25 * np.abs(from_photo - bare).mean()


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_face_gets_a_turned_mask(face, turns):
    masks = occlusion.random_masks(1, [0, 1], nose=True)
    upright = occlusion.wear_photo(ASTRONAUT, face, masks)
    turned = face.copy()
    points, side = faces.points_of(face), len(ASTRONAUT)
    for _ in range(turns):
        points = np.stack([points[:, 1], side - 1 - points[:, 0]], axis=1)
    turned[faces.LANDMARK_COLUMNS] = points.ravel()
    drawn = occlusion.wear_photo(np.ascontiguousarray(np.rot90(ASTRONAUT, turns)), turned, masks)
    back = np.rot90(drawn, -turns).astype(int)
    assert (np.abs(back - upright).max(axis=-1) > 40).mean() < 0.01


@pytest.mark.filterwarnings("error")
@settings(max_examples=15, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.lists(st.floats(-100, 200), min_size=10, max_size=10))
def test_landmarks_anywhere_leave_a_picture(height, width, places):
    picture = np.full((height, width, 3), 120, "uint8")
    face = pd.Series(dict(zip(faces.LANDMARK_COLUMNS, places, strict=True)))
    drawn = occlusion.wear_photo(picture, face, occlusion.random_masks(1, [0, 0]))
    assert drawn.shape == picture.shape and drawn.dtype == np.uint8


def test_landmarks_of_crops(face):
    crop = faces.crop_face(ASTRONAUT, face, 134, CROP_MARGIN)
    points, sure = faces.crop_landmarks([crop, np.zeros_like(crop)], CROP_MARGIN)
    assert points.shape == (2, 5, 2) and sure[0] > 0.9
    assert np.abs(points[0] - faces.FRAME).max() < 0.08
    np.testing.assert_allclose(points[1], faces.FRAME, atol=1e-6)
    assert sure[1] < 0.3


# --- the eyes


@pytest.mark.parametrize("eyes", occlusion.EYES)
@pytest.mark.parametrize("margin", [1.0, 1.2])
def test_ocular_crops_show_the_eyes_in_their_middle(eyes, margin):
    size = 120
    marked = np.zeros((1, size, size, 3), "uint8")
    marked[0, eye_region(occlusion.framing(size, margin), size, tall=0.06, wide=0.06)] = 255
    seen = occlusion.ocular(marked, eyes, 40, margin).numpy()[0, ..., 0]
    assert seen.shape == occlusion.eye_shape(eyes, 40) and seen.shape[1] == 40
    y, x = (axis.mean() for axis in np.nonzero(seen > 127))
    np.testing.assert_allclose([y, x], (np.array(seen.shape) - 1) / 2, atol=1.5)
    scale = 40 / (occlusion.EYES[eyes][2] - occlusion.EYES[eyes][0])  # pixels for the frame's side
    area = (seen / 255).sum() / scale**2
    assert area == pytest.approx((2 if eyes == "both" else 1) * np.pi * 0.06**2, rel=0.12)


def test_left_is_left_as_seen():
    ramp = np.broadcast_to(np.arange(100, dtype="uint8")[:, None], (1, 100, 100, 3))
    left, right = (occlusion.ocular(ramp, eyes).numpy().mean() for eyes in ("left", "right"))
    assert left == pytest.approx(30, abs=1) and right == pytest.approx(68.5, abs=1)


def test_the_ocular_crop_of_a_photograph_is_that_of_its_crop(face):
    for eyes in occlusion.EYES:
        crop = faces.crop_eyes(ASTRONAUT, faces.points_of(face), eyes, 62, eyes_only=True)
        assert crop.dtype == np.uint8 and crop.shape[:2] == occlusion.eye_shape(eyes, 62)
        framed = faces.crop_face(ASTRONAUT, face, 200, eyes_only=True)
        again = occlusion.ocular(framed[None], eyes, 62).numpy()[0]
        assert np.abs(crop - again).mean() < 3


def test_the_ocular_crop_does_not_see_the_mouth(face):
    moved = face.copy()
    moved[["mouth_left_y", "mouth_right_y", "nose_x"]] += 12
    one, other = (faces.crop_eyes(ASTRONAUT, faces.points_of(seen), eyes_only=True) for seen in (face, moved))
    np.testing.assert_array_equal(one, other)


def test_an_eye_nobody_has_is_refused():
    with pytest.raises(ValueError, match="must be one of"):
        occlusion.ocular(np.zeros((1, 62, 62, 3), "uint8"), "third")


# --- real pictures


def test_masks_on_real_faces_leave_the_eyes(fag_data):
    """Aligned pictures, by geometry and by landmarks: the mask begins below the eyes and reaches the chin."""
    names = sorted((fag_data / "utkface" / "UTKFace").glob("30_*.jpg"))[:24]
    crops = np.array([faces.crop_framed(faces.read_picture(name), "utkface", 62) for name in names])
    points, sure = faces.crop_landmarks(crops)
    assert np.mean(sure > 0.7) > 0.85
    assert np.abs(np.median(points[sure > 0.7], axis=0) - faces.FRAME).max() < 0.03
    for where in (None, points):
        masks = occlusion.random_masks(24, [0, 0], nose=True)
        _, opacity = occlusion.draw(crops, masks, occlusion.framing(62), where)
        for i in range(24):
            region = eye_region(occlusion.framing(62), 62, points[i] if where is not None else faces.FRAME)
            assert not opacity[i].numpy()[region].any()
        assert opacity[:, 40:50, 24:38].numpy().min() > 0.98
