"""The figures say what they are given: numbers, names, units; they refuse what they can't draw."""

from collections import namedtuple

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from fag_utils import evaluation, plots


@pytest.fixture(autouse=True)
def quiet_and_closed(recwarn):
    before = dict(plt.rcParams)
    yield
    plt.gcf().canvas.draw()  # what is wrong with a layout shows only when it is drawn
    plt.close("all")
    assert not [w for w in recwarn if "matplotlib" in str(w.filename)], [str(w.message) for w in recwarn]
    assert dict(plt.rcParams) == before  # the reader's own style is left alone


def texts(ax):
    return [text.get_text() for text in ax.texts]


def random_people(n=300):
    random = np.random.default_rng(0)
    age, male = random.integers(18, 66, n).astype(float), random.integers(0, 2, n).astype(float)
    return pd.DataFrame({
        "age": age, "male": male, "race": ["a", "b", "c"] * (n // 3),
        "predicted_age": age + random.normal(0, 5, n),
        "male_probability": np.clip(male + random.normal(0, 0.3, n), 0, 1)})


def test_a_full_run_watches_its_training_and_a_lesson_does_not():
    from types import SimpleNamespace
    from unittest import mock

    assert plots.watched(SimpleNamespace(full=False, engine="keras")) == {
        "engine": "keras", "progress": False, "on_epoch": None}
    with mock.patch("IPython.display.display") as display:
        settings = plots.watched(SimpleNamespace(full=True, engine="fast"))
    assert settings["engine"] == "fast" and settings["progress"]
    settings["on_epoch"]([{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}])
    ((figure,), _) = display.return_value.update.call_args
    assert list(figure.axes[0].lines[0].get_ydata()) == [3, 2]


def test_gallery_takes_any_size_colour_or_grey():
    pictures = [np.zeros((40, 30, 3), "uint8"), np.zeros((20, 60), "uint8"), np.zeros((8, 8, 3), "uint8")]
    figure = plots.gallery(pictures, ["one", "two\nlines", "three"], columns=2, title="Faces")
    assert [len(ax.images) for ax in figure.axes] == [1, 1, 1, 0]
    assert texts(figure.axes[1]) == ["two\nlines"]
    with pytest.raises(ValueError, match="as many captions"):
        plots.gallery(pictures, ["one"])
    with pytest.raises(ValueError, match="needs pictures"):
        plots.gallery([])


def test_eye_regions_lie_on_the_eyes_whatever_the_margin():
    for margin in (1.0, 1.2):
        figure = plots.eye_regions(np.zeros((3, 100, 100, 3), "uint8"), margin=margin)
        for ax in figure.axes[:3]:
            both, left, right = (patch.get_bbox() for patch in ax.patches)
            eyes = ax.lines[0].get_xydata()[:2]
            assert left.contains(*eyes[0]) and right.contains(*eyes[1]) and not left.contains(*eyes[1])
            assert all(both.contains(*eye) for eye in eyes)
            np.testing.assert_allclose(eyes[0], (np.array([0.3, 0.29]) - 0.5) / margin * 100 + 49.5)
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["both eyes", "left eye", "right eye"]


def test_counts_by_reason_shows_counts_and_shares():
    ax = plots.counts_by_reason(pd.DataFrame({"reason": [None] * 7 + ["blurred"] * 2 + ["no face"]}))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["no face", "blurred", "kept"]
    assert texts(ax) == ["1 (10.0%)", "2 (20.0%)", "7 (70.0%)"]
    assert [bar.get_width() for bar in ax.patches] == [1, 2, 7]


def test_histogram_splits_exactly_at_the_threshold():
    ax = plots.histogram_with_threshold([1, 5, 9.99, 10, 10.01, 50, np.nan, 0], 10)
    words = [text.get_text() for text in ax.get_legend().get_texts()]
    assert {"below: 3", "not below: 3"} <= set(words)
    assert ax.get_xscale() == "log" and "Laplacian" in ax.get_xlabel()
    assert sum(bar.get_height() for bar in ax.patches) == 6
    with pytest.raises(ValueError, match="positive"):
        plots.histogram_with_threshold([0], 10)


def test_age_histogram_of_a_table_and_of_a_dict():
    table = pd.DataFrame({"age": [20, 21, 21, np.nan], "male": [1, 1, 0, 0]})
    ax = plots.age_histogram(table)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["women (1)", "men (2)"]
    ax = plots.age_histogram({"before": [20, 30], "after": [20]}, share=True)
    assert "years" in ax.get_xlabel() and "%" in ax.get_ylabel()
    with pytest.raises(ValueError, match="at least one age"):
        plots.age_histogram({"before": []})


def test_batch_composition_draws_every_group_of_both_halves():
    table = {"asian": np.arange(16), "western": np.full(16, 4)}
    composition = namedtuple("Composition", table)(**table)
    figure = plots.batch_composition({"first": composition, "second": pd.DataFrame(table)})
    assert [bar.get_height() for bar in figure.axes[1].patches] == [*range(16), *[4] * 16]
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["first", "second"]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [*range(16), *[4] * 16]
    assert "asian half (120)" in [t.get_text() for t in figure.axes[0].get_legend().get_texts()]


def test_training_curves_grow_in_one_figure():
    history = [{"epoch": 1, "loss": 3.0, "val_loss": 3.5, "age_mae": 9.0, "gender_accuracy": 0.7}]
    figure = plots.training_curves(history)
    assert len(figure.axes) == 3
    history.append(history[0] | {"epoch": 2, "loss": 2.0})
    assert plots.training_curves(history, figure) is figure
    assert [len(line.get_xdata()) for line in figure.axes[0].lines] == [2, 2]
    assert list(figure.axes[2].lines[0].get_ydata()) == [70, 70]
    figure = plots.training_curves({"loss": [3, 2, 1]})  # a Keras history has columns, no epochs
    assert list(figure.axes[0].lines[0].get_xdata()) == [1, 2, 3]
    figure = plots.training_curves(pd.DataFrame({"epoch": [1], "loss": 2.0, "age_loss": 1.0, "tune_mae": 8.0}))
    assert [len(ax.lines) for ax in figure.axes] == [1, 1]  # the loss of a part has no panel
    assert figure.axes[1].get_legend().get_texts()[0].get_text() == "held out"
    with pytest.raises(ValueError, match="no loss"):
        plots.training_curves([{"speed": 1}])


def test_mae_by_age_draws_published_steps_over_their_groups():
    people = random_people()
    curve = evaluation.mae_by_age(people["age"], people["predicted_age"], n=20)
    ax = plots.mae_by_age({"here": curve}, {"steps": [3, 4, 5, 6, 7], "level": 4.5})
    edges, values = ax.patches[-1].get_data()[1], ax.patches[-1].get_data()[0]
    assert list(values) == [3, 4, 5, 6, 7] and list(edges) == [17.5, 25.5, 35.5, 45.5, 55.5, 65.5]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["here", "steps", "level"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), curve["mae"])


def test_confusion_gives_percent_of_each_row():
    ax = plots.confusion([[3, 1], [0, 0]], ["young", "old"])
    assert texts(ax) == ["75", "25"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["young  (n = 4)", "old  (n = 0)"]
    assert ax.get_xlabel() == "predicted age group (years)"


def test_reliability_leaves_empty_bins_out():
    ax = plots.reliability(evaluation.reliability([1, 0, 1], [0.95, 0.05, 0.92]))
    assert len(ax.lines[1].get_xdata()) == 2


def test_gender_table_puts_the_published_marks_beside_ours():
    people = random_people()
    report = evaluation.gender_report(people["male"], people["male_probability"])
    table = evaluation.gender_table({"LFW": report})
    published = {"LFW": {"male": 0.98, "female": 0.963}, "WIKI": {"male": 0.96, "female": 0.934}}
    ax = plots.gender_table(table, published)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["LFW", "WIKI"]
    assert list(ax.lines[0].get_xdata()) == [report["male"]["f1"]]
    assert list(ax.lines[1].get_xdata()) == [0.98, 0.96]


def test_predictions_says_age_interval_and_gender_of_each_face():
    people = pd.DataFrame({
        "x": [10, 60], "y": [2, 40], "width": [20, 20], "height": [20, 20],
        "age": [33.4, 50], "age_low": [28, 40], "age_high": [40, 60], "male_probability": [0.02, 0.9]})
    ax = plots.predictions(np.zeros((100, 100, 3), "uint8"), people)
    assert texts(ax) == ["1: 33 (28 to 40), woman 98 %", "2: 50 (40 to 60), man 90 %"]
    assert [patch.get_xy() for patch in ax.patches] == [(10, 2), (60, 40)]
    ax = plots.predictions(np.zeros((50, 100, 3), "uint8"), people[["x", "y", "width", "height"]])
    assert texts(ax) == ["1", "2"]
    assert texts(plots.predictions(np.zeros((50, 100, 3), "uint8"), people[:0])) == []


def test_age_distribution_shows_the_mean():
    probabilities = np.zeros(48)
    probabilities[[2, 12]] = 0.5  # 20 or 30
    ax = plots.age_distribution(probabilities, age=31)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["expected value 25.0", "true age 31"]
    assert ax.patches[2].get_height() == 50


def test_bars_with_intervals_survive_a_missing_figure():
    table = evaluation.by(random_people(), "race", n=20)
    table.loc[1, ["mae", "mae_low", "mae_high"]] = np.nan
    ax = plots.bars_with_intervals(table, "race", "mae", "mae_low", "mae_high", label="MAE (years)")
    assert [t.get_text() for t in ax.get_yticklabels()][0] == "a  (n = 100)"
    assert texts(ax) == [f"{table['mae'][i]:.1f}" for i in (0, 2)]
    assert ax.get_xlabel() == "MAE (years)" and ax.get_xlim()[0] == 0
    ax = plots.bars_with_intervals(table, "race", "accuracy", "accuracy_low", "accuracy_high", scale=100, dots=True)
    np.testing.assert_allclose(ax.lines[0].get_xdata(), 100 * table["accuracy"])
    assert ax.get_xlim()[0] > 50


def test_one_style_and_colours_for_everybody():
    ax = plots.age_distribution(np.full(48, 1 / 48))
    assert not ax.spines["top"].get_visible()
    assert len(set(plots.COLOURS)) == len(plots.COLOURS)
    assert plots.MEN != plots.WOMEN
    with plt.rc_context(plots.STYLE):  # what a notebook does once, for the figures that it draws itself
        first, second = (plt.plot([0, 1])[0].get_color() for _ in range(2))
    assert [first, second] == plots.COLOURS[:2]


def test_a_backend_that_wakes_up_while_we_draw_stays_awake():
    """Jupyter's does, at the first figure; put to sleep again, it would show no further one."""
    plots._styled(plt.ion)()
    assert plt.isinteractive()
    plt.ioff()


def test_speed_has_a_bar_a_model_the_fastest_first_with_its_error():
    table = pd.DataFrame({
        "model": ["slow", "fast", "unmeasured"], "peer": ["another", None, None], "network_ms": [20.0, 0.5, np.nan],
        "network_p10": [18.0, 0.4, np.nan], "network_p90": [30.0, 0.6, np.nan], "mae": [5.354, np.nan, 4.5]})
    figure = plots.speed(table)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fast", "slow  (5.35 years)"]
    assert [bar.get_x() + bar.get_width() for bar in ax.patches] == pytest.approx([0.5, 20])
    assert texts(ax) == ["0.5 ms", "20 ms"]
    assert ax.patches[0].get_facecolor() != ax.patches[1].get_facecolor()  # ours and another's
    (spread,) = ax.collections
    np.testing.assert_allclose([ends[:, 0] for ends in spread.get_segments()], [[0.4, 0.6], [18, 30]])
    assert "millisecond" in ax.get_xlabel() and ax.get_ylim()[0] > ax.get_ylim()[1]


def test_ablation_shows_every_seed_and_the_first_variants_mean():
    table = pd.DataFrame({"variant": ["ours", "ours", "no averages"], "mae": [5.0, 5.2, 5.5],
                          "gender_accuracy": [0.96, 0.97, 0.95]})
    figure = plots.ablation(table)
    age, gender = figure.axes
    assert [label.get_text() for label in age.get_yticklabels()] == ["ours", "no averages"]
    np.testing.assert_allclose(age.collections[0].get_offsets(), [[5.0, 0], [5.2, 0], [5.5, 1]])
    assert age.lines[0].get_xdata()[0] == pytest.approx(5.1)
    assert gender.collections[0].get_offsets()[0, 0] == pytest.approx(96)
    assert gender.get_ylim()[0] > gender.get_ylim()[1]  # the first on top


def test_learning_curves_have_a_line_for_each_start_and_way():
    table = pd.DataFrame([
        {"start": start, "how": how, "pictures": pictures, "mae": mae, "mae_low": mae - 1, "mae_high": mae + 1,
         "gender": 0.9, "gender_low": 0.85, "gender_high": 0.95}
        for start in ("random", "ImageNet") for how in ("frozen", "whole net")
        for pictures, mae in ((1000, 8.0), (100, 10.0))])
    figure = plots.learning_curves(table)
    left, right = figure.axes
    assert [len(ax.lines) for ax in (left, right)] == [4, 4]
    np.testing.assert_array_equal(left.lines[0].get_xydata(), [[100, 10], [1000, 8]])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [90, 90])  # in percent
    assert left.lines[0].get_color() == left.lines[1].get_color() != left.lines[2].get_color()
    assert left.lines[0].get_linestyle() != left.lines[1].get_linestyle()
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["100", "1,000"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][0] == "random, frozen"


def test_no_two_maps_of_region_shares_look_alike_and_the_untrained_one_has_its_twins_colour():
    names = ["module 1", "module 2", "Grad-CAM", *"abc", "untrained, module 1", "untrained, module 2"]
    table = pd.DataFrame([{"mouth": 0.4, "eyes": 0.6}] * len(names), index=names)
    ax = plots.region_shares(table, pd.Series({"mouth": 0.2, "eyes": 0.8}))
    bars = [bars[0] for bars in ax.containers]
    looks = [(bar.get_facecolor(), bar.get_hatch()) for bar in bars]
    assert len(set(looks)) == len(names)
    assert bars[0].get_facecolor() == bars[6].get_facecolor() and bars[6].get_hatch() and not bars[0].get_hatch()
    assert [bar.get_height() for bar in ax.containers[0]] == pytest.approx([2, 0.75])


def test_an_occlusion_map_has_a_cell_for_each_place():
    places = [0.2, 0.5, 0.8]
    table = pd.DataFrame([{"x": x, "y": y, "cost_years": x + 10 * y, "cost_points": -0.01} for y in places
                          for x in places])
    figure = plots.occlusion_map(table, np.full((8, 8, 3), 90.0))
    years, points = figure.axes[:2]
    np.testing.assert_allclose(years.images[-1].get_array(), table["cost_years"].to_numpy().reshape(3, 3))
    assert years.images[-1].get_extent() == pytest.approx([0.05, 0.95, 0.95, 0.05])
    assert {text.get_text() for text in points.texts} == {"0.0"}
    assert "year" in years.get_title("left") and "point" in points.get_title("left")
