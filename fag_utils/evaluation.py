"""How good, for whom, how sure: the figures of the course, each with its exact definition.

Two tables go in. The truth has `age` (years) and `male` (1 or 0), either of them missing where it isn't
known, and often `identity`. The predictions are those of `predictor.predict_crops`: `age`, `age_low`,
`age_high` (the 80 % interval) and `male_probability`, missing where a picture gave no answer.

A row without the label or without the prediction that a figure needs is left out of that figure, and counted.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd

from . import labels
from .table import fold_keys, hash_fold, usable

PREDICTED = ["age", "age_low", "age_high", "male_probability"]
MARK = "may_be_outside"  # kept beside the predictions where the predictor tells it
_FACE = ["faces", "x", "y", "width", "height", "face_score"]
CROP_SIZE = 124  # pixels: more than the network sees, so that shrinking comes last


# Gender -----------------------------------------------------------------------------------------------

def gender_report(male, male_probability, threshold=0.5):
    """Recall, precision and F1 of each gender, and accuracy, as fractions 0..1.

    Someone is called male where `male_probability >= threshold`. For the gender g, recall is the share of
    those who are g that are called g; precision the share of those called g that are g;
    F1 = 2 TP / (2 TP + FP + FN). A figure with nothing to count (no one is g) is NaN.

    Parameters
    ----------
    male : (n,) 1 male, 0 female, NaN unknown
    male_probability : (n,) in 0..1, NaN where there is no answer

    Returns
    -------
    dict: `male` and `female`, each with recall, precision, f1, count; accuracy, count,
    without_label, without_prediction.
    """
    male, probability = _pair(male, male_probability, "male", "male_probability")
    _check_values(male, "male", [0, 1])
    _check_range(probability, "male_probability", 0, 1)
    known, answered = ~np.isnan(male), ~np.isnan(probability)
    use = known & answered
    truth, called = male[use] == labels.MALE, probability[use] >= threshold
    report = {
        name: _one_gender(truth == is_male, called == is_male)
        for name, is_male in [("male", True), ("female", False)]
    }
    report["accuracy"] = _ratio(np.sum(truth == called), len(truth))
    report["count"] = int(use.sum())
    report["without_label"] = int((~known).sum())
    report["without_prediction"] = int((known & ~answered).sum())
    return report


def _one_gender(truth, called):
    hits = int(np.sum(truth & called))
    return {
        "recall": _ratio(hits, truth.sum()),
        "precision": _ratio(hits, called.sum()),
        "f1": _ratio(2 * hits, truth.sum() + called.sum()),
        "count": int(truth.sum()),
    }


def gender_table(reports):
    """The published table's layout: for each set, a row for male and one for female.

    `reports`: dict of set name -> `gender_report`, with `intervals` where `report` made them; sets without
    genders are left out.
    Returns a DataFrame: set, gender, recall, precision, f1, f1_low, f1_high, pictures.
    """
    rows = []
    for name, report in reports.items():
        for gender in ("male", "female") if report["count"] else ():
            low, high = report.get("intervals", {}).get(f"{gender}_f1", (np.nan, np.nan))
            figures = {key: report[gender][key] for key in ("recall", "precision", "f1")}
            rows.append({"set": name, "gender": gender, **figures, "f1_low": low, "f1_high": high,
                         "pictures": report[gender]["count"]})
    columns = ["set", "gender", "recall", "precision", "f1", "f1_low", "f1_high", "pictures"]
    return pd.DataFrame(rows, columns=columns)


def reliability(male, male_probability, bins=10):
    """Does "80 % sure" come true 80 times in 100? One row for each of `bins` equal bins of probability.

    Returns a DataFrame: low, high (the bin holds low <= p < high, the last one 1 too), count,
    probability (the mean in the bin) and male (the share that is male); NaN in an empty bin.
    """
    male, probability = _answered(male, male_probability, "male", "male_probability")
    _check_values(male, "male", [0, 1])
    _check_range(probability, "male_probability", 0, 1)
    edges = np.linspace(0, 1, bins + 1)
    index = np.searchsorted(edges[1:-1], probability, side="right")
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, weights=probability, minlength=bins) / count
        share = np.bincount(index, weights=male, minlength=bins) / count
    return pd.DataFrame({"low": edges[:-1], "high": edges[1:], "count": count, "probability": mean,
                         "male": share})


def expected_calibration_error(male, male_probability, bins=10):
    """Mean distance between the stated probability and the share that came true, weighted by bin counts.

    0 is perfect. Naeini, Cooper, Hauskrecht (2015), "Obtaining Well Calibrated Probabilities Using
    Bayesian Binning", with the probability of "male" and equal bins. NaN without pictures.
    """
    table = reliability(male, male_probability, bins)
    gap = (table["probability"] - table["male"]).abs().fillna(0)
    return _ratio((gap * table["count"]).sum(), table["count"].sum())


# Age --------------------------------------------------------------------------------------------------

def age_report(age, predicted, within=(3, 5, 10)):
    """Errors of the predicted age, in years, over the labels 18..65 (others are left out and counted).

    mae is the mean of |predicted - age|; bias the mean of predicted - age (positive: made older);
    within_k, also called CS(k), the share with |predicted - age| <= k years; `groups` the same mae and bias
    in each of the five reporting groups; mae_of_groups the mean of the groups' MAEs, so that every
    group weighs the same however few its pictures are (groups without pictures don't take part).

    Returns
    -------
    dict: mae, bias, within_3.., mae_of_groups, groups (name -> mae, bias, count), count,
    without_label, outside_range, without_prediction.
    """
    age, predicted = _pair(age, predicted, "age", "predicted age")
    known, answered = ~np.isnan(age), ~np.isnan(predicted)
    group = labels.report_group(np.where(known, age, -1))
    inside = group >= 0
    use = inside & answered
    error, group_of = (predicted - age)[use], group[use]
    groups = {
        labels.group_name(limits): _errors(error[group_of == i])
        for i, limits in enumerate(labels.REPORT_GROUPS)
    }
    filled = [figures["mae"] for figures in groups.values() if figures["count"]]
    return {
        **_errors(error),
        **{f"within_{k}": _mean(np.abs(error) <= k) for k in within},
        "mae_of_groups": _mean(filled),
        "groups": groups,
        "without_label": int((~known).sum()),
        "outside_range": int((known & ~inside).sum()),
        "without_prediction": int((inside & ~answered).sum()),
    }


def _errors(error):
    return {"mae": _mean(np.abs(error)), "bias": _mean(error), "count": len(error)}


def age_table(reports):
    """A row for each set with its age figures, to look at.

    `reports`: dict of set name -> `age_report`, with `intervals` where `report` made them; sets without
    ages are left out. Returns a DataFrame: set, pictures, mae, mae_low, mae_high, mae_of_groups, bias
    (years), within_5 (fraction).
    """
    rows = []
    for name, report in reports.items():
        if report["count"]:
            low, high = report.get("intervals", {}).get("mae", (np.nan, np.nan))
            figures = {key: report[key] for key in ("mae_of_groups", "bias", "within_5")}
            rows.append({"set": name, "pictures": report["count"], "mae": report["mae"], "mae_low": low,
                         "mae_high": high, **figures})
    columns = ["set", "pictures", "mae", "mae_low", "mae_high", "mae_of_groups", "bias", "within_5"]
    return pd.DataFrame(rows, columns=columns)


def mae_by_age(age, predicted, n=1000, seed=0, level=0.95):
    """The mean absolute error at every age 18..65, with a bootstrap interval of the pictures of that age.

    age, predicted : (n,) years, NaN where unknown; n, seed, level : of the interval, as in `bootstrap`

    Returns a DataFrame of 48 rows: age, count, mae, low, high. An age without pictures has NaN; with a
    single one there is an error but no interval.
    """
    age, predicted = _answered(age, predicted, "age", "predicted age")
    error = np.abs(predicted - age)
    random = np.random.default_rng(seed)
    rows = []
    for year in labels.AGES:
        errors = error[np.floor(age) == year]
        low = high = np.nan
        if len(errors) > 1:
            means = errors[random.integers(len(errors), size=(n, len(errors)))].mean(axis=1)
            low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
        rows.append({"age": year, "count": len(errors), "mae": _mean(errors), "low": low, "high": high})
    return pd.DataFrame(rows)


def group_accuracy(age, predicted, groups=None):
    """How often the age group is right: exactly, and to within the neighbouring group (one-off).

    The group of the truth is the one that holds the labelled age; a label in a gap between groups (Adience
    has some) is left out and counted. The predicted age is rounded to whole years and goes to the
    group that holds it, or else to the one with the nearest edge (the younger in a tie).

    Parameters
    ----------
    groups : list of (low, high) in years, both included, in rising order; the 8 of Adience if None

    Returns
    -------
    dict: exact, one_off (fractions), count, without_group, without_prediction, groups (names) and
    confusion (list of rows: row the true group, column the predicted one, entries are pictures).
    """
    groups = labels.ADIENCE_GROUPS if groups is None else list(groups)
    age, predicted = _pair(age, predicted, "age", "predicted age")
    known, answered = ~np.isnan(age), ~np.isnan(predicted)
    truth = np.where(known, _nearest_group(np.floor(age), groups, gaps=-1), -1)
    use = (truth >= 0) & answered
    figures = group_report(truth[use], _nearest_group(np.floor(predicted[use] + 0.5), groups), groups)
    return {
        "exact": figures["exact"],
        "one_off": figures["one_off"],
        "count": figures["count"],
        "without_label": int((~known).sum()),
        "without_group": int((known & ~use & answered).sum()),
        "without_prediction": int((known & ~answered).sum()),
        "groups": figures["groups"],
        "confusion": figures["confusion"],
    }


def group_report(truth, called, groups=None):
    """`group_accuracy` where the answer is a group, not an age.

    truth, called : (n,) index of the group, 0, 1, ...; a truth of -1 (none) is left out
    groups : as there
    -> dict: exact, one_off (fractions), count, groups (names), confusion.

    Raises ValueError where the two are of different length, or a group is not one of `groups`.
    """
    groups = labels.ADIENCE_GROUPS if groups is None else list(groups)
    truth, called = np.asarray(truth), np.asarray(called)
    if truth.shape != called.shape:
        raise ValueError(f"truth has {len(truth)} entries but called has {len(called)}")
    truth, called = truth[truth >= 0], called[truth >= 0]
    if len(called) and not (called.min() >= 0 and max(called.max(), truth.max()) < len(groups)):
        raise ValueError(f"groups must lie in 0..{len(groups) - 1}")
    matrix = np.zeros((len(groups), len(groups)), dtype=int)
    np.add.at(matrix, (truth, called), 1)
    return {
        "exact": _mean(truth == called),
        "one_off": _mean(np.abs(truth - called) <= 1),
        "count": len(truth),
        "groups": [labels.group_name(limits) for limits in groups],
        "confusion": matrix.tolist(),
    }


def _nearest_group(age, groups, gaps=None):
    """Index of the group that holds each age; in a gap the nearest one, or `gaps` if that is given."""
    low, high = np.array(groups, dtype="float64").T
    distance = np.maximum(low - age[:, None], age[:, None] - high)
    distance = np.where(np.isnan(distance), np.inf, np.maximum(distance, 0))
    index = distance.argmin(axis=1)
    return index if gaps is None else np.where(distance.min(axis=1) > 0, gaps, index)


def coverage(age, age_low, age_high):
    """How often the stated interval holds the true age, over the labels 18..65; 80 % ones should in 0.80.

    Returns a dict: coverage (fraction), width (mean, years), count and `groups`, the same in each of the
    five reporting groups. Raises ValueError where the three differ in length, or a lower end is above the upper one.
    """
    age, low, high = (np.asarray(values, dtype="float64") for values in (age, age_low, age_high))
    if not len(age) == len(low) == len(high):
        raise ValueError("age, age_low and age_high must have the same length")
    if np.any(low > high):
        raise ValueError("age_low must not lie above age_high")
    group = labels.report_group(np.where(np.isnan(age), -1, age))
    use = (group >= 0) & ~np.isnan(low) & ~np.isnan(high)
    inside, width = (low <= age) & (age <= high), high - low

    def figures(rows):
        return {"coverage": _mean(inside[rows]), "width": _mean(width[rows]), "count": int(rows.sum())}

    groups = {labels.group_name(limits): figures(use & (group == i))
              for i, limits in enumerate(labels.REPORT_GROUPS)}
    return {**figures(use), "groups": groups}


# The protocol of Adience --------------------------------------------------------------------------------

def five_folds(table, folds=5):
    """Rounds of cross-validation over a set that brings no folds: in each, another fifth is the fold "test".

    The fifth follows from the person where one is named, else from the file's name. For Adience itself, which has
    folds of its own: `datasets.adience.rounds`. Yields `folds` copies of the table.
    """
    keys = fold_keys(table)
    for k in range(folds):
        yield table.assign(fold=[hash_fold(key, test=k, validation=None, parts=folds) for key in keys])


def cross_validate(rounds, answer):
    """The protocol of Adience: learn from four folds, answer for the fifth, until each was asked once.

    Eidinger, Enbar, Hassner (2014), "Age and Gender Estimation of Unfiltered Faces". People of an age between two
    groups count for gender only, those without a gender for age only.

    Parameters
    ----------
    rounds : iterable of tables; in each the pictures of the fold "test" are asked for
    answer : function(learn, test), two tables with the column `group` (0..7, or -1) beside the others; gives a dict
        with "group", (n,) indices, or "male", (n,) 1 or 0, or both, for the rows of `test`

    Returns
    -------
    DataFrame, a row a round: pictures, exact, one_off and gender, as fractions, each where it was answered.
    """
    rows = []
    for table in rounds:
        table = usable(table)
        group = np.where(table["age"].notna(), labels.adience_group(table["age"].fillna(-1)), -1)
        table = table.assign(group=group)
        asked = (table["fold"] == "test").to_numpy()
        test = table[asked].reset_index(drop=True)
        answers, row = answer(table[~asked].reset_index(drop=True), test), {"pictures": len(test)}
        if "group" in answers:
            report = group_report(test["group"], answers["group"])
            row |= {name: report[name] for name in ("exact", "one_off")}
        if "male" in answers:
            known = test["male"].notna()
            row["gender"] = _mean((np.asarray(answers["male"]) == test["male"])[known])
        rows.append(row)
    return pd.DataFrame(rows)


def over_folds(rounds):
    """Mean and standard deviation of each figure of `cross_validate` over the rounds, as Adience's results are told.

    The deviation is that of a sample (n - 1). It tells how the folds differ, not how sure the mean is: any two
    rounds learn from mostly the same pictures. DataFrame, a row a figure: mean, deviation.
    """
    figures = rounds.drop(columns="pictures")
    return pd.DataFrame({"mean": figures.mean(), "deviation": figures.std(ddof=1)}).rename_axis("figure")


# Face recognition ---------------------------------------------------------------------------------------

def verification(embeddings, identity, others=20, seed=0):
    """Can embeddings tell whether two pictures show the same person? A dict: auc, same, different.

    auc is the probability that two pictures of one person are nearer (by the cosine) than two of different people:
    0.5 is chance, 1 perfect. All pairs of one person are taken (`same`), and for each `others` random pairs of
    different people (`different`). NaN where nobody has two pictures.

    embeddings : (n, d); identity : (n,) who is seen
    """
    from sklearn.metrics import roc_auc_score

    unit = np.asarray(embeddings, dtype="float64")
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    who = pd.factorize(pd.Series(np.asarray(identity), dtype="object"))[0]
    first, second = np.triu_indices(len(who), k=1)
    alike = who[first] == who[second]
    same, different = np.flatnonzero(alike), np.flatnonzero(~alike)
    if not len(same) or not len(different):
        return {"auc": np.nan, "same": len(same), "different": 0}
    random = np.random.default_rng(seed)
    different = random.choice(different, min(len(different), others * len(same)), replace=False)
    pairs = np.concatenate([same, different])
    cosine = np.sum(unit[first[pairs]] * unit[second[pairs]], axis=1)
    auc = roc_auc_score(np.repeat([1, 0], [len(same), len(different)]), cosine)
    return {"auc": float(auc), "same": len(same), "different": len(different)}


# How sure are we of a figure ---------------------------------------------------------------------------

def bootstrap(function, *arrays, n=1000, seed=0, groups=None, level=0.95):
    """Percentile interval of `function(*arrays)` when the rows are drawn again with replacement.

    With `groups` (one entry a row: who is seen) whole people are drawn instead of pictures, since two
    pictures of one person tell less than two people; rows with a missing entry each count as one person.
    Efron (1979), "Bootstrap Methods: Another Look at the Jackknife".

    Parameters
    ----------
    function : takes the arrays, gives a number, or a flat dict of numbers
    arrays : (rows,) arrays of the same length

    Returns
    -------
    (low, high), or a dict of them where the function gives a dict. NaN where nothing could be counted.
    """
    arrays = [np.asarray(array) for array in arrays]
    if not arrays or len({len(array) for array in arrays}) != 1:
        raise ValueError("bootstrap needs one or more arrays of the same length")
    draw = _draws(len(arrays[0]), groups, np.random.default_rng(seed))
    results = []
    for _ in range(n if len(arrays[0]) else 0):
        rows = draw()
        results.append(function(*(array[rows] for array in arrays)))
    if results and isinstance(results[0], dict):
        return {key: _interval([result[key] for result in results], level) for key in results[0]}
    return _interval(results, level)


def over_seeds(truth, answers, n=1000, seed=0):
    """The figures of trainings that differ by chance only (seeds, or which pictures they learned from).

    Each picture counts with its mean over the trainings, and the 95 % intervals draw pictures again: they say what
    other pictures to measure on might change. The least and the most of the single trainings say what chance in
    learning changes.

    Parameters
    ----------
    truth : DataFrame with age (18..65 years) and male (1 or 0)
    answers : one (predicted ages in years, male probabilities) for each training, for the rows of `truth`

    Returns
    -------
    dict: mae (years), exact and one_off (shares, of the 8 groups of Adience, see `group_accuracy`), gender (share
    that is right), each also with _low, _high (interval) and _least, _most; trainings.
    """
    age, male = truth["age"].to_numpy("float64"), truth["male"].to_numpy("float64")
    group = labels.adience_group(age)
    each = []
    for predicted, probability in answers:
        away = np.abs(labels.adience_group(np.floor(np.asarray(predicted) + 0.5), nearest=True) - group)
        in_group = {"exact": away == 0, "one_off": away <= 1}
        each.append({"mae": np.abs(predicted - age), "gender": (np.asarray(probability) >= 0.5) == male,
                     **{name: np.where(group < 0, np.nan, right) for name, right in in_group.items()}})
    names = ("mae", "exact", "one_off", "gender")
    mean = [np.mean([figures[name] for figures in each], axis=0) for name in names]
    intervals = bootstrap(lambda *rows: {name: _mean_known(row) for name, row in zip(names, rows, strict=True)},
                          *mean, n=n, seed=seed)
    result = {}
    for name, row in zip(names, mean, strict=True):
        single = [_mean_known(figures[name]) for figures in each]
        result |= {name: _mean_known(row), f"{name}_low": intervals[name][0], f"{name}_high": intervals[name][1],
                   f"{name}_least": min(single), f"{name}_most": max(single)}
    return result | {"trainings": len(each)}


def _draws(rows, groups, random):
    """A function that gives the row numbers of one bootstrap sample."""
    if groups is None:
        return lambda: random.integers(rows, size=rows)
    if len(groups) != rows:
        raise ValueError(f"groups must have one entry a row: {rows} rows, {len(groups)} entries")
    code = pd.factorize(pd.Series(groups, dtype="object"))[0]
    code[code < 0] = code.max(initial=-1) + 1 + np.arange((code < 0).sum())
    order = np.argsort(code, kind="stable")
    size = np.bincount(code)
    start = np.cumsum(size) - size

    def draw():
        people = random.integers(len(size), size=len(size))
        sizes = size[people]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return order[np.repeat(start[people], sizes) + within]

    return draw


def _interval(values, level):
    values = np.asarray(values, dtype="float64")
    values = values[~np.isnan(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


# All of it ---------------------------------------------------------------------------------------------

def join(truth, predictions):
    """One table: the columns of the truth, and predicted_age, age_low, age_high, male_probability.

    The two are put side by side in their order, so they must have as many rows; the truth's index is kept.

    Raises ValueError where they have not, where a column is missing (`age` or `male` in the truth, one of PREDICTED
    in the predictions) or holds something else than numbers.
    """
    truth, predictions = pd.DataFrame(truth), pd.DataFrame(predictions)
    if len(truth) != len(predictions):
        raise ValueError(f"{len(truth)} rows of truth but {len(predictions)} predictions: "
                         "keep a row with missing values where there is no answer")
    missing = [name for name in PREDICTED if name not in predictions]
    if missing:
        raise ValueError(f"the predictions lack {missing}: give the table that predict_crops returns")
    if "age" not in truth and "male" not in truth:
        raise ValueError("the truth needs a column `age` or `male`")
    table = truth.copy()
    for name in ("age", "male"):
        table[name] = _numbers(truth[name], name) if name in truth else np.nan
    for name in PREDICTED:
        table["predicted_age" if name == "age" else name] = _numbers(predictions[name], name)
    return table


def by(table, column, n=1000, seed=0):
    """The figures of each value of a column (`race`, `male`, `region`, ...), with 95 % intervals.

    `table` is what `join` gives; n, seed : of the intervals, as in `bootstrap`. Returns a DataFrame: the column,
    pictures, mean_age (labelled, years), mae, mae_low, mae_high, bias (years; these five over the answered labels
    18..65), accuracy, accuracy_low, accuracy_high (of gender). Rows where the column is missing stand as "not known".

    Raises ValueError where the table has no such column.
    """
    if column not in table:
        raise ValueError(f"the table has no column {column!r}, only {sorted(table.columns)}")
    rows = []
    for value, part in table.groupby(column, dropna=False, sort=True):
        error = _age_error(part)
        right = _gender_right(part)
        people = part["identity"] if "identity" in part else None
        mae = bootstrap(_mean_known, error.abs(), n=n, seed=seed, groups=people)
        accuracy = bootstrap(_mean_known, right, n=n, seed=seed, groups=people)
        rows.append({
            column: "not known" if pd.isna(value) else value, "pictures": len(part),
            "mean_age": _mean_known(part["age"].where(error.notna())),
            "mae": _mean_known(error.abs()), "mae_low": mae[0], "mae_high": mae[1],
            "bias": _mean_known(error),
            "accuracy": _mean_known(right), "accuracy_low": accuracy[0], "accuracy_high": accuracy[1],
        })
    return pd.DataFrame(rows)


def difference(one, other, n=1000, seed=0):
    """How much more wrong the answers of `other` are than those of `one`, two `join`ed tables of the same pictures.

    What is hard for both cancels out: the interval is of the difference, drawn picture by picture (by `bootstrap`; by
    people where they are known), and far narrower than those of the two figures.

    Returns a dict: years worse (of the mean absolute error), years_interval, points worse (percentage points of
    gender), points_interval. ValueError where the rows aren't those of the same pictures.
    """
    if list(one["path"]) != list(other["path"]):
        raise ValueError("the two tables hold other pictures, or in another order: a difference is taken row by row")
    one, other = one.reset_index(drop=True), other.reset_index(drop=True)
    people = one["identity"] if "identity" in one else None

    def interval(values):
        return bootstrap(_mean_known, values, n=n, seed=seed, groups=people)

    years = _age_error(other).abs() - _age_error(one).abs()
    points = 100 * (_gender_right(one) - _gender_right(other))
    return {"years worse": _mean_known(years), "years_interval": interval(years),
            "points worse": _mean_known(points), "points_interval": interval(points)}


AGE_BANDS = [(0, 9), (10, 14), (15, 17), (18, 20), (21, 25), (26, 55), (56, 60), (61, 65), (66, 70), (71, 116)]


def outside_marks(table, n=1000, seed=0):
    """Of the people of each age, how many are marked as perhaps younger than 18 or older than 65.

    table : `predict_set`'s of people of all ages
    Returns a DataFrame, a row for each of AGE_BANDS that has pictures: ages, pictures, predicted_age (the mean,
    years), marked (share), marked_low, marked_high (95 % interval).
    """
    rows = []
    for limits in AGE_BANDS:
        part = table[table["age"].between(*limits) & table[MARK].notna()]
        if len(part):
            marked = part[MARK].astype("float64")
            low, high = bootstrap(_mean_known, marked, n=n, seed=seed)
            rows.append({"ages": labels.group_name(limits), "pictures": len(part),
                         "predicted_age": part["predicted_age"].mean(), "marked": marked.mean(),
                         "marked_low": low, "marked_high": high})
    return pd.DataFrame(rows, columns=["ages", "pictures", "predicted_age", "marked", "marked_low", "marked_high"])


def worst(table, n=20, figure="age"):
    """The `n` worst cases of a joined table, worst first, with the row numbers of that table.

    figure "age": the largest |predicted - age|; "gender": the wrong answers the network was surest of.
    Numbers only, so that it can be shown for sets whose pictures can't: age, predicted_age, error (years),
    male, male_probability. Raises ValueError for another figure.
    """
    if figure not in ("age", "gender"):
        raise ValueError(f"figure must be 'age' or 'gender', got {figure!r}")
    cases = table[["age", "predicted_age", "male", "male_probability"]].copy()
    cases.insert(2, "error", cases["predicted_age"] - cases["age"])
    if figure == "age":
        badness = cases["error"].abs()
    else:
        badness = (cases["male_probability"] - cases["male"]).abs().where(_gender_right(table) == 0)
    return cases.loc[badness.dropna().sort_values(ascending=False, kind="stable").index[:n]]


def _age_error(table):
    """Predicted minus labelled age in years, NaN without an answer or for a label that isn't 18..65."""
    return table["predicted_age"] - table["age"].where(labels.report_group(table["age"].fillna(-1)) >= 0)


def _gender_right(table):
    """1 right, 0 wrong, NaN without label or answer."""
    right = (table["male_probability"] >= 0.5) == (table["male"] == labels.MALE)
    return right.astype("float64").where(table["male"].notna() & table["male_probability"].notna())


def report(truth, predictions=None, n=1000, seed=0):
    """Every figure of this module in one dict that JSON can hold (missing figures are None).

    Without `predictions`, `truth` is a table that was joined already. n, seed : of all intervals, as in `bootstrap`.

    Keys: pictures, unanswered (rows without a prediction), gender, age (both with 95 % `intervals`, people
    drawn where `identity` is known), groups_8, groups_16, calibration, interval_80, mae_by_age, by_gender.
    """
    table = truth if predictions is None else join(truth, predictions)
    people = table["identity"] if "identity" in table else None
    male, probability = table["male"].to_numpy(), table["male_probability"].to_numpy()
    age, predicted = table["age"].to_numpy(), table["predicted_age"].to_numpy()

    gender = gender_report(male, probability)
    gender["intervals"] = bootstrap(_flat_gender, male, probability, n=n, seed=seed, groups=people)
    ages = age_report(age, predicted)
    ages["intervals"] = bootstrap(_flat_age, age, predicted, n=n, seed=seed, groups=people)
    return plain({
        "pictures": len(table),
        "unanswered": int(table["predicted_age"].isna().sum()),
        "gender": gender,
        "age": ages,
        "groups_8": group_accuracy(age, predicted, labels.ADIENCE_GROUPS),
        "groups_16": group_accuracy(age, predicted, labels.AGE_GROUPS),
        "calibration": {"expected_error": expected_calibration_error(male, probability),
                        "bins": reliability(male, probability).to_dict("records")},
        "interval_80": coverage(age, table["age_low"], table["age_high"]),
        "mae_by_age": mae_by_age(age, predicted, n=n, seed=seed).to_dict("records"),
        "by_gender": by(table, "male", n=n, seed=seed).to_dict("records"),
    })


def summary(report, intervals=False):
    """The four figures of a `report` by which networks are compared, as model cards and their tables hold them.

    -> dict: mae, mae_of_groups (years), gender_accuracy, coverage_80 (fractions); with `intervals` also mae_interval
    and gender_interval, each [low, high] at 95 %.
    """
    age, gender = report["age"], report["gender"]
    figures = {"mae": age["mae"], "mae_of_groups": age["mae_of_groups"], "gender_accuracy": gender["accuracy"],
               "coverage_80": report["interval_80"]["coverage"]}
    if intervals:
        figures |= {"mae_interval": age["intervals"]["mae"], "gender_interval": gender["intervals"]["accuracy"]}
    return figures


def _flat_gender(male, probability):
    figures = gender_report(male, probability)
    flat = {f"{name}_{key}": figures[name][key]
            for name in ("male", "female") for key in ("recall", "precision", "f1")}
    return {"accuracy": figures["accuracy"], **flat}


def _flat_age(age, predicted):
    figures = age_report(age, predicted)
    return {key: figures[key] for key in ("mae", "mae_of_groups", "bias")}


def plain(value):
    """The value as JSON knows it: NumPy numbers as Python's, tuples as lists, NaN as None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value


# From pictures to predictions --------------------------------------------------------------------------

def held_out(table, every_age=False):
    """The rows of one set to measure on: those nobody here learns from.

    Its validation fold, or its test fold where it has no other; without the rows that have a reason against
    them, and unless `every_age`, without those labelled younger than 18 or older than 65, whom the network can
    only mark.
    """
    fold = "validation" if (table["fold"] == "validation").any() else "test"
    measured = table[table["fold"] == fold]
    return measured[measured["reason"].isna()].reset_index(drop=True) if every_age else adults(measured)


def adults(table):
    """The usable rows whose age is 18..65, or not known."""
    known_ages = table["age"].isna() | (labels.report_group(table["age"].fillna(-1)) >= 0)
    return table[table["reason"].isna() & known_ages].reset_index(drop=True)


def predict_set(table, predictor, cache=None, progress=True):
    """`join`ed table of one set: its rows, the predictions, and `reason` where a picture gave none.

    The pictures of a set that comes aligned (`faces.FRAMES`) are cropped by its layout; in all others the
    face is looked for (`predict_photo`), and the main one counts. `cache` and `progress` are those of
    `predict_paths`. Raises ValueError for rows of more than one set, and for a cache with other columns.
    """
    from .faces import FRAMES

    names = set(table["set"])
    if len(names) > 1:
        raise ValueError(f"predict_set takes the table of one set, got rows of {sorted(names)}")
    layout = next((name for name in names if name in FRAMES), None)
    answers = predict_paths(table["path"], predictor, layout is None, cache, progress, layout=layout)
    answers.index = table.index
    joined = join(table, answers)
    joined["reason"], joined[MARK] = answers["reason"], answers[MARK]
    return joined


def predict_paths(paths, predictor, photos=False, cache=None, progress=True, chunk=128, layout=None):
    """Predictions for picture files, a row for each path in their order; a picture that fails has a `reason`.

    Parameters
    ----------
    paths : list of picture files
    photos : False: each file is one face that fills the picture, as in UTKFace (`predict_crops`);
        True: each is a photograph, the face has to be found first (`predict_photo`), and the
        row is that of the main person (`main_person`)
    cache : csv file; what it holds isn't computed again, and it is rewritten after every `chunk` pictures,
        so that an interrupted run goes on where it was
    progress : show a bar
    layout : a key of `faces.FRAMES`, for face pictures with more around the face than UTKFace's

    Returns
    -------
    DataFrame: path, age, age_low, age_high, male_probability, may_be_outside (missing where the predictor
    doesn't tell it), reason ("no face", "unreadable", ...); and for photographs faces (how many were found),
    x, y, width, height, face_score.
    """
    from tqdm.auto import tqdm

    paths = [str(path) for path in paths]
    columns = ["path", *PREDICTED, MARK, *(_FACE if photos else []), "reason"]
    done = _read_cache(cache, columns)
    todo = [path for path in dict.fromkeys(paths) if path not in done.index]
    with tqdm(total=len(todo), unit="picture", disable=not progress) as bar:
        for start in range(0, len(todo), chunk):
            part = todo[start:start + chunk]
            rows = _predict_photos(part, predictor) if photos else _predict_faces(part, predictor, layout)
            new = pd.DataFrame(rows, columns=columns).set_index("path")
            done = new if done.empty else pd.concat([done, new])
            _write_cache(done, cache)
            bar.update(len(part))
    result = done.reindex(paths).rename_axis("path").reset_index()
    result["reason"] = result["reason"].astype("object").where(result["reason"].notna(), None)
    return result.astype({MARK: "boolean"})


def _predict_faces(paths, predictor, layout=None):
    from .faces import PictureError, crop_framed, read_picture

    rows, pictures = [{"path": path} for path in paths], {}
    for i, path in enumerate(paths):
        try:
            picture = read_picture(path)
            whole = layout in (None, "utkface")  # such a picture is the frame itself
            pictures[i] = picture if whole else crop_framed(picture, layout, CROP_SIZE)
        except PictureError as error:
            rows[i]["reason"] = error.reason
    if pictures:
        answers = predictor.predict_crops(list(pictures.values()))
        for i, answer in zip(pictures, answers.reindex(columns=[*PREDICTED, MARK]).to_dict("records"), strict=True):
            rows[i].update(answer)
    return rows


def _predict_photos(paths, predictor):
    from .faces import PictureError, read_picture

    rows = []
    for path in paths:
        try:
            photo = read_picture(path)
        except PictureError as error:
            rows.append({"path": path, "reason": error.reason})
            continue
        people = predictor.predict_photo(photo)
        if len(people):
            person = main_person(people, photo.shape)
            rows.append({"path": path, "faces": len(people), **person.reindex([*PREDICTED, MARK, *_FACE[1:]])})
        else:
            rows.append({"path": path, "faces": 0, "reason": "no face"})
    return rows


def main_person(people, shape):
    """The row of `people` (x, y, width, height in pixels) that the photograph of `shape` is about.

    The largest face, less for one far from the middle: area - 2 distance^2, in pixels, distance from
    the middle of the box to the middle of the photograph. ValueError when there is nobody.
    """
    if not len(people):
        raise ValueError("there is nobody in this photograph")
    across = people["x"] + people["width"] / 2 - shape[1] / 2
    down = people["y"] + people["height"] / 2 - shape[0] / 2
    weight = people["width"] * people["height"] - 2 * (across**2 + down**2)
    return people.iloc[int(np.argmax(weight.to_numpy()))]


def _read_cache(cache, columns):
    empty = pd.DataFrame(columns=columns).set_index("path")
    if cache is None or not Path(cache).is_file():
        return empty
    table = pd.read_csv(cache, dtype={"path": str, "reason": str})
    if list(table.columns) != columns:
        raise ValueError(f"{Path(cache).name} holds other columns than these predictions: delete it, "
                         "or name another cache")
    return table.set_index("path")


def _write_cache(table, cache):
    if cache is None:
        return
    cache = Path(cache)
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_name(cache.name + ".partial")
    table.to_csv(partial)
    os.replace(partial, cache)  # whole or not at all, however the run ends


def fingerprint(predictor):
    """Eight characters that change when the network does, or those that it has for faces in masks, or how a face that
    was found is cut: what a cache of its predictions is named after."""
    from .faces import FOUND, crop_framed

    noise = np.random.default_rng(0).integers(0, 256, size=(4, 64, 64, 3), dtype="uint8")
    masks = getattr(predictor, "masks", None)
    networks = [predictor, *([masks.covered] if masks and masks.covered else [])]
    told = [FOUND]
    told += [one.predict_crops(list(noise))[["age", "male_probability"]].to_numpy("float64") for one in networks]
    if masks:
        framed = np.stack([crop_framed(picture, size=masks.detector.size) for picture in noise])
        told.append(np.asarray(masks.detector(framed)["masked"], "float64"))
    return hashlib.sha1(b"".join(np.round(answers, 3).tobytes() for answers in told)).hexdigest()[:8]


# The same picture, a little different -------------------------------------------------------------------

def _resized(factor):
    def change(picture):
        from PIL import Image

        image = Image.fromarray(picture)
        small = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.BOX)
        return np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))

    return change


def _framed(zoom=1.0, right=0.0, down=0.0, turn=0.0):
    """Another frame: `zoom` times as wide, moved by fractions of its side, turned by degrees."""
    def change(picture):
        from PIL import Image

        height, width = picture.shape[:2]
        room = max(height, width) // 2  # what lies outside repeats the edge
        image = Image.fromarray(np.pad(picture, ((room, room), (room, room), (0, 0)), mode="edge"))
        x, y = room + width * (0.5 + right), room + height * (0.5 + down)
        image = image.rotate(turn, Image.Resampling.BICUBIC, center=(x, y))
        box = (x - width * zoom / 2, y - height * zoom / 2, x + width * zoom / 2, y + height * zoom / 2)
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box))

    return change


def _jpeg(quality):
    def change(picture):
        import io

        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(picture).save(file, "JPEG", quality=quality)
        return np.asarray(Image.open(file))

    return change


def _lit(factor):
    return lambda picture: np.clip(picture * factor, 0, 255).astype("uint8")


def _grey(picture):
    return np.repeat((picture @ [0.299, 0.587, 0.114]).round().astype("uint8")[..., None], 3, axis=-1)


# Each takes a face picture (h, w, 3) uint8 RGB and gives one of the same shape.
CHANGES = {
    "crop 10 % tighter": _framed(zoom=0.9), "crop 10 % looser": _framed(zoom=1.1),
    "5 % to the left": _framed(right=-0.05), "5 % to the right": _framed(right=0.05),
    "5 % up": _framed(down=-0.05), "5 % down": _framed(down=0.05),
    "turned 15 degrees left": _framed(turn=15), "turned 15 degrees right": _framed(turn=-15),
    "half the resolution": _resized(1 / 2), "a quarter of the resolution": _resized(1 / 4),
    "half as bright": _lit(0.5), "half again as bright": _lit(1.5), "grey": _grey, "JPEG quality 30": _jpeg(30),
}


def robustness(table, predictor, changes=None):
    """What each change of the pictures costs, on the same faces.

    table : rows of a set whose pictures are face-filled as UTKFace's, with `path`, `age` and `male`
    changes : dict name -> function of a picture; CHANGES if None

    Returns a DataFrame: change ("none" first), pictures, mae (years), accuracy (of gender), and cost_years,
    cost_points (percentage points), both positive where the change makes it worse, each with its 95 % interval
    (cost_years_low, cost_years_high and so on), that of the `difference`, face by face.
    """
    from .faces import read_picture

    pictures = [read_picture(path) for path in table["path"]]
    rows = []
    for name, change in {"none": None, **(CHANGES if changes is None else changes)}.items():
        seen = pictures if change is None else [change(picture) for picture in pictures]
        people = join(table, predictor.predict_crops(seen))
        if change is None:
            unchanged = people
        age, gender = (age_report(people["age"], people["predicted_age"]),
                       gender_report(people["male"], people["male_probability"]))
        rows.append({"change": name, "pictures": len(people), "mae": age["mae"], "accuracy": gender["accuracy"],
                     **cost(unchanged, people)})
    return pd.DataFrame(rows)


def cost(one, other):
    """What `difference` says, as columns of a table: cost_years, cost_years_low, cost_years_high, and the same of
    cost_points."""
    worse = difference(one, other)
    columns = {}
    for name in ("years", "points"):
        low, high = worse[f"{name}_interval"]
        columns |= {f"cost_{name}": worse[f"{name} worse"], f"cost_{name}_low": low, f"cost_{name}_high": high}
    return columns


def _hidden(x, y, patch):
    """A grey square over the place (x, y), `patch` wide; all three as shares of the picture."""
    def change(picture):
        height, width = picture.shape[:2]
        rows, columns = ([max(0, round((place - patch / 2) * side)), max(0, round((place + patch / 2) * side))]
                         for place, side in ((y, height), (x, width)))
        picture = picture.copy()
        picture[slice(*rows), slice(*columns)] = 127
        return picture

    return change


def occlusion_map(table, predictor, patch=0.25, places=7):
    """What each part of the face is worth: the cost of a grey square over it (Zeiler and Fergus 2014).

    table, predictor : as for `robustness`
    patch : the square's side, as a share of the picture's
    places : how many squares lie side by side; they overlap where places * patch is more than 1

    Returns a DataFrame, one row a place, from the top left by rows: x, y (the square's middle, 0..1 over the
    picture), pictures, mae, accuracy, and cost_years, cost_points as `robustness` has them. For a map:
    `.pivot(index="y", columns="x", values="cost_years")`. Raises ValueError for a patch outside 0..1 or no place.
    """
    if not 0 < patch <= 1 or places < 1:
        raise ValueError(f"patch must lie in 0..1 and places be 1 or more, got {patch} and {places}")
    middles = np.linspace(patch / 2, 1 - patch / 2, places) if places > 1 else np.array([0.5])
    grid = [(x, y) for y in middles for x in middles]
    result = robustness(table, predictor, {place: _hidden(*place, patch) for place in grid}).iloc[1:]
    where = pd.DataFrame(grid, columns=["x", "y"])
    return pd.concat([where, result.drop(columns="change").reset_index(drop=True)], axis=1)


def scene(picture, seed=0, width=640, height=480):
    """A face-filled picture (h, w, 3) set into a larger one, as a photograph would show it: (height, width, 3).

    Its size, from a fifth to half of the scene's height, its place and its turn, up to 20 degrees either way, follow
    from `seed`; its border fades into a background of its own mean colour with some noise.
    """
    return scene_and_place(picture, seed, width, height)[0]


def scene_and_place(picture, seed, width=640, height=480):
    """`scene`, and where the picture lies in it: (photo, (a, b)).

    With points as complex numbers z -> a z + b leads from the picture's own square, 0..1, to the scene's pixels.
    """
    from PIL import Image

    random = np.random.default_rng(seed)
    side = int(height * random.uniform(0.2, 0.5))
    face = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
    fade = np.minimum(1, np.minimum(*np.meshgrid(*[np.minimum(np.arange(side), np.arange(side)[::-1])] * 2))
                      / (0.06 * side))
    mask = Image.fromarray((255 * fade).astype("uint8"))
    turn = random.uniform(-20, 20)
    face, mask = (image.rotate(turn, Image.Resampling.BICUBIC, expand=True) for image in (face, mask))
    shade = np.linspace(0.8, 1.2, width)[None, :, None] * picture.mean(axis=(0, 1))
    noise = random.normal(0, 4, (height, width, 1))
    photo = Image.fromarray(np.clip(shade + noise, 0, 255).astype("uint8"))
    place = (int(random.integers(0, width - face.width + 1)), int(random.integers(0, height - face.height + 1)))
    photo.paste(face, place, mask)
    a = side * np.exp(-1j * np.deg2rad(turn))
    middle = place[0] + face.width / 2 + 1j * (place[1] + face.height / 2)
    return np.asarray(photo), (a, middle - a * (0.5 + 0.5j))


def in_scenes(table, predictor, seed=0):
    """The same faces given as crops and found in scenes: two `join`ed tables of the same rows.

    table : as for `robustness`. In the second table a row whose face wasn't found has missing predictions.
    """
    from .faces import read_picture

    pictures = [read_picture(path) for path in table["path"]]
    found = []
    for number, picture in enumerate(pictures):
        photo = scene(picture, [seed, number])
        people = predictor.predict_photo(photo)
        found.append(main_person(people, photo.shape)[PREDICTED].to_dict() if len(people) else {})
    answers = pd.DataFrame(found, columns=PREDICTED, index=table.index)
    return join(table, predictor.predict_crops(pictures).set_index(table.index)), join(table, answers)


def found_landmarks(table, seed=0):
    """Landmarks of the faces that are found in scenes, in the frame, whose place is known there: (n, 5, 2), 0..1.

    table : as for `robustness`; a face that isn't found is left out
    """
    from . import faces

    places = []
    for number, path in enumerate(table["path"]):
        photo, (a, b) = scene_and_place(faces.read_picture(path), [seed, number])
        found = faces.detect(photo)
        if len(found):
            z = (faces.points_of(main_person(found, photo.shape)) @ [1, 1j] - b) / a
            places.append(np.stack([z.real, z.imag], axis=1))
    return np.array(places).reshape(-1, 5, 2)


def framing(table, targets, seed=0):
    """How the crops of faces found in scenes lie to the frame, which is known there: DataFrame, a row a crop.

    table : as for `robustness`
    targets : dict of places to bring the landmarks to, (5, 2) (see `faces.similarity`); each makes a crop of its own
    Columns: target; scale, of the crop's side to the frame's; turn in degrees; right and down, of its middle, as
    shares of the frame's side. A face that isn't found has no row.
    """
    from .faces import similarity

    rows, middle = [], 0.5 + 0.5j
    for points in found_landmarks(table, seed):
        for name, target in targets.items():
            a, b = similarity(points, target=np.asarray(target))  # from the frame to the crop
            shift = (middle - b) / a - middle
            rows.append((name, 1 / abs(a), -np.rad2deg(np.angle(a)), shift.real, shift.imag))
    return pd.DataFrame(rows, columns=["target", "scale", "turn", "right", "down"])


# A user's own pictures ---------------------------------------------------------------------------------

_PATH_NAMES = ["path", "file", "filename", "file_name", "picture", "image"]
_GENDER_NAMES = ["male", "gender", "sex"]
_MALE_WORDS = {"m", "male", "man", "boy"}
_FEMALE_WORDS = {"f", "female", "woman", "girl", "w"}
_YES, _NO = {"1", "1.0", "true", "yes"}, {"0", "0.0", "false", "no"}


def evaluate_folder(folder, csv, predictor, photos=False, n=1000, progress=False):
    """The report on a user's own pictures.

    `csv` names the pictures and says what is true of them. Columns, in any case of letters:
    `path` or `file` (relative to `folder`); `age` in years; `male` (1/0, yes/no, true/false) or `gender`
    (m/f, male/female, man/woman). One of age and gender is enough; an empty field is a missing label. A
    column `identity` is used where there is one. Comma, semicolon or tab between fields.

    Parameters
    ----------
    photos : False where each picture is one face that fills it; True where faces have to be found
    n : bootstrap samples

    Returns
    -------
    (report, table): the dict of `report`, and a row for each line of the csv with the labels, the predictions
    and `reason`, missing where all went well ("missing" when there is no such file).

    Raises
    ------
    ValueError with the line of the csv that can't be used, and why.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {str(folder)!r}: give the folder that holds the pictures")
    truth = read_labels(csv)
    files = [folder / name for name in truth["path"]]
    there = np.array([file.is_file() for file in files], dtype=bool)
    answers = predict_paths([f for f, ok in zip(files, there, strict=True) if ok], predictor, photos,
                            progress=progress)
    answers.index = truth.index[there]
    answers = answers.reindex(truth.index)
    answers.loc[~there, "reason"] = "missing"
    table = join(truth, answers)
    table["reason"] = answers["reason"]
    figures = report(truth, answers, n=n)
    figures["reasons"] = plain(table["reason"].value_counts().to_dict())
    return figures, table


def read_labels(csv):
    """A user's csv as a table: path, age, male (1, 0 or missing), identity. See `evaluate_folder`."""
    raw = _read_csv(csv)
    path, gender = _column(raw, _PATH_NAMES), _column(raw, _GENDER_NAMES)
    label = gender or _column(raw, ["age"])
    for found, names in [(path, "`path` or `file`"), (label, "`age` or `male` or `gender`")]:
        if found is None:
            raise ValueError(f"the csv needs a column {names}; its columns are {list(raw.columns)}")
    if raw.empty:
        raise ValueError("the csv has no line below its header")
    table = pd.DataFrame({"path": raw[path], "age": np.nan, "male": np.nan})
    for line, row in raw.iterrows():
        if not row[path]:
            raise ValueError(f"line {line} of the csv names no picture")
        if "age" in raw:
            table.loc[line, "age"] = _parse_age(row["age"], line)
        if gender:
            table.loc[line, "male"] = _parse_gender(row[gender], gender, line)
    if "identity" in raw:
        table["identity"] = raw["identity"].where(raw["identity"] != "", None)
    return table.reset_index(drop=True)


def _read_csv(csv):
    """Every field as text without blanks around it; the index is the number of the line in the file."""
    try:
        with Path(csv).open(encoding="utf-8-sig") as file:
            header = file.readline()
        raw = pd.read_csv(csv, sep=max(",;\t", key=header.count), dtype=str, keep_default_na=False,
                          encoding="utf-8-sig", skip_blank_lines=False)
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"there is no file {str(csv)!r}: give the csv with the labels") from None
    except (UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ValueError(f"{Path(csv).name} is not a csv file in UTF-8: {error}") from None
    raw.columns = [str(name).strip().lower() for name in raw.columns]
    raw.index = raw.index + 2
    raw = raw.fillna("").apply(lambda column: column.str.strip())
    return raw[(raw != "").any(axis=1)]


def _column(raw, names):
    return next((name for name in names if name in raw), None)


def _parse_age(text, line):
    if text == "":
        return np.nan
    try:
        age = float(text)
    except ValueError:
        age = np.nan
    if not 0 <= age <= 120:
        raise ValueError(f"line {line} of the csv: the age {text!r} is not a number of years from 0 to 120")
    return age


def _parse_gender(text, column, line):
    word = text.lower()
    if word == "":
        return np.nan
    if word in _MALE_WORDS | _FEMALE_WORDS:
        return float(word in _MALE_WORDS)
    if word in _YES | _NO:
        # In a column named `male` this is clear. Elsewhere sets disagree: UTKFace writes 0 for male, IMDB 1.
        if column == "male":
            return float(word in _YES)
        raise ValueError(f"line {line} of the csv: {text!r} in a column named {column!r} could mean either; "
                         "name the column `male` if 1 is male, or write m and f")
    raise ValueError(f"line {line} of the csv: {text!r} is no gender; write m or f, male or female, "
                     "or 1 or 0 in a column named `male`")


# Small checks ------------------------------------------------------------------------------------------

def _numbers(values, name):
    try:
        return np.asarray(pd.Series(values).astype("float64"))
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers, or missing") from None


def _pair(first, second, first_name, second_name):
    first, second = _numbers(first, first_name), _numbers(second, second_name)
    if len(first) != len(second):
        raise ValueError(f"{first_name} has {len(first)} entries but {second_name} has {len(second)}")
    if np.isinf(first).any() or np.isinf(second).any():
        raise ValueError(f"{first_name} and {second_name} must be finite; missing values are NaN")
    return first, second


def _answered(first, second, first_name, second_name):
    """The pairs in which neither is missing."""
    first, second = _pair(first, second, first_name, second_name)
    use = ~np.isnan(first) & ~np.isnan(second)
    return first[use], second[use]


def _check_values(values, name, allowed):
    wrong = set(values[~np.isnan(values)]) - set(allowed)
    if wrong:
        raise ValueError(f"{name} must be one of {allowed} or missing, got {sorted(wrong)[:5]}")


def _check_range(values, name, low, high):
    if np.any((values < low) | (values > high)):
        raise ValueError(f"{name} must lie in {low}..{high}")


def _ratio(part, whole):
    return float(part / whole) if whole else np.nan


def _mean(values):
    return float(np.mean(values)) if len(values) else np.nan


def _mean_known(values):
    values = np.asarray(values, dtype="float64")
    return _mean(values[~np.isnan(values)])
