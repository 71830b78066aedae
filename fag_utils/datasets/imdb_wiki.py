"""IMDB-WIKI: 523,051 pictures of celebrities; ages from birth dates and the years of the photographs.

Rothe, Timofte, Van Gool (2015), "DEX: Deep EXpectation of apparent age from a single image".
imdb_crop/imdb.mat and wiki_crop/wiki.mat hold one Matlab struct each: dob (Matlab's day number), photo_taken
(a year), full_path, gender (0 female, 1 male, NaN), name, face_score (-Inf without a face), second_face_score
(NaN without a second face). The labels were collected by a machine and hold many errors.
"""

import os
from pathlib import Path

import numpy as np

from fag_utils import table as tables
from fag_utils.datasets import _common

NAME = "imdb_wiki"
TITLE = "IMDB-WIKI"
LICENCE = "academic research only; the pictures belong to their owners"
HOW_TO_GET = (
    "get 'faces only' of IMDB, WIKI or both from https://data.vision.ee.ethz.ch/cvl/rrothe/imdb-wiki/ "
    "and unpack them as imdb_wiki/imdb_crop/ and imdb_wiki/wiki_crop/ in the data folder."
)
YOUNGEST, OLDEST = 0, 100  # years; what lies outside comes from a wrong date
_FIELDS = ["dob", "photo_taken", "full_path", "gender", "name", "face_score", "second_face_score"]
_MATLAB_1970 = 719529  # Matlab's day number of 1 January 1970


def read(folder, min_face_score=1.0):
    """The table of IMDB, WIKI or both in `folder`.

    A row has a reason when its face scores less than `min_face_score`, when there is a second face (whose
    age is it?), or when age or gender can't be right. The person's name tells the fold, in both sets alike.
    """
    folder = Path(folder)
    _common.need(NAME, folder)
    files = [folder / f"{part}_crop" / f"{part}.mat" for part in ("imdb", "wiki")]
    files += [folder / path.name for path in files]
    files = [path for path in files if path.is_file()]
    if not files:
        raise _common.missing(NAME, folder / "imdb_crop" / "imdb.mat")
    return tables.make((row for path in files for row in _read_mat(path, min_face_score)), NAME)


def age_in_years(birth, year):
    """Full years from a birth date to 1 July of a year: arrays of Matlab day numbers and of years.

    The day of the photograph is unknown, so the middle of its year stands for it. NaN where one is missing.
    """
    birth, year = np.asarray(birth, dtype="float64"), np.asarray(year, dtype="float64")
    known = np.isfinite(birth) & (np.abs(birth) < 1e7)
    day = (np.where(known, birth, 0).astype("int64") - _MATLAB_1970).astype("datetime64[D]")
    birth_year = 1970 + day.astype("datetime64[Y]").astype("int64")
    month = day.astype("datetime64[M]").astype("int64") % 12 + 1
    first_of_month = day == day.astype("datetime64[M]")
    after_1_july = (month > 7) | ((month == 7) & ~first_of_month)
    return np.where(known, year - birth_year - after_1_july, np.nan)


def _read_mat(path, min_face_score):
    """The rows of one .mat file."""
    data = _load(path)
    age = age_in_years(data["dob"], data["photo_taken"])
    pictures = [_text(picture) for picture in data["full_path"]]
    score, second = (data[field].astype("float64") for field in ("face_score", "second_face_score"))
    gender = data["gender"].astype("float64")
    there = {os.path.join(*parts) for parts in _common.walk(path.parent)}
    reasons = {  # the first that holds is the row's reason
        _common.NO_FILE: np.array([os.path.normpath(picture) not in there for picture in pictures]),
        "no face": ~np.isfinite(score),
        "face score is low": ~(score >= min_face_score),
        "second face": np.isfinite(second),
        "impossible age": ~((age >= YOUNGEST) & (age <= OLDEST)),
        "no gender": ~np.isin(gender, [0, 1]),
    }
    age[reasons["impossible age"]] = np.nan
    gender[reasons["no gender"]] = np.nan
    reason = np.full(len(pictures), None, dtype=object)
    for text, holds in reversed(reasons.items()):
        reason[holds] = text
    for i, picture in enumerate(pictures):
        # Where a name is missing, the file name begins with the person's number.
        who = _text(data["name"][i]).strip() or os.path.basename(picture).partition("_")[0]
        yield {"path": os.path.join(path.parent, picture), "identity": who, "age": age[i], "male": gender[i],
               "region": "western", "fold": _common.fold(who), "reason": reason[i]}
    for picture in sorted(there - {os.path.normpath(picture) for picture in pictures}):
        yield {"path": os.path.join(path.parent, picture), "reason": f"not in {path.name}"}


def _load(path):
    """Dict of field -> array of the one struct in the file."""
    from scipy.io import loadmat  # here, as importing SciPy takes a while

    try:
        struct = loadmat(path, squeeze_me=True, struct_as_record=False)[path.stem]
        data = {field: np.atleast_1d(getattr(struct, field)) for field in _FIELDS}
    except Exception as error:  # SciPy raises anything from KeyError to MemoryError for a damaged file
        raise ValueError(f"{path} is not the Matlab file of the set ({error}): get it again") from error
    if len({len(values) for values in data.values()}) != 1:
        raise ValueError(f"the fields of {path} differ in length: get it again")
    return data


def _text(value):
    """The text of a Matlab cell; an empty cell is read as an empty array."""
    return value if isinstance(value, str) else ""
