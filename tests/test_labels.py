import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fag_utils import labels

ages = st.integers(labels.MIN_AGE, labels.MAX_AGE)


def test_there_are_48_ages_from_18_to_65():
    assert labels.N_AGES == len(labels.AGES) == 48
    assert (labels.AGES[0], labels.AGES[-1]) == (18, 65)


@given(st.lists(ages))
def test_age_to_class_and_back(values):
    classes = labels.age_to_class(values)
    assert classes.dtype == np.int64
    assert ((classes >= 0) & (classes < 48)).all()
    assert labels.AGES[classes].tolist() == values


@given(st.floats(18, 65))
def test_a_fraction_of_a_year_counts_for_the_year_that_is_full(age):
    assert labels.AGES[labels.age_to_class(age)] == int(age)


@pytest.mark.parametrize("age", [17, 17.99, 66, -1, float("nan"), [18, 70]])
def test_an_age_outside_is_refused_with_the_range_in_the_message(age):
    with pytest.raises(ValueError, match="18..65"):
        labels.age_to_class(age)


def test_sixteen_groups_of_three_years_cover_every_age_once():
    assert len(labels.AGE_GROUPS) == 16
    assert [high - low for low, high in labels.AGE_GROUPS] == [2] * 16
    counts = np.bincount(labels.age_group(labels.AGES), minlength=16)
    assert counts.tolist() == [3] * 16


def test_five_report_groups_cover_every_age():
    edges = [18, 25, 26, 35, 36, 45, 46, 55, 56, 65]
    assert labels.report_group(edges).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert (labels.report_group(labels.AGES) >= 0).all()


@given(st.integers(-10, 17) | st.integers(66, 200))
def test_ages_outside_are_in_no_group(age):
    assert labels.age_group(age) == labels.report_group(age) == -1


@given(st.floats(0, 110, allow_nan=False))
def test_a_group_holds_the_ages_between_its_edges(age):
    index = int(labels.adience_group(age))
    inside = [low <= np.floor(age) <= high for low, high in labels.ADIENCE_GROUPS]
    assert (index == -1 and not any(inside)) or inside[index]


def test_adience_groups_leave_gaps_and_nearest_closes_them():
    assert labels.adience_group([3, 7, 14, 22, 35, 46, 55]).tolist() == [-1] * 7
    # 3 and 35 are as near to two groups: the younger one
    assert labels.adience_group([3, 7, 14, 22, 35, 46, 58], nearest=True).tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert (labels.adience_group(np.arange(101), nearest=True) >= 0).all()


@given(st.integers(0, 120))
def test_nearest_never_moves_an_age_that_is_in_a_group(age):
    index = labels.adience_group(age)
    assert index == -1 or labels.adience_group(age, nearest=True) == index


def test_group_names():
    assert labels.group_name(labels.AGE_GROUPS[0]) == "18-20"
    assert labels.group_name(labels.AGE_GROUPS[-1]) == "63-65"


@given(ages)
def test_expected_age_of_a_certain_network_is_that_age(age):
    assert labels.expected_age(np.eye(48)[labels.age_to_class(age)]) == age


def test_expected_age_of_a_batch():
    two_peaks = np.zeros((2, 48))
    two_peaks[0, [2, 12]] = 0.5  # 20 or 30
    two_peaks[1] = 1 / 48
    assert labels.expected_age(two_peaks).tolist() == [25, 41.5]


def test_expected_age_wants_48_probabilities():
    with pytest.raises(ValueError, match="48"):
        labels.expected_age(np.ones(101) / 101)


def test_gender_codes():
    assert (labels.FEMALE, labels.MALE) == (0, 1)
    assert labels.gender_in_words(0.9) == ("man", 0.9) and labels.gender_in_words(0.25) == ("woman", 0.75)


@given(arrays(np.float64, 50, elements=st.floats(0.001, 1)), st.floats(0.3, 3))
def test_tempering_with_and_without_the_ages_outside_agrees_inside(cells, temperature):
    cells /= cells.sum()
    outside, inside = cells[[0, -1]], 1 - cells[[0, -1]].sum()
    age, beyond = labels.temper_ages(cells[1:-1] / inside, outside, temperature)
    np.testing.assert_allclose(age, labels.temper(cells[1:-1] / inside, temperature), atol=1e-9)
    np.testing.assert_allclose(labels.temper(cells, temperature)[[0, -1]], beyond, atol=1e-9)


def test_an_interval_reaches_to_the_end_where_someone_may_be_older():
    age = np.exp(-0.5 * ((labels.AGES - 60) / 3.0) ** 2)
    age /= age.sum()
    low, high = labels.age_interval(age)
    assert 55 < low < high < 64.5
    same = labels.age_interval(age, outside=[0.0, 0.0])
    np.testing.assert_allclose(same, (low, high))
    further = labels.age_interval(age, outside=[0.0, 0.3])
    assert further[0] > low and further[1] == 65.5
    assert labels.age_interval(age, outside=[0.95, 0.0]) == (17.5, pytest.approx(17.5))
