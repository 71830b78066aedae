"""Batches: their composition, their order, and what the network sees."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fag_utils import batches, cleaning, faces, labels


def people(ages, regions=None, male=None):
    n = len(ages)
    male = [i % 2 for i in range(n)] if male is None else male
    return pd.DataFrame({
        "age": np.asarray(ages, "float64"), "male": np.asarray(male, "float64"),
        "region": ["western"] * n if regions is None else regions,
    })


@pytest.fixture(scope="module")
def full_table():
    """Two pictures of each age in each region, and one of a child."""
    ages = np.tile(np.repeat(labels.AGES, 2), 2)
    regions = np.repeat(["asian", "western"], 2 * labels.N_AGES)
    return people([*ages, 7], [*regions, "western"])


def test_both_tables_have_two_halves_of_64():
    for table in (batches.FIRST_TABLE, batches.SECOND_TABLE):
        assert table.counts().shape == (2, 16)
        assert table.counts().sum(axis=1).tolist() == [64, 64]


def test_the_first_table_is_that_of_the_published_training_script():
    assert batches.FIRST_TABLE.asian == (8, 8, 8, 8, 6, 6, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1)
    assert batches.FIRST_TABLE.western == (5, 5, 5, 5, 5, 5, 5, 5, 3, 3, 3, 3, 3, 3, 3, 3)


def test_the_table_changes_at_step_560000_of_1270000():
    at = batches.composition_at
    assert at(0) == batches.FIRST_TABLE == at(559_999 / 1_270_000)
    assert at(560_000 / 1_270_000) == batches.SECOND_TABLE == at(1)


@pytest.mark.parametrize("composition", [batches.FIRST_TABLE, batches.SECOND_TABLE])
def test_every_batch_holds_what_the_table_says(full_table, composition):
    rows = batches.balanced(full_table, composition, steps=20, seed=3)
    assert rows.shape == (20, 128)
    group = labels.age_group(full_table["age"])
    for batch in rows:
        chosen = full_table.iloc[batch]
        counted = [
            np.bincount(group[batch][(chosen["region"] == region).to_numpy()], minlength=16)
            for region in ("asian", "western")
        ]
        assert np.array_equal(counted, composition.counts())


def test_a_pack_is_dealt_out_before_a_picture_comes_again(full_table):
    rows = batches.balanced(full_table, batches.SECOND_TABLE, steps=3, seed=0).ravel()
    # Each cell has 6 pictures and 12 places in three batches: each is dealt exactly twice.
    assert set(np.bincount(rows, minlength=len(full_table))[:-1]) == {2}
    assert len(full_table) - 1 not in rows  # the child has no place


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 100), st.booleans()), min_size=1, max_size=60), st.integers(0, 9))
def test_batches_are_full_whatever_is_missing(rows, seed):
    table = people([age for age, _ in rows], ["asian" if asian else "western" for _, asian in rows])
    if not (labels.age_group(table["age"]) >= 0).any():
        with pytest.raises(ValueError, match="18..65"):
            batches.balanced(table, batches.FIRST_TABLE, 2)
        return
    chosen = batches.balanced(table, batches.FIRST_TABLE, 2, seed)
    assert chosen.shape == (2, 128)
    assert (labels.age_group(table["age"].to_numpy()[chosen]) >= 0).all()
    assert np.array_equal(chosen, batches.balanced(table, batches.FIRST_TABLE, 2, seed))


def test_an_empty_cell_is_replaced_by_the_nearest_age_of_its_half():
    table = people([19, 40, 64], ["asian", "asian", "western"])
    batch = table.iloc[batches.balanced(table, batches.SECOND_TABLE, 1)[0]]
    assert (batch["age"] == 64).sum() == 64  # the western half has nobody else
    assert set(batch.loc[batch["region"] == "asian", "age"]) == {19, 40}


def test_shuffling_uses_each_row_once_in_another_order_each_epoch():
    table = people(np.full(300, 30))
    one, two = batches.shuffled(table, 50, seed=1), batches.shuffled(table, 50, seed=2)
    assert sorted(one.ravel()) == sorted(two.ravel()) == list(range(300))
    assert not np.array_equal(one, two)
    assert batches.shuffled(table.head(10), 50).shape == (1, 50)


def test_tempered_batches_lie_between_plain_and_equal():
    table = people([20] * 900 + [60] * 100)
    share = {
        power: (table["age"].to_numpy()[batches.tempered(table, 40, power=power)] == 60).mean()
        for power in (1, 0.5, 0)
    }
    assert share[1] == pytest.approx(0.1, abs=0.02)
    assert share[0.5] == pytest.approx(0.25, abs=0.02)
    assert share[0] == pytest.approx(0.5, abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 50), st.integers(1, 6), st.integers(1, 8))
def test_dealing_goes_on_from_epoch_to_epoch(number, steps, size):
    epochs = [batches.dealt(number, steps, size, epoch, seed=5) for epoch in range(4)]
    order = np.concatenate([rows.ravel() for rows in epochs])
    whole = len(order) // number * number
    for start in range(0, whole, number):
        assert sorted(order[start : start + number]) == list(range(number))


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Four stored crops of a picture with edges everywhere, and the picture they were cut from."""
    picture = np.random.default_rng(0).integers(0, 256, (25, 25, 3), dtype="uint8")
    picture = np.asarray(Image.fromarray(picture).resize((200, 200), Image.BICUBIC))
    folder = tmp_path_factory.mktemp("crops")
    crop = faces.crop_framed(picture, "utkface", cleaning.CROP_SIZE, cleaning.CROP_MARGIN)
    paths = [folder / f"{i}é.png" for i in range(4)]
    for path in paths:
        Image.fromarray(crop).save(path)
    return paths, picture


def test_training_sees_the_crop_that_prediction_sees(stored):
    paths, picture = stored
    crops = batches.load_crops(paths, 62)
    assert crops.dtype == np.uint8 and crops.shape[0] == 4
    seen = batches.see(crops, 62, batches.NO_AUGMENTATION, [0, 0]).numpy()
    used = faces.crop_framed(picture, "utkface", 62).astype("float32")
    assert seen.shape == (4, 62, 62, 3)
    assert np.abs(seen[0] - used).mean() < 4  # grey levels, of a picture whose own spread is about 50
    shifted = np.abs(seen[0][:, 1:] - used[:, :-1]).mean()
    assert np.abs(seen[0] - used).mean() < 0.5 * shifted  # not even a pixel out of place


def test_augmentation_is_the_same_for_the_same_seed_and_stays_a_picture(stored):
    crops = batches.load_crops(stored[0], 62)
    one, same, other = (batches.see(crops, 62, batches.Augmentation(), [0, s]).numpy() for s in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)
    assert one.min() >= 0 and one.max() <= 255
    assert not np.array_equal(one[0], one[1])  # four equal crops look different


def test_mirroring_mirrors(stored):
    crops = np.repeat(batches.load_crops(stored[0][:1], 62), 32, axis=0)
    plain = batches.see(crops[:1], 62, batches.NO_AUGMENTATION, [0, 0]).numpy()[0]
    drawn = batches.see(crops, 62, batches.NO_AUGMENTATION._replace(flip=True, blur=1e-9), [0, 0]).numpy()
    kinds = [np.abs(x - plain).mean() < 0.5 for x in drawn], [np.abs(x - plain[:, ::-1]).mean() < 0.5 for x in drawn]
    assert sum(kinds[0]) + sum(kinds[1]) == 32 and 4 < sum(kinds[0]) < 28


def test_missing_labels_weigh_nothing(stored):
    table = people([30, np.nan, 70, 18], male=[1, 0, 1, np.nan])
    crops = batches.load_crops(stored[0], 62)
    (pictures, targets, weights), = batches.dataset(crops, table, np.array([[0, 1, 2, 3]]), 62)
    assert pictures.shape == (4, 62, 62, 3)
    assert targets["age"].numpy()[[0, 3]].tolist() == [12, 0]
    assert weights["age"].numpy().tolist() == [1, 0, 0, 1]
    assert weights["gender"].numpy().tolist() == [1, 1, 1, 0]
    assert targets["gender"].numpy()[:3].tolist() == [[0, 1], [1, 0], [0, 1]]


def test_a_blend_is_the_same_at_every_size_and_has_no_label():
    table = pd.DataFrame({"age": [30.0] * 64, "male": [1.0] * 64})
    value = np.arange(64, dtype="uint8") * 4
    crops = np.broadcast_to(value[:, None, None, None], (64, 40, 40, 3))
    rows = np.random.default_rng(0).permutation(64).reshape(1, 64)
    seen = {}
    for size in (16, 24):
        (pictures, _, weights), = batches.dataset(crops, table, rows, size, seed=3, ahead=0, blended=0.5)
        seen[size] = pictures.numpy()
        blended = weights["age"].numpy() == 0
        np.testing.assert_array_equal(weights["gender"], weights["age"])
        assert 0.3 < blended.mean() < 0.7
        alone = value[rows[0]].astype("float32")
        np.testing.assert_allclose(seen[size][~blended].mean((1, 2, 3)), alone[~blended], atol=1e-3)
        low, high = np.minimum(alone, np.roll(alone, 1)), np.maximum(alone, np.roll(alone, 1))
        mean = seen[size].mean((1, 2, 3))
        assert ((low - 1e-3 <= mean) & (mean <= high + 1e-3)).all()
    np.testing.assert_allclose(seen[16].mean((1, 2, 3)), seen[24].mean((1, 2, 3)), atol=1e-3)


@given(st.integers(0, 2**31 - 1), st.floats(0, 1), st.sampled_from([32, 62, 112]))
@settings(max_examples=15, deadline=None)
def test_a_face_stays_and_what_is_around_it_is_another_persons(seed, share, size):
    value = np.random.default_rng(seed).integers(0, 256, 40)
    pictures = np.broadcast_to(value[:, None, None, None], (40, size, size, 3)).astype("float32")
    seen = batches.other_hair(pictures, share, [seed, 1]).numpy()
    down, across = slice(round(0.35 * size), round(0.7 * size)), slice(round(0.4 * size), round(0.6 * size))
    np.testing.assert_allclose(seen[:, down, across], pictures[:, down, across], atol=1e-3)
    before = np.roll(pictures, 1, axis=0)
    theirs = np.isclose(seen[:, :2, [0, -1]], before[:, :2, [0, -1]], atol=1e-3).all((1, 2, 3))
    own = np.isclose(seen, pictures, atol=1e-3).all((1, 2, 3))
    assert (theirs | own).all()
    assert abs((theirs & ~own).mean() - share * (before != pictures).any((1, 2, 3)).mean()) < 0.35
    np.testing.assert_array_equal(seen, batches.other_hair(pictures, share, [seed, 1], before))


def test_other_hair_changes_nothing_else(stored):
    crops = batches.load_crops(stored[0], 62)
    usual = batches.Augmentation(erase=0, brightness=0, contrast=0, saturation=0, grey=0, blur=0)
    own, other = (batches.see(crops, 62, usual._replace(hair=hair), [3, 4]).numpy() for hair in (0, 1))
    np.testing.assert_allclose(own[:, 20:50, 20:42], other[:, 20:50, 20:42], atol=1e-3)
    np.testing.assert_allclose(np.roll(own, 1, axis=0)[:, 0, 0], other[:, 0, 0], atol=1e-3)
    with pytest.raises(ValueError, match="eyes"):
        batches.see(crops, 62, usual._replace(hair=0.5), [3, 4], eyes="both")
