"""Adience: faces from Flickr albums, 19,370 of them labelled with age group and gender, in five folds.

Eidinger, Enbar, Hassner (2014), "Age and Gender Estimation of Unfiltered Faces".
fold_0_data.txt .. fold_4_data.txt are tables with tabs: user_id, original_image, face_id, age, gender, ...
A picture is faces/USER/coarse_tilt_aligned_face.FACE.IMAGE, or aligned/USER/landmark_aligned_face.FACE.IMAGE.
"""

import os
import re
from pathlib import Path

import numpy as np

from fag_utils import labels
from fag_utils import table as tables
from fag_utils.datasets import _common

NAME = "adience"
TITLE = "Adience"
LICENCE = "non-commercial research only; the photographs are under their owners' Creative Commons licences"
HOW_TO_GET = (
    "ask for it at https://talhassner.github.io/home/projects/Adience/Adience-data.html and put "
    "fold_0_data.txt .. fold_4_data.txt and faces/ (or aligned/) into adience/ in the data folder."
)
N_FOLDS = 5
_PREFIX = {"faces": "coarse_tilt_aligned_face", "aligned": "landmark_aligned_face"}
_GENDERS = {"m": labels.MALE, "f": labels.FEMALE, "u": None, "": None}


def read(folder, test_fold=4):
    """The table of the set in `folder`, ready for one round of the five-fold protocol.

    The pictures of fold `test_fold` (0..4) are the test; of the others, a tenth of the users is validation.
    `age` is the middle of the group (see `groups`): the set has no ages in years, but for a few pictures.
    """
    if test_fold not in range(N_FOLDS):
        raise ValueError(f"test_fold must be one of 0..{N_FOLDS - 1}, got {test_fold!r}")
    folder = Path(folder)
    _common.need(NAME, folder)
    pictures = _common.need(NAME, folder / "faces", folder / "aligned")
    unlisted = {os.path.join(pictures, *parts) for parts in _common.walk(pictures)}
    rows = []
    for k in range(N_FOLDS):
        for row in _read_fold(_common.need(NAME, folder / f"fold_{k}_data.txt"), pictures):
            if row["reason"] is None and row["path"] not in unlisted:
                row["reason"] = _common.NO_FILE
            if "identity" in row:
                row["fold"] = "test" if k == test_fold else _common.fold(row["identity"], test=None)
            rows.append(row)
    unlisted -= {row["path"] for row in rows}
    rows += [{"path": path, "reason": "not in the lists of folds"} for path in sorted(unlisted)]
    return _common.keep_people_together(tables.make(rows, NAME))


def rounds(folder):
    """The five rounds of the protocol, for `evaluation.cross_validate`: the table of `read` for each test fold."""
    return (read(folder, test_fold) for test_fold in range(N_FOLDS))


def groups(table, nearest=False):
    """Index 0..7 of each row's group in labels.ADIENCE_GROUPS; -1 where there is none.

    A few pictures have an age between two groups: -1 for them, too, or the `nearest` group.
    """
    known = table["age"].notna().to_numpy()
    return np.where(known, labels.adience_group(table["age"].fillna(0).to_numpy(), nearest), -1)


def parse_age(text):
    """Age in years that a label stands for: "35" -> 35; "(25, 32)" -> 28.5, the middle of that group.

    The lists also hold ranges that are no group, such as "(27, 32)" or "(38, 48)": what counts is the group
    they share most years with. "(8, 23)" shares as many with two groups: no age, as with "None" and "".
    ValueError for other texts.
    """
    if text in ("None", ""):
        return None
    numbers = [int(number) for number in re.findall("[0-9]{1,3}", text)]
    if not re.fullmatch(r"[0-9]{1,3}|\([0-9]{1,3}, *[0-9]{1,3}\)", text) or max(numbers) > _common.OLDEST:
        raise ValueError(f"{text!r} is no age of Adience")
    if len(numbers) == 1:
        return float(numbers[0])
    shared = [min(numbers[1], high) - max(numbers[0], low) + 1 for low, high in labels.ADIENCE_GROUPS]
    if max(shared) < 1 or shared.count(max(shared)) > 1:
        return None
    return float(np.mean(labels.ADIENCE_GROUPS[int(np.argmax(shared))]))


def _read_fold(path, pictures):
    (_, header), *lines = _common.read_lines(path)
    columns = header.split("\t")
    wanted = ["user_id", "original_image", "face_id", "age", "gender"]
    if not set(wanted) <= set(columns):
        raise ValueError(f"{path} must begin with a line of column names, {', '.join(wanted)}: get it again")
    for number, line in lines:
        fields = dict(zip(columns, line.split("\t"), strict=False))
        try:
            yield _row(pictures, *(fields[column].strip() for column in wanted))
        except (KeyError, ValueError):
            yield _common.broken_line(path, number)


def _row(pictures, user, image, face, age, gender):
    name = f"{_PREFIX[pictures.name]}.{face}.{image}"
    age, male = parse_age(age), _GENDERS[gender]
    return {
        "path": os.path.join(pictures, user, name),
        "identity": user,
        "age": age,
        "male": male,
        "region": "western",
        "reason": "neither age nor gender" if age is None and male is None else None,
    }
