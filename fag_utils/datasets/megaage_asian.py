"""MegaAge-Asian: 40,000 faces of Asian people, ages 0 to 70. No genders.

Zhang, Liu, Li, Loy (2017), "Quantifying Facial Age by Posterior of Age Comparisons".
list/train_name.txt and list/train_age.txt (and the same for test) belong together line by line.
"""

import os
from pathlib import Path

from fag_utils import table as tables
from fag_utils.datasets import _common

NAME = "megaage_asian"
TITLE = "MegaAge-Asian"
LICENCE = "non-commercial research only; no redistribution"
HOW_TO_GET = (
    "get it from http://mmlab.ie.cuhk.edu.hk/projects/MegaAge/ and unpack it as megaage_asian/train/*.jpg, "
    "megaage_asian/test/*.jpg and megaage_asian/list/*.txt in the data folder."
)


def read(folder):
    """The table of the set in `folder`: the official test fold, and a tenth of the rest for validation.

    Raises ValueError where names and ages differ in number: one lost line would shift every label.
    """
    folder = Path(folder)
    _common.need(NAME, folder)
    root = folder / NAME if (folder / NAME / "list").is_dir() else folder
    rows = _read_part(root, "train") + _read_part(root, "test")
    return tables.make(rows, NAME)


def _read_part(root, part):
    names_file, ages_file = (
        _common.need(NAME, root / "list" / f"{part}_{what}.txt") for what in ("name", "age"))
    names, ages = _common.read_lines(names_file), _common.read_lines(ages_file)
    if len(names) != len(ages):
        raise ValueError(
            f"{names_file} has {len(names)} lines, but {ages_file.name} has {len(ages)}: "
            "they belong together line by line, so get both files again"
        )
    there = set(_common.file_names(NAME, root / part))
    rows = []
    for (_, name), (number, text) in zip(names, ages, strict=True):
        name, age = name.strip(), _common.whole_number(text)
        reason = None if name in there else _common.NO_FILE
        if age is None:
            reason = _common.broken_line(ages_file, number)["reason"]
        rows.append(_row(root, part, name, age, reason))
        there.discard(name)
    for name in sorted(there):
        reason = f"not in {names_file.name}" if _common.is_picture(name) else _common.NOT_A_PICTURE
        rows.append(_row(root, part, name, None, reason))
    return rows


def _row(root, part, name, age, reason):
    fold = "test" if part == "test" else _common.fold(name, test=None)
    path = os.path.join(root, part, name)
    return {"path": path, "age": age, "region": "asian", "fold": fold, "reason": reason}
