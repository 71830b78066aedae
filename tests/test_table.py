import hashlib
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fag_utils import table


def rows():
    return [
        {"path": "a.jpg", "identity": "x", "age": 20, "male": 1, "region": "western", "fold": "train"},
        {"path": "b.jpg", "age": 30, "male": 0, "region": "asian", "fold": "test"},
        {"path": "c.jpg", "fold": "test", "reason": "malformed name"},
    ]


def test_make_fills_in_what_is_missing():
    made = table.make(rows(), "some set")
    assert list(made.columns) == table.COLUMNS
    assert (made["set"] == "some set").all()
    assert made["age"].dtype == made["male"].dtype == "float64"
    assert made.loc[1, "identity"] is None and made.loc[0, "reason"] is None
    assert made["age"].isna().tolist() == [False, False, True]


def test_an_empty_table_has_the_same_columns():
    made = table.make([], "some set")
    assert list(made.columns) == table.COLUMNS and len(made) == 0
    assert made.dtypes.astype(str).to_dict() == table.DTYPES


@pytest.mark.parametrize(("column", "value"), [
    ("fold", "holdout"), ("region", "european"), ("male", 2), ("sex", "f")])
def test_make_refuses_what_the_table_does_not_know(column, value):
    with pytest.raises(ValueError, match=column):
        table.make([{"path": "a.jpg", column: value}], "some set")


def test_usable_leaves_out_rows_with_a_reason_and_nothing_else():
    made = table.make(rows(), "some set")
    assert table.usable(made)["path"].tolist() == ["a.jpg", "b.jpg"]
    assert len(made) == 3


@given(st.text())
def test_hash_fold_is_the_sha1_rule(key):
    part = int(hashlib.sha1(key.encode("utf-8")).hexdigest(), 16) % 10
    assert table.hash_fold(key) == {0: "test", 1: "validation"}.get(part, "train")


def test_hash_fold_shares_out_in_tenths():
    counts = Counter(table.hash_fold(i) for i in range(5000))
    assert abs(counts["test"] - 500) < 100 and abs(counts["validation"] - 500) < 100
    assert set(Counter(table.hash_fold(i, test=None) for i in range(1000))) == {"train", "validation"}


def test_describe_counts_pictures_people_and_rows_that_cannot_be_used():
    shown = table.describe(table.make(rows(), "some set"))
    train, test = shown.loc[("some set", "train")], shown.loc[("some set", "test")]
    assert train["pictures"] == 1 and train["people"] == 1 and train["male %"] == 100
    assert test["pictures"] == 2 and test["not usable"] == 1 and test["oldest"] == 30


def test_describe_of_nothing_is_an_empty_table():
    shown = table.describe(table.make([], "some set"))
    assert isinstance(shown, pd.DataFrame) and len(shown) == 0 and "pictures" in shown
