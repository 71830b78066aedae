"""LAG, the Large Age-Gap database: 3,828 pictures of 1,010 celebrities, young and old. For evaluation only.

Bianco (2017), "Large Age-Gap Face Verification by Feature Injection in Deep Networks". Its README.txt says:
LAGdataset_200/PERSON/ holds pictures of the adult, and its subfolder y/ those of the child or young person.
No ages in years and no genders: a gender.csv with lines `PERSON,1` (male) or `PERSON,0` adds them.
"""

import os
from pathlib import Path

from fag_utils import table as tables
from fag_utils.datasets import _common

NAME = "lag"
TITLE = "LAG (Large Age-Gap database)"
LICENCE = "academic, non-commercial use only; no redistribution"
HOW_TO_GET = (
    "get the database (200x200) from "
    "http://www.ivl.disco.unimib.it/activities/large-age-gap-face-verification/ "
    "and unpack it as lag/LAGdataset_200/PERSON/*.png in the data folder."
)


def read(folder):
    """The table of the set in `folder`; every picture is in the test fold, and its folder says who it is."""
    folder = Path(folder)
    root = _common.need(NAME, folder / "LAGdataset_200", folder / "LAGdataset_100", folder)
    genders, rows = _read_genders(folder / "gender.csv")
    pictures = [_row(root, parts, genders) for parts in _common.walk(root)]
    if not pictures:
        raise _common.missing(NAME, root / "PERSON" / "*.png")
    return tables.make(pictures + rows, NAME)


def _row(root, parts, genders):
    in_place = len(parts) == 2 or (len(parts) == 3 and parts[1] == "y")
    reason = None if in_place else "not in a folder PERSON or PERSON/y"
    return {
        "path": os.path.join(root, *parts),
        "identity": parts[0] if in_place else None,
        "male": genders.get(parts[0]),
        "region": "western",
        "fold": "test",
        "reason": reason if _common.is_picture(parts[-1]) else _common.NOT_A_PICTURE,
    }


def _read_genders(path):
    """Dict of person -> male, and a row with a reason for every line that can't be read."""
    genders, broken = {}, []
    for number, line in _common.read_lines(path) if path.is_file() else []:
        person, _, male = line.rpartition(",")
        if male.strip() in ("0", "1"):
            genders[person.strip()] = int(male)
        elif number > 1:  # the first line may name the columns
            broken.append(_common.broken_line(path, number))
    return genders, broken
