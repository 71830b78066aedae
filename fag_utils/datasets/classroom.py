"""The classroom set: faces of nobody, made from a seed, in the layouts of four public sets.

The course must run with nothing to download and without a real person's picture. So the package ships a
small generative model: a mean face, eigenfaces (Turk and Pentland 1991, "Eigenfaces for recognition") of
pictures that were first brought to the shape of the mean face, the shapes taken along in the same principal
components (Cootes, Edwards, Taylor 1998, "Active appearance models"), and a regression of a face's coefficients
on age, gender and race. To make a face is to take the mean of its age and gender and add a random rest.

Whatever is learned from these pictures is a classroom result: it says nothing about people.
"""

import functools
import hashlib
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter

from fag_utils import labels

NAME = "classroom"
TITLE = "The classroom set"
LICENCE = "Generated pictures: free to use. The model was fitted on UTKFace and CelebA, for research only."
HOW_TO_GET = "It is made from a seed: fag_utils.datasets.classroom.ensure('data/classroom')"

MODEL_FILE = Path(__file__).with_name("classroom_model.npz")
SIZE = 96  # pixels, side of a rendered face before it is resized
CHROMA = 32  # colour is seen more coarsely than light and dark, so it is kept more coarsely
GRID = 16  # the shape is a displacement on a grid of GRID x GRID points
RACES = ["white", "black", "asian", "indian", "others"]  # UTKFace's labels, in the order of their codes
KNOTS = np.array([18.0, 24, 30, 38, 46, 55, 65])  # years; between them the mean face moves in straight lines
ASIAN = np.array([name == "asian" for name in RACES])
MIN_COLOUR, MIN_SHARPNESS = 20, 150  # of a picture to learn from: mean of largest less smallest channel; Laplacian
RGB_TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])  # as JPEG


@dataclass(frozen=True)
class Model:
    """A face is `mean + coefficients @ basis`, in three blocks: luma, chroma, shape.

    A coefficient of 1 is one standard deviation. The basis is kept as small integers times a power of two,
    and coefficients are rounded to 1/64: so every sum of products is exact, whatever the order in which a machine
    adds, and a seed gives the same picture anywhere.
    """

    mean: np.ndarray  # (D,)
    basis: np.ndarray  # int8 (K, D)
    exponents: np.ndarray  # int8 (K, 3): the power of two of each block
    regression: np.ndarray  # (F, K): coefficients from features(age, male, race)
    spread: np.ndarray  # (K, K): lower triangle, a random rest is `normal numbers @ spread.T`
    reader: np.ndarray  # (K + 1, 2): a straight line from coefficients (and a one) to age and male
    ages: np.ndarray  # (2, 48): how many pictures of women and of men had each age
    races: np.ndarray  # (5,): how many pictures had each of RACES
    around: "Surroundings" = None

    @property
    def components(self):
        return len(self.basis)

    @functools.cached_property
    def directions(self):
        """The basis in grey levels and pixels, float64 (K, D)."""
        scale = np.repeat(2.0 ** self.exponents.astype("float64"), BLOCKS, axis=1)
        return self.basis * scale

    @functools.cached_property
    def gain(self):
        """The likeliest step of a face for which the reader reads one year more, or one gender more: (2, K)."""
        step = self.spread @ (self.spread.T @ self.reader[:-1])
        return _round(np.linalg.solve(self.reader[:-1].T @ step, step.T), 1024)


@dataclass(frozen=True)
class Surroundings:
    """Hair, neck, shoulders and background: principal components of whole portraits, framed as in CelebA."""

    mean: np.ndarray  # (D,): luma and chroma of a portrait
    basis: np.ndarray  # int8 (K, D)
    exponents: np.ndarray  # int8 (K, 2)

    @functools.cached_property
    def directions(self):
        return self.basis * np.repeat(2.0 ** self.exponents.astype("float64"), AROUND_BLOCKS, axis=1)

    @functools.cached_property
    def guess(self):
        """What a face tells of its surroundings: (weights, spread).

        The portrait's coefficients are normal numbers. Given the luma and chroma in the frame of the face, with
        an error of a few grey levels, they have the mean `weights @ (frame - mean)`, weights (K, pixels in the
        frame), and what remains open is `spread` (K, K), lower triangle.
        """
        seen = self.directions[:, IN_FRAME].T / AROUND_ERROR
        inverse = np.linalg.inv(seen.T @ seen + np.eye(len(self.basis)))
        return _round(inverse @ seen.T / AROUND_ERROR, 2**20), _round(np.linalg.cholesky(inverse), 2**14)


BLOCKS = [SIZE * SIZE, 2 * CHROMA * CHROMA, 2 * GRID * GRID]
WEIGHTS = [1.0, 3.0, 48.0]  # what one unit of a block counts in the principal components, in grey levels

# Portraits: 178 x 218 pixels as in CelebA, kept at 64 x 78; where the frame of the face lies: left, top, side.
PORTRAIT, FRAME_IN_PORTRAIT = (178, 218), (38.6, 82.0, 102.6)
AROUND = (64, 78)
AROUND_BLOCKS = [AROUND[0] * AROUND[1], 2 * (AROUND[0] // 2) * (AROUND[1] // 2)]
AROUND_ERROR = 12.0  # grey levels by which a portrait may differ from the face put into it


def _in_frame():
    """Which numbers of a portrait lie in the frame of its face: indices."""
    left, top, side = np.array(FRAME_IN_PORTRAIT) * AROUND[0] / PORTRAIT[0]
    masks = []
    for step, layers in ((1, 1), (2, 2)):
        x, y = (np.arange(0, size, step) + step / 2 for size in AROUND)
        inside = ((y > top) & (y < top + side))[:, None] & ((x > left) & (x < left + side))
        masks.append(np.broadcast_to(inside, (layers, *inside.shape)).ravel())
    return np.flatnonzero(np.concatenate(masks))


IN_FRAME = _in_frame()


# --- the model ---------------------------------------------------------------------------------------------


def features(ages, male, race):
    """Regressors of faces, float64 (n, F): a hat function for each knot of the age, by gender; and race.

    ages in years (n,), male 0 or 1 (n,), race: names as in RACES (UTKFace's labels), one or (n,).
    """
    ages, male = np.broadcast_arrays(np.atleast_1d(np.asarray(ages, "float64")), np.asarray(male, "float64"))
    race = np.broadcast_to(np.asarray(race), ages.shape)
    unknown = sorted(set(race.tolist()) - set(RACES))
    if unknown:
        raise ValueError(f"race must be one of {RACES}, got {unknown}")
    hats = np.stack([np.interp(ages, KNOTS, row) for row in np.eye(len(KNOTS))], axis=1)
    old = (np.clip(ages, KNOTS[0], KNOTS[-1]) - 40) / 20
    columns = [hats * (1 - male)[:, None], hats * male[:, None]]
    for name in RACES[1:]:
        columns.append((race == name)[:, None] * np.stack([np.ones_like(old), male, old], axis=1))
    return _round(np.concatenate(columns, axis=1), 1024)


def training_pictures(table):
    """Pictures to fit the model on, and their rows: of UTKFace's table, the adults of the training fold.

    Grey pictures would teach that faces may be grey, blurred ones that they may be blurred: both are left out.
    Returns uint8 (n, 96, 96, 3) and the table of these n rows with a column `race`.
    """
    from fag_utils.datasets import utkface

    table = table[table["reason"].isna() & (table["fold"] == "train")
                  & table["age"].between(labels.MIN_AGE, labels.MAX_AGE)]
    pictures, kept = [], []
    for index, path in table["path"].items():
        try:
            with Image.open(path) as image:
                picture = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))
        except OSError:
            continue
        colour = np.mean(picture.max(axis=-1).astype(float) - picture.min(axis=-1))
        grey = picture.mean(axis=-1)
        middle = grey[1:-1, 1:-1]
        laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
        if colour > MIN_COLOUR and laplacian.var() > MIN_SHARPNESS:
            pictures.append(picture)
            kept.append(index)
    table = table.loc[kept].reset_index(drop=True)
    return np.stack(pictures), table.assign(race=[utkface.race(path) for path in table["path"]])


def fit(pictures, ages, male, race, components=300, progress=print):
    """Fit the generative model on real faces.

    Parameters
    ----------
    pictures : uint8 (n, 96, 96, 3), RGB, face-filled and aligned as in UTKFace
    ages, male, race : labels of the pictures, (n,), race by name as in RACES
    components : int, how many principal components to keep
    progress : called with a line of text after each step

    Returns (Model, coefficients of the pictures (n, K)). The Model has no `around` yet, see `fit_surroundings`.
    Needs OpenCV 4 (for the optical flow); 10,000 pictures take about three minutes and 4 GB.
    """
    pictures = np.asarray(pictures)
    if pictures.shape[1:] != (SIZE, SIZE, 3) or len(pictures) <= components:
        raise ValueError(
            f"fit needs pictures of shape (n, {SIZE}, {SIZE}, 3) with n > {components} components, "
            f"got {pictures.shape}"
        )
    flow = align(pictures, progress=progress)
    vectors = to_vectors(pictures, flow)
    progress("pictures brought to the mean shape")
    weights = np.repeat(np.array(WEIGHTS, "float32"), BLOCKS)
    mean, sd, axes = principal_components(vectors * weights, components)
    progress("principal components found")
    coefficients = ((vectors * weights - mean) @ axes.T / sd).astype("float64")
    basis, exponents = _quantise((sd[:, None] * axes / weights).astype("float64"), BLOCKS)

    x = features(ages, male, race)
    regression = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ coefficients)
    rest = coefficients - x @ regression
    spread = np.linalg.cholesky(np.cov(rest.T) + 1e-6 * np.eye(components))
    line = np.concatenate([coefficients, np.ones((len(rest), 1))], axis=1)
    wanted = np.stack([ages, male], axis=1).astype("float64")
    reader = np.linalg.solve(line.T @ line + 10 * np.eye(components + 1), line.T @ wanted)
    counts = np.zeros((2, labels.N_AGES), int)
    np.add.at(counts, (np.asarray(male, int), labels.age_to_class(ages)), 1)
    races = np.array([np.sum(np.asarray(race) == name) for name in RACES])
    return Model(mean / weights, basis, exponents, regression, spread, reader, counts, races), coefficients


def principal_components(vectors, components, seed=0):
    """Mean (D,), standard deviations (K,) and unit axes (K, D) of vectors (n, D).

    By a randomised singular value decomposition (Halko, Martinsson, Tropp 2011): the full one would take hours.
    """
    from sklearn.utils.extmath import randomized_svd

    mean = vectors.mean(axis=0)
    _, values, axes = randomized_svd(vectors - mean, components, n_iter=3, random_state=seed)
    return mean, values / np.sqrt(len(vectors) - 1), axes


def align(pictures, progress=print):
    """How to move each picture's points to the shape of the mean face: float32 (n, 24, 24, 2), pixels.

    Collection flow (Kemelmacher-Shlizerman and Seitz 2012): draw each face with few eigenfaces, which gives
    its light but the common shape, find the optical flow from that to the picture, move the picture, and again
    with more eigenfaces.
    """
    import cv2

    grey = pictures.astype("float32").mean(axis=-1)
    grey = (grey - grey.mean((1, 2), keepdims=True)) / (grey.std((1, 2), keepdims=True) + 1e-3)
    n, side = len(grey), grey.shape[1]
    rows, columns = np.mgrid[0:side, 0:side].astype("float32")
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    finder.setFinestScale(1)
    targets = np.clip(grey * 50 + 128, 0, 255).astype("uint8")
    flow = np.zeros((n, side // 4, side // 4, 2), "float32")
    moved = grey.copy()
    for few, blur in [(4, 6), (8, 5), (16, 4), (30, 3.5), (40, 3)]:
        mean, _, axes = principal_components(moved.reshape(n, -1), few)
        drawn = (moved.reshape(n, -1) - mean) @ axes.T @ axes + mean
        drawn = np.clip(drawn.reshape(grey.shape) * 50 + 128, 0, 255).astype("uint8")
        for i in range(n):
            dense = finder.calc(drawn[i], targets[i], cv2.resize(flow[i], (side, side)))
            flow[i] = np.clip(cv2.GaussianBlur(dense, (0, 0), blur)[2::4, 2::4], -10, 10)
        # Shapes are plausible when forty components can tell them; the mean shape stays where it is.
        _, _, axes = principal_components(flow.reshape(n, -1), 40)
        flow = flow - flow.mean(axis=0)
        flow = (flow.reshape(n, -1) @ axes.T @ axes).reshape(flow.shape)
        for i in range(n):
            dense = cv2.resize(flow[i], (side, side), interpolation=cv2.INTER_CUBIC)
            where = columns + dense[..., 0], rows + dense[..., 1]
            moved[i] = cv2.remap(grey[i], *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        progress(f"aligned with {few} eigenfaces")
    return flow


def to_vectors(pictures, flow):
    """Pictures uint8 (n, 96, 96, 3) and their flow -> float32 (n, D): luma, chroma and inverse shape."""
    import cv2

    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype("float32")
    vectors = np.empty((len(pictures), sum(BLOCKS)), "float32")
    centres = ((np.arange(GRID) + 0.5) * SIZE / GRID - 0.5).astype(int)
    for i, picture in enumerate(pictures):
        dense = cv2.resize(flow[i], (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        where = columns + dense[..., 0], rows + dense[..., 1]
        face = cv2.remap(picture, *where, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        ycc = face.astype("float32") @ RGB_TO_YCC.T.astype("float32")
        chroma = cv2.resize(ycc[..., 1:], (CHROMA, CHROMA), interpolation=cv2.INTER_AREA)
        back = np.zeros_like(dense)
        for _ in range(6):  # the way back: back(y) = -flow(y + back(y))
            back = -cv2.remap(dense, columns + back[..., 0], rows + back[..., 1], cv2.INTER_LINEAR,
                              borderMode=cv2.BORDER_REPLICATE)
        parts = ycc[..., 0], chroma.transpose(2, 0, 1), back[centres][:, centres].transpose(2, 0, 1)
        vectors[i] = np.concatenate([part.ravel() for part in parts])
    return vectors


def fit_surroundings(portraits, components=150):
    """Surroundings from uint8 (n, h, w, 3) pictures framed as in CelebA, of any size."""
    vectors = np.stack([_portrait_vector(picture) for picture in portraits])
    weights = np.repeat(np.array([1.0, 2.0], "float32"), AROUND_BLOCKS)
    mean, sd, axes = principal_components(vectors * weights, components)
    basis, exponents = _quantise((sd[:, None] * axes / weights).astype("float64"), AROUND_BLOCKS)
    return Surroundings(mean / weights, basis, exponents)


def _portrait_vector(picture):
    """A picture uint8 (h, w, 3) framed as in CelebA -> its luma at 64 x 78 and chroma at 32 x 39, float32 (D,)."""
    image = Image.fromarray(picture)
    ycc = np.asarray(image.resize(AROUND, Image.Resampling.BOX), "float64") @ RGB_TO_YCC.T
    luma, chroma = ycc[..., 0], ycc[..., 1:]
    chroma = chroma.reshape(AROUND[1] // 2, 2, AROUND[0] // 2, 2, 2).mean(axis=(1, 3)).transpose(2, 0, 1)
    return np.concatenate([luma.ravel(), chroma.ravel()]).astype("float32")


def _quantise(basis, sizes):
    """Float (K, D) -> int8 (K, D) and the power of two (K, blocks) each block is to be multiplied with."""
    blocks = np.split(basis, np.cumsum(sizes)[:-1], axis=1)
    exponents = [np.ceil(np.log2(np.abs(block).max(axis=1) / 127)) for block in blocks]
    exponents = np.stack(exponents, axis=1).astype("int8")
    scale = np.repeat(2.0 ** exponents.astype("float64"), sizes, axis=1)
    return np.rint(basis / scale).astype("int8"), exponents


def save(model, path=MODEL_FILE):
    """Write a model to a compressed .npz file, numbers rounded; returns its size in bytes."""
    def rounded(values, places, dtype):
        return np.rint(np.asarray(values, "float64") * 2**places).astype(dtype)

    np.savez_compressed(
        path, mean=rounded(model.mean, 10, "int32"), basis=model.basis, exponents=model.exponents,
        regression=rounded(model.regression, 10, "int16"), spread=rounded(np.tril(model.spread), 10, "int16"),
        reader=rounded(model.reader, 16, "int32"), ages=model.ages.astype("int32"), races=model.races.astype("int32"),
        around_mean=rounded(model.around.mean, 6, "int16"), around_basis=model.around.basis,
        around_exponents=model.around.exponents,
    )
    load.cache_clear()
    return Path(path).stat().st_size


@functools.lru_cache(maxsize=2)
def load(path=MODEL_FILE):
    """The shipped model, or one that `save` wrote."""
    with np.load(path) as f:
        around = Surroundings(f["around_mean"] / 2.0**6, f["around_basis"], f["around_exponents"])
        small = {name: f[name] / 2.0**10 for name in ("mean", "regression", "spread")}
        return Model(basis=f["basis"], exponents=f["exponents"], reader=f["reader"] / 2.0**16,
                     ages=f["ages"], races=f["races"], around=around, **small)


# --- making faces ------------------------------------------------------------------------------------------


def draw(n, seed=0, ages=None, male=None, region=None, race=None, rest=0.85, model=None):
    """Draw n faces as coefficients, float64 (n, K), and their labels: a DataFrame of age, male, region, race.

    What is not given is drawn, as unbalanced as UTKFace has it. Each may be one value or n values.
    `rest` scales the random rest: below 1 the faces are more typical.
    """
    model = model or load()
    rng = np.random.default_rng(seed)
    pick = rng.choice(model.ages.size, n, p=model.ages.ravel() / model.ages.sum())
    ages = _each(labels.AGES[pick % labels.N_AGES] if ages is None else ages, n)
    male = _each(pick // labels.N_AGES if male is None else male, n)
    labels.age_to_class(ages)  # refuses ages outside 18..65
    wanted = _each("" if region is None else region, n)
    chance = {"": model.races, "asian": model.races * ASIAN, "western": model.races * ~ASIAN}
    chance = np.stack([chance[str(name)] for name in wanted]) / 1.0
    dice = rng.random((n, 1)) * chance.sum(axis=1, keepdims=True)
    drawn = np.array(RACES)[(np.cumsum(chance, axis=1) <= dice).sum(axis=1)]
    race = _each(drawn if race is None else race, n)
    region = np.where(race == "asian", "asian", "western")
    table = pd.DataFrame({"age": ages, "male": male, "region": region, "race": race})
    coefficients = features(ages, male, race) @ model.regression + rest * _rest(rng, n, model)
    return _round(_clear(coefficients, ages, male, model)), table


def _clear(coefficients, ages, male, model):
    """Move faces by the likeliest step after which a straight line reads their age and gender from them.

    The random rest alone makes some women look like men, and some of the old look young, as in life. A course
    wants faces that look what they are. (The mean of a normal distribution, given the reading.)
    """
    wanted = np.stack([ages, male], axis=1)
    coefficients = _round(coefficients)
    missing = _round(wanted - _read(coefficients, model))
    return coefficients + missing @ model.gain


def _read(coefficients, model):
    """Age and gender (n, 2) by the straight line."""
    return coefficients @ model.reader[:-1] + model.reader[-1]


def _rest(rng, n, model):
    """What makes faces of the same age, gender and race differ, (n, K)."""
    normal = np.clip(rng.standard_normal((n, model.components)), -2.5, 2.5)
    # Rounding the normal numbers first makes their product with the spread exact, hence the same anywhere.
    return _round(normal) @ model.spread.T


def _each(values, n):
    return np.broadcast_to(np.asarray(values), (n,))


def render(coefficients, size=64, model=None):
    """Pictures uint8 (n, size, size, 3) of coefficients (n, K) or (K,)."""
    model = model or load()
    coefficients = _round(np.atleast_2d(np.asarray(coefficients, "float64")))
    if coefficients.shape[1] != model.components:
        raise ValueError(f"expected {model.components} coefficients a face, got {coefficients.shape[1]}")
    result = np.empty((len(coefficients), size, size, 3), "uint8")
    for start in range(0, len(coefficients), 64):
        faces = _render_full(model.mean + coefficients[start:start + 64] @ model.directions)
        for i, face in enumerate(faces, start):
            if size != SIZE:
                face = Image.fromarray(face).resize((size, size), Image.Resampling.LANCZOS)
            result[i] = face
    return result


def _render_full(vectors):
    """Vectors (n, D) -> uint8 (n, 96, 96, 3): put the colour in, then move every point to its shape."""
    n = len(vectors)
    luma, chroma, shape = np.split(vectors, np.cumsum(BLOCKS)[:-1], axis=1)
    grow = _grow(SIZE, CHROMA)
    ycc = np.empty((n, SIZE, SIZE, 3))
    ycc[..., 0] = _sharpen(luma.reshape(n, SIZE, SIZE))
    ycc[..., 1:] = (grow @ chroma.reshape(n, 2, CHROMA, CHROMA) @ grow.T).transpose(0, 2, 3, 1)
    grow = _grow(SIZE, GRID)
    across, down = (grow @ shape.reshape(n, 2, GRID, GRID) @ grow.T).swapaxes(0, 1)
    moved = _move(ycc, across, down)
    return _to_rgb(moved)


def _to_rgb(ycc):
    """Luma and chroma float (..., 3) -> uint8 RGB (..., 3)."""
    y, blue, red = np.moveaxis(ycc, -1, 0)
    rgb = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype("uint8")


def _move(pictures, across, down):
    """Pictures (n, s, s, c) read at each point plus its displacement in pixels, by bilinear interpolation."""
    n, side = pictures.shape[:2]
    rows, columns = np.mgrid[0:side, 0:side]
    y, x = np.clip(rows + down, 0, side - 1.001), np.clip(columns + across, 0, side - 1.001)
    top, left = y.astype("intp"), x.astype("intp")
    dy, dx, corner = (y - top)[..., None], (x - left)[..., None], top * side + left
    moved = np.empty_like(pictures)
    for i in range(n):
        points = pictures[i].reshape(side * side, -1)
        above, below = (
            points[corner[i] + step] * (1 - dx[i]) + points[corner[i] + step + 1] * dx[i]
            for step in (0, side)
        )
        moved[i] = above * (1 - dy[i]) + below * dy[i]
    return moved


def _sharpen(luma, amount=0.6):
    """Unsharp masking: the components leave out the finest detail, so the detail there is counts more."""
    from scipy.ndimage import gaussian_filter

    return luma + amount * (luma - gaussian_filter(luma, (0, 1.2, 1.2), mode="nearest"))


@functools.lru_cache
def _grow(large, small):
    """Matrix (large, small) that interpolates linearly between the centres of `small` cells."""
    centres = (np.arange(small) + 0.5) * large / small - 0.5
    return _round(np.stack([np.interp(np.arange(large), centres, row) for row in np.eye(small)], axis=1), 1024)


def _round(values, parts=64):
    return np.rint(values * parts) / parts


def sample(n, seed=0, ages=None, male=None, region=None, race=None, size=64, model=None):
    """n made faces: pictures uint8 (n, size, size, 3), and their labels as `draw` gives them."""
    coefficients, table = draw(n, seed, ages, male, region, race, model=model)
    return render(coefficients, size, model), table


def describe(coefficients, model=None):
    """What a straight line reads from coefficients (n, K): a DataFrame of age in years and male (about 0 to 1)."""
    read = _read(np.atleast_2d(coefficients), model or load())
    return pd.DataFrame({"age": read[:, 0], "male": read[:, 1]})


def edit(coefficients, age=None, male=None, table=None, model=None):
    """The same faces at another age, or of the other gender: coefficients (n, K) -> (n, K).

    age in years, male 0 or 1: one or n values. `table` holds the present age, male and race as `draw` gave them;
    without it they are read from the coefficients. Each face moves as the mean face of its kind does; what is its
    own stays.
    """
    model = model or load()
    coefficients = np.atleast_2d(coefficients)
    n = len(coefficients)
    now, race = table, RACES[0]
    if table is None:
        now = describe(coefficients, model)
        now = now.clip(pd.Series({"age": 18, "male": 0}), pd.Series({"age": 65, "male": 1}), axis=1)
    else:
        race = table["race"].to_numpy()
    age = _each(now["age"] if age is None else age, n)
    male = _each(now["male"] if male is None else male, n)
    step = features(age, male, race) - features(now["age"], now["male"], race)
    return _round(_clear(coefficients + step @ model.regression, age, male, model))


def walk(first, second, steps=8):
    """Coefficients (steps, K) on the straight way from one face (K,) to another."""
    share = np.linspace(0, 1, steps)[:, None]
    return _round((1 - share) * np.asarray(first) + share * np.asarray(second))


def encode(pictures, model=None):
    """The likeliest coefficients (n, K) of pictures uint8 (n, size, size, 3), framed as the model's.

    From coarse to fine pictures, Gauss-Newton steps from the mean face, all with the derivative at the mean face,
    held back towards it as a normal distribution of coefficients demands; steps that make it worse are shortened.
    """
    model = model or load()
    steps = np.eye(model.components) / 2
    up, down = render(steps, SIZE, model), render(-steps, SIZE, model)
    coefficients = np.zeros((len(pictures), model.components))
    for side, error, rounds in [(12, 30.0, 5), (24, 20.0, 5), (48, 20.0, 8)]:  # error in grey levels
        wanted, derivative = _shrink(pictures, side), (_shrink(up, side) - _shrink(down, side)).T / error
        solve = np.linalg.inv(derivative.T @ derivative + np.eye(model.components))

        def cost(c, wanted=wanted, side=side, error=error):
            missing = (wanted - _shrink(render(c, SIZE, model), side)) / error
            return missing, (missing**2).sum(axis=1) + (c**2).sum(axis=1)

        length = np.full((len(pictures), 1), 0.7)
        missing, now = cost(coefficients)
        for _ in range(rounds):
            trial = coefficients + length * ((missing @ derivative - coefficients) @ solve)
            trial_missing, then = cost(trial)
            better = then < now
            coefficients[better], missing[better], now[better] = trial[better], trial_missing[better], then[better]
            length = np.where(better[:, None], np.minimum(1, 1.5 * length), length / 3)
    return _round(coefficients)


def _shrink(pictures, side):
    small = [Image.fromarray(p).resize((side, side), Image.Resampling.BOX) for p in pictures]
    return np.stack([np.asarray(image, "float64").ravel() for image in small])


def portrait(faces, seed=0, model=None):
    """Faces uint8 (n, 96, 96, 3) with hair, neck, shoulders and background: uint8 (n, 218, 178, 3), as in CelebA.

    The surroundings are the likeliest ones for the face, and a random rest.
    """
    model = model or load()
    rng = np.random.default_rng(seed)
    weights, spread = model.around.guess
    placed = [_place(Image.fromarray(face), PORTRAIT, *FRAME_IN_PORTRAIT) for face in faces]
    seen = np.stack([_portrait_vector(np.asarray(image)) for image in placed]) - model.around.mean
    rest = 0.7 * (_round(rng.standard_normal((len(faces), len(spread)))) @ spread.T)
    coefficients = _round(_round(seen[:, IN_FRAME]) @ weights.T + rest)
    result = np.empty((len(faces), *PORTRAIT[::-1], 3), "uint8")
    for i, image in enumerate(placed):
        around = _portrait_image(model.around.mean + coefficients[i] @ model.around.directions)
        result[i] = Image.composite(image, around.resize(PORTRAIT, Image.Resampling.BICUBIC), _soft_frame())
    return result


def _portrait_image(vector):
    luma, chroma = np.split(vector, [AROUND_BLOCKS[0]])
    ycc = np.empty((AROUND[1], AROUND[0], 3))
    ycc[..., 0] = luma.reshape(AROUND[::-1])
    grow = _grow(AROUND[1], AROUND[1] // 2), _grow(AROUND[0], AROUND[0] // 2)
    ycc[..., 1:] = (grow[0] @ chroma.reshape(2, AROUND[1] // 2, AROUND[0] // 2) @ grow[1].T).transpose(1, 2, 0)
    return Image.fromarray(_to_rgb(ycc))


def _place(image, size, left, top, side):
    """An image of `size` (width, height) in which `image` fills a square; its edge goes on beyond it."""
    scale = image.width / side
    border = Image.fromarray(np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)), mode="edge"))
    corner = 1 - left * scale, 1 - top * scale
    matrix = (scale, 0, corner[0], 0, scale, corner[1])
    return border.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


@functools.lru_cache
def _soft_frame():
    """How much of a portrait is the face itself, a grey image: white in the middle of its frame, black outside."""
    left, top, side = FRAME_IN_PORTRAIT
    x, y = ((np.arange(n) + 0.5 - at) / side for n, at in zip(PORTRAIT, (left, top), strict=True))
    x, y = (np.clip(np.minimum(v, 1 - v) / 0.16, 0, 1) for v in (x, y))
    ramp = np.minimum(x[None, :], y[:, None])
    return Image.fromarray(np.rint(255 * ramp * ramp * (3 - 2 * ramp)).astype("uint8"))


# --- a folder of photographs -------------------------------------------------------------------------------

PICTURES = {"utkface": 1000, "celeba": 400, "afad": 160, "megaage_asian": 120, "photographs": 12}
STAMP = "classroom.json"
VERSION = 2  # of what `write` writes

# Ages of the two Asian sets lean to the young (AFAD's are of students): chances at the KNOTS, in between linear.
YOUNG = {"afad": [8, 10, 7, 4, 1, 0.3, 0.1], "megaage_asian": [5, 8, 9, 6, 3, 1.5, 0.8]}
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Bald Bangs Big_Lips Big_Nose Black_Hair "
    "Blond_Hair Blurry Brown_Hair Bushy_Eyebrows Chubby Double_Chin Eyeglasses Goatee Gray_Hair Heavy_Makeup "
    "High_Cheekbones Male Mouth_Slightly_Open Mustache Narrow_Eyes No_Beard Oval_Face Pale_Skin Pointy_Nose "
    "Receding_Hairline Rosy_Cheeks Sideburns Smiling Straight_Hair Wavy_Hair Wearing_Earrings Wearing_Hat "
    "Wearing_Lipstick Wearing_Necklace Wearing_Necktie Young"
).split()
README = """\
Generated faces of nobody, in the layouts of four public sets; see fag_utils.datasets.classroom.
faults.csv lists the pictures that were spoiled on purpose, and how. In celeba/list_attr_celeba.txt
only Male and Young (under 40) mean something; the other attributes are all -1.
"""


def ensure(folder, pictures=None, seed=0):
    """Path of a folder that holds the classroom set; it is written when it is not there yet.

    It is made anew when the model, the numbers of pictures or the seed have changed. Raises ValueError when the
    folder holds something else: nothing that we didn't write is ever deleted.
    """
    folder = Path(folder)
    stamp = _stamp(pictures, seed)
    if _read_stamp(folder) == stamp:
        return folder
    if folder.exists() and _read_stamp(folder) is None and any(folder.iterdir()):
        raise ValueError(f"{folder} exists and is not a classroom set: name another folder, or empty it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and then moved there, so that nobody ever sees half a set.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        write(Path(scratch) / "new", pictures, seed)
        try:
            if folder.exists() and _read_stamp(folder) != stamp:
                folder.rename(Path(scratch) / "old")
            (Path(scratch) / "new").rename(folder)
        except OSError:
            if _read_stamp(folder) != stamp:  # else another notebook was faster, and all is well
                raise
    return folder


def read(folder):
    """The table of all four sets in a folder that `write` wrote, one below the other."""
    from fag_utils import datasets

    folder = Path(folder)
    if _read_stamp(folder) is None:
        raise datasets.MissingSetError(f"{folder} does not hold the classroom set. {HOW_TO_GET}")
    names = [name for name in datasets.NAMES if (folder / name).is_dir()]
    sets = [datasets.read(name, folder / name) for name in names]
    return pd.concat(sets, ignore_index=True)


def write(folder, pictures=None, seed=0):
    """Write the classroom set into a new folder; returns the folder.

    pictures : dict of how many to make for each key of PICTURES, or one number for all four sets together, or
        None for the usual numbers. The same seed gives the same files, byte for byte.

    The folder gets a subfolder for each set in its published layout, `photographs/` with larger scenes and their
    `faces.csv`, and `faults.csv` with the columns path, fault, original (of duplicates).
    """
    folder, numbers = Path(folder), _numbers(pictures)
    folder.mkdir(parents=True, exist_ok=True)
    faults = []
    for key, (name, writer) in enumerate(_WRITERS.items()):
        if numbers[name]:
            (folder / name).mkdir()
            (folder / name / "README.txt").write_text(README, encoding="utf-8")
            faults += writer(folder / name, numbers[name], np.random.default_rng([seed, key])) or []
    faults = pd.DataFrame(faults, columns=["path", "fault", "original"])
    for column in ("path", "original"):
        faults[column] = [Path(p).relative_to(folder).as_posix() if p else "" for p in faults[column]]
    faults.to_csv(folder / "faults.csv", index=False)
    (folder / STAMP).write_text(json.dumps(_stamp(pictures, seed)), encoding="utf-8")
    return folder


def _numbers(pictures):
    if pictures is None:
        return dict(PICTURES)
    if isinstance(pictures, dict):
        unknown = set(pictures) - set(PICTURES)
        if unknown:
            raise ValueError(f"there is no set {sorted(unknown)}: use {list(PICTURES)}")
        return {name: int(pictures.get(name, 0)) for name in PICTURES}
    total = sum(PICTURES.values()) - PICTURES["photographs"]
    shares = {name: round(PICTURES[name] * pictures / total) for name in PICTURES}
    return {**shares, "photographs": PICTURES["photographs"]}


def _stamp(pictures, seed):
    digest = hashlib.sha1(MODEL_FILE.read_bytes()).hexdigest()[:12]
    return {"version": VERSION, "model": digest, "pictures": _numbers(pictures), "seed": seed}


def _read_stamp(folder):
    try:
        return json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_utkface(folder, n, rng):
    pictures = folder / "UTKFace"
    pictures.mkdir()
    coefficients, table = draw(n, rng.integers(2**32))
    faces = render(coefficients, SIZE)
    paths = [pictures / _utkface_name(row, i) for i, row in enumerate(table.itertuples())]
    kinds = _plan_faults(n, rng)
    faults, number = [], n
    for i, (path, face) in enumerate(zip(paths, faces, strict=True)):
        picture = _photograph(face, 200, rng)
        if i not in kinds:
            _save(picture, path, rng)
            continue
        fault, original = kinds[i], ""
        if fault == "malformed name":  # the published set has such names: a field is missing
            age, gender, _, date = path.name.split("_")
            path = path.with_name(f"{age}_{gender}_{date}")
        if fault in ("exact duplicate", "near duplicate"):
            _save(picture, path, rng)
            original, number = path, number + 1
            path = path.with_name(_utkface_name(table.iloc[i], number))
        other = _photograph(faces[i - 1], 200, rng)
        _spoil(fault, picture, path, rng, other=other, original=original)
        faults.append((path, fault, original))
    return faults


def _utkface_name(row, number):
    """AGE_GENDER_RACE_DATE.jpg.chip.jpg, gender 0 for male; the date is made up from the number."""
    day, rest = divmod(number * 7919, 28)
    return f"{row.age}_{1 - row.male}_{RACES.index(row.race)}_201701{rest + 1:02d}{day:09d}.jpg.chip.jpg"


def _write_celeba(folder, n, rng):
    """Several pictures of each person, who keeps most of the coefficients; the light and the smile change."""
    pictures = folder / "img_align_celeba"
    pictures.mkdir()
    model = load()
    people = np.sort(rng.integers(0, max(1, n // 2), n))  # two pictures a person on average, as unequal as in life
    coefficients, table = draw(n // 2 + 1, rng.integers(2**32))
    coefficients, table = coefficients[people], table.iloc[people].reset_index(drop=True)
    order = rng.permutation(n)
    people, coefficients, table = people[order], coefficients[order], table.iloc[order].reset_index(drop=True)
    centre = features(table["age"], table["male"], table["race"]) @ model.regression
    own = coefficients - centre
    coefficients = centre + np.sqrt(0.75) * own + np.sqrt(0.25) * 0.85 * _rest(rng, n, model)
    coefficients = _clear(coefficients, table["age"], table["male"], model)
    numbers = 1 + rng.permutation(max(10_177, n))[:max(1, n // 2)]  # CelebA has 10,177 people
    attributes, identities, faults = [], [], []
    portraits = portrait(render(coefficients, SIZE), rng.integers(2**32))
    for i, picture in enumerate(portraits):
        path = pictures / f"{i + 1:06d}.jpg"
        picture = _expose(picture, rng)
        fault = CELEBA_FAULTS.get(i % 97) if i >= 97 else None
        if fault:
            _spoil(fault, picture, path, rng)
            faults.append((path, fault, ""))
        else:
            _save(picture, path, rng)
        row = dict.fromkeys(CELEBA_ATTRIBUTES, -1)
        row |= {"Male": 2 * table["male"][i] - 1, "Young": 1 if table["age"][i] < 40 else -1}
        attributes.append(f"{path.name} " + " ".join(f"{value:2d}" for value in row.values()))
        identities.append(f"{path.name} {numbers[people[i]]}")
    header = [str(n), " ".join(CELEBA_ATTRIBUTES)]
    _write_lines(folder / "list_attr_celeba.txt", header + attributes)
    _write_lines(folder / "identity_CelebA.txt", identities)
    return faults


CELEBA_FAULTS = {11: "blurred", 40: "no face", 71: "truncated"}


def _write_afad(folder, n, rng):
    """Faces cut out with some of their surroundings, in small pictures of differing size."""
    coefficients, table = draw(n, rng.integers(2**32), ages=_young("afad", n, rng), region="asian")
    portraits = portrait(render(coefficients, SIZE), rng.integers(2**32))
    left, top, side = FRAME_IN_PORTRAIT
    for i, picture in enumerate(portraits):
        place = folder / str(table["age"][i]) / ("111" if table["male"][i] else "112")
        place.mkdir(parents=True, exist_ok=True)
        x, y = left - 0.15 * side + rng.uniform(-4, 4), top - 0.25 * side + rng.uniform(-4, 4)
        size = int(rng.integers(80, 140))
        box = (x, y, x + 1.3 * side, y + 1.3 * side)
        face = Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC, box)
        _save(_expose(np.asarray(face), rng), place / f"{100_000 + 37 * i}-0.jpg", rng)


def _write_megaage_asian(folder, n, rng):
    coefficients, table = draw(n, rng.integers(2**32), ages=_young("megaage_asian", n, rng), region="asian")
    portraits = portrait(render(coefficients, SIZE), rng.integers(2**32))
    (folder / "list").mkdir()
    for part, rows in [("train", range(n - n // 10)), ("test", range(n - n // 10, n))]:
        (folder / part).mkdir()
        names = [f"{number}.jpg" for number in range(1, len(rows) + 1)]
        for name, i in zip(names, rows, strict=True):
            _save(_expose(portraits[i], rng), folder / part / name, rng)
        _write_lines(folder / "list" / f"{part}_name.txt", names)
        _write_lines(folder / "list" / f"{part}_age.txt", [str(table["age"][i]) for i in rows])


def _young(name, n, rng):
    chance = np.interp(labels.AGES, KNOTS, YOUNG[name])
    return rng.choice(labels.AGES, n, p=chance / chance.sum())


def _write_photographs(folder, n, rng):
    """Scenes of 640 x 480 with one to four people, and faces.csv: where the frame of each face lies, and who."""
    rows = []
    for i in range(n):
        count = 1 + i % 4
        coefficients, table = draw(count, rng.integers(2**32))
        portraits = portrait(render(coefficients, SIZE), rng.integers(2**32))
        column = 640 / count
        places = []
        for j in range(count):
            scale = min(1.15 * column, 420) / PORTRAIT[0] * rng.uniform(0.75, 1)
            x = column * (j + 0.5) - PORTRAIT[0] * scale / 2 + rng.uniform(-0.05, 0.05) * column
            y = 480 - PORTRAIT[1] * scale * rng.uniform(0.95, 1.3)
            places.append((max(y, -60 * scale), x, scale))
        _save(_grain(_scene(640, 480, portraits, places), rng), folder / f"{i + 1:02d}.jpg", rng)
        for j, (y, x, scale) in enumerate(places):
            left, top, side = np.array(FRAME_IN_PORTRAIT) * scale
            where = {"x": x + left, "y": y + top, "width": side, "height": side}
            row = {"path": f"{i + 1:02d}.jpg", **{key: round(float(value), 1) for key, value in where.items()}}
            rows.append({**row, **table.iloc[j].to_dict()})
    pd.DataFrame(rows).to_csv(folder / "faces.csv", index=False)


def _scene(width, height, portraits, places):
    """Portraits at places (y, x, scale), float64 (height, width, 3); between them their colours run together."""
    from scipy.ndimage import gaussian_filter

    scene, shown = np.zeros((height, width, 3)), np.zeros((height, width, 1))
    for picture, (y, x, scale) in zip(portraits, places, strict=True):
        size = round(PORTRAIT[0] * scale), round(PORTRAIT[1] * scale)
        small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), "float64")
        across, down = (np.clip(np.minimum(np.arange(n) + 1, n - np.arange(n)) / (0.18 * n), 0, 1) for n in size)
        alpha = np.minimum(down[:, None], across)[..., None]
        top, left = round(y), round(x)
        part = slice(max(top, 0), min(top + size[1], height)), slice(max(left, 0), min(left + size[0], width))
        own = slice(part[0].start - top, part[0].stop - top), slice(part[1].start - left, part[1].stop - left)
        scene[part] = scene[part] * (1 - alpha[own]) + small[own] * alpha[own]
        shown[part] = shown[part] * (1 - alpha[own]) + alpha[own]
    far = gaussian_filter(np.concatenate([scene, shown], axis=-1)[::8, ::8], (6, 6, 0), mode="nearest")
    far = far + 1e-3 * far.mean(axis=(0, 1))
    far = Image.fromarray(np.clip(far[..., :3] / far[..., 3:], 0, 255).astype("uint8"))
    return scene + (1 - shown) * np.asarray(far.resize((width, height), Image.Resampling.BICUBIC), "float64")


_WRITERS = {"utkface": _write_utkface, "celeba": _write_celeba, "afad": _write_afad,
            "megaage_asian": _write_megaage_asian, "photographs": _write_photographs}


def _photograph(face, size, rng):
    """A face-filled picture uint8 (size, size, 3)."""
    return _expose(np.asarray(Image.fromarray(face).resize((size, size), Image.Resampling.BICUBIC)), rng)


def _expose(picture, rng):
    """Contrast, brightness and grain differ from picture to picture."""
    return _grain((picture - 128.0) * rng.uniform(0.9, 1.1) + 128 + rng.uniform(-12, 12), rng)


def _grain(picture, rng):
    noise = rng.standard_normal(picture.shape[:2]) * rng.uniform(1.5, 4)
    return np.clip(np.rint(picture + noise[..., None]), 0, 255).astype("uint8")


def _save(picture, path, rng):
    Image.fromarray(picture).save(path, "JPEG", quality=int(rng.integers(86, 96)))


def _write_lines(path, lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# --- planted faults ----------------------------------------------------------------------------------------

FAULTS = ["too small", "blurred", "truncated", "not a picture", "no face", "several faces", "grey", "CMYK",
          "rotated", "malformed name", "exact duplicate", "near duplicate"]


def _plan_faults(n, rng):
    """Which of n pictures get which fault: a dict number -> fault, every fault equally often."""
    each = min(8, n // (2 * len(FAULTS)))
    return dict(zip(rng.permutation(n)[:each * len(FAULTS)].tolist(), FAULTS * each, strict=True))


def _spoil(fault, picture, path, rng, other=None, original=""):
    """Write a picture with a fault."""
    image = Image.fromarray(picture)
    if fault == "too small":
        image.resize((24, 24), Image.Resampling.BOX).save(path, "JPEG", quality=90)
    elif fault == "blurred":
        image.filter(ImageFilter.GaussianBlur(min(image.size) / 40)).save(path, "JPEG", quality=90)
    elif fault == "truncated":
        data = io.BytesIO()
        image.save(data, "JPEG", quality=90)
        path.write_bytes(data.getvalue()[: len(data.getvalue()) // 2])
    elif fault == "not a picture":
        path.write_text("<html><body>404 Not Found</body></html>\n", encoding="utf-8")
    elif fault == "no face":
        _landscape(*image.size, rng).save(path, "JPEG", quality=90)
    elif fault == "several faces":
        pair = [np.asarray(Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BOX)) for p in (picture, other)]
        scene = _scene(200, 200, portrait(pair, rng.integers(2**32)), [(20, -16, 0.72), (30, 90, 0.72)])
        _save(_grain(scene, rng), path, rng)
    elif fault in ("grey", "CMYK"):
        image.convert("L" if fault == "grey" else "CMYK").save(path, "JPEG", quality=90)
    elif fault == "rotated":  # stored lying on its side; the EXIF orientation 6 says: turn it clockwise
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", quality=90, exif=exif)
    elif fault == "exact duplicate":
        path.write_bytes(Path(original).read_bytes())
    elif fault == "near duplicate":
        image.resize((188, 188), Image.Resampling.BICUBIC).save(path, "JPEG", quality=70)
    else:
        _save(picture, path, rng)


def _landscape(width, height, rng):
    """Sky, hills and grass, an image without a face."""
    rows, columns = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    picture = np.stack([90 + 90 * rows, 140 + 60 * rows, 220 - 20 * rows], axis=-1)
    for shade, base in ((0.9, 0.5), (0.6, 0.65), (0.4, 0.8)):
        waves = sum(np.sin(columns * k + rng.uniform(0, 6)) / k for k in (3, 7, 13, 29))
        hill = rows > base + 0.15 * waves
        picture[hill] = np.array([110, 150, 70]) * shade
    return Image.fromarray(_grain(picture + 6 * rng.standard_normal((height, width, 1)), rng))
