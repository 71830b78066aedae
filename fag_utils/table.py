"""The table: one row a picture, the same columns for every data set."""

import hashlib
from pathlib import Path

import pandas as pd

DTYPES = {
    "path": "object",  # the picture file
    "set": "object",  # name of the data set
    "identity": "object",  # who it is, or missing
    "age": "float64",  # years, or missing
    "male": "float64",  # 1 male, 0 female, or missing
    "region": "object",  # "asian" or "western": the two halves of a batch
    "fold": "object",  # "train", "validation" or "test"
    "reason": "object",  # why the row can't be used, or missing
}
COLUMNS = list(DTYPES)
FOLDS = ["train", "validation", "test"]


def make(rows, set_name):
    """DataFrame of the table from an iterable of dicts; absent columns are missing values.

    Raises ValueError for a column, fold, region or gender that the table doesn't know.
    """
    # As objects: pandas with pyarrow would make Arrow strings of paths, and not every file name is valid text.
    table = pd.DataFrame(list(rows), dtype="object")
    unknown = set(table.columns) - set(COLUMNS)
    if unknown:
        raise ValueError(f"unknown columns {sorted(unknown)}: the table has {COLUMNS}")
    table = table.reindex(columns=COLUMNS)
    table["set"] = set_name
    for column, dtype in DTYPES.items():
        table[column] = table[column].astype(dtype)
        if dtype == "object":
            table[column] = table[column].where(table[column].notna(), None)
    _check(table, "fold", FOLDS)
    _check(table, "region", ["asian", "western"])
    _check(table, "male", [0, 1])
    return table


def _check(table, column, allowed):
    wrong = set(table[column].dropna()) - set(allowed)
    if wrong:
        raise ValueError(f"{column} must be one of {allowed} or missing, got {sorted(wrong)[:5]}")


def usable(table):
    """The rows without a reason against them."""
    return table[table["reason"].isna()]


def hash_part(key, parts):
    """Which of `parts` equal parts a row belongs to, 0 to parts - 1, by the SHA-1 of `key`."""
    return int(hashlib.sha1(str(key).encode("utf-8")).hexdigest(), 16) % parts


def hash_fold(key, test=0, validation=1, parts=10):
    """Fold of a row by the SHA-1 of `key` (a file name, or a person): the same on every machine.

    One tenth each goes to test and validation.
    """
    part = hash_part(key, parts)
    return "test" if part == test else "validation" if part == validation else "train"


def fold_keys(table):
    """What `hash_fold` is given for each row: who it is, or where nobody is named the file's name; list of str."""
    return [who if isinstance(who, str) else Path(path).name
            for who, path in zip(table["identity"], table["path"], strict=True)]


def describe(table):
    """Pictures, people, share of men, and ages of each set and fold: a DataFrame to look at."""
    def row(group):
        return pd.Series({
            "pictures": len(group),
            "people": group["identity"].nunique(),
            "male %": 100 * group["male"].mean(),
            "youngest": group["age"].min(),
            "median age": group["age"].median(),
            "oldest": group["age"].max(),
            "not usable": int(group["reason"].notna().sum()),
        })

    parts = {key: row(group) for key, group in table.groupby(["set", "fold"], dropna=False)}
    result = pd.DataFrame(parts).T if parts else pd.DataFrame(columns=row(table).index)
    return result
