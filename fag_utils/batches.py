"""From a cleaned table to batches: who is in a batch, and what the network sees of each picture.

An epoch is an array of row numbers, `(steps, batch_size)`: from it alone follows what is learned in which
order, so that a run that was interrupted goes on with exactly the batches it would have had.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from fag_utils import faces, labels, occlusion, packed
from fag_utils.cleaning import CROP_MARGIN, CROP_SIZE

REGIONS = ("asian", "western")
BATCH_SIZE = 128


class Composition(NamedTuple):
    """How many pictures of each of the 16 three-year age groups each half of a batch holds."""

    asian: tuple
    western: tuple

    def counts(self):
        """Array (2, 16) of pictures: asian, western."""
        return np.array([self.asian, self.western])


# The reference recipe trains 1,270,000 steps and changes the composition at step 560,000.
# FIRST_TABLE is the one its published training script holds (the script starts at step 1, from the
# gender pre-training). The other stands only in a document that is not at hand as text; SECOND_TABLE
# is ours: every group alike.
FIRST_TABLE = Composition(asian=(8,) * 4 + (6,) * 4 + (1,) * 8, western=(5,) * 8 + (3,) * 8)
SECOND_TABLE = Composition(asian=(4,) * 16, western=(4,) * 16)
SWITCH, STEPS = 560_000, 1_270_000


def composition_at(fraction):
    """The table in force at a fraction 0..1 of the training: the second one from 560,000 / 1,270,000."""
    return FIRST_TABLE if fraction < SWITCH / STEPS else SECOND_TABLE


def shuffled(table, batch_size=BATCH_SIZE, seed=0):
    """An epoch in which each row occurs once, in random order: (steps, batch_size) row numbers.

    The last, incomplete batch is left out (with fewer rows than a batch, rows are repeated).
    """
    order = np.random.default_rng(seed).permutation(len(table))
    if len(order) < batch_size:
        order = np.resize(order, batch_size)
    steps = len(order) // batch_size
    return order[: steps * batch_size].reshape(steps, batch_size)


def balanced(table, composition, steps, seed=0):
    """Batches of a fixed composition: (steps, 128) row numbers.

    Each cell (half and age group) deals its rows from a shuffled pack, and shuffles again when the pack is
    used up: so a rare group's pictures are seen many times, a common group's seldom.
    A cell without any picture gives its places to the nearest age group of its half that has some,
    and a half without any to the same groups of the other half.
    """
    random = np.random.default_rng(seed)
    group = labels.age_group(table["age"].fillna(-1))
    packs = {}
    for r, region in enumerate(REGIONS):
        for g in range(len(labels.AGE_GROUPS)):
            packs[r, g] = np.flatnonzero((table["region"] == region).to_numpy() & (group == g))
    if not any(len(pack) for pack in packs.values()):
        raise ValueError(f"no row has an age in {labels.MIN_AGE}..{labels.MAX_AGE}: nothing to balance")
    columns = []
    for (r, g), places in np.ndenumerate(composition.counts()):
        if places:
            rows = packs[_nearest(packs, r, g)]
            columns.append(_deal(rows, steps * places, random).reshape(steps, places))
    batch = np.concatenate(columns, axis=1)
    return random.permuted(batch, axis=1)


def _nearest(packs, region, group):
    """The cell that stands in for (region, group): itself, if it has rows."""
    def distance(cell):
        r, g = cell
        return (r != region, abs(g - group), g)

    return min((cell for cell, rows in packs.items() if len(rows)), key=distance)


def _deal(rows, number, random):
    """`number` of the rows: each once before any comes twice."""
    rounds = -(-number // len(rows))
    return np.concatenate([random.permutation(rows) for _ in range(rounds)])[:number]


def tempered(table, steps, batch_size=BATCH_SIZE, power=0.5, seed=0):
    """Batches in which an age occurs in proportion to (its pictures) ** power: (steps, batch_size).

    power 1 is plain shuffling, 0 gives every age the same share; in between rare ages are seen more often
    than they occur without the few pictures of the rarest being learned by heart.
    """
    random = np.random.default_rng(seed)
    age = table["age"].to_numpy()
    ages, inverse, counts = np.unique(age, return_inverse=True, return_counts=True)
    share = counts**power / (counts**power).sum()
    number = random.multinomial(steps * batch_size, share)
    packs = [_deal(np.flatnonzero(inverse == i), n, random) for i, n in enumerate(number) if n]
    return random.permutation(np.concatenate(packs)).reshape(steps, batch_size)


def dealt(number, steps, batch_size, epoch=0, seed=0):
    """Batches that go through `number` rows again and again, on from epoch to epoch: (steps, batch_size)."""
    start = epoch * steps * batch_size
    place = start + np.arange(steps * batch_size)
    rounds = {r: np.random.default_rng([seed, r]).permutation(number) for r in np.unique(place // number)}
    rows = np.concatenate([rounds[r][place[place // number == r] % number] for r in rounds])
    return rows.reshape(steps, batch_size)


def mixed(first, second):
    """Two epochs of batches side by side: (steps, a) and (steps, b) -> (steps, a + b)."""
    steps = min(len(first), len(second))
    return np.concatenate([first[:steps], second[:steps]], axis=1)


# --- Pictures --------------------------------------------------------------------------------


def load_crops(paths, size, eyes=None):
    """Stored crops in memory: (n, s, s, 3) uint8 RGB, of the side s at which augmentation samples them.

    s leaves 1.3 pixels for each pixel of a network of side `size`, so that turning and scaling
    lose nothing. For a network that sees the region of the `eyes` alone (see `see`) `size` is the width. Crops of a
    cleaned set are decoded once, and kept as `packed` describes.
    """
    paths, side = list(paths), stored_side(size, eyes)
    if paths and packed.can_pack(paths):
        return np.asarray(packed.Crops(paths, side))
    crops = np.empty((len(paths), side, side, 3), "uint8")
    if paths:
        for i, crop in enumerate(packed.decode(paths, side)):
            crops[i] = crop
    return crops


IN_MEMORY = 4e9  # bytes


def open_crops(paths, size, eyes=None):
    """As `load_crops`; but more than IN_MEMORY bytes stay on disk, as `packed.Crops`."""
    paths, side = list(paths), stored_side(size, eyes)
    if len(paths) * side * side * 3 > IN_MEMORY and packed.can_pack(paths):
        return packed.Crops(paths, side)
    return load_crops(paths, size, eyes)


def stored_side(size, eyes=None):
    """The side in pixels at which crops are stored for a network of side `size`, or for the `eyes` at this width."""
    if eyes:
        left, _, right, _ = faces.eye_region(eyes)
        size /= right - left
    return min(round(size * 1.3 * CROP_MARGIN), CROP_SIZE)


def ready(crops):
    """Crops as `dataset` takes them without a copy: a tensor, or those that stay on disk as they are."""
    return crops if isinstance(crops, packed.Crops) else tf.convert_to_tensor(crops)


def _pick(crops, index):
    """tf.gather, also from disk."""
    if not isinstance(crops, packed.Crops):
        return tf.gather(crops, index)
    pictures = tf.numpy_function(crops.take, [index], tf.uint8, stateful=False)
    return tf.ensure_shape(pictures, (None, *crops.shape[1:]))


class Augmentation(NamedTuple):
    """What is varied in a training picture. Zeros leave it as it is."""

    flip: bool = True
    turn: float = 12.0  # degrees, either way
    scale: float = 0.12  # as a fraction, either way
    shift: float = 0.06  # of the side, either way
    brightness: float = 0.25  # of the mean, either way
    contrast: float = 0.3
    saturation: float = 0.4
    grey: float = 0.08  # probability
    blur: float = 0.2  # probability of half the resolution
    erase: float = 0.3  # probability of a hidden rectangle
    mask: float = 0.0  # probability of a drawn face mask
    hair: float = 0.0  # probability of another person's hair around the face

    @property
    def uncovered(self):
        """The same of the face itself, with no mask and no hair laid over it."""
        return self._replace(mask=0.0, hair=0.0)


NO_AUGMENTATION = Augmentation(False, 0, 0, 0, 0, 0, 0, 0, 0, 0)
# As in the reference recipe's training script, whose pictures turn up to 45 degrees.
REFERENCE_AUGMENTATION = Augmentation(True, 45, 0, 0, 0.2, 0.5, 0.4, 0, 0, 0)


FACE_OVAL = 0.36, 0.44  # its two radii, as fractions of the crop's side (see `other_hair`)


def see(crops, size, augmentation, seed, points=None, eyes=None):
    """What the network sees: stored crops (n, s, s, 3) uint8 -> (n, size, size, 3) float32, 0..255.

    All pictures of a batch are turned, scaled, shifted and mirrored in one sampling of the stored crop,
    then their light, colour and sharpness vary. `seed` is a pair of integers: the same gives the same.
    Face masks are drawn in between, onto the face as it then lies; `points`, of `faces.crop_landmarks`, (n, 5, 2),
    make them fit better. `masked` tells who wears one. `other_hair` comes after that. With `eyes`, a key of
    `faces.EYES`, the network sees no more than the region of the eyes, `size` pixels wide: (n, height, size, 3), of
    the same turned and shifted face. ValueError where such a region is to have other hair.
    """
    if eyes and augmentation.hair:
        raise ValueError("augmentation.hair must be 0 for the region of the eyes: there is no hair around it")
    seeds = tf.unstack(tf.random.split(seed, 12))
    n = tf.shape(crops)[0]

    def uniform(i, low, high, shape=()):
        return tf.random.stateless_uniform((n, *shape), seeds[i], low, high)

    a = augmentation
    stored = crops.shape[1]
    shape, start = [size, size], (0.0, 0.0)
    if eyes:
        left, top, right, _ = faces.eye_region(eyes)
        shape = list(faces.eye_shape(eyes, size))
        size = size / (right - left)  # what the whole face would have
        start = left * size, top * size
    step = stored / CROP_MARGIN / size  # stored pixels from one output pixel to the next
    turn = uniform(0, -a.turn, a.turn) * np.pi / 180
    zoom = step * tf.exp(uniform(1, -a.scale, a.scale))
    mirror = tf.where(uniform(2, 0.0, 1.0) < 0.5 * float(a.flip), -1.0, 1.0)
    shift = uniform(3, -a.shift, a.shift, (2,)) * stored / CROP_MARGIN
    cos, sin = zoom * tf.cos(turn), zoom * tf.sin(turn)
    middle_in, middle_out = (stored - 1) / 2, (size - 1) / 2
    from_x, from_y = (first - middle_out for first in start)
    x0 = middle_in + shift[:, 0] + mirror * cos * from_x - sin * from_y
    y0 = middle_in + shift[:, 1] + mirror * sin * from_x + cos * from_y
    zero = tf.zeros_like(x0)
    x = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(crops, tf.float32),
        transforms=tf.stack([mirror * cos, -sin, x0, mirror * sin, cos, y0, zero, zero], axis=1),
        output_shape=shape, interpolation="BILINEAR", fill_mode="NEAREST", fill_value=0.0,
    )
    if a.mask:
        pixel = CROP_MARGIN / stored
        place = [(value + 0.5) * pixel + 0.5 - 0.5 * CROP_MARGIN for value in (x0, y0)]
        to_frame = tf.stack([mirror * cos * pixel, -sin * pixel, place[0],
                             mirror * sin * pixel, cos * pixel, place[1]], axis=1)
        x = occlusion.wear(x, _mask_seed(seed), a.mask, tf.reshape(to_frame, (-1, 2, 3)), points)
    if a.hair:
        x = other_hair(x, a.hair, seed)
    if augmentation.uncovered == NO_AUGMENTATION:
        return x

    def each(value):
        return value[:, None, None, None]

    chosen = tf.where(uniform(4, 0.0, 1.0) < a.blur)
    coarse = tf.nn.avg_pool2d(tf.gather_nd(x, chosen), 2, 2, "SAME")
    x = tf.tensor_scatter_nd_update(x, chosen, tf.image.resize(coarse, shape))
    # Weighed sums and products of matrices: choosing with `tf.where`, and repeating a value for each colour, take
    # several times as long.
    keep = tf.where(uniform(5, 0.0, 1.0) < a.grey, 0.0, 1 + uniform(6, -a.saturation, a.saturation))[:, None, None]
    to_grey = tf.repeat(tf.constant([[0.299], [0.587], [0.114]]), 3, axis=1)
    x = tf.reshape(tf.reshape(x, (n, -1, 3)) @ (keep * tf.eye(3) + (1 - keep) * to_grey), (n, *shape, 3))
    mean = tf.reduce_mean(x, axis=(1, 2, 3), keepdims=True)
    light = each(1 + uniform(7, -a.brightness, a.brightness))
    x = mean * light + (x - mean) * each(1 + uniform(8, -a.contrast, a.contrast))
    x = _erase(x, uniform(9, 0.0, 1.0) < a.erase, uniform(10, 0.0, 1.0, (4,)), shape)
    return tf.clip_by_value(x, 0.0, 255.0)


def _mask_seed(seed):
    return tf.random.split(seed, 15)[14]  # `see` has the first twelve, `blend` the next two


def masked(n, augmentation, seed):
    """Which of n pictures `see` shows with a face mask: (n,) bool; the same `seed` as there."""
    return occlusion.worn(n, augmentation.mask, _mask_seed(seed))


def _erase(x, chosen, place, shape):
    """Random erasing (Zhong et al. 2017): a grey rectangle, a sixth to two fifths of each side."""
    lines = []
    for i, side in enumerate(shape):
        length = side * (0.17 + 0.23 * place[:, i])
        first = place[:, 2 + i] * (side - length)
        line = tf.range(side, dtype=tf.float32)[None]
        lines.append(tf.cast((line >= first[:, None]) & (line < (first + length)[:, None]), tf.float32))
    rows, columns = lines
    rows *= tf.cast(chosen, tf.float32)[:, None]
    hidden = tf.reshape(rows[:, :, None] @ tf.repeat(columns, 3, axis=1)[:, None], (-1, *shape, 3))
    return x * (1 - hidden) + 127.0 * hidden  # weighed, as in `see`


def blend(pictures, share, seed):
    """Lay another picture of the batch over some: (pictures, which (n,) bool), `share` of them on average.

    How much of the other shows is anything from nothing to all (Zhang et al. 2018, "mixup", with alpha 1). Such a
    face has no label; but a teacher has an answer to it. The same `seed`, a pair of integers, gives the same blend,
    at whatever size the pictures are.
    """
    seeds = tf.unstack(tf.random.split(seed, 14))[12:]
    n = tf.shape(pictures)[0]
    which = tf.random.stateless_uniform((n,), seeds[0]) < share
    part = tf.where(which, tf.random.stateless_uniform((n,), seeds[1]), 0.0)[:, None, None, None]
    return pictures + part * (tf.roll(pictures, 1, axis=0) - pictures), which


def other_hair(pictures, share, seed, others=None):
    """Lay some faces, `share` of them on average, into the hair, and all else, that is around others.

    pictures : (n, s, s, 3) float32, cut as a UTKFace picture is (see `faces`): there an oval holds most faces. How
    large it is, how soft its edge and where it lies varies a little.
    others : (n, s, s, 3) float32, whose hair; None: each that of the one before, and the first that of the last
    The same `seed`, a pair of integers, gives the same.

    In the common sets most women have long hair, and few men: a network can be right by it without a look at the
    face, by a shortcut (Geirhos et al. 2020). Here the hair tells nothing, and the label stays true.
    """
    seeds = tf.unstack(tf.random.split(tf.random.split(seed, 16)[15], 4))  # `see`, `blend` and masks have the others
    n, height, width = tf.shape(pictures)[0], *pictures.shape[1:3]

    def uniform(i, low, high):
        return tf.random.stateless_uniform((n, 1, 1), seeds[i], low, high)

    down, right = ((tf.range(side, dtype=tf.float32) + 0.5) / side for side in (height, width))
    down, right = down[None, :, None] - uniform(1, 0.54, 0.58), right[None, None] - 0.5
    wide, high = (radius * uniform(2, 0.9, 1.1) for radius in FACE_OVAL)
    away = tf.sqrt((right / wide) ** 2 + (down / high) ** 2)  # 1 on the oval
    outside = tf.clip_by_value((away - 1) / uniform(3, 0.1, 0.35) + 0.5, 0.0, 1.0)
    outside *= tf.cast(uniform(0, 0.0, 1.0) < share, tf.float32)
    others = tf.roll(pictures, 1, axis=0) if others is None else others
    return pictures + outside[..., None] * (others - pictures)


def targets_of(table, every_age=False):
    """What is to be answered, and whether it is known: (targets, weights), dicts of an array for each head.

    age : (n,) int32, classes 0..47, or with `every_age` 0..116; weight 0 where it is missing or outside
    gender : (n, 2) float32, one-hot; weight 0 where it is missing
    """
    age, male = table["age"].to_numpy("float64"), table["male"].to_numpy("float64")
    first, classes = (0, labels.N_EVERY_AGE) if every_age else (labels.MIN_AGE, labels.N_AGES)
    age_known = (age >= first) & (age < first + classes)
    male_known = ~np.isnan(male)
    targets = {"age": np.where(age_known, age - first, 0).astype("int32"),
               "gender": np.eye(2, dtype="float32")[np.where(male_known, male, 0).astype(int)]}
    return targets, {"age": age_known.astype("float32"), "gender": male_known.astype("float32")}


def dataset(crops, table, rows, size, augmentation=NO_AUGMENTATION, seed=0, heads=("age", "gender"),
            every_age=False, ahead=2, blended=0.0, points=None, eyes=None):
    """tf.data of (pictures, targets, weights) for the given rows (steps, batch_size) of a table.

    crops : (n, s, s, 3) uint8, from `load_crops` or `open_crops`, one for each row of the table
    Pictures: (batch, size, size, 3) float32 RGB 0..255. Targets: {"age": (batch,) class 0..47,
    "gender": (batch, 2) one-hot}. Weights: 0 where age (or gender) is missing or outside 18..65: such a
    picture teaches the other task only. `heads` names those that the network has. With `every_age` the
    classes are 0..116, the ages themselves, and all of them count. `ahead` batches are prepared while one is
    learned from; with 0 each is made when asked for, by all cores, and an iterator comes instead of tf.data.
    `blended` is the share of the pictures over which another one is laid: their weights are 0 (see `blend`).
    `points` are the crops' landmarks, (n, 5, 2), to which masks are fitted, `eyes` is for ocular networks (see
    `see`). A network may also have the head "masked": (batch, 2) one-hot, whether a mask was drawn.
    """
    targets, weights = ({head: tf.constant(column) for head, column in columns.items()}
                        for columns in targets_of(table, every_age))
    crops = ready(crops)  # a tensor is taken as it is, an array is copied
    points = None if points is None else tf.constant(points, tf.float32)

    def batch(number, index):
        now = tf.stack([seed, number])
        pictures = see(_pick(crops, index), size, augmentation, now,
                       None if points is None else tf.gather(points, index), eyes)
        labels_, sure = ({head: tf.gather(column[head], index) for head in heads if head in column}
                         for column in (targets, weights))
        if "masked" in heads:
            worn = masked(tf.shape(index)[0], augmentation, now)
            labels_["masked"], sure["masked"] = tf.one_hot(tf.cast(worn, tf.int32), 2), tf.ones(tf.shape(index))
        if blended:
            pictures, which = blend(pictures, blended, now)
            sure = {head: tf.where(which, 0.0, weight) for head, weight in sure.items()}
        return pictures, labels_, sure

    rows = rows.astype("int32")
    if not ahead:
        function = tf.function(batch, autograph=False)
        return (function(tf.constant(number), tf.constant(row)) for number, row in enumerate(rows))
    data = tf.data.Dataset.from_tensor_slices((np.arange(len(rows), dtype="int32"), rows))
    return data.map(batch, num_parallel_calls=2).prefetch(ahead)


def in_order(crops, size, batch_size=256, eyes=None):
    """tf.data of all pictures, as they are, in order: for prediction. size, eyes : as in `see`."""
    crops = ready(crops)

    def batch(index):
        return see(_pick(crops, index), size, NO_AUGMENTATION, tf.constant([0, 0]), None, eyes)

    return tf.data.Dataset.range(crops.shape[0]).batch(batch_size).map(batch).prefetch(2)
