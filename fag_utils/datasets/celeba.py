"""CelebA: 202,599 pictures of 10,177 celebrities with 40 yes-or-no attributes; we read "Male".

Liu, Luo, Wang, Tang (2015), "Deep Learning Face Attributes in the Wild". No ages.
list_attr_celeba.txt: number of pictures, then the names of the attributes, then lines `000001.jpg -1 1 ...`.
"""

import os
from pathlib import Path

from fag_utils import table as tables
from fag_utils.datasets import _common

NAME = "celeba"
TITLE = "CelebA (CelebFaces Attributes)"
LICENCE = "non-commercial research only; no redistribution"
HOW_TO_GET = (
    "get img_align_celeba.zip, list_attr_celeba.txt, identity_CelebA.txt and list_eval_partition.txt from "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html, put the lists in celeba/ in the data folder and the "
    "pictures in celeba/img_align_celeba/*.jpg."
)
_PICTURES = ["img_align_celeba/img_align_celeba", "img_align_celeba", "Img/img_align_celeba"]


def read(folder):
    """The table of the set in `folder`.

    Folds are the official ones where list_eval_partition.txt is there, else a hash of who it is, so that no
    person is in two folds. The lists may lie in Anno/ and Eval/ as in the download, or be the .csv files
    of Kaggle. Raises MissingSetError, or ValueError where a list is empty or has no column Male.
    """
    folder = Path(folder)
    _common.need(NAME, folder)
    pictures = _common.need(NAME, *(folder / place for place in _PICTURES))
    there = set(_common.file_names(NAME, pictures))
    attributes = _find(folder, "list_attr_celeba")
    if attributes is None:
        raise _common.missing(NAME, folder / "list_attr_celeba.txt")
    identities = _read_pairs(_find(folder, "identity_CelebA"))
    partition = _read_pairs(_find(folder, "list_eval_partition"))
    if not identities and not partition:
        raise _common.missing(NAME, f"{folder / 'identity_CelebA.txt'}, or list_eval_partition.txt,")
    genders, rows = _read_genders(attributes)
    for name in sorted(there | set(genders)):
        who = identities.get(name)
        row = {"path": os.path.join(pictures, name), "identity": who, "male": genders.get(name)}
        row["region"] = "western"
        row["fold"] = _official_fold(partition.get(name)) if partition else who and _common.fold(who)
        row["reason"] = _reason(row, name, there)
        rows.append(row)
    return _common.keep_people_together(tables.make(rows, NAME))


def _reason(row, name, there):
    if not _common.is_picture(name):
        return _common.NOT_A_PICTURE
    if name not in there:
        return _common.NO_FILE
    if row["male"] is None:
        return "not in the list of attributes"
    return None if row["fold"] else "not in the list of people or folds"


def _official_fold(code):
    return dict(zip("012", tables.FOLDS, strict=True)).get(code)


def _find(folder, stem):
    """Path of a list, wherever the download or Kaggle puts it; None when it is absent."""
    places = [folder, folder / "Anno", folder / "Eval"]
    paths = [place / f"{stem}{end}" for place in places for end in (".txt", ".csv")]
    return next((path for path in paths if path.is_file()), None)


def _split(path):
    """[(line number, fields)] of a list in either format."""
    return [(number, line.replace(",", " ").split()) for number, line in _common.read_lines(path)]


def _read_pairs(path):
    """Dict of the first to the second field of each line; empty without a file."""
    return {fields[0]: fields[1] for _, fields in _split(path) if len(fields) == 2} if path else {}


def _read_genders(path):
    """Dict of picture name -> male, and a row with a reason for every line that can't be read."""
    lines = _split(path)
    if len(lines[0][1]) == 1:  # the number of pictures
        lines = lines[1:]
    header = [field for field in lines[0][1] if field != "image_id"] if lines else []
    if "Male" not in header:
        raise ValueError(f"{path} has no column Male: get the list again from the set's page")
    column = 1 + header.index("Male")
    genders, broken = {}, []
    for number, fields in lines[1:]:
        if len(fields) == 1 + len(header) and fields[column] in ("1", "-1"):
            genders[fields[0]] = int(fields[column] == "1")
        else:
            broken.append(_common.broken_line(path, number))
    return genders, broken
