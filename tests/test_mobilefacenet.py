"""The networks against the published tables and figures, and what training and loading rely on."""

import keras
import numpy as np
import pytest

from fag_utils import models
from fag_utils.models.figures import draw_bottleneck


@pytest.fixture(scope="module")
def small():
    return models.age_gender(models.mobilefacenet(62, 0.75))


@pytest.fixture(scope="module")
def tables():
    return {112: models.layer_table(112, 1.0), 62: models.layer_table(62, 0.75)}


def pictures(n, size=62):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3)).astype("float32")


# The published figures ----------------------------------------------------------------------------------


def test_112_agrees_with_the_paper_in_parameters_and_multiply_adds(tables):
    published = models.PUBLISHED[112, 1.0]
    sums = tables[112][["deployed", "multiply_adds"]].sum()
    assert round(sums["deployed"] / 1e6, 2) == published["parameters"] / 1e6 == 0.99
    assert round(sums["multiply_adds"] / 1e6) == published["multiply_adds"] / 1e6 == 221


def test_literal_62_has_more_than_the_recipe_reports(tables):
    cost = models.count(models.mobilefacenet(62, 0.75))
    assert round(cost["trainable"] / 1e6, 2) == 0.61
    assert round(cost["multiply_adds"] / 1e6, 1) == 41.4
    assert cost["deployed"] > models.PUBLISHED[62, 0.75]["parameters"]
    assert tables[62]["multiply_adds"].sum() == cost["multiply_adds"]


def test_reference_recipe_has_the_parameters_its_author_reports():
    model = models.age_gender(models.mobilefacenet(62, 0.75, recipe="reference"), hidden=128)
    cost = models.count(model)
    published = models.PUBLISHED[62, 0.75]
    assert cost["deployed"] < published["parameters"] < cost["trainable"]
    assert cost["trainable"] == pytest.approx(533e3, abs=500)
    assert cost["deployed"] * 4 == pytest.approx(2_105_496, abs=100)  # bytes of the author's converted model
    assert 2 * cost["multiply_adds"] == pytest.approx(published["flops"], rel=0.1)


@pytest.mark.parametrize("size, sides, gdconv", [
    (112, [56, 56, 28, 14, 14, 7, 7, 7, 1, 1], "linear GDConv7x7"),
    (62, [31, 31, 16, 8, 8, 4, 4, 4, 1, 1], "linear GDConv4x4"),
])
def test_every_row_puts_out_what_the_table_says(tables, size, sides, gdconv):
    table = tables[size]
    width = 1.0 if size == 112 else 0.75
    channels = [int(c * width) if row <= 7 else c for row, c in table["c"].items()]
    assert list(table["output"]) == [f"{s} x {s} x {c}" for s, c in zip(sides, channels, strict=True)]
    assert table["operator"][9] == gdconv
    assert list(table[["c", "n", "s"]].itertuples(index=False, name=None)) == [
        (64, 1, 2), (64, 1, 1), (64, 5, 2), (128, 1, 2), (128, 6, 1), (128, 1, 2), (128, 2, 1),
        (512, 1, 1), (512, 1, 1), (128, 1, 1)]
    assert list(table["t"].dropna()) == [2, 4, 2, 4, 2]


def test_table_leaves_nothing_out(tables):
    for size, width in models.PUBLISHED:
        cost = models.count(models.mobilefacenet(size, width))
        assert {what: tables[size][what].sum() for what in ["parameters", "deployed", "multiply_adds"]} == {
            what: cost[what] for what in ["parameters", "deployed", "multiply_adds"]}


def test_count_agrees_with_a_count_by_hand():
    x = keras.Input((8, 8, 16))
    model = keras.Model(x, models.bottleneck(x, 32, 16, 1, "b"))
    kernels = 16 * 32 + 9 * 32 + 32 * 16
    cost = models.count(model)
    assert cost["multiply_adds"] == 64 * kernels
    assert cost["parameters"] == kernels + 4 * (32 + 32 + 16) + (32 + 32)
    assert cost["deployed"] == kernels + (32 + 32 + 16) + (32 + 32)


# The structure ------------------------------------------------------------------------------------------


def test_blocks_add_their_input_wherever_the_shapes_agree(small):
    added = {layer.name.removesuffix("_add") for layer in small.layers if isinstance(layer, keras.layers.Add)}
    expected = {f"row3_{i}" for i in range(2, 6)} | {f"row5_{i}" for i in range(1, 7)} | {"row7_1", "row7_2"}
    assert added == expected


def test_bottleneck_adds_the_input_itself():
    x = keras.Input((8, 8, 4))
    model = keras.Model(x, models.bottleneck(x, 8, 4, 1, "b"))
    model.get_layer("b_project_norm").set_weights([np.zeros(4), np.zeros(4), np.zeros(4), np.ones(4)])
    value = np.random.default_rng(0).normal(size=(2, 8, 8, 4)).astype("float32")
    np.testing.assert_allclose(model(value), value, atol=1e-6)


@pytest.mark.parametrize("size", [32, 62, 75, 96])
def test_gdconv_covers_the_map_of_any_size(size):
    model = models.mobilefacenet(size, 0.25)
    side = model.get_layer("row9_gdconv").kernel.shape[0]
    assert models.layer_table(size, 0.25)["operator"][9] == f"linear GDConv{side}x{side}"
    assert model.get_layer("row9_gdconv").output.shape[1:3] == (1, 1)
    assert model.output.shape == (None, 128)


def test_gdconv_of_equal_weights_is_the_average():
    x = keras.Input((4, 4, 3))
    model = keras.Model(x, models.global_depthwise(x, "g"))
    model.get_layer("g_gdconv").set_weights([np.full((4, 4, 3, 1), 1 / 16)])
    value = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype("float32")
    epsilon = model.get_layer("g_gdconv_norm").epsilon
    np.testing.assert_allclose(model(value)[:, 0, 0], value.mean(axis=(1, 2)) / np.sqrt(1 + epsilon), rtol=1e-4,
                               atol=1e-6)


def test_pictures_are_scaled_by_the_network_itself(small):
    scaled = small.get_layer("rescale")(np.array([0, 127.5, 255]).reshape(1, 1, 3))
    np.testing.assert_allclose(np.ravel(scaled), [-127.5 / 128, 0, 127.5 / 128], atol=1e-6)


@pytest.mark.parametrize("wrong", [{"size": 16}, {"width": 0}, {"width": 9}, {"recipe": "pizza"}])
def test_what_cannot_be_built_is_refused_in_words(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        models.mobilefacenet(**{"size": 62, "width": 0.75, **wrong})


# The heads ----------------------------------------------------------------------------------------------


def test_heads_are_distributions_over_48_ages_and_2_genders(small):
    out = small(pictures(3))
    assert {name: tuple(value.shape) for name, value in out.items()} == {"age": (3, 48), "gender": (3, 2)}
    for value in out.values():
        np.testing.assert_allclose(np.sum(value, axis=1), 1, atol=1e-5)
    assert {"age", "gender", "embedding"} <= {layer.name for layer in small.layers}


def test_age_branch_keeps_what_the_gender_model_learned():
    gender = models.gender_classifier(models.mobilefacenet(62, 0.25))
    learned = np.random.default_rng(0)
    for weight in gender.trainable_weights:  # as if it had been trained
        weight.assign(weight + learned.normal(0, 0.05, weight.shape))
    both = models.add_age_branch(gender)
    assert set(both.output_names) == {"age", "gender"}
    np.testing.assert_allclose(both(pictures(4))["gender"], gender(pictures(4))["gender"], atol=1e-6)
    with pytest.raises(ValueError, match="gender_classifier"):
        models.add_age_branch(both)


def test_saved_network_loads_without_custom_objects_and_says_the_same(small, tmp_path):
    small.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras", compile=False, safe_mode=True)
    for name, value in small(pictures(2)).items():
        np.testing.assert_allclose(loaded(pictures(2))[name], value, atol=1e-6)
    assert models.count(loaded) == models.count(small)


def test_every_weight_has_a_part_in_the_answer(small):
    import tensorflow as tf

    with tf.GradientTape() as tape:
        out = small(pictures(4), training=True)
        loss = -tf.reduce_mean(tf.math.log(out["age"][:, 0])) - tf.reduce_mean(tf.math.log(out["gender"][:, 1]))
    for weight, gradient in zip(small.trainable_weights, tape.gradient(loss, small.trainable_weights), strict=True):
        assert gradient is not None and np.all(np.isfinite(gradient)) and np.any(gradient != 0), weight.path


def test_drawing_shows_the_sizes_and_adds_only_where_the_block_does():
    import matplotlib

    matplotlib.use("agg")
    texts = [[text.get_text() for text in draw_bottleneck(8, 16, 32, strides).texts] for strides in (1, 2)]
    assert "8 x 8\n32 channels" in texts[0] and "4 x 4\n16 channels" in texts[1]
    assert ["+" in text for text in texts] == [True, False]
