"""Every figure of the course: data in, a Matplotlib Axes or Figure out, all in one style.

A function that draws one picture takes `ax` (a new one is made if it is None) and returns it; one that
needs several returns the Figure. The colours are those of Okabe and Ito (2008), "Color Universal Design",
which people with any common colour blindness can tell apart.
"""

import functools

import numpy as np
import pandas as pd
from cycler import cycler

from . import labels

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PINK, GREY, DARK = "#56B4E9", "#CC79A7", "#999999", "#333333"
COLOURS = [BLUE, ORANGE, GREEN, RED, SKY, PINK, GREY]
MEN, WOMEN = BLUE, ORANGE

STYLE = {
    "figure.dpi": 90,
    "figure.facecolor": "white",
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.edgecolor": DARK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
}


def _styled(draw):
    """Draw in the style of the course, and leave the reader's own settings as they were."""

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        from matplotlib import rcParams

        # Not rc_context: a backend that wakes up while we draw (Jupyter's does) would be put to sleep again.
        before = {key: rcParams[key] for key in STYLE}
        rcParams.update(STYLE)
        try:
            return draw(*args, **kwargs)
        finally:
            rcParams.update(before)

    return styled


def _axes(ax, width=7.5, height=3.6):
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height), layout="constrained")[1] if ax is None else ax


# Pictures ---------------------------------------------------------------------------------------------


@_styled
def gallery(pictures, captions=None, columns=8, size=1.3, title=None):
    """Small pictures in rows, each with its caption below. Returns the Figure.

    pictures : list of HxWx3 (RGB) or HxW (grey) uint8 arrays of any size; captions : as many texts
    """
    import matplotlib.pyplot as plt

    pictures = list(pictures)
    captions = [""] * len(pictures) if captions is None else [str(caption) for caption in captions]
    if not pictures or len(captions) != len(pictures):
        raise ValueError(f"gallery needs pictures and as many captions: {len(pictures)} and {len(captions)}")
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    lines = max(caption.count("\n") + 1 for caption in captions) if any(captions) else 0
    figure, axes = plt.subplots(
        rows,
        columns,
        squeeze=False,
        layout="constrained",
        figsize=(columns * size, rows * (size + 0.17 * lines) + (0.3 if title else 0)),
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, caption in zip(axes.flat, pictures, captions, strict=False):
        ax.imshow(picture, cmap="grey", vmin=0, vmax=255)
        ax.text(0.5, -0.04, caption, transform=ax.transAxes, ha="center", va="top", fontsize=9)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    return figure


def maps_over(pictures, maps, side=186, size=1.5):
    """Pictures, and beside each what a network looks at: bright where its map is high, dark where it is low.

    pictures : (n, h, w, 3) uint8; maps : dict of name -> (n, a, b), each map scaled to its own range
    -> Figure, a row a picture
    """
    import matplotlib.pyplot as plt

    columns = ["picture", *maps]
    figure, axes = plt.subplots(len(pictures), len(columns), squeeze=False, layout="constrained",
                                figsize=(size * len(columns), size * len(pictures) + 0.3))
    for row, picture in zip(range(len(pictures)), pictures, strict=True):
        grey = np.asarray(picture, "float64").mean(axis=-1)
        for ax, name in zip(axes[row], columns, strict=True):
            ax.axis("off")
            frame = (0, side, side, 0)
            if name == "picture":
                ax.imshow(picture, extent=frame)
            else:
                found = np.asarray(maps[name][row], "float64")
                ax.imshow(grey, cmap="grey", vmin=0, vmax=255, extent=frame)
                ax.imshow(found, cmap="inferno", alpha=0.6, interpolation="bilinear", extent=frame)
            if row == 0:
                ax.set_title(name, fontsize=9, loc="center")
    return figure


@_styled
def region_shares(table, areas, ax=None):
    """How densely attention lies on each part of the face: 1 is as on the whole picture, on average.

    table : DataFrame, a row for each map, a column for each region, shares that sum to 1; a row "untrained, X" is
        drawn in the colour of row X, hatched
    areas : the regions' own shares of the picture
    """
    density = table / areas
    ax = _axes(ax, 8, 3.4)
    width = 0.8 / len(density)
    for number, (name, row) in enumerate(density.iterrows()):
        place = np.arange(len(row)) + (number - (len(density) - 1) / 2) * width
        like = name.removeprefix("untrained, ")
        untrained = like != name and like in density.index
        ax.bar(place, row, width, label=name, edgecolor="white", linewidth=0, hatch="/////" if untrained else None,
               color=COLOURS[density.index.get_loc(like if untrained else name) % len(COLOURS)])
    ax.axhline(1, color=GREY, linewidth=1)
    ax.set_xticks(range(len(table.columns)), table.columns)
    ax.set(ylabel="attention, times its share of area")
    ax.grid(axis="x", visible=False)
    ax.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    return ax


@_styled
def predictions(photo, people, ax=None):
    """A photograph with a numbered box round each face, and what the network says of it.

    people : DataFrame of `predict_photo` (x, y, width, height in pixels, age, age_low, age_high,
    male_probability), or of `detect` alone: then only boxes and numbers are drawn.
    """
    photo = np.asarray(photo)
    height, width = photo.shape[:2]
    ax = _axes(ax, 7.5, min(7.5, max(3, 7.5 * height / width)))
    ax.imshow(photo)
    ax.axis("off")
    for number, person in enumerate(people.to_dict("records"), 1):
        men = person.get("male_probability", np.nan)
        colour = GREEN if np.isnan(men) else MEN if men >= 0.5 else WOMEN
        box = _box(person["x"], person["y"], person["width"], person["height"], colour)
        ax.add_patch(box)
        words, at_top = _caption(number, person), person["y"] > 0.08 * height
        ax.annotate(
            words,
            (person["x"], person["y"] + (0 if at_top else person["height"])),
            xytext=(0, 3 if at_top else -3),
            textcoords="offset points",
            va="bottom" if at_top else "top",
            color=DARK if colour == WOMEN else "white",
            fontsize=10,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 2},
        )
    return ax


def _box(x, y, width, height, colour):
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=2)


def _caption(number, person):
    if np.isnan(person.get("age", np.nan)):
        return str(number)
    gender, sure = labels.gender_in_words(person["male_probability"])
    interval = f"{person['age_low']:.0f} to {person['age_high']:.0f}"
    return f"{number}: {person['age']:.0f} ({interval}), {gender} {100 * sure:.0f} %"


@_styled
def eye_regions(crops, points=None, margin=1.0, columns=6, size=1.8):
    """The regions of `occlusion.EYES` drawn on faces, with their landmarks. Returns the Figure.

    crops : (n, s, s, 3) uint8 RGB in the frame of the one crop; margin : theirs (see `faces.crop_face`)
    points : where their landmarks lie in the frame, (n, 5, 2); None: where an aligned set has them
    """
    from .faces import FRAME
    from .occlusion import EYES

    side = crops[0].shape[0]

    def pixels(place):
        return ((np.asarray(place) - 0.5) / margin + 0.5) * side - 0.5

    figure = gallery(crops, columns=columns, size=size)
    points = [FRAME] * len(crops) if points is None else points
    colours = {"both": BLUE, "left": ORANGE, "right": GREEN}
    for ax, landmarks in zip(figure.axes, points, strict=False):
        for eyes, (left, top, right, bottom) in EYES.items():
            (x1, x2), (y1, y2) = pixels([left, right]), pixels([top, bottom])
            ax.add_patch(_box(x1, y1, x2 - x1, y2 - y1, colours[eyes]))
            ax.patches[-1].set_label({"both": "both eyes"}.get(eyes, f"{eyes} eye"))
        ax.plot(*pixels(landmarks).T, "o", color="white", markeredgecolor=DARK, markersize=4)
    figure.legend(handles=list(figure.axes[0].patches), loc="outside lower left", ncols=3)
    return figure


# The data ---------------------------------------------------------------------------------------------


@_styled
def counts_by_reason(table, ax=None):
    """How many pictures stay, and how many go for each reason (`reason` missing: kept). Log scale.

    table : a DataFrame with a column `reason`, or a Series of counts with the reasons as its index.
    """
    counts = table if isinstance(table, pd.Series) else table["reason"].fillna("kept").value_counts()
    counts = counts.sort_values()
    counts = pd.concat([counts.drop("kept"), counts[["kept"]]]) if "kept" in counts else counts
    ax = _axes(ax, 7.5, 1.2 + 0.32 * len(counts))
    bars = ax.barh(
        [str(reason) for reason in counts.index],
        counts,
        color=[GREEN if reason == "kept" else RED for reason in counts.index],
    )
    ax.bar_label(
        bars, [f"{count:,} ({count / counts.sum():.1%})" for count in counts], padding=4, fontsize=10
    )
    ax.set(xscale="log", xlabel="pictures (log scale)", xlim=(0.8, counts.max() * 6))
    ax.grid(axis="y", visible=False)
    return ax


@_styled
def histogram_with_threshold(
    values, threshold, name="sharpness (variance of the Laplacian)", ax=None, bins=60
):
    """A histogram on a log axis with the part below the threshold marked; only positive values show."""
    values = np.asarray(values, dtype="float64")
    values = values[np.isfinite(values) & (values > 0)]
    if not len(values):
        raise ValueError("histogram_with_threshold needs at least one positive value")
    ax = _axes(ax)
    low, high = min(values.min(), threshold) / 1.1, max(values.max(), threshold) * 1.1
    edges = np.unique(np.append(np.geomspace(low, high, bins), threshold))
    for part, colour, words in [(values < threshold, RED, "below"), (values >= threshold, BLUE, "not below")]:
        ax.hist(values[part], edges, color=colour, label=f"{words}: {part.sum():,}")
    ax.axvline(threshold, color=DARK, linestyle="--", label=f"threshold {threshold:g}")
    ax.set(xscale="log", xlabel=f"{name}, log scale", ylabel="pictures")
    ax.legend()
    return ax


@_styled
def age_histogram(ages, ax=None, share=False, title=None):
    """Ages in years as outlines over each other, one bin a year.

    ages : dict of name -> ages ({"before": ..., "after": ...}); or a table with `age` and `male`, shown
    as women and men. share : percent of each curve's own pictures instead of counts.
    """
    if isinstance(ages, pd.DataFrame):
        ages = {
            "women": ages["age"][ages["male"] == labels.FEMALE],
            "men": ages["age"][ages["male"] == labels.MALE],
        }
        colours = [WOMEN, MEN]
    else:
        colours = COLOURS
    ages = {name: np.asarray(pd.Series(values).dropna(), dtype="float64") for name, values in ages.items()}
    everyone = np.concatenate(list(ages.values()))
    if not len(everyone):
        raise ValueError("age_histogram needs at least one age")
    ax = _axes(ax)
    edges = np.arange(np.floor(everyone.min()), np.floor(everyone.max()) + 2) - 0.5
    for (name, values), colour in zip(ages.items(), colours, strict=False):
        weights = np.full(len(values), 100 / max(len(values), 1) if share else 1.0)
        ax.hist(values, edges, weights=weights, histtype="stepfilled", alpha=0.2, color=colour)
        ax.hist(
            values,
            edges,
            weights=weights,
            histtype="step",
            linewidth=2,
            color=colour,
            label=f"{name} ({len(values):,})",
        )
    ax.set(xlabel="age (years)", ylabel="share of pictures (%)" if share else "pictures", title=title or "")
    ax.legend()
    return ax


@_styled
def batch_composition(tables):
    """How many of each of the 16 age groups are in the Asian and in the western half of a batch.

    tables : dict of title -> {"asian": 16 numbers, "western": 16 numbers} (or a `batches.Composition`,
    or a DataFrame with these columns); each gets one panel, on a common scale. Returns the Figure.
    """
    import matplotlib.pyplot as plt

    tables = {
        title: {half: _of(table, half) for half in ("asian", "western")}
        for title, table in tables.items()
    }
    figure, axes = plt.subplots(
        1, len(tables), figsize=(5.2 * len(tables) + 1, 4.2), layout="constrained", sharey=True, squeeze=False
    )
    names = [labels.group_name(group) for group in labels.AGE_GROUPS]
    place = np.arange(len(names))
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        for half, shift, colour in [("asian", -0.2, GREEN), ("western", 0.2, PINK)]:
            bars = ax.bar(
                place + shift, table[half], 0.4, color=colour, label=f"{half} half ({table[half].sum():g})"
            )
            ax.bar_label(bars, fontsize=8, padding=1, fmt="%g")
        ax.set_xticks(place, names, rotation=90)
        ax.set(title=title, xlabel="age group (years)")
        ax.grid(axis="x", visible=False)
        ax.legend(loc="upper center", ncols=2)
        ax.margins(y=0.2)
    axes[0, 0].set_ylabel("pictures in a batch")
    return figure


def _of(table, half):
    return np.asarray(table[half] if hasattr(table, "keys") else getattr(table, half))


# Training ---------------------------------------------------------------------------------------------


def watched(run):
    """How a notebook trains, as keyword arguments for the functions of `training`: with the engine of its Run (see
    `course.begin`); at full scale also with a bar, and `training_curves` below the cell that grow by each epoch.

    -> dict: engine, progress, on_epoch
    """
    if not run.full:
        return {"engine": run.engine, "progress": False, "on_epoch": None}
    from IPython.display import display

    handle = display(display_id=True)
    return {"engine": run.engine, "progress": True,
            "on_epoch": lambda history: handle.update(training_curves(history))}


@_styled
def training_curves(history, figure=None, title=None):
    """Loss, error of the age and accuracy of the gender, epoch by epoch: as many panels as there are figures.

    history : list of dicts (one an epoch), a dict of lists, a DataFrame or a Keras History. A column goes to
    a panel by its name: `loss`, `...mae...` (years), `...acc...` (fraction). `tune_...` and `val_...` were
    measured on pictures that the network doesn't learn from.
    figure : an earlier Figure to draw into again, for curves that grow while the network trains.
    """
    import matplotlib.pyplot as plt

    table = pd.DataFrame(getattr(history, "history", history))
    epochs = table["epoch"] if "epoch" in table else np.arange(1, len(table) + 1)
    panels = [
        ("loss", lambda name: name.endswith("loss") and name.count("_") == _held_out(name), 1),
        ("error of the age (years)", lambda name: "mae" in name, 1),
        ("gender right (%)", lambda name: "acc" in name, 100),
    ]
    panels = [(words, [c for c in table if test(c)], scale) for words, test, scale in panels]
    panels = [panel for panel in panels if panel[1]]
    if not panels:
        raise ValueError(f"no loss, MAE or accuracy in the history; its columns are {list(table)}")
    if figure is None:
        figure = plt.figure(figsize=(4.1 * len(panels), 3.3), layout="constrained")
    figure.clear()
    for i, (words, columns, scale) in enumerate(panels, 1):
        ax = figure.add_subplot(1, len(panels), i)
        for column in columns:
            words_of, colour = ("held out", RED) if _held_out(column) else ("training", BLUE)
            ax.plot(epochs, scale * table[column], "o-" if len(table) < 3 else "-", color=colour, label=words_of)
        ax.set(xlabel="epoch", title=words)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend()
    if title:
        figure.suptitle(title)
    return figure


def _held_out(column):
    return column.startswith(("tune_", "val_"))


# Evaluation -------------------------------------------------------------------------------------------


@_styled
def mae_by_age(curves, published=None, ax=None):
    """The mean absolute error at every age, with its interval as a band, beside what others reach.

    curves : dict of name -> DataFrame of `evaluation.mae_by_age` (age, mae, low, high)
    published : dict of name -> five MAEs of the reporting groups (steps), or one MAE (a level line)
    """
    ax = _axes(ax, 8, 4.2)
    colours = iter(COLOURS)
    for name, curve in curves.items():
        colour = next(colours)
        ax.plot(curve["age"], curve["mae"], color=colour, label=name, zorder=3)
        ax.fill_between(
            curve["age"],
            curve["low"].astype("float64"),
            curve["high"].astype("float64"),
            color=colour,
            alpha=0.18,
            linewidth=0,
            zorder=2,
        )
    edges = [labels.REPORT_GROUPS[0][0] - 0.5] + [high + 0.5 for _, high in labels.REPORT_GROUPS]
    for name, errors in (published or {}).items():
        colour = next(colours)
        if np.ndim(errors):
            ax.stairs(errors, edges, baseline=None, color=colour, linewidth=2, linestyle="--", label=name)
        else:
            ax.axhline(errors, color=colour, linewidth=1.5, linestyle=":", label=name)
    ax.set(xlabel="age (years)", ylabel="mean absolute error (years)", xlim=(edges[0], edges[-1]))
    ax.set_ylim(bottom=0)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)  # above: curves rise at both ends
    return ax


@_styled
def confusion(matrix, names, ax=None, what="age group (years)", title="percent of each row"):
    """True groups in rows, predicted ones in columns, in percent of each row; n counts its pictures. -> Axes

    matrix : (k, k) numbers of pictures, row the true group, column the predicted one (`evaluation.group_accuracy`'s
        confusion); names : of the k groups; what, title : for the axes, and above them
    """
    matrix = np.asarray(matrix, dtype="float64")
    total = matrix.sum(axis=1)
    share = 100 * matrix / np.maximum(total, 1)[:, None]
    ax = _axes(ax, 2.6 + 0.45 * len(names), 1.9 + 0.38 * len(names))
    ax.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for i, j in np.argwhere(share >= 0.5):
        ax.text(
            j,
            i,
            f"{share[i, j]:.0f}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if share[i, j] > 60 else DARK,
        )
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(
        range(len(names)), [f"{name}  (n = {n:,.0f})" for name, n in zip(names, total, strict=True)]
    )
    ax.set(xlabel=f"predicted {what}", ylabel=f"true {what}", title=title)
    ax.grid(visible=False)
    return ax


@_styled
def reliability(table, ax=None, name="network"):
    """Stated probability of "male" against the share that is, a dot a bin, larger with more pictures in it.

    table : DataFrame of `evaluation.reliability`.
    """
    ax = _axes(ax, 4.6, 4.4)
    table = table[table["count"] > 0]
    ax.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle="--", label="perfect")
    ax.plot(table["probability"], table["male"], color=BLUE, linewidth=1.2, label=name)
    ax.scatter(
        table["probability"],
        table["male"],
        15 + 300 * table["count"] / table["count"].sum(),
        color=BLUE,
        zorder=3,
    )
    ax.set(
        xlabel="stated probability of “male”",
        ylabel="share that is male",
        xlim=(-0.03, 1.03),
        ylim=(-0.05, 1.05),
        aspect="equal",
    )
    ax.legend(loc="upper left")
    return ax


@_styled
def gender_table(table, published=None, ax=None):
    """F1 of each gender in each set, with its interval, beside published figures as hollow marks.

    table : DataFrame of `evaluation.gender_table`; published : dict of set -> {"male": F1, "female": F1}
    """
    published = published or {}
    sets = list(dict.fromkeys([*table["set"], *published]))
    ax = _axes(ax, 7.5, 1.4 + 0.42 * len(sets))
    for gender, colour, shift in [("male", MEN, -0.12), ("female", WOMEN, 0.12)]:
        ours = table[table["gender"] == gender]
        place = np.array([sets.index(name) for name in ours["set"]]) + shift
        ax.plot(ours["f1"], place, "o", color=colour, markersize=8, label=f"{gender}, here")
        ax.hlines(place, ours["f1_low"].astype("float64"), ours["f1_high"].astype("float64"), color=colour)
        theirs = [(figures[gender], sets.index(name) + shift) for name, figures in published.items()]
        if theirs:
            ax.plot(
                *zip(*theirs, strict=True),
                "D",
                color=colour,
                markerfacecolor="white",
                markersize=7,
                label=f"{gender}, published",
            )
    ax.set_yticks(range(len(sets)), sets)
    ax.set_ylim(len(sets) - 0.5, -0.5)
    ax.set_xlabel("F1")
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return ax


@_styled
def age_distribution(probabilities, age=None, ax=None):
    """What the network says of one face: the probability of each age, its mean, and the true age if known.

    probabilities : (48,), for the ages 18..65
    """
    probabilities = np.asarray(probabilities, dtype="float64")
    mean = float(labels.expected_age(probabilities))
    ax = _axes(ax, 7.5, 3)
    ax.bar(labels.AGES, 100 * probabilities, color=SKY, width=0.9)
    ax.axvline(mean, color=BLUE, label=f"expected value {mean:.1f}")
    if age is not None:
        ax.axvline(age, color=RED, linestyle="--", label=f"true age {age:g}")
    ax.set(xlabel="age (years)", ylabel="probability (%)")
    ax.legend()
    return ax


@_styled
def bars_with_intervals(
    table, name, value, low=None, high=None, label=None, ax=None, scale=1, counts="pictures", dots=False
):
    """A bar for each row of a table with its interval, and how many pictures stand behind it.

    name, value, low, high, counts : the columns to show; label : of the axis, with its unit;
    scale : 100 for percent; dots : instead of bars, where the axis need not begin at 0
    """
    ax = _axes(ax, 7.5, 1.2 + 0.4 * len(table))
    place = np.arange(len(table))
    values = scale * table[value].astype("float64").to_numpy()
    names = [str(text) for text in table[name]]
    if counts in table:
        names = [f"{text}  (n = {n:,})" for text, n in zip(names, table[counts], strict=True)]
    if dots:
        ax.plot(values, place, "o", color=BLUE, markersize=9, zorder=3)
    else:
        ax.barh(place, values, height=0.6, color=BLUE)
    ends = values
    if low and high:
        low, high = (scale * table[column].astype("float64").to_numpy() for column in (low, high))
        ax.hlines(place, low, high, color=BLUE if dots else DARK, linewidth=2)
        ends = np.fmax(values, high)
    for row, number, end in zip(place, values, ends, strict=True):
        if not np.isnan(number):
            ax.annotate(f"{number:.1f}", (end, row), xytext=(7, 0), textcoords="offset points", va="center")
    ax.set_yticks(place, names)
    ax.set_ylim(len(table) - 0.4, -0.6)
    ax.set_xlabel(label or value)
    ax.grid(axis="y", visible=False)
    ax.margins(x=0.1)
    return ax


@_styled
def occlusion_map(table, face=None):
    """What a grey square over each part of the face costs: a map of years and one of percentage points. -> Figure

    table : of `evaluation.occlusion_map`; face : (h, w, 3) of 0..255 to lay the maps on, or None
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained")
    names = {"cost_years": "age: years worse", "cost_points": "gender: percentage points worse"}
    for ax, (column, name) in zip(axes, names.items(), strict=True):
        cost = table.pivot(index="y", columns="x", values=column)
        if face is not None:
            ax.imshow(np.asarray(face).mean(axis=-1), cmap="grey", vmin=0, vmax=255, extent=(0, 1, 1, 0))
        # A cell is where the middles of its squares are: between the middles of the neighbours.
        reach = [(places[1] - places[0]) / 2 if len(places) > 1 else 0.5 for places in (cost.columns, cost.index)]
        extent = (cost.columns[0] - reach[0], cost.columns[-1] + reach[0],
                  cost.index[-1] + reach[1], cost.index[0] - reach[1])
        shown = ax.imshow(cost, cmap="magma", vmin=0, alpha=1.0 if face is None else 0.55, extent=extent)
        for (row, column_), value in np.ndenumerate(cost.to_numpy()):
            text = f"{value:.1f}".replace("-0.0", "0.0")
            ax.text(cost.columns[column_], cost.index[row], text, ha="center", va="center", fontsize=7,
                    color="white" if value < 0.7 * max(cost.to_numpy().max(), 1e-9) else DARK)
        ax.set(xlim=(0, 1), ylim=(1, 0), xlabel="middle of the square (share of the face)", title=name)
        ax.grid(visible=False)
        figure.colorbar(shown, ax=ax, shrink=0.85)
    return figure


@_styled
def ablation(table, figures=("mae", "gender_accuracy"), names=("mean absolute error (years)", "gender accuracy (%)")):
    """A recipe and what is left when an ingredient is taken away: a row a variant, a dot a seed, a bar their mean.

    table : DataFrame, a row for each variant and seed: variant, and a column for each of `figures` (shares, where
        the name says %). The first variant is the one to compare with: its mean is a line through all rows.
    -> Figure, a panel for each of `figures`
    """
    import matplotlib.pyplot as plt

    variants = list(dict.fromkeys(table["variant"]))
    size = (2.5 + 2.35 * len(figures), 0.8 + 0.32 * len(variants))
    figure, axes = plt.subplots(1, len(figures), figsize=size, sharey=True, squeeze=False)
    for ax, column, name in zip(axes[0], figures, names, strict=True):
        values = table[column] * (100 if "%" in name else 1)
        means = values.groupby(table["variant"]).mean()
        ax.axvline(means[variants[0]], color=GREY, linewidth=1)
        rows = table["variant"].map(variants.index)
        ax.scatter(values, rows, s=22, color=BLUE, zorder=3)
        ax.scatter(means[variants], range(len(variants)), s=160, marker="|", color=ORANGE, zorder=4)
        ax.set(xlabel=name, yticks=range(len(variants)), ylim=(len(variants) - 0.5, -0.5))
        ax.set_yticklabels(variants)
    figure.tight_layout()
    return figure


@_styled
def learning_curves(table, figures=("mae", "gender"),
                    names=("mean absolute error (years)", "gender right (%)")):
    """What more pictures to learn from are worth: a colour a start, a line style a way to learn, a band an interval.

    table : DataFrame with start, how, pictures, and for each of `figures` its value, _low and _high (shares, where
        the name says %); a row for each number of pictures
    -> Figure, a panel for each of `figures`
    """
    import matplotlib.pyplot as plt

    starts, ways = (list(dict.fromkeys(table[column])) for column in ("start", "how"))
    figure, axes = plt.subplots(1, len(figures), figsize=(5.2 * len(figures), 4.2), squeeze=False,
                                layout="constrained")
    sizes = sorted(table["pictures"].unique())
    for ax, column, name in zip(axes[0], figures, names, strict=True):
        scale = 100 if "%" in name else 1
        for (start, how), line in table.groupby(["start", "how"], sort=False):
            line = line.sort_values("pictures")
            colour = COLOURS[starts.index(start) % len(COLOURS)]
            style = ["-", "--", ":"][ways.index(how) % 3]
            ax.plot(line["pictures"], scale * line[column], marker="o", linestyle=style, color=colour,
                    label=f"{start}, {how}" if len(ways) > 1 else start)
            ax.fill_between(line["pictures"], scale * line[f"{column}_low"], scale * line[f"{column}_high"],
                            color=colour, alpha=0.12, linewidth=0)
        ax.set_xscale("log")
        ax.set_xticks(sizes, [f"{size:,}" for size in sizes])
        ax.minorticks_off()
        ax.set(xlabel="pictures learned from (logarithmic)", ylabel=name)
    handles, words = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=2 if len(words) > 3 else len(words),
                  handlelength=4)  # long enough to tell dashes from a line
    return figure


@_styled
def speed(table):
    """How long each model takes, a bar each, the fastest on top, and how far it is off in age beside its name.

    table : DataFrame with model, network_ms, network_p10, network_p90 (milliseconds a picture) and mae (years, may be
        missing); models with a name in its column peer, where there is one, have another colour
    -> Figure
    """
    import matplotlib.pyplot as plt

    table = table.dropna(subset=["network_ms"]).sort_values("network_ms", kind="stable")
    figure, ax = plt.subplots(figsize=(9, 1.2 + 0.32 * len(table)), layout="constrained")
    own = table["peer"].isna() if "peer" in table else np.ones(len(table), bool)
    place, least = np.arange(len(table)), table["network_p10"].min() / 2  # bars on a logarithmic axis begin somewhere
    ax.barh(place, table["network_ms"] - least, left=least, height=0.65, color=np.where(own, BLUE, ORANGE))
    ax.hlines(place, table["network_p10"], table["network_p90"], color=DARK, linewidth=1.5)
    for row, (time, high) in enumerate(table[["network_ms", "network_p90"]].to_numpy()):
        ax.annotate(f"{time:.3g} ms", (max(time, high), row), xytext=(6, 0), textcoords="offset points", va="center",
                    fontsize=10)
    ax.set_yticks(place, [name if np.isnan(mae) else f"{name}  ({mae:.2f} years)"
                          for name, mae in table[["model", "mae"]].to_numpy()])
    ax.set(xscale="log", ylim=(len(table) - 0.4, -0.6), xlim=(least, 2.5 * table["network_p90"].max()),
           xlabel="one picture, one thread (milliseconds, logarithmic)", title="in brackets: mean error of the age")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(axis="y", visible=False)
    return figure
