"""Labeled Faces in the Wild: 13,233 news photographs of 5,749 people. For evaluation only.

Huang, Ramesh, Berg, Learned-Miller (2007). Genders come from two lists of picture names, male_names.txt and
female_names.txt: Afifi, Abdelhamed (2019), "AFIF4: Deep gender classification based on AdaBoost-based fusion
of isolated facial features and foggy faces".
"""

import os
from pathlib import Path

from fag_utils import labels
from fag_utils import table as tables
from fag_utils.datasets import _common

NAME = "lfw"
TITLE = "Labeled Faces in the Wild"
LICENCE = "research only; the photographs belong to the press agencies that made them"
HOW_TO_GET = (
    "get the pictures and the 'manually verified LFW gender labels' from http://vis-www.cs.umass.edu/lfw/; "
    "put them in the data folder as lfw/lfw/NAME/NAME_0001.jpg, lfw/male_names.txt and lfw/female_names.txt."
)


def read(folder):
    """The table of the set in `folder`; every picture is in the test fold, and its folder says who it is.

    A picture that is in no list, or in both, gets a reason.
    """
    folder = Path(folder)
    people = _common.need(NAME, *(folder / p for p in ("lfw", "lfw_funneled", "lfw-deepfunneled")))
    men, women = (_names(folder / f"{gender}_names.txt") for gender in ("male", "female"))
    rows, there = [], set()
    for person in sorted(os.listdir(people)):
        if not (people / person).is_dir():
            continue
        for name in sorted(os.listdir(people / person)):
            there.add(name)
            rows.append(_row(people, person, name, men, women))
    if not there:
        raise _common.missing(NAME, people / "NAME" / "NAME_0001.jpg")
    for name in sorted((men | women) - there):
        rows.append(_row(people, name.rpartition("_")[0], name, men, women) | _common.ABSENT)
    return tables.make(rows, NAME)


def _row(people, person, name, men, women):
    in_lists = (name in men) + (name in women)
    reason = {0: "gender is in no list", 1: None, 2: "gender is in both lists"}[in_lists]
    return {
        "path": os.path.join(people, person, name),
        "identity": person,
        "male": (labels.MALE if name in men else labels.FEMALE) if in_lists == 1 else None,
        "region": "western",
        "fold": "test",
        "reason": reason if _common.is_picture(name) else _common.NOT_A_PICTURE,
    }


def _names(path):
    return {line.strip() for _, line in _common.read_lines(_common.need(NAME, path))}
