"""Covered faces: the region of the eyes, and face masks drawn over a picture.

Both are told in the frame of the one crop (`faces.FRAME`): x to the right and y down, 0..1 over the crop, the eyes
at y = 0.29 and the chin near 0.95. Where a picture's pixels lie in that frame is an affine map, (2, 3) numbers for
each picture (`framing`, `framing_of`); so one function draws on stored crops, on crops that augmentation has turned,
and on a photograph with landmarks.

A mask is a sheet bent around a cylinder, the head. Its outline is a curve above, one below and an edge at each side,
in coordinates that turn with the head: u from -1 to 1 between the edges, v from 0 at the eyes to 1 at the mouth. All
that varies is a number for each picture in a dict of tensors, drawn from `RANGES`.
"""

import numpy as np
import tensorflow as tf

from fag_utils import faces

# --- The region of the eyes

EYES, eye_shape = faces.EYES, faces.eye_shape


def ocular(crops, eyes="both", size=62, margin=1.0):
    """The region of the eyes of crops: (n, s, s, 3) -> (n, height, width, 3) float32, 0..255; see `eye_shape`.

    crops : pictures in the frame of the one crop, from aligned sets or by landmarks, uint8 or float, array or tensor
    eyes : "both", "left" (as seen) or "right"
    size : the width in pixels
    margin : that of the crops (see `faces.crop_face`): a stored crop has `cleaning.CROP_MARGIN`
    """
    left, top, right, bottom = ((edge - 0.5) / margin + 0.5 for edge in faces.eye_region(eyes))
    height, width = eye_shape(eyes, size)
    crops = tf.cast(crops, tf.float32)
    side = crops.shape[1]
    fine = max(1, int(side * (right - left) / width))  # samples no further apart than the pixels

    def ends(low, high, count):
        """Where the middles of the first and the last of `count` samples lie, as crop_and_resize counts."""
        half = (high - low) / count / 2
        return [(place * side - 0.5) / (side - 1) for place in (low + half, high - half)]

    (top, bottom), (left, right) = ends(top, bottom, height * fine), ends(left, right, width * fine)
    n = tf.shape(crops)[0]
    boxes = tf.tile([[top, left, bottom, right]], (n, 1))
    seen = tf.image.crop_and_resize(crops, boxes, tf.range(n), (height * fine, width * fine))
    return tf.nn.avg_pool2d(seen, fine, fine, "VALID") if fine > 1 else seen


# --- What masks there are

KINDS = ("surgical", "cloth", "respirator")
SHARES = (0.45, 0.40, 0.15)  # of each kind where none is asked for

# Colours in full light, as shares of white, and how often each kind has them: what 300 photographs of people in
# masks show.
COLOURS = {
    "white": (0.95, 0.96, 0.97), "blue": (0.58, 0.81, 0.97), "black": (0.10, 0.10, 0.11), "grey": (0.42, 0.43, 0.45),
    "pink": (0.93, 0.68, 0.74), "green": (0.62, 0.88, 0.82), "navy": (0.13, 0.18, 0.30), "beige": (0.83, 0.75, 0.66),
    "charcoal": (0.22, 0.22, 0.24), "red": (0.72, 0.10, 0.14), "violet": (0.66, 0.58, 0.84),
    "yellow": (0.88, 0.66, 0.18), "magenta": (0.88, 0.16, 0.50), "teal": (0.10, 0.36, 0.40),
}
COLOUR_SHARES = {
    "surgical": {"white": 34, "blue": 28, "black": 15, "pink": 8, "green": 6, "grey": 3, "navy": 3, "violet": 3},
    "cloth": {"black": 34, "charcoal": 12, "grey": 12, "white": 12, "navy": 7, "pink": 6, "beige": 4, "red": 3,
              "teal": 3, "yellow": 2, "magenta": 2, "violet": 2, "blue": 1},
    "respirator": {"white": 66, "grey": 10, "black": 14, "beige": 6, "blue": 4},
}

PATTERNS = ("plain", "stripes", "checks", "dots", "floral")
PATTERN_SHARES = {
    "surgical": (0.93, 0.01, 0.01, 0.02, 0.03),
    "cloth": (0.60, 0.08, 0.08, 0.06, 0.18),
    "respirator": (0.97, 0.01, 0.0, 0.0, 0.02),
}

# The range of each number, by kind: surgical, cloth, respirator. Lengths across are shares of the mask's half width,
# those downward of the distance from the eyes to the mouth; `shift`s and `strap` are shares of the frame.
RANGES = {
    "top": ((0.24, 0.44), (0.24, 0.46), (0.22, 0.40)),  # the upper edge on the nose
    "bare_top": ((0.66, 0.76), (0.66, 0.78), (0.66, 0.74)),  # the same where the nose is free
    "dip": ((0.06, 0.24), (0.08, 0.26), (0.14, 0.30)),  # how much lower the edge is beside the nose
    "dip_width": ((0.20, 0.38), (0.20, 0.36), (0.22, 0.36)),
    "slope": ((-0.10, 0.14), (-0.16, 0.10), (0.02, 0.26)),  # and then towards the ear
    "bottom": ((1.58, 1.86), (1.56, 1.86), (1.58, 1.84)),  # the lower edge on the chin
    "taper": ((0.42, 0.78), (0.60, 1.00), (0.58, 0.90)),  # how much higher it is at the sides
    "taper_late": ((0.2, 0.9), (0.1, 0.8), (0.1, 0.7)),  # 1: it rises near the sides only
    "width": ((0.80, 1.00), (0.86, 1.02), (0.78, 0.95)),
    "tilt": ((-0.06, 0.06), (-0.06, 0.06), (-0.05, 0.05)),  # radians
    "shift_right": ((-0.015, 0.015), (-0.015, 0.015), (-0.015, 0.015)),
    "shift_down": ((-0.015, 0.02), (-0.015, 0.02), (-0.015, 0.02)),
    "ear_top": ((0.14, 0.34), (0.24, 0.48), (0.13, 0.30)),
    "ear_bottom": ((0.45, 0.95), (0.55, 0.95), (0.60, 1.10)),
    "strap": ((0.007, 0.012), (0.007, 0.016), (0.006, 0.012)),  # half its width
    "strap_light": ((0.85, 1.05), (0.75, 1.0), (0.7, 1.05)),
    "light": ((0.86, 1.08), (0.84, 1.08), (0.86, 1.08)),
    "roundness": ((0.08, 0.32), (0.08, 0.36), (0.08, 0.32)),  # darker towards the sides
    "sideways": ((-0.18, 0.18), (-0.20, 0.20), (-0.20, 0.20)),  # light from one side
    "underside": ((0.05, 0.30), (0.06, 0.34), (0.06, 0.34)),  # darker under the chin
    "ridge": ((0.00, 0.14), (0.00, 0.10), (0.00, 0.08)),  # light along the middle
    "fold": ((-0.03, 0.03), (-0.11, 0.11), (-0.11, 0.11)),  # two halves that meet at a seam: one is brighter
    "pleats": ((0.02, 0.16), (0.00, 0.00), (0.00, 0.00)),  # depth of the folds across
    "pleat_number": ((2.6, 4.2), (3.0, 3.0), (3.0, 3.0)),
    "hem": ((-0.06, 0.10), (-0.10, 0.06), (-0.08, 0.08)),  # brightness of the border
    "wrinkles": ((0.04, 0.16), (0.03, 0.14), (0.02, 0.10)),
    "creases": ((-0.10, 0.06), (-0.09, 0.06), (-0.05, 0.04)),  # lines in the wrinkles, dark or bright
    "shadow": ((0.06, 0.30), (0.06, 0.30), (0.06, 0.30)),  # on the skin beside the mask
    "softness": ((0.8, 1.5), (0.8, 1.5), (0.8, 1.5)),  # of the edge, pixels
    "frequency": ((7.0, 18.0), (6.0, 18.0), (7.0, 18.0)),  # of patterns, periods in the frame
    "angle": ((-0.9, 0.9), (-1.6, 1.6), (-0.9, 0.9)),
    "phase": ((0.0, 6.28), (0.0, 6.28), (0.0, 6.28)),
    "scale": ((0.6, 1.0), (0.6, 1.1), (0.6, 1.0)),  # of flowers and wrinkles
}
BAND = 0.45  # of cloth masks are cut from one piece: broad bands go to the ears instead of straps
VALVE = 0.3  # of respirators have one
NOSE_FREE = 0.12  # of all masks are worn below the nose

NOTHING_ABOVE = 0.12  # v: a mask ends below this line, so the eyes are never covered
RADIUS, EDGE, EAR = 0.42, 1.19, 1.50  # of the head in the frame; where mask and ear are on it, radians from the nose
LEAN = 0.22  # how far the nose's tip stands out before the eyes, in the frame
TEXTURE = 48  # cells across of the random field from which flowers and wrinkles are made


def random_masks(n, seed, kind=None, colour=None, pattern=None, nose=None):
    """The numbers of n random masks: a dict of float32 tensors, their first axis n.

    Parameters
    ----------
    n : how many; may be a tensor
    seed : a pair of integers: the same seed gives the same masks
    kind : one of KINDS for all; None leaves it to chance, as do the other Nones
    colour : a key of COLOURS, or (red, green, blue) of 0..255
    pattern : one of PATTERNS
    nose : True: covered; False: free

    ValueError for a kind, colour or pattern it doesn't know.
    """
    seeds = tf.unstack(tf.random.split(seed, 4))
    chance = tf.unstack(tf.random.stateless_uniform((n, 10), seeds[0]), axis=1)

    def pick(name, value, known, shares, u):
        if value is None:
            edges = tf.cumsum(tf.constant(shares, tf.float32) / np.sum(shares, axis=-1, keepdims=True), axis=-1)
            edges = tf.broadcast_to(edges, (n, len(known))) if edges.shape.rank == 1 else tf.gather(edges, which)
            return tf.minimum(tf.reduce_sum(tf.cast(u[:, None] >= edges, tf.int32), axis=1), len(known) - 1)
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        return tf.fill((n,), list(known).index(value))

    which = pick("kind", kind, KINDS, SHARES, chance[0])
    ranges = tf.gather(tf.constant(list(zip(*RANGES.values(), strict=True)), tf.float32), which)  # (n, numbers, 2)
    u = tf.random.stateless_uniform((n, len(RANGES)), seeds[1])
    values = ranges[..., 0] + u * (ranges[..., 1] - ranges[..., 0])
    masks = dict(zip(RANGES, tf.unstack(values, axis=1), strict=True))

    free = chance[1] < NOSE_FREE if nose is None else tf.fill((n,), not nose)
    bare_top = masks.pop("bare_top")
    masks["top"] = tf.where(free, bare_top, masks["top"])
    masks["dip"] = tf.where(free, 0.1 * masks["dip"], masks["dip"])
    masks["band"] = tf.cast((which == 1) & (chance[2] < BAND), tf.float32)
    masks["valve"] = tf.cast((which == 2) & (chance[3] < VALVE), tf.float32)
    masks["highest"] = tf.fill((n,), NOTHING_ABOVE)
    masks["valve_side"] = tf.where(chance[4] < 0.5, -0.42, 0.42)

    palette = tf.constant(list(COLOURS.values()), tf.float32)
    shares = [[COLOUR_SHARES[kind].get(name, 0) for name in COLOURS] for kind in KINDS]
    if colour is None or isinstance(colour, str):
        first = tf.gather(palette, pick("colour", colour, list(COLOURS), shares, chance[5]))
    else:
        first = tf.broadcast_to(tf.cast(colour, tf.float32) / 255, (n, 3))
    vary = tf.random.stateless_uniform((n, 3, 5), seeds[2], -1.0, 1.0)
    if colour is not None:  # that colour, and no other
        vary *= tf.constant([0.0, 1.0, 1.0])[:, None]
    others = [tf.gather(palette, tf.cast(chance[i] * len(COLOURS), tf.int32)) for i in (6, 7)]
    colours = tf.stack([first, *others], axis=1)
    plain = tf.reduce_sum(colours * GREY, axis=-1, keepdims=True)
    colours = (plain + (colours - plain) * (1 + 0.3 * vary[..., :1])) * (1 + 0.08 * vary[..., 1:2])
    colours += 0.012 * vary[..., 2:]
    masks["colours"] = tf.clip_by_value(colours, 0.04, 1.0)  # (n, 3 of them, rgb)

    what = pick("pattern", pattern, PATTERNS, [PATTERN_SHARES[kind] for kind in KINDS], chance[8])
    masks["pattern"] = tf.one_hot(what, len(PATTERNS))
    # Two fine fields for flowers, a smooth one for wrinkles.
    fine = tf.random.stateless_uniform((n, TEXTURE, TEXTURE, 2), seeds[3], -1.0, 1.0)
    smooth = tf.image.resize(fine[:, : TEXTURE // 4, : TEXTURE // 4, :1], (TEXTURE, TEXTURE), method="bicubic")
    masks["texture"] = tf.concat([fine, smooth], axis=-1)
    return masks


# --- Where things are


def framing(side, margin=1.0):
    """(2, 3): pixel (x, y, 1) of crops `side` pixels wide -> their place in the frame; margin as in `ocular`."""
    step = margin / side
    start = 0.5 - 0.5 * margin + 0.5 * step
    return np.array([[step, 0, start], [0, step, start]], "float32")


def framing_of(points):
    """(2, 3): pixel (x, y, 1) of a photograph -> the frame of the face with these landmarks, (5, 2) in pixels."""
    a, b = faces.similarity(points)
    b += a * (0.5 + 0.5j)  # landmarks count from a pixel's corner, pixels from their middles
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]], "float32")


def _each(value):
    """A number for each picture, ready to meet (n, h, w)."""
    return value[:, None, None]


def _sheet(to_frame, height, width, masks, points):
    """The mask's coordinates at each pixel, (n, h, w) each, and where its edge runs."""
    ones = tf.ones_like(masks["top"])
    points = tf.cast(faces.FRAME if points is None else points, tf.float32)
    points = points + tf.zeros_like(ones)[:, None, None]
    left, right, nose = points[:, 0], points[:, 1], points[:, 2]
    eyes, mouth = (left + right) / 2, (points[:, 3] + points[:, 4]) / 2
    span = tf.maximum(mouth[:, 1] - eyes[:, 1], 0.2)
    level = (nose[:, 1] - eyes[:, 1]) / span
    lean = nose[:, 0] - eyes[:, 0] - tf.clip_by_value(level, 0.0, 1.0) * (mouth[:, 0] - eyes[:, 0])
    # A turned head: the nose moves before the eyes, and these before the axis.
    turn = tf.asin(tf.clip_by_value(lean / LEAN, -0.95, 0.95))
    axis = (eyes[:, 0] + mouth[:, 0]) / 2 - 1.3 * lean + masks["shift_right"]
    ridge = (eyes[:, 0] + mouth[:, 0]) / 2 + 0.8 * lean + masks["shift_right"]

    def reach(angle, side):
        """How far from the ridge a place of the head lies that is `angle` from the nose."""
        place = axis + RADIUS * tf.sin(tf.clip_by_value(side * angle + turn, -np.pi / 2, np.pi / 2))
        return tf.maximum(side * (place - ridge), 0.06)

    x, y = tf.range(width, dtype=tf.float32), tf.range(height, dtype=tf.float32)[:, None]
    f = to_frame[:, :, :, None, None]
    fx = f[:, 0, 0] * x + f[:, 0, 1] * y + f[:, 0, 2]
    fy = f[:, 1, 0] * x + f[:, 1, 1] * y + f[:, 1, 2]
    across = fx - _each(ridge)
    plain_v = (fy - _each(eyes[:, 1])) / _each(span)
    v = plain_v - _each(masks["shift_down"] / span) - _each(masks["tilt"] / span) * across
    is_right = across > 0
    halves = [reach(EDGE, side) * masks["width"] for side in (1, -1)]
    ears = [tf.maximum(reach(EAR, side), half) for side, half in zip((1, -1), halves, strict=True)]
    half, ear = (tf.where(is_right, _each(one), _each(other)) for one, other in (halves, ears))
    pixel = tf.sqrt(tf.abs(to_frame[:, 0, 0] * to_frame[:, 1, 1] - to_frame[:, 0, 1] * to_frame[:, 1, 0]))
    highest = masks["highest"] + tf.abs(right[:, 1] - left[:, 1]) / (2 * span)
    return {"u": across / half, "v": v, "half": half, "ear": ear, "span": span, "pixel": pixel,
            "below_eyes": (plain_v - _each(highest)) * _each(span)}


def _outline(sheet, masks):
    """How far each pixel lies inside the mask, in the frame, negative outside: (body, straps), and 0..1 down it."""
    def m(name):
        return _each(masks[name])

    u, v, span = sheet["u"], sheet["v"], _each(sheet["span"])
    squared = tf.minimum(u * u, 4.0)
    bump = squared / (squared + m("dip_width") ** 2)
    top = m("top") + m("dip") * bump + m("slope") * squared
    late = m("taper_late")
    bottom = m("bottom") - m("taper") * (squared * (1 - late) + squared * squared * late)
    size = tf.abs(u)
    body = tf.minimum(tf.minimum((v - top), (bottom - v)) * span, (1 - size) * sheet["half"])
    # Straps, or bands, run from the corners to the ear.
    gap = tf.maximum(sheet["ear"] - sheet["half"], 1e-3)
    way = (size - 1) * sheet["half"] / gap
    corner_top = m("top") + m("dip") / (1 + m("dip_width") ** 2) + m("slope") + 0.04
    corner_bottom = tf.maximum(m("bottom") - m("taper") - 0.04, corner_top + 0.15)
    upper = corner_top + (m("ear_top") - corner_top) * way
    lower = corner_bottom + (m("ear_bottom") - corner_bottom) * way
    # Across a steep line is less far than down to it.
    steep = [span / tf.sqrt(1 + ((m(end) - corner) * span / tf.maximum(gap, 0.02)) ** 2)
             for end, corner in (("ear_top", corner_top), ("ear_bottom", corner_bottom))]
    lines = m("strap") - tf.minimum(tf.abs(v - upper) * steep[0], tf.abs(v - lower) * steep[1])
    bands = tf.minimum(v - upper + 0.03, lower + 0.03 - v) * span
    straps = tf.where(m("band") > 0.5, bands, lines)
    straps = tf.minimum(straps, tf.minimum(way + 0.2, 1.0 - way) * gap)
    straps = tf.where(gap > 0.02, straps, -1.0)
    start = m("top") + (m("dip") + m("slope")) * squared
    down = (v - start) / tf.maximum(bottom - start, 0.2)
    return (tf.minimum(body, sheet["below_eyes"]), tf.minimum(straps, sheet["below_eyes"]), down)


def _textures(sheet, masks, to_frame, height, width):
    """The random fields of each mask under its pixels, moving with it: three (n, h, w), about -1..1.

    They don't turn with the picture: a random field looks the same from all sides.
    """
    cells = masks["scale"] * 0.75 * TEXTURE
    last_x, last_y = (tf.cast(count - 1, tf.float32) for count in (width, height))

    def ends(row, last, shift):
        """Where the first and the last pixel of a row or column lie in the field, as crop_and_resize counts."""
        f = to_frame[:, row]
        middle = f[:, 0] * last_x / 2 + f[:, 1] * last_y / 2 + f[:, 2] - 0.5 - shift
        reach = tf.where(f[:, row] < 0, -1.0, 1.0) * sheet["pixel"] * last / 2
        return [(TEXTURE / 2 + (middle + way * reach) * cells) / (TEXTURE - 1) for way in (-1, 1)]

    left, right = ends(0, last_x, masks["shift_right"])
    top, bottom = ends(1, last_y, masks["shift_down"])
    fields = tf.image.crop_and_resize(masks["texture"], tf.stack([top, left, bottom, right], axis=1),
                                      tf.range(tf.shape(left)[0]), (height, width))
    return tf.unstack(fields, axis=-1)


def _parts(sheet, masks, fields):
    """How much of each of its three colours the cloth has at each pixel: three (n, h, w) with the sum 1."""
    across, down = sheet["u"] * 0.39, sheet["v"] * 0.4
    frequency, angle = 6.2832 * masks["frequency"], masks["angle"]
    along = [(_each(frequency * tf.cos(a)), _each(frequency * tf.sin(a))) for a in (angle, angle + np.pi / 2)]
    waves = [tf.sin(cos * across + sin * down + _each(masks["phase"])) for cos, sin in along]
    _, stripes, checks, dots, floral = tf.unstack(masks["pattern"], axis=1)
    squares = [tf.clip_by_value(4 * wave, -1.0, 1.0) for wave in waves]
    second = _each(0.5 * (stripes + checks) - 3 * dots - 0.9 * floral) + _each(4.5 * floral) * fields[0]
    second += _each(0.5 * stripes + 0.25 * checks) * squares[0] + _each(0.25 * checks) * squares[1]
    second += _each(6 * dots) * (waves[0] * waves[1])
    second = tf.clip_by_value(second, 0.0, 1.0)
    third = tf.clip_by_value(_each(5 * floral) * (fields[1] - 0.22), 0.0, 1.0)
    second *= 1 - third
    return 1 - second - third, second, third


def _shading(sheet, masks, body, down, fields):
    """Light and dark of the bent, folded, sewn sheet: (n, h, w), about 1."""
    def m(name):
        return _each(masks[name])

    u, v = sheet["u"], sheet["v"]
    squared = tf.minimum(u * u, 1.5)
    shade = 1 - m("roundness") * squared + m("sideways") * u
    shade += m("ridge") * tf.maximum(1 - 9 * squared, -0.6) * tf.maximum(1.3 - v, 0.0)
    shade -= m("underside") * tf.clip_by_value(1.6 * v - 1.9, 0.0, 1.0)
    shade += m("fold") * tf.clip_by_value(9 * u, -1.0, 1.0)
    pleat = down * m("pleat_number") + 0.22 * fields[2]
    pleat -= tf.floor(pleat)  # each fold: a dark line that fades downward
    dark = tf.clip_by_value(tf.maximum(1 - 2.5 * pleat, 9 * pleat - 8), -0.35, 0.8)
    shade -= m("pleats") * dark * tf.cast(down > 0.12, tf.float32)
    shade += m("hem") * tf.cast(body < 0.028, tf.float32)
    shade += m("wrinkles") * fields[2] + m("creases") * tf.maximum(1 - 4 * tf.abs(fields[2]), 0.0)
    rim = ((u - m("valve_side")) * 0.39) ** 2 + ((v - 1.0) * 0.4) ** 2  # the valve: a disc with a darker rim
    shade += m("valve") * tf.where(rim < 0.0052, 0.08 - 0.3 * tf.cast(rim > 0.0030, tf.float32), 0.0)
    return shade


SKIN = (1.16, 0.96, 0.88)  # red, green, blue of skin in white light, as shares of its luminance
GREY = (0.299, 0.587, 0.114)
CELLS = 8


def _light(pictures, to_frame, masks):
    """What light falls on the mask, from the face under it: (n, h, w) of 0..255, and its colour.

    The luminance of the face, blurred over about a fifth of the picture, and raised by how much brighter than skin
    a white sheet is. The colour comes as (n, 3), about 1, and (n,), how much colour the picture has at all.
    """
    n, height, width = tf.unstack(tf.shape(pictures)[:3])
    small = tf.image.resize(pictures, (CELLS, CELLS), method="area")
    grid = (tf.range(CELLS, dtype=tf.float32) + 0.5) / CELLS
    x = grid * tf.cast(width, tf.float32) - 0.5
    y = (grid * tf.cast(height, tf.float32) - 0.5)[:, None]
    f = to_frame[:, :, :, None, None]
    fx, fy = (f[:, i, 0] * x + f[:, i, 1] * y + f[:, i, 2] for i in (0, 1))
    face = tf.clip_by_value(2.2 - 2.2 * (((fx - 0.49) / 0.36) ** 2 + ((fy - 0.58) / 0.40) ** 2), 0.01, 1.0)[..., None]
    grey = tf.reduce_sum(small * GREY, axis=-1, keepdims=True)
    mean = tf.reduce_sum(small * face, axis=(1, 2)) / tf.reduce_sum(face, axis=(1, 2))
    level = tf.reduce_sum(mean * GREY, axis=1, keepdims=True) + 1
    blurred = tf.concat([grey * face, face], axis=-1)
    for _ in range(2):
        blurred = tf.nn.avg_pool2d(blurred, 3, 1, "SAME")
    relative = tf.clip_by_value(blurred[..., :1] / blurred[..., 1:] / level[:, None, None], 0.5, 1.6)
    brightest = tf.reduce_max(grey, axis=(1, 2))
    full = tf.clip_by_value(tf.maximum(1.7 * level, 0.7 * level + 0.65 * brightest), 40.0, 265.0)
    full *= masks["light"][:, None]
    light = tf.image.resize(full[:, None, None] * (0.2 + 0.8 * relative), (height, width))[..., 0]
    cast = mean / level
    amount = tf.clip_by_value(tf.reduce_max(tf.abs(cast - 1), axis=1) * 12 - 0.3, 0.0, 1.0)
    colour = 1 + 0.3 * amount[:, None] * tf.clip_by_value(cast / SKIN - 1, -0.3, 0.3)
    return light, colour, amount


def _blur(pictures):
    """How blurred pictures are, 1 (sharp) to 3.4 (n,): how much grey levels differ over one pixel and two."""
    green = pictures[..., 1]
    near = tf.reduce_mean(tf.abs(green[:, :, 1:] - green[:, :, :-1]), axis=(1, 2))
    far = tf.reduce_mean(tf.abs(green[:, :, 2:] - green[:, :, :-2]), axis=(1, 2))
    near, far = (tf.where(tf.math.is_nan(mean), 0.0, mean) for mean in (near, far))  # a picture of one or two pixels
    return 1 + 6 * tf.clip_by_value(far / (near + 0.1) - 1.55, 0.0, 0.4)


# --- Drawing


def paint(pictures, masks, to_frame, points=None):
    """What is to be laid over pictures: (layer (n, h, w, 3), its opacity (n, h, w) 0..1), float32.

    Parameters as in `draw`. The layer is 0..255 times its opacity; it holds the mask and, beside it, a shadow.
    """
    n, height, width = tf.unstack(tf.shape(pictures)[:3])
    to_frame = tf.broadcast_to(tf.cast(to_frame, tf.float32), (n, 2, 3))
    masks = {name: tf.convert_to_tensor(value) for name, value in masks.items()}
    sheet = _sheet(to_frame, height, width, masks, points)
    body, straps, down = _outline(sheet, masks)
    edge = 1 / _each(sheet["pixel"] * masks["softness"] * _blur(pictures))
    cover = tf.clip_by_value(tf.maximum(body, straps) * edge + 0.5, 0.0, 1.0)
    shadow = _each(masks["shadow"]) * (1 - cover) * tf.clip_by_value(1 + 22 * body, 0.0, 1.0)
    cover, shadow = (part * tf.cast(sheet["below_eyes"] > 0, tf.float32) for part in (cover, shadow))
    fields = _textures(sheet, masks, to_frame, height, width)
    light, tint, amount = _light(pictures, to_frame, masks)
    shade = tf.where(body >= 0, _shading(sheet, masks, body, down, fields), _each(masks["strap_light"]))
    strength = cover * light * tf.clip_by_value(shade, 0.1, 1.5)
    weights = tf.stack([strength * part for part in _parts(sheet, masks, fields)] + [cover], axis=1)
    colours = masks["colours"]
    plain = tf.reduce_sum(colours * GREY, axis=-1, keepdims=True)
    colours = (plain + amount[:, None, None] * (colours - plain)) * tint[:, None]  # grey in a grey photograph
    colours = tf.concat([colours, tf.fill((n, 1, 3), 5.0)], axis=1)  # and black is not quite black
    layer = tf.matmul(tf.reshape(weights, (n, 4, height * width)), colours, transpose_a=True)
    return tf.reshape(layer, (n, height, width, 3)), cover + shadow


def draw(pictures, masks, to_frame, points=None):
    """Masks drawn over faces: (pictures (n, h, w, 3) float32 0..255, opacity (n, h, w) 0..1).

    Parameters
    ----------
    pictures : (n, h, w, 3) of 0..255, uint8 or float, array or tensor
    masks : dict of `random_masks`, n of them
    to_frame : (2, 3) or (n, 2, 3), where pixels lie in the frame: `framing` for crops, `framing_of` for a photograph
    points : the landmarks in the frame, (n, 5, 2) or (5, 2); None takes them to lie where `faces.FRAME` has them

    Where the opacity is 0 a picture is as it was.
    """
    pictures = tf.cast(pictures, tf.float32)
    layer, opacity = paint(pictures, masks, to_frame, points)
    return tf.minimum(pictures * (1 - opacity)[..., None] + layer, 255.0), opacity


def worn(n, share, seed):
    """Which of n pictures get a mask, `share` of them on average: (n,) bool; seed: a pair of integers."""
    return tf.random.stateless_uniform((n,), seed) < share


def wear(pictures, seed, share=1.0, to_frame=None, points=None, **choice):
    """Random masks on a share of the pictures, for training: (n, h, w, 3) float32 0..255.

    seed : a pair of integers: the same gives the same. Who wears one is told by `worn` with the same seed.
    to_frame, points : as in `draw`; without to_frame the pictures are crops with margin 1
    choice : kind, colour, pattern, nose, as in `random_masks`

    Only the chosen pictures are worked on, so it costs as much time as there are masks.
    """
    pictures = tf.cast(pictures, tf.float32)
    n = tf.shape(pictures)[0]
    place = tf.where(worn(n, share, seed))
    number = tf.shape(place)[0]
    rows = place[:, 0]
    to_frame = framing(pictures.shape[2]) if to_frame is None else to_frame
    to_frame = tf.gather(tf.broadcast_to(tf.cast(to_frame, tf.float32), (n, 2, 3)), rows)
    if points is not None:
        points = tf.gather(tf.broadcast_to(tf.cast(points, tf.float32), (n, 5, 2)), rows)
    masks = random_masks(number, tf.random.split(seed, 2)[1], **choice)
    drawn, _ = draw(tf.gather(pictures, rows), masks, to_frame, points)
    return tf.tensor_scatter_nd_update(pictures, place, drawn)


def wear_crops(crops, seed=0, margin=1.0, points=None, **choice):
    """Crops as above, each with a random mask: (n, s, s, 3) uint8, for evaluation.

    crops : (n, s, s, 3) uint8; margin : theirs (see `ocular`); points : `faces.crop_landmarks`, for a better fit;
    choice : kind, colour, pattern, nose, as in `random_masks`. The same seed gives the same masks.
    """
    crops = np.asarray(crops)
    done = np.empty_like(crops)
    to_frame = framing(crops.shape[2], margin)
    function = tf.function(lambda part, seed, at: wear(part, seed, 1.0, to_frame, at, **choice),
                           reduce_retracing=True, autograph=False)
    points = np.broadcast_to(faces.FRAME if points is None else points, (len(crops), 5, 2)).astype("float32")
    for start in range(0, len(crops), 128):
        part = slice(start, start + 128)
        drawn = function(tf.constant(crops[part]), tf.constant([seed, start]), tf.constant(points[part]))
        done[part] = tf.cast(tf.round(drawn), tf.uint8).numpy()
    return done


LARGEST_DRAWN = 512  # pixels: on a larger face the mask is drawn at this size and enlarged


def wear_photo(picture, face, masks):
    """A photograph with a mask drawn over one of its faces: a new array (height, width, 3) uint8 RGB.

    picture : array (height, width, 3) of uint8 RGB; face : a row of `faces.detect`; masks : `random_masks` of one
    """
    points = faces.points_of(face)
    to_frame = framing_of(points)
    # The part of the photograph that holds the frame and some room around.
    a, b = (complex(*to_frame[:, i]) for i in (0, 2))
    if not 1e-5 < abs(a) < 0.25:  # these landmarks are no face's
        return picture.copy()
    corners = (np.array([-0.25 - 0.1j, 1.25 - 0.1j, -0.25 + 1.3j, 1.25 + 1.3j]) - b) / a
    height, width = picture.shape[:2]
    low = np.clip(np.floor([corners.real.min(), corners.imag.min()]), 0, [width, height]).astype(int)
    high = np.clip(np.ceil([corners.real.max(), corners.imag.max()]), 0, [width, height]).astype(int)
    if (high - low < 2).any():  # the face lies outside
        return picture.copy()
    part = picture[low[1] : high[1], low[0] : high[0]].astype("float32")
    size = np.array(part.shape[:2])
    drawn = np.maximum(1, np.round(size * min(1, LARGEST_DRAWN / size.max()))).astype(int)
    small = tf.image.resize(part[None], drawn, antialias=True)
    step = (high - low) / np.array(small.shape[2:0:-1])
    start = low - 0.5 + 0.5 * step
    here = np.concatenate([to_frame[:, :2] * step, to_frame[:, 2:] + to_frame[:, :2] @ start[:, None]], axis=1)
    layer, opacity = paint(small, masks, here, faces.in_frame(points))
    layer, opacity = (tf.image.resize(what, size)[0].numpy() for what in (layer, opacity[..., None]))
    done = picture.copy()
    done[low[1] : high[1], low[0] : high[0]] = np.clip(part * (1 - opacity) + layer, 0, 255).round()
    return done

