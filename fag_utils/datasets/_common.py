"""What the readers share: finding the files, reading the lists, keeping people in one fold."""

import importlib
import os
from pathlib import Path

from fag_utils import table as tables

OLDEST = 120  # years; nobody in a photograph is older
NO_FILE = "picture file is missing"
ABSENT = {"reason": NO_FILE}
NOT_A_PICTURE = "not a picture file"


class MissingSetError(FileNotFoundError):
    """A data set, or a part of it, is not there. The message says how to get it."""


class DownloadError(RuntimeError):
    """A data set could not be got. The message says why, and what to do."""


def how_to_get(name):
    """A sentence: the call that gets the set, and the way by hand."""
    reader = importlib.import_module(f"fag_utils.datasets.{name}")
    return f'datasets.get("{name}"), or by hand: {reader.HOW_TO_GET}'


def missing(name, path):
    """The MissingSetError of the set `name`, of which `path` was not found."""
    reader = importlib.import_module(f"fag_utils.datasets.{name}")
    return MissingSetError(
        f"{path} not found. {reader.TITLE}: {how_to_get(name)} Licence: {reader.LICENCE}"
    )


def need(name, *candidates):
    """The first of the paths that exists; MissingSetError of the set `name` when none does."""
    for path in candidates:
        if Path(path).exists():
            return Path(path)
    raise missing(name, min(candidates, key=lambda path: len(str(path))))


def is_picture(name):
    """Does the file name end like that of a picture?"""
    return str(name).lower().endswith((".jpg", ".jpeg", ".png", ".bmp", ".webp"))


def file_names(name, folder):
    """Sorted names of the files in a folder; MissingSetError when there is none."""
    with os.scandir(need(name, folder)) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file())
    if not names:
        raise missing(name, f"a picture in {folder}")
    return names


def read_lines(path):
    """[(line number from 1, text)] of a list file, empty lines left out; ValueError for an empty file."""
    text = Path(path).read_text(encoding="utf-8-sig", errors="replace")
    lines = [(i, line.strip("\r\n")) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise ValueError(f"{path} is empty: get the file again")
    return lines


def broken_line(path, number):
    """The row that stands for a line of a list that can't be read; its path says file and line."""
    return {"path": f"{path}:{number}", "reason": f"broken line in {Path(path).name}"}


def fold(key, **parts):
    """table.hash_fold, also of file names that are not valid text."""
    return tables.hash_fold(str(key).encode("utf-8", "surrogatepass").decode("utf-8", "replace"), **parts)


def keep_people_together(table):
    """Give a reason to the validation and test pictures of people who are in the training fold, too,
    and to the test pictures of people who are in validation. Returns the table."""
    rank = table["fold"].map({"train": 0, "validation": 1, "test": 2})
    first = rank.groupby(table["identity"]).transform("min")  # missing people stay missing
    leaks = table["reason"].isna() & (rank > first)
    table.loc[leaks, "reason"] = "person is in another fold, too"
    return table


def walk(root):
    """Files below a folder as tuples of folder and file names, sorted; at its top only the pictures,
    since lists and read-me files lie there."""
    for folder, folders, names in os.walk(root):
        folders.sort()
        parts = Path(folder).relative_to(root).parts
        yield from ((*parts, name) for name in sorted(names) if parts or is_picture(name))


def whole_number(text, highest=OLDEST):
    """The number 0..highest that a text of digits stands for, or None."""
    text = str(text).strip()
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) <= highest:
        return int(text)
    return None
