"""AFAD, the Asian Face Age Dataset: over 160,000 faces, ages 15 to 75; folders tell age and gender.

Niu, Zhou, Wang, Gao, Hua (2016), "Ordinal Regression With Multiple Output CNN for Age Estimation".
AFAD-Full/AGE/111/*.jpg are men, AFAD-Full/AGE/112/*.jpg women. AFAD-Lite is a part of AFAD-Full.
"""

import os
from pathlib import Path

from fag_utils import labels
from fag_utils import table as tables
from fag_utils.datasets import _common

NAME = "afad"
TITLE = "AFAD (Asian Face Age Dataset)"
LICENCE = "academic research only"
HOW_TO_GET = (
    "get AFAD-Full (or the smaller AFAD-Lite) from https://afad-dataset.github.io/ "
    "and unpack it as afad/AFAD-Full/AGE/111|112/*.jpg in the data folder."
)
_GENDERS = {"111": labels.MALE, "112": labels.FEMALE}


def read(folder):
    """The table of the set in `folder`: AFAD-Full, or AFAD-Lite, or the folders of ages themselves.

    638660-0.jpg and 638660-1.jpg come from one source and may show one person, so the number before the
    dash tells the fold.
    """
    folder = Path(folder)
    root = _common.need(NAME, folder / "AFAD-Full", folder / "AFAD-Lite", folder)
    rows = [_row(root, parts) for parts in _common.walk(root)]
    if not rows:
        raise _common.missing(NAME, root / "AGE" / "111" / "*.jpg")
    return tables.make(rows, NAME)


def _row(root, parts):
    name = parts[-1]
    age, male = None, None
    if len(parts) == 3:
        age, male = _common.whole_number(parts[0]), _GENDERS.get(parts[1])
    reason = None if age is not None and male is not None else "not in a folder AGE/111 or AGE/112"
    return {
        "path": os.path.join(root, *parts),
        "age": age,
        "male": male,
        "region": "asian",
        "fold": _common.fold(name.partition(".")[0].partition("-")[0]),
        "reason": reason if _common.is_picture(name) else _common.NOT_A_PICTURE,
    }
