"""The photographs of the tests: one scene in every encoding and layout that a person may have, made anew each time.

Nothing is kept on disk, and nobody is in them but the astronaut of scikit-image and faces of the classroom set,
which belong to nobody.
"""

import functools
import io

import numpy as np
from PIL import Image
from skimage import data

from fag_utils.datasets import classroom

ORIENTATION = 0x0112  # of EXIF


@functools.lru_cache
def portraits(n=12, seed=4):
    """Portraits of nobody, uint8 (n, 218, 178, 3), as CelebA's are: the face is about 100 pixels high."""
    faces, _ = classroom.sample(n, seed=seed, size=96)
    return classroom.portrait(faces, seed=seed)


@functools.lru_cache
def scene():
    """The astronaut and three drawn people beside her: uint8 (512, 1046, 3)."""
    people = [np.asarray(Image.fromarray(one).resize((178, 218))) for one in portraits()[:3]]
    side = np.full((512, 534, 3), 110, "uint8")
    for number, person in enumerate(people):
        top = 60 + 90 * (number % 2)
        side[top : top + 218, 178 * number : 178 * (number + 1)] = person
    return np.ascontiguousarray(np.hstack([data.astronaut(), side]))


def group(height, width, faces, seed=0):
    """A group photograph of drawn people on a photograph of grass: picture, middles (n, 2) in pixels.

    faces : their heights in pixels
    """
    rng = np.random.default_rng(seed)
    grass = Image.fromarray(data.grass()).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    columns = int(np.ceil(np.sqrt(len(faces) * width / height)))
    rows = -(-len(faces) // columns)
    middles = []
    for number, size in enumerate(faces):
        person = Image.fromarray(portraits()[rng.integers(len(portraits()))])
        scale = size / 100
        person = person.resize((round(178 * scale), round(218 * scale)), Image.Resampling.LANCZOS)
        middle = (number % columns + 0.5) * width / columns, (number // columns + 0.5) * height / rows
        grass.paste(person, (int(middle[0] - person.width / 2), int(middle[1] - person.height * 0.57)))
        middles.append(middle)
    return np.asarray(grass), np.array(middles)


def encoded(picture, kind="PNG", **options):
    """The bytes of a file. picture : array or PIL image; kind : a format of Pillow's, or HEIF."""
    if kind == "HEIF":
        import pillow_heif

        pillow_heif.register_heif_opener()
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **options)
    return file.getvalue()


def turned(picture, orientation):
    """(array, bytes of EXIF): the picture as a camera held in this way would store it."""
    stored = {1: picture, 3: np.rot90(picture, 2), 6: np.rot90(picture), 8: np.rot90(picture, -1)}[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return np.ascontiguousarray(stored), exif.tobytes()


def encodings(picture):
    """{name: bytes} of the same picture (h, w, 3) in many files; all but the grey ones have its colours."""
    image = Image.fromarray(picture)
    other = Image.fromarray(255 - picture)
    alpha = np.dstack([picture, np.full(picture.shape[:2], 255, "uint8")])
    files = {
        "jpeg": encoded(image, "JPEG", quality=92),
        "progressive jpeg": encoded(image, "JPEG", quality=92, progressive=True),
        "cmyk jpeg": encoded(image.convert("CMYK"), "JPEG", quality=92),
        "png": encoded(image),
        "png with alpha": encoded(alpha),
        "webp": encoded(image, "WEBP", quality=90),
        "animated webp": encoded(image, "WEBP", quality=90, save_all=True, append_images=[other]),
        "tiff": encoded(image, "TIFF", compression="tiff_lzw"),
        "bmp": encoded(image, "BMP"),
        "jpeg 2000": encoded(image, "JPEG2000", quality_layers=[8]),
        "heic": encoded(image, "HEIF", quality=90),
        "avif": encoded(image, "AVIF", quality=95),
    }
    for orientation in (3, 6, 8):
        stored, exif = turned(picture, orientation)
        files[f"jpeg, held as {orientation}"] = encoded(stored, "JPEG", quality=92, exif=exif)
    stored, exif = turned(picture, 6)
    files["heic, held as 6"] = encoded(stored, "HEIF", quality=90, exif=exif)
    for turns in (1, 2, 3):
        files[f"png, on its side {turns}"] = encoded(np.ascontiguousarray(np.rot90(picture, turns)))
    return files


def coarse_encodings(picture):
    """Files that lose colours or grey levels: {name: bytes}."""
    image = Image.fromarray(picture)
    grey = np.asarray(image.convert("L"))
    palette = image.quantize(256)
    return {
        "grey jpeg": encoded(grey, "JPEG", quality=92),
        "16-bit png": encoded(grey.astype("uint16") * 257),
        "palette png": encoded(palette),
        "animated gif": encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
    }
