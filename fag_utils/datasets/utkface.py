"""UTKFace: over 20,000 faces of all ages, whose labels are their file names.

Zhang, Song, Qi (2017), "Age Progression/Regression by Conditional Adversarial Autoencoder".
A name is AGE_GENDER_RACE_DATE.jpg or ....jpg.chip.jpg (aligned and cropped), with gender 0 for male and
race 0 white, 1 black, 2 Asian, 3 Indian, 4 others. A few published names lack a field.
"""

import os
import re
from pathlib import Path

from fag_utils import labels
from fag_utils import table as tables
from fag_utils.datasets import _common

NAME = "utkface"
TITLE = "UTKFace"
LICENCE = "non-commercial research only; the pictures belong to their owners"
HOW_TO_GET = (
    "get 'Aligned&Cropped Faces' from https://susanqq.github.io/UTKFace/ "
    "and unpack it as utkface/UTKFace/*.jpg in the data folder."
)
RACES = ["white", "black", "asian", "indian", "others"]
_OLDEST = 116  # "ages 0 to 116", says the set's page
_DUPLICATE = "duplicate of a training picture"


def read(folder):
    """The table of the set in `folder`: `folder/UTKFace/*.jpg`, or the pictures themselves.

    The SHA-1 of the file name tells the fold. Where a `val.txt` lies beside the pictures, it lists the adults
    (18..65) of the validation fold: those that are not in it show the same as a training picture.
    """
    folder = Path(folder)
    pictures = _common.need(NAME, folder / "UTKFace", folder / "utkface_aligned_cropped" / "UTKFace", folder)
    names = _common.file_names(NAME, pictures)
    if not any(map(_common.is_picture, names)):
        raise _common.missing(NAME, pictures / "*.jpg")
    listed = _validation_list(pictures)
    rows = [_row(pictures, name, listed) for name in names if name != "val.txt"]
    rows += [_row(pictures, name, listed) | _common.ABSENT for name in sorted(listed - set(names))]
    return tables.make(rows, NAME)


def parse(name):
    """What a file name says: dict of age, male, region and reason (None when all is well). Never raises."""
    fields = str(name).split("_")[:3] + [""] * 3
    age = int(fields[0]) if re.fullmatch("[0-9]{1,3}", fields[0]) else None
    if age is not None and age > _OLDEST:
        age = None
    male = {"0": labels.MALE, "1": labels.FEMALE}.get(fields[1])
    race = int(fields[2]) if re.fullmatch("[0-4]", fields[2]) else None
    unread = [label for label, value in [("age", age), ("gender", male), ("race", race)] if value is None]
    region = None if race is None else "asian" if RACES[race] == "asian" else "western"
    reason = "malformed name: no " + ", ".join(unread) if unread else None
    if not _common.is_picture(name):
        reason = _common.NOT_A_PICTURE
    return {"age": age, "male": male, "region": region, "reason": reason}


def race(path):
    """Race in a picture's file name: "white", "black", "asian", "indian", "others", or None."""
    fields = os.path.basename(str(path)).split("_")
    return RACES[int(fields[2])] if len(fields) > 3 and re.fullmatch("[0-4]", fields[2]) else None


def _row(pictures, name, listed):
    row = {"path": os.path.join(pictures, name), "fold": _common.fold(name), **parse(name)}
    if name in listed:
        row["fold"] = "validation"
    elif listed and row["fold"] == "validation" and row["reason"] is None and _is_adult(row["age"]):
        row["reason"] = _DUPLICATE
    return row


def _is_adult(age):
    return labels.MIN_AGE <= age <= labels.MAX_AGE


def _validation_list(pictures):
    """Names in val.txt, in the folder of the pictures or the one above; empty when there is none."""
    for path in [pictures / "val.txt", pictures.parent / "val.txt"]:
        if path.is_file():
            return {line.strip() for _, line in _common.read_lines(path)}
    return set()
