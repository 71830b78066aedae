"""Every figure against a case counted by hand, against scikit-learn, and against what always holds."""

import json
import os

import layouts
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn import metrics
from sklearn.calibration import calibration_curve

from fag_utils import datasets, evaluation, labels
from fag_utils import table as tables
from fag_utils.datasets import adience

NAN = np.nan
calm = settings(deadline=None, max_examples=40)  # a busy machine is no failure


def random_people(n=400, seed=0):
    random = np.random.default_rng(seed)
    age = random.integers(18, 66, n).astype(float)
    male = random.integers(0, 2, n).astype(float)
    predicted = np.clip(age + random.normal(1, 6, n), 18, 65)
    truth = pd.DataFrame({"age": age, "male": male, "identity": [f"p{i // 2}" for i in range(n)]})
    answers = pd.DataFrame({"age": predicted, "age_low": predicted - 7, "age_high": predicted + 7,
                            "male_probability": np.clip(male + random.normal(0, 0.35, n), 0, 1)})
    return truth, answers


# Gender

def test_gender_report_counted_by_hand():
    # Men: 3, of whom 2 are called men; 3 are called men in all. Women: 3, 2 called women of 3.
    report = evaluation.gender_report([1, 1, 1, 0, 0, 0, NAN, 1], [0.9, 0.5, 0.2, 0.1, 0.3, 0.8, 0.7, NAN])
    assert report["male"] == {"recall": 2 / 3, "precision": 2 / 3, "f1": 2 / 3, "count": 3}
    assert report["female"] == {"recall": 2 / 3, "precision": 2 / 3, "f1": 2 / 3, "count": 3}
    assert report["accuracy"] == pytest.approx(4 / 6)
    assert (report["count"], report["without_label"], report["without_prediction"]) == (6, 1, 1)


def test_gender_report_agrees_with_scikit_learn():
    truth, answers = random_people()
    report = evaluation.gender_report(truth["male"], answers["male_probability"])
    called = answers["male_probability"] >= 0.5
    precision, recall, f1, support = metrics.precision_recall_fscore_support(truth["male"], called)
    for gender, code in [("female", labels.FEMALE), ("male", labels.MALE)]:
        mine = report[gender]
        assert mine["precision"] == pytest.approx(precision[code])
        assert mine["recall"] == pytest.approx(recall[code])
        assert mine["f1"] == pytest.approx(f1[code])
        assert mine["count"] == support[code]
    assert report["accuracy"] == pytest.approx(metrics.accuracy_score(truth["male"], called))


person = st.tuples(st.integers(0, 1), st.floats(0, 1).filter(lambda p: p != 0.5))
people = st.lists(person, min_size=1, max_size=40)


@calm
@given(people)
def test_swapping_the_genders_swaps_the_rows(cases):
    male, probability = np.array(cases).T
    one = evaluation.gender_report(male, probability)
    # Which side of 0.5 an answer is on must survive 1 - p: tiny probabilities are kept as they are.
    other = evaluation.gender_report(1 - male, np.where(probability > 0.5, 0.0, 1.0))
    np.testing.assert_equal(one["male"], other["female"])
    np.testing.assert_equal(one["female"], other["male"])
    assert one["accuracy"] == other["accuracy"]


@calm
@given(people)
def test_perfect_answers_are_perfect(cases):
    male = np.array(cases)[:, 0]
    report = evaluation.gender_report(male, male)
    assert report["accuracy"] == 1
    for gender, code in [("female", 0), ("male", 1)]:
        wanted = 1 if np.any(male == code) else NAN  # no one to find: no figure
        np.testing.assert_equal(report[gender]["recall"], wanted)
        np.testing.assert_equal(report[gender]["f1"], wanted)


def test_gender_table_has_the_published_layout():
    truth, answers = random_people()
    report = evaluation.report(truth, answers, n=50)["gender"]
    table = evaluation.gender_table({"A": report, "B": report})
    assert list(table["set"]) == ["A", "A", "B", "B"]
    assert list(table["gender"]) == ["male", "female"] * 2
    assert ((table["f1_low"] <= table["f1"]) & (table["f1"] <= table["f1_high"])).all()
    assert table["pictures"][:2].sum() == len(truth)


def test_reliability_agrees_with_scikit_learn():
    truth, answers = random_people()
    table = evaluation.reliability(truth["male"], answers["male_probability"])
    share, mean = calibration_curve(truth["male"], answers["male_probability"], n_bins=10)
    filled = table[table["count"] > 0]
    np.testing.assert_allclose(filled["male"], share)
    np.testing.assert_allclose(filled["probability"], mean)
    assert table["count"].sum() == len(truth)


def test_calibration_error_counted_by_hand():
    # Bin 0.9..1: two answers of 0.9, one is right: |0.9 - 0.5| = 0.4. Bin 0.2..0.3: two of 0.2, none: 0.2.
    assert evaluation.expected_calibration_error([1, 0, 0, 0], [0.9, 0.9, 0.2, 0.2]) == pytest.approx(0.3)
    assert evaluation.expected_calibration_error([1, 0], [1.0, 0.0]) == 0
    assert np.isnan(evaluation.expected_calibration_error([NAN], [0.3]))


# Age

def test_age_report_counted_by_hand():
    age = [20, 22, 40, 70, NAN, 60]
    report = evaluation.age_report(age, [23, 21, 50, 60, 30, NAN])
    assert report["mae"] == pytest.approx((3 + 1 + 10) / 3)
    assert report["bias"] == pytest.approx((3 - 1 + 10) / 3)
    assert report["groups"]["18-25"] == {"mae": 2, "bias": 1, "count": 2}
    assert report["groups"]["36-45"] == {"mae": 10, "bias": 10, "count": 1}
    assert report["mae_of_groups"] == pytest.approx((2 + 10) / 2)
    assert (report["within_3"], report["within_5"], report["within_10"]) == (2 / 3, 2 / 3, 1)
    assert report["count"] == 3
    assert (report["without_label"], report["outside_range"], report["without_prediction"]) == (1, 1, 1)


def test_age_report_agrees_with_scikit_learn():
    truth, answers = random_people()
    report = evaluation.age_report(truth["age"], answers["age"])
    assert report["mae"] == pytest.approx(metrics.mean_absolute_error(truth["age"], answers["age"]))
    groups = labels.report_group(truth["age"])
    means = [(answers["age"] - truth["age"])[groups == i].abs().mean() for i in range(5)]
    assert report["mae_of_groups"] == pytest.approx(np.mean(means))


ages = st.lists(st.tuples(st.integers(18, 65), st.floats(18, 65)), min_size=1, max_size=40)


@calm
@given(ages, st.randoms(use_true_random=False))
def test_mae_does_not_mind_order_and_repetition(cases, random):
    age, predicted = np.array(cases, dtype=float).T
    mae = evaluation.age_report(age, predicted)["mae"]
    shuffled = cases.copy()
    random.shuffle(shuffled)
    again = np.array(shuffled * 3, dtype=float).T
    assert evaluation.age_report(*again)["mae"] == pytest.approx(mae)


@calm
@given(ages)
def test_mae_sees_too_old_and_too_young_alike(cases):
    age, predicted = np.array(cases, dtype=float).T
    report, mirror = evaluation.age_report(age, predicted), evaluation.age_report(age, 2 * age - predicted)
    assert mirror["mae"] == pytest.approx(report["mae"], abs=1e-9)
    assert mirror["bias"] == pytest.approx(-report["bias"], abs=1e-9)
    assert report["mae"] >= abs(report["bias"]) - 1e-9
    assert evaluation.age_report(age, age)["mae"] == 0


@calm
@given(ages)
def test_mae_is_the_weighted_mean_of_the_curve(cases):
    age, predicted = np.array(cases, dtype=float).T
    curve = evaluation.mae_by_age(age, predicted, n=5)
    assert list(curve["age"]) == list(range(18, 66))
    assert curve["count"].sum() == len(age)
    weighted = np.nansum(curve["mae"] * curve["count"]) / len(age)
    assert weighted == pytest.approx(evaluation.age_report(age, predicted)["mae"], abs=1e-9)


def test_age_table_has_a_row_for_each_set_with_ages():
    truth, answers = random_people()
    reports = {"A": evaluation.report(truth, answers, n=30)["age"],
               "none": evaluation.age_report([NAN], [30]), "B": evaluation.age_report([20, 30], [21, 33])}
    table = evaluation.age_table(reports).set_index("set")
    assert list(table.index) == ["A", "B"]
    assert table.loc["A", "mae_low"] < table.loc["A", "mae"] < table.loc["A", "mae_high"]
    assert table.loc["B", "mae"] == table.loc["B", "bias"] == 2 and np.isnan(table.loc["B", "mae_low"])


def test_mae_by_age_knows_what_it_does_not_know():
    curve = evaluation.mae_by_age([18, 18, 18, 30], [20, 18, 19, 33]).set_index("age")
    assert curve.loc[18, "mae"] == 1 and 0 <= curve.loc[18, "low"] < 1 < curve.loc[18, "high"] <= 2
    assert curve.loc[30, "mae"] == 3 and np.isnan(curve.loc[30, "low"])
    assert curve.loc[40, "count"] == 0 and np.isnan(curve.loc[40, "mae"])


def test_group_accuracy_counted_by_hand():
    # Groups: 25-32 called 25-32 (right), 38-43 called 48-53 (one off), 60-100 called 38-43 (two off);
    # 22 years are in a gap of Adience, NaN is no label.
    report = evaluation.group_accuracy([30, 40, 61, 22, NAN], [26, 49.6, 40, 30, 30])
    assert report["exact"] == pytest.approx(1 / 3) and report["one_off"] == pytest.approx(2 / 3)
    assert (report["count"], report["without_group"], report["without_label"]) == (3, 1, 1)
    matrix = np.array(report["confusion"])
    names = report["groups"]
    assert matrix[names.index("60-100"), names.index("38-43")] == 1 and matrix.sum() == 3


def test_a_prediction_in_a_gap_goes_to_the_nearest_group():
    for predicted, group in [(33, "25-32"), (36.4, "38-43"), (35, "25-32"), (22, "15-20"), (23, "25-32")]:
        report = evaluation.group_accuracy([30], [predicted])
        column = np.array(report["confusion"]).sum(axis=0).argmax()
        assert report["groups"][column] == group, predicted


def test_predicted_ages_are_rounded_to_years():
    assert evaluation.group_accuracy([21], [20.6], labels.AGE_GROUPS)["exact"] == 1
    assert evaluation.group_accuracy([21], [20.4], labels.AGE_GROUPS)["exact"] == 0


def test_group_accuracy_agrees_with_scikit_learn():
    truth, answers = random_people()
    report = evaluation.group_accuracy(truth["age"], answers["age"], labels.AGE_GROUPS)
    one, other = labels.age_group(truth["age"]), labels.age_group(np.floor(answers["age"] + 0.5))
    assert report["exact"] == pytest.approx(metrics.accuracy_score(one, other))
    np.testing.assert_array_equal(report["confusion"], metrics.confusion_matrix(one, other, labels=range(16)))


def test_coverage_counted_by_hand():
    report = evaluation.coverage([20, 30, 40, 80, NAN], [18, 31, 40, 70, 20], [22, 35, 46, 90, 30])
    assert report["coverage"] == pytest.approx(2 / 3) and report["count"] == 3
    assert report["width"] == pytest.approx((4 + 4 + 6) / 3)
    assert report["groups"]["26-35"]["coverage"] == 0 and report["groups"]["36-45"]["coverage"] == 1
    assert np.isnan(report["groups"]["56-65"]["coverage"])


# Intervals

def test_bootstrap_of_a_mean_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(5, 2, 400)
    low, high = evaluation.bootstrap(np.mean, values)
    expected = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - expected, abs=0.03)
    assert high == pytest.approx(values.mean() + expected, abs=0.03)
    assert evaluation.bootstrap(np.mean, values) == (low, high)  # the same seed, the same interval


def test_bootstrap_draws_people_not_pictures():
    # Ten pictures of each person say the same: they are worth one. The interval must be about sqrt(10) wider.
    values = np.repeat(np.random.default_rng(1).normal(0, 1, 60), 10)
    person = np.repeat(np.arange(60), 10)
    pictures, whole = (evaluation.bootstrap(np.mean, values, groups=g) for g in (None, person))
    ratio = (whole[1] - whole[0]) / (pictures[1] - pictures[0])
    assert ratio == pytest.approx(np.sqrt(10), rel=0.15)


def test_bootstrap_with_nobody_known_is_that_of_pictures():
    values = np.arange(50.0)
    assert evaluation.bootstrap(np.mean, values, groups=[None] * 50) == evaluation.bootstrap(np.mean, values)


def answers(age, predicted, male, probability):
    truth = {"path": [f"{i}.jpg" for i in range(len(age))], "age": age, "male": male, "identity": [None] * len(age)}
    told = {"age": predicted, "age_low": predicted, "age_high": predicted, "male_probability": probability}
    return evaluation.join(truth, told)


def test_difference_of_two_networks_is_surer_than_either_figure():
    random = np.random.default_rng(0)
    age, male = random.integers(18, 66, 500), random.integers(0, 2, 500)
    hard = random.normal(0, 8, 500)  # what is hard about a picture is so for both
    one, other = (answers(age, age + hard + np.sign(hard) * worse, male, np.abs(male - wrong))
                  for worse, wrong in ((0, np.arange(500) < 5), (1, np.arange(500) < 15)))
    found = evaluation.difference(one, other)
    assert found["years worse"] == pytest.approx(1) and found["years_interval"] == pytest.approx((1, 1))
    assert found["points worse"] == pytest.approx(2)
    low, high = found["points_interval"]
    assert 0 < low < 2 < high < 4
    whole = evaluation.report(other)["age"]["intervals"]["mae"]
    assert whole[1] - whole[0] > 0.5  # of the figure itself
    back = evaluation.difference(other, one)
    assert back["years worse"] == -found["years worse"] and back["points worse"] == -found["points worse"]


def test_difference_leaves_out_what_has_no_label_and_refuses_other_pictures():
    one = answers([30, 90, NAN], [31, 50, 40], [1, 0, NAN], [0.9, 0.1, 0.2])
    other = answers([30, 90, NAN], [33, 20, 60], [1, 0, NAN], [0.2, 0.1, 0.9])
    found = evaluation.difference(one, other)
    assert found["years worse"] == 2  # 90 is no age of the course
    assert found["points worse"] == 50
    with pytest.raises(ValueError, match="other pictures"):
        evaluation.difference(one, other.iloc[::-1])


def test_bootstrap_of_a_dict_and_of_nothing():
    result = evaluation.bootstrap(lambda x: {"mean": x.mean(), "none": NAN}, np.array([1.0, 3.0]))
    assert result["mean"] == (1, 3)
    assert np.isnan(result["none"]).all()
    assert np.isnan(evaluation.bootstrap(np.mean, np.array([]))).all()


# All together

def test_report_is_json_and_complete():
    truth, answers = random_people()
    truth.loc[3, "age"] = NAN
    answers.loc[5] = NAN
    report = evaluation.report(truth, answers, n=30)
    assert report == evaluation.report(evaluation.join(truth, answers), n=30)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["pictures"] == 400 and report["unanswered"] == 1
    assert report["age"]["count"] == 398 and report["gender"]["count"] == 399
    low, high = report["age"]["intervals"]["mae"]
    assert low < report["age"]["mae"] < high
    assert [row["male"] for row in report["by_gender"]] == [0, 1]


def test_the_summary_of_a_report_is_what_can_be_counted_by_hand():
    truth = pd.DataFrame({"age": [20.0, 30.0, 31.0, NAN], "male": [1.0, 0.0, 1.0, 0.0]})
    answers = pd.DataFrame({"age": [22.0, 30.0, 35.0, 40.0], "age_low": [19.0, 29.0, 34.0, 38.0],
                            "age_high": [25.0, 31.0, 36.0, 42.0], "male_probability": [0.9, 0.2, 0.3, 0.1]})
    report = evaluation.report(truth, answers, n=30)
    assert evaluation.summary(report) == pytest.approx(
        {"mae": (2 + 0 + 4) / 3, "mae_of_groups": (2 + (0 + 4) / 2) / 2, "gender_accuracy": 3 / 4,
         "coverage_80": 2 / 3})
    whole = evaluation.summary(report, intervals=True)
    assert set(whole) - set(evaluation.summary(report)) == {"mae_interval", "gender_interval"}
    for figure, interval in (("mae", "mae_interval"), ("gender_accuracy", "gender_interval")):
        low, high = whole[interval]
        assert low <= whole[figure] <= high and low < high


def test_report_without_any_age_label():
    truth, answers = random_people(30)
    report = evaluation.report(truth[["male"]], answers, n=10)
    assert report["age"]["mae"] is None and report["age"]["without_label"] == 30
    assert report["gender"]["count"] == 30


def test_by_gives_each_value_its_figures():
    truth, answers = random_people(60)
    truth["race"] = ["a", "b", None] * 20
    table = evaluation.join(truth, answers)
    result = evaluation.by(table, "race", n=50).set_index("race")
    part = table[table["race"] == "b"]
    assert list(result.index) == ["a", "b", "not known"]
    assert result.loc["b", "mae"] == pytest.approx((part["predicted_age"] - part["age"]).abs().mean())
    assert result.loc["b", "mean_age"] == pytest.approx(part["age"].mean())
    older = table.assign(age=table["age"].where(table["race"] != "b", 70.0))  # an age that no error is counted of
    assert np.isnan(evaluation.by(older, "race", n=5).set_index("race").loc["b", "mean_age"])
    right = (part["male_probability"] >= 0.5) == (part["male"] == 1)
    assert result.loc["b", "accuracy"] == pytest.approx(right.mean())
    with pytest.raises(ValueError, match="no column 'country'"):
        evaluation.by(table, "country")


def test_worst_is_sorted_and_names_no_picture():
    truth, answers = random_people(50)
    truth["path"] = [f"somebody_{i}.jpg" for i in range(50)]
    table = evaluation.join(truth, answers)
    worst = evaluation.worst(table, 5)
    assert "path" not in worst and len(worst) == 5
    errors = (table["predicted_age"] - table["age"]).abs()
    assert list(worst["error"].abs()) == sorted(errors, reverse=True)[:5]
    wrong = evaluation.worst(table, 50, "gender")
    assert ((wrong["male_probability"] >= 0.5) != (wrong["male"] == 1)).all()
    assert (wrong["male_probability"] - wrong["male"]).abs().is_monotonic_decreasing


@pytest.mark.parametrize("call, words", [
    (lambda: evaluation.gender_report([0, 2], [0.1, 0.2]), "male must be one of"),
    (lambda: evaluation.gender_report([0, 1], [0.1, 1.2]), "must lie in 0..1"),
    (lambda: evaluation.gender_report([0, 1], [0.1]), "2 entries but male_probability has 1"),
    (lambda: evaluation.gender_report(["m"], [0.1]), "male must be numbers"),
    (lambda: evaluation.age_report([20.0], [np.inf]), "must be finite"),
    (lambda: evaluation.coverage([20], [30], [20]), "must not lie above"),
    (lambda: evaluation.bootstrap(np.mean, [1, 2], groups=["a"]), "one entry a row"),
    (lambda: evaluation.join({"age": [1, 2]}, {"age": [1]}), "2 rows of truth but 1 predictions"),
    (lambda: evaluation.join({"age": [1]}, {"age": [1]}), "lack"),
    (lambda: evaluation.join({"sex": [1]}, {name: [1] for name in evaluation.PREDICTED}), "`age` or `male`"),
    (lambda: evaluation.worst(pd.DataFrame(), figure="face"), "'age' or 'gender'"),
])
def test_bad_input_is_told_in_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# From pictures

class Brightness:
    """Stands for a network: the age is read off the brightness of the picture, red ones are male."""

    def __init__(self):
        self.seen = 0

    def predict_crops(self, crops):
        self.seen += len(crops)
        age = np.array([crop[..., 2].mean() for crop in crops])
        red = np.array([crop[..., 0].mean() for crop in crops]) / 255
        return pd.DataFrame({"age": age, "age_low": age - 5, "age_high": age + 5, "male_probability": red})

    def predict_photo(self, photo):
        self.seen += 1
        if photo.mean() > 250:  # a white photograph: nobody there
            return pd.DataFrame(columns=["x", "y", "width", "height", "face_score", *evaluation.PREDICTED])
        people = pd.concat([self.predict_crops([photo])] * 2, ignore_index=True)
        self.seen -= 1
        people.loc[0, "age"] = 65.0  # the face in the corner
        return people.assign(x=[0, 40], y=[0, 40], width=[22, 20], height=[22, 20], face_score=[0.9, 0.8])


def colour(path, age, red):
    Image.new("RGB", (100, 100), (red, 0, age)).save(path)


@pytest.fixture
def folder(tmp_path):
    colour(tmp_path / "a.png", 30, 250)
    colour(tmp_path / "b.png", 44, 10)
    (tmp_path / "broken.jpg").write_bytes(b"no picture at all")
    return tmp_path


def test_a_folder_and_a_csv_give_the_report(folder):
    csv = folder / "labels.csv"
    csv.write_text("File;Age;Gender\na.png;28;Male\nb.png;44;f\nbroken.jpg;50;m\ngone.png;30;\n")
    report, table = evaluation.evaluate_folder(folder, csv, Brightness(), n=20)
    assert report["age"]["mae"] == 1 and report["gender"]["accuracy"] == 1
    assert list(table["reason"].fillna("")) == ["", "", "not_a_picture", "missing"]
    assert report["reasons"] == {"not_a_picture": 1, "missing": 1}
    assert list(table["male"].fillna(-1)) == [1, 0, 1, -1]
    assert report["pictures"] == 4 and report["unanswered"] == 2


def test_photographs_are_judged_by_their_main_person(folder):
    Image.new("RGB", (100, 100), "white").save(folder / "empty.png")
    (folder / "labels.csv").write_text("path,male\na.png,1\nempty.png,0\n")
    report, table = evaluation.evaluate_folder(folder, folder / "labels.csv", Brightness(), photos=True, n=20)
    assert table["predicted_age"][0] == 30  # the one in the middle, not the slightly larger one in the corner
    assert table["reason"][1] == "no face" and report["gender"]["without_prediction"] == 1


def test_the_main_person_is_large_and_central():
    people = pd.DataFrame({"x": [40, 44, 0], "y": [40, 44, 0], "width": [20, 12, 22], "height": [20, 12, 22]})
    assert evaluation.main_person(people, (100, 100, 3)).name == 0  # of the two in the middle the larger one
    people.loc[2, ["width", "height"]] = 90
    assert evaluation.main_person(people, (100, 100, 3)).name == 2  # fills the photograph
    with pytest.raises(ValueError, match="nobody"):
        evaluation.main_person(people[:0], (100, 100, 3))


@pytest.mark.parametrize("word, male", [
    ("m", 1), ("M", 1), ("male", 1), ("Man", 1), ("1", 1), ("1.0", 1), ("yes", 1), ("TRUE", 1),
    ("f", 0), ("Female", 0), ("woman", 0), ("0", 0), ("no", 0), ("false", 0), (" ", NAN)])
def test_spellings_of_gender(tmp_path, word, male):
    (tmp_path / "labels.csv").write_text(f"path,male\nx.png,{word}\n")
    np.testing.assert_equal(evaluation.read_labels(tmp_path / "labels.csv")["male"][0], male)


@pytest.mark.parametrize("text, words", [
    ("path,gender\nx.png,1\n", "name the column `male`"),
    ("path,gender\nx.png,m\ny.png,robot\n", "line 3 .* 'robot' is no gender"),
    ("path,age\nx.png,old\n", "line 2 .* 'old' is not a number of years"),
    ("path,age\n\nx.png,30\ny.png,-3\n", "line 4 .* '-3'"),
    ("path,age\nx.png,nan\n", "line 2"),
    ("path,age\n,30\n", "line 2 of the csv names no picture"),
    ("name,age\nx.png,30\n", "column `path` or `file`"),
    ("path,height\nx.png,30\n", "`age` or `male` or `gender`"),
    ("path,age\n", "no line below its header"),
    ("", "not a csv file"),
    ("path,age\nx.png,30,1,2\ny.png,1\nz,1,2,3,4,5\n", "not a csv file"),
])
def test_csv_mistakes_are_told_with_their_line(tmp_path, text, words):
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(ValueError, match=words):
        evaluation.read_labels(tmp_path / "labels.csv")


def test_folder_or_csv_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        evaluation.read_labels(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="there is no folder"):
        evaluation.evaluate_folder(tmp_path / "none", tmp_path / "none.csv", Brightness())


def test_csv_from_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "labels.csv").write_bytes("\ufeffPath\tSex\tIdentity\r\n x.png \tw\tZoë\r\n\t\t\r\n".encode())
    table = evaluation.read_labels(tmp_path / "labels.csv")
    assert len(table) == 1 and table["path"][0] == "x.png" and table["male"][0] == 0
    assert table["identity"][0] == "Zoë"


def test_an_interrupted_run_goes_on_from_its_cache(tmp_path):
    paths = []
    for i in range(10):
        paths.append(tmp_path / f"{i}.png")
        colour(paths[-1], 20 + i, 100)
    cache = tmp_path / "work" / "cache.csv"

    class Dies(Brightness):
        def predict_crops(self, crops):
            if self.seen >= 4:
                raise KeyboardInterrupt
            return super().predict_crops(crops)

    with pytest.raises(KeyboardInterrupt):
        evaluation.predict_paths(paths, Dies(), cache=cache, progress=False, chunk=2)
    network = Brightness()
    result = evaluation.predict_paths(paths, network, cache=cache, progress=False, chunk=2)
    assert network.seen == 6  # four were known already
    fresh = evaluation.predict_paths(paths, Brightness(), progress=False)
    pd.testing.assert_frame_equal(result, fresh, check_dtype=False)
    assert os.listdir(cache.parent) == ["cache.csv"]


def test_a_cache_of_something_else_is_refused(tmp_path):
    (tmp_path / "cache.csv").write_text("path,score\na,1\n")
    with pytest.raises(ValueError, match="other columns"):
        evaluation.predict_paths([], Brightness(), cache=tmp_path / "cache.csv", progress=False)


def test_marks_are_counted_by_age():
    ages = [5, 9, 17, 30, 30, 30, 30, 90, 40, NAN]
    marked = [True, True, False, True, False, False, False, True, None, True]  # of one nothing is known
    table = pd.DataFrame({"age": ages, "predicted_age": 30.0, "may_be_outside": pd.array(marked, "boolean")})
    counted = evaluation.outside_marks(table).set_index("ages")
    assert list(counted.index) == ["0-9", "15-17", "26-55", "71-116"]
    assert list(counted["pictures"]) == [2, 1, 4, 1]
    assert list(counted["marked"]) == [1, 0, 0.25, 1]
    assert (counted["marked_low"] <= counted["marked"]).all() and (counted["marked"] <= counted["marked_high"]).all()


def test_marks_outlive_the_cache(tmp_path):
    paths = [tmp_path / "dark.png", tmp_path / "bright.png", tmp_path / "no.png"]
    colour(paths[0], 20, 100)
    colour(paths[1], 60, 100)

    class Marks(Brightness):
        def predict_crops(self, crops):
            answers = super().predict_crops(crops)
            return answers.assign(may_be_outside=answers["age"] > 40)

    for network in (Marks(), None):  # the second time all is known
        result = evaluation.predict_paths(paths, network, cache=tmp_path / "cache.csv", progress=False)
        assert result["may_be_outside"].tolist() == [False, True, pd.NA]


def test_the_rows_to_measure_on_are_adults_nobody_learns_from():
    cases = [("train", 30, None), ("validation", 30, None), ("validation", 12, None),
             ("validation", NAN, None), ("test", 30, None), ("validation", 66, None),
             ("validation", 40, "malformed name")]
    rows = [{"path": str(i), "fold": f, "age": a, "reason": r} for i, (f, a, r) in enumerate(cases)]
    assert list(evaluation.held_out(tables.make(rows, "utkface"))["path"]) == ["1", "3"]
    everyone = evaluation.held_out(tables.make(rows, "utkface"), every_age=True)
    assert list(everyone["path"]) == ["1", "2", "3", "5"]
    only_test = [row for row in rows if row["fold"] != "validation"]
    assert list(evaluation.held_out(tables.make(only_test, "lfw"))["path"]) == ["4"]


def test_aligned_sets_are_cropped_by_their_layout_others_are_searched(folder):
    picture = np.zeros((218, 178, 3), "uint8")  # CelebA: hair and shoulders black, the face grey
    picture[82:185, 38:142] = 60
    Image.fromarray(picture).save(folder / "aligned.png")
    rows = [{"path": str(folder / name), "male": 0} for name in ("aligned.png", "broken.jpg")]
    ages = {}
    for name in ("utkface", "celeba", "lfw"):
        network = Brightness()
        joined = evaluation.predict_set(tables.make(rows, name), network, progress=False)
        ages[name] = joined["predicted_age"][0]
        assert joined["reason"][1] == "not_a_picture" and joined["reason"][0] is None
    assert ages["utkface"] == pytest.approx(picture.mean(), abs=0.1)  # the whole picture
    assert ages["celeba"] > 55  # nearly all face
    assert ages["lfw"] in (ages["utkface"], 65)  # from predict_photo
    with pytest.raises(ValueError, match="one set"):
        both = pd.concat([tables.make(rows, "lfw"), tables.make(rows, "celeba")])
        evaluation.predict_set(both, network)


def test_real_utkface_is_read_and_measured(fag_data):
    """No network here: a constant answer must give the error that the labels themselves have around it."""
    table = evaluation.held_out(datasets.read("utkface", fag_data / "utkface"))
    assert len(table) == 1724
    part = table.iloc[::20]

    class Constant(Brightness):
        def predict_crops(self, crops):
            assert all(crop.shape == (200, 200, 3) for crop in crops)
            return super().predict_crops(crops).assign(age=35.0, age_low=30.0, age_high=40.0)

    joined = evaluation.predict_set(part, Constant(), progress=False)
    answers = joined[["age_low", "age_high", "male_probability"]].assign(age=35.0)
    report = evaluation.report(part, answers, n=10)
    assert report["age"]["mae"] == pytest.approx((part["age"] - 35).abs().mean())
    assert report["interval_80"]["coverage"] == pytest.approx(part["age"].between(30, 40).mean())


def test_a_picture_named_twice_is_predicted_once(folder):
    network = Brightness()
    result = evaluation.predict_paths([folder / "a.png"] * 3, network, progress=False)
    assert network.seen == 1 and list(result["age"]) == [30, 30, 30]


def test_fingerprint_tells_networks_apart():
    class Other(Brightness):
        def predict_crops(self, crops):
            return super().predict_crops(crops) + 0.01

    one = evaluation.fingerprint(Brightness())
    assert one == evaluation.fingerprint(Brightness()) != evaluation.fingerprint(Other())


@calm
@given(st.integers(2, 30), st.integers(0, 5))
def test_report_holds_for_small_tables(n, seed):
    truth, answers = random_people(n, seed)
    report = evaluation.report(truth, answers, n=5)
    assert 0 <= report["groups_16"]["exact"] <= report["groups_16"]["one_off"] <= 1
    assert np.sum(report["groups_16"]["confusion"]) == n
    assert 0 <= report["calibration"]["expected_error"] <= 1


def astronaut_face():
    from skimage.data import astronaut

    return astronaut()[10:190, 135:315].copy()


def test_every_change_keeps_the_shape_and_changes_the_picture():
    picture = astronaut_face()
    for name, change in evaluation.CHANGES.items():
        other = change(picture)
        assert other.shape == picture.shape and other.dtype == np.uint8, name
        assert np.abs(other.astype(int) - picture).mean() > 0.5, name
        again = evaluation.CHANGES[name](picture)
        assert np.array_equal(other, again), name
    far = {name: np.abs(change(picture).astype(int) - picture).mean() for name, change in evaluation.CHANGES.items()}
    assert far["a quarter of the resolution"] > far["half the resolution"]


def test_frames_move_as_they_say():
    picture = np.zeros((100, 100, 3), "uint8")
    picture[40:60, 40:60] = 255  # a square in the middle

    def middle(name):
        rows, columns = np.nonzero(evaluation.CHANGES[name](picture)[..., 0] > 127)
        return rows.mean() - 49.5, columns.mean() - 49.5, len(rows)

    np.testing.assert_allclose(middle("5 % to the right")[:2], [0, -5], atol=0.6)
    np.testing.assert_allclose(middle("5 % up")[:2], [5, 0], atol=0.6)
    assert middle("crop 10 % tighter")[2] > 20**2 > middle("crop 10 % looser")[2]
    np.testing.assert_allclose(middle("turned 15 degrees left"), [0, 0, 400], atol=20)


def test_robustness_counts_what_each_change_costs(folder):
    table = pd.DataFrame({"path": [folder / "a.png"] * 4, "age": [30.0] * 4, "male": [1.0] * 4})
    result = evaluation.robustness(table, Brightness(), {"darker": evaluation.CHANGES["half as bright"]})
    assert list(result["change"]) == ["none", "darker"] and list(result["pictures"]) == [4, 4]
    assert result["cost_years"][0] == result["cost_points"][0] == 0
    assert result["mae"][0] == 0  # Brightness says 30 of this picture ...
    assert result["cost_years"][1] > 0  # ... and something else of a darker one
    # Four times the same picture: whichever are drawn, the cost is the same.
    assert result["cost_years_low"][1] == result["cost_years_high"][1] == result["cost_years"][1] == result["mae"][1]


def test_the_cost_of_a_change_has_the_interval_of_the_difference(tmp_path):
    """Half of the faces lose four years, the other half none: the mean is two, and chance moves it."""
    for i in range(40):
        Image.fromarray(np.full((8, 8, 3), 200 if i % 2 else 100, "uint8")).save(tmp_path / f"{i:02}.png")
    table = pd.DataFrame({"path": sorted(tmp_path.glob("*.png")), "age": 30.0, "male": 1.0})

    class Afraid(Brightness):
        """It takes fright at a white picture."""

        def predict_crops(self, crops):
            white = np.array([crop.mean() > 250 for crop in crops])
            return pd.DataFrame({"age": 30.0 + 4 * white, "age_low": 20.0, "age_high": 60.0,
                                 "male_probability": np.where(white, 0.1, 0.9)})

    doubled = lambda picture: np.minimum(2 * picture.astype(int), 255).astype("uint8")  # noqa: E731
    none, bright = evaluation.robustness(table, Afraid(), {"bright": doubled}).to_dict("records")
    assert none["cost_years_low"] == none["cost_years_high"] == none["cost_points"] == 0
    for name, cost in (("years", 2.0), ("points", 50.0)):
        assert bright[f"cost_{name}"] == pytest.approx(cost)
        # The standard error of a half of 40 is 0.079, so 95 % are about 0.15 of the whole either way.
        assert bright[f"cost_{name}_low"] == pytest.approx(0.69 * cost, rel=0.12)
        assert bright[f"cost_{name}_high"] == pytest.approx(1.31 * cost, rel=0.08)


def test_an_occlusion_map_shows_where_the_answer_comes_from(tmp_path):
    """A predictor that looks at the picture's upper left quarter only: brighter is older, and red is male."""
    picture = np.full((40, 40, 3), 127, "uint8")
    picture[:20, :20] = 200, 60, 60
    Image.fromarray(picture).save(tmp_path / "face.png")

    class Corner(Brightness):
        def predict_crops(self, crops):
            means = np.array([crop[:20, :20].mean(axis=(0, 1)) for crop in crops])
            male = np.where(means[:, 0] > means[:, 1] + 50, 0.9, 0.1)
            return pd.DataFrame({"age": means.mean(axis=1) / 4, "age_low": 20.0, "age_high": 60.0,
                                 "male_probability": male})

    age = picture[:20, :20].mean() / 4
    table = pd.DataFrame({"path": [tmp_path / "face.png"] * 3, "age": age, "male": 1.0})
    result = evaluation.occlusion_map(table, Corner(), patch=0.5, places=3)
    assert list(result["x"][:3]) == [0.25, 0.5, 0.75] and list(result["y"][::3]) == [0.25, 0.5, 0.75]
    years = result.pivot(index="y", columns="x", values="cost_years").to_numpy()
    # The whole quarter, half of it, a quarter of it, nothing.
    grey = abs(127 / 4 - age)
    np.testing.assert_allclose(years, grey * np.outer([1, 0.5, 0], [1, 0.5, 0]), atol=1e-9)
    assert result["cost_points"][0] == 100 and (result["cost_points"][[2, 5, 6, 7, 8]] == 0).all()
    with pytest.raises(ValueError, match="patch must lie"):
        evaluation.occlusion_map(table, Corner(), patch=0)


def test_a_scene_holds_the_face_and_is_the_same_again():
    picture = astronaut_face()
    scenes = [evaluation.scene(picture, seed) for seed in (0, 0, 1)]
    assert scenes[0].shape == (480, 640, 3) and scenes[0].dtype == np.uint8
    assert np.array_equal(scenes[0], scenes[1]) and not np.array_equal(scenes[0], scenes[2])
    from fag_utils import faces

    found = [faces.detect(scene) for scene in scenes[::2]]
    assert all(len(people) >= 1 for people in found)


@pytest.mark.parametrize("seed", range(6))
def test_a_crop_is_held_against_the_place_of_the_picture_in_the_scene(tmp_path, monkeypatch, seed):
    """Landmarks that lie just where they are expected give the picture back, and a crop without any error."""
    from fag_utils import faces

    picture = astronaut_face()
    Image.fromarray(picture).save(tmp_path / "face.png")
    photo, (a, b) = evaluation.scene_and_place(picture, [seed, 0])
    z = a * (faces.FOUND @ [1, 1j]) + b
    points = np.stack([z.real, z.imag], axis=1)
    again = faces.crop_points(photo, points, 62)[8:-8, 8:-8].astype(float)  # its border fades
    assert np.abs(again - faces.crop_framed(picture, size=62)[8:-8, 8:-8]).mean() < 8

    def found(picture):
        box = dict.fromkeys(faces.BOX_COLUMNS, 100.0)
        return pd.DataFrame([box | dict(zip(faces.LANDMARK_COLUMNS, points.ravel(), strict=True))])

    monkeypatch.setattr(faces, "detect", found)
    table = pd.DataFrame({"path": [tmp_path / "face.png"]})
    targets = {"right": faces.FOUND, "too small": (faces.FOUND - 0.5) / 1.1 + 0.5, "askew": faces.FOUND + [0.03, 0]}
    lie = evaluation.framing(table, targets, seed).set_index("target")
    np.testing.assert_allclose(lie.loc["right"], [1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(lie.loc["too small"], [1.1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(lie.loc["askew"], [1, 0, -0.03, 0], atol=1e-6)


def test_real_faces_that_are_found_are_cut_as_the_set_has_cut_them(fag_data):
    """Neither too wide nor beside: what the landmarks are brought to was measured on faces that were found."""
    from fag_utils import datasets, faces

    people = datasets.read("utkface", fag_data / "utkface")
    people = evaluation.adults(people[people["fold"] == "train"])
    lie = evaluation.framing(people.sample(80, random_state=0), {"found": faces.FOUND, "in crops": faces.FRAME})
    found, in_crops = (lie[lie["target"] == name].median(numeric_only=True) for name in ("found", "in crops"))
    assert abs(found["scale"] - 1) < 0.02 < in_crops["scale"] - 1
    assert abs(found["turn"]) < 1.5 and np.abs(found[["right", "down"]]).max() < 0.008


def test_in_scenes_keeps_the_rows_of_faces_it_does_not_find(tmp_path):
    Image.fromarray(np.full((64, 64, 3), 90, "uint8")).save(tmp_path / "grey.png")
    Image.fromarray(astronaut_face()).save(tmp_path / "face.png")

    class Finder(Brightness):
        def predict_photo(self, photo):
            people = pd.DataFrame(columns=[*evaluation.PREDICTED, "x", "y", "width", "height"])
            if photo.std() > 25:  # the face has contrast, the grey card has not
                people.loc[0] = [40.0, 35.0, 45.0, 0.5, 100, 100, 50, 50]
            return people

    paths = [tmp_path / "grey.png", tmp_path / "face.png"]
    table = pd.DataFrame({"path": paths, "age": 30.0, "male": 1.0}, index=[5, 9])
    crops, photos = evaluation.in_scenes(table, Finder())
    assert list(crops.index) == list(photos.index) == [5, 9]
    assert crops["predicted_age"].notna().all()
    assert list(photos["predicted_age"].isna()) == [True, False]


# Adience's protocol, and face recognition -----------------------------------------------------------------

def test_group_report_counts_groups_and_their_neighbours():
    report = evaluation.group_report([0, 1, 2, 7, -1], [0, 2, 0, 6, 3])
    assert (report["exact"], report["one_off"], report["count"]) == (0.25, 0.75, 4)
    assert report["confusion"][1][2] == 1 and np.sum(report["confusion"]) == 4
    with pytest.raises(ValueError, match="0..7"):
        evaluation.group_report([0, 1], [0, 8])


def test_the_protocol_on_a_set_in_adiences_layout(tmp_path):
    """Each picture is asked for once, by somebody who knows the other four folds and none of its people."""
    layouts.adience(tmp_path)
    asked = []

    def answer(learn, test):
        assert not set(learn["identity"]) & set(test["identity"])
        assert len(learn) == 4 * len(test)
        asked.extend(test["path"])
        known = test["group"].clip(lower=0)
        wrong = np.arange(len(test)) == 0  # the first one's group is 0 or more: one further is wrong, and one-off
        return {"group": np.where(wrong, known + 1, known), "male": np.zeros(len(test))}

    rounds = evaluation.cross_validate(adience.rounds(tmp_path), answer)
    table = adience.read(tmp_path)
    assert sorted(asked) == sorted(table["path"]) and len(rounds) == 5
    with_group = (adience.groups(table) >= 0).sum() / 5
    assert rounds["exact"].tolist() == pytest.approx([1 - 1 / with_group] * 5)
    assert (rounds["one_off"] == 1).all()
    women = 1 - table["male"].mean()
    assert rounds["gender"].tolist() == pytest.approx([women] * 5)
    summary = evaluation.over_folds(rounds)
    assert summary.loc["exact", "mean"] == pytest.approx(1 - 1 / with_group)
    assert summary.loc["exact", "deviation"] == pytest.approx(0)


def test_deviation_over_folds_is_that_of_a_sample():
    rounds = pd.DataFrame({"pictures": [10, 10, 10], "exact": [0.4, 0.5, 0.6]})
    assert evaluation.over_folds(rounds).loc["exact"].tolist() == pytest.approx([0.5, 0.1])


def test_five_folds_keep_people_together_and_ask_for_everybody_once():
    table = pd.DataFrame({"path": [f"{i}.jpg" for i in range(60)], "age": 30.0,
                          "identity": [f"p{i // 3}" if i < 30 else None for i in range(60)]})
    tests = [set(turn["path"][turn["fold"] == "test"]) for turn in evaluation.five_folds(table)]
    assert sum(map(len, tests)) == 60 == len(set.union(*tests))
    people = [set(table["identity"][table["path"].isin(test)].dropna()) for test in tests]
    assert sum(map(len, people)) == 10 and min(map(len, tests)) > 0


def test_verification_is_perfect_for_people_apart_and_chance_for_noise():
    random = np.random.default_rng(0)
    who = np.repeat(np.arange(30), 2)
    directions = random.normal(size=(30, 40))
    near = directions[who] + 0.1 * random.normal(size=(60, 40))
    lengths = random.uniform(0.1, 10, (60, 1))  # only the direction counts
    told = evaluation.verification(near * lengths, who)
    assert told == {"auc": 1.0, "same": 30, "different": 600}
    assert 0.3 < evaluation.verification(random.normal(size=(60, 40)), who)["auc"] < 0.7
    assert np.isnan(evaluation.verification(near, np.arange(60))["auc"])


def test_figures_over_seeds_by_hand():
    truth = pd.DataFrame({"age": [30.0, 40.0, 34.0, 50.0], "male": [1.0, 0.0, 1.0, 0.0]})  # 34 is in no Adience group
    first = (np.array([30.0, 50.0, 34.0, 50.0]), np.array([0.9, 0.1, 0.9, 0.1]))
    second = (np.array([34.4, 40.0, 44.0, 50.0]), np.array([0.9, 0.9, 0.9, 0.1]))
    report = evaluation.over_seeds(truth, [first, second], n=50)
    assert report["mae"] == pytest.approx((0 + 10 + 0 + 0 + 4.4 + 0 + 10 + 0) / 8)
    assert (report["mae_least"], report["mae_most"]) == (pytest.approx(2.5), pytest.approx(3.6))
    assert report["gender"] == pytest.approx(7 / 8)
    # 50 for 40 is one group off; 34.4 is told as 34, nearest to 25-32
    assert (report["exact"], report["one_off"]) == (pytest.approx(5 / 6), 1)
    assert report["mae_low"] <= report["mae"] <= report["mae_high"]
    assert report["trainings"] == 2
    for predicted, probability in (first, second):
        alone = evaluation.over_seeds(truth, [(predicted, probability)], n=10)
        groups = evaluation.group_accuracy(truth["age"], predicted)
        assert (alone["exact"], alone["one_off"]) == (groups["exact"], groups["one_off"])
