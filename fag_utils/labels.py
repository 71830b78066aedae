"""The one place for ages, age groups and gender codes.

The network tells 48 ages apart, 18 to 65. Class 0 is age 18, class 47 is age 65.
"""

import numpy as np

MIN_AGE, MAX_AGE = 18, 65
AGES = np.arange(MIN_AGE, MAX_AGE + 1)
N_AGES = len(AGES)
N_EVERY_AGE = 117  # 0..116, as in UTKFace: the ages a network may learn with, of which it keeps 48

# Sixteen groups of three years: the unit of a balanced batch.
AGE_GROUPS = [(low, low + 2) for low in range(MIN_AGE, MAX_AGE + 1, 3)]

# Five broad groups, in which errors are reported.
REPORT_GROUPS = [(18, 25), (26, 35), (36, 45), (46, 55), (56, 65)]

# Eidinger, Enbar, Hassner (2014), "Age and Gender Estimation of Unfiltered Faces".
ADIENCE_GROUPS = [(0, 2), (4, 6), (8, 13), (15, 20), (25, 32), (38, 43), (48, 53), (60, 100)]

FEMALE, MALE = 0, 1


def age_to_class(age):
    """Class 0..47 of an age 18..65 in years. Scalar or array; ValueError outside 18..65."""
    age = np.asarray(age)
    if age.size and not np.all((age >= MIN_AGE) & (age <= MAX_AGE)):
        raise ValueError(f"ages must lie in {MIN_AGE}..{MAX_AGE} years, got {age.min()}..{age.max()}")
    return (np.floor(age) - MIN_AGE).astype("int64")


def gender_in_words(male_probability):
    """("man" or "woman", how sure the network is of that: 0.5..1)."""
    return ("man", male_probability) if male_probability >= 0.5 else ("woman", 1 - male_probability)


def _group(age, groups):
    """Index of the group (low, high), both included, that holds each age; -1 where none does."""
    age = np.floor(np.asarray(age, dtype="float64"))
    index = np.full(age.shape, -1, dtype="int64")
    for i, (low, high) in enumerate(groups):
        index[(age >= low) & (age <= high)] = i
    return index


def age_group(age):
    """Index 0..15 of the three-year group of each age in years; -1 outside 18..65."""
    return _group(age, AGE_GROUPS)


def report_group(age):
    """Index 0..4 of the reporting group of each age in years; -1 outside 18..65."""
    return _group(age, REPORT_GROUPS)


def adience_group(age, nearest=False):
    """Index 0..7 of the Adience group of each age in years.

    The published groups leave gaps (3, 7, 14, 21 to 24, ...): there the answer is -1,
    or with `nearest=True` the group whose edge is closest (the younger one in a tie).
    """
    index = _group(age, ADIENCE_GROUPS)
    if nearest:
        age = np.floor(np.asarray(age, dtype="float64"))
        low, high = np.array(ADIENCE_GROUPS, dtype="float64").T
        distance = np.maximum(low - age[..., None], age[..., None] - high)
        index = np.where(index < 0, distance.argmin(axis=-1), index)
    return index


def group_name(group):
    """(18, 20) -> '18-20'."""
    return f"{group[0]}-{group[1]}"


def expected_age(probabilities):
    """Mean age in years of distributions over the 48 ages, shape (..., 48) -> (...).

    Rothe, Timofte, Van Gool (2015), "DEX: Deep EXpectation of apparent age from a single image".
    """
    probabilities = np.asarray(probabilities, dtype="float64")
    if probabilities.shape[-1] != N_AGES:
        raise ValueError(f"expected {N_AGES} probabilities, got {probabilities.shape[-1]}")
    return probabilities @ AGES


def adult(probabilities):
    """Distributions over the ages 0..116 (..., 117), given that the age is in 18..65: (..., 48).

    Distributions over 48 ages are returned as they are.
    """
    probabilities = np.asarray(probabilities)
    if probabilities.shape[-1] == N_AGES:
        return probabilities
    inside = probabilities[..., MIN_AGE : MAX_AGE + 1]
    return inside / np.maximum(inside.sum(axis=-1, keepdims=True), 1e-12)


def temper(probabilities, temperature):
    """Probabilities (..., k) with their logits divided by `temperature`: above 1 less sure, below 1 surer."""
    logits = np.log(np.asarray(probabilities, dtype="float64") + 1e-12) / temperature
    logits -= logits.max(axis=-1, keepdims=True)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def temper_ages(age, outside, temperature):
    """`temper` for distributions over 18..65 (..., 48) with the probabilities (..., 2) of being under 18 and over
    65: (age, outside). Both answers together are one distribution over 50 cells. `outside` may be None.
    """
    if outside is None:
        return temper(age, temperature), None
    outside = np.asarray(outside, dtype="float64")
    inside = np.maximum(1 - outside.sum(axis=-1, keepdims=True), 0)
    cells = temper(np.concatenate([outside[..., :1], age * inside, outside[..., 1:]], axis=-1), temperature)
    return cells[..., 1:-1] / cells[..., 1:-1].sum(axis=-1, keepdims=True), cells[..., [0, -1]]


def age_interval(probabilities, share=0.8, outside=None):
    """(low, high) ages in years that hold the middle `share` of distributions (..., 48).

    outside : probabilities (..., 2) that the person is under 18 and over 65, or None: no such person. With them the
        interval of somebody who may well be 70 reaches to the end.

    A class covers the half year on either side of its age, and inside it the probability is spread evenly,
    so that the ends move smoothly.
    """
    cumulative = np.cumsum(np.asarray(probabilities, dtype="float64"), axis=-1)
    cumulative = np.concatenate([np.zeros_like(cumulative[..., :1]), cumulative], axis=-1)
    cumulative /= cumulative[..., -1:]
    if outside is not None:
        outside = np.asarray(outside, dtype="float64")
        cumulative = outside[..., :1] + cumulative * (1 - outside.sum(axis=-1, keepdims=True))
    edges = np.arange(N_AGES + 1) + MIN_AGE - 0.5

    def quantile(q):
        beyond = cumulative[..., -1] < q
        above = np.where(beyond, N_AGES, (cumulative >= q).argmax(axis=-1))[..., None].clip(1)
        low, high = (np.take_along_axis(cumulative, above - i, axis=-1)[..., 0] for i in (1, 0))
        return edges[above[..., 0] - 1] + ((q - low) / np.maximum(high - low, 1e-12)).clip(0, 1)

    return quantile((1 - share) / 2), quantile((1 + share) / 2)
