"""Write the measured results into README.md and draw its figure, so that no figure there is typed by hand.

    python tools/readme.py            # after a full run
    python tools/readme.py --check    # change nothing, name what is out of step, exit 1

The results come from data/results/, what the network is from its model card. The figure remembers, in the PNG,
which files it was made from.
"""

import csv
import hashlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORK, LARGE = "mobilefacenet_075_62", "mobilefacenet_100_112"
RESULTS, WEIGHTS = ROOT / "data" / "results", ROOT / "fag_utils" / "weights"
FIGURE = ROOT / "docs" / "tour.png"
BLOCK = re.compile(r"(<!-- results: written by tools/readme.py -->\n).*?(<!-- end of results -->)", re.S)
SOURCES = [RESULTS / "peers.json", RESULTS / "09_utkface_validation.json",  # it names the weights it was made with
           ROOT / "fag_utils" / "datasets" / "classroom_model.npz"]
FACES_SEED = 7
NOTES = {
    "face-api age_gender": "learned from UTKFace",
    "reference model": "by this recipe's author",
    "plain first try": "UTKFace only",
    "SSR-Net": "IMDB",
    "Open Model Zoo age-gender-recognition-retail-0013": "int8",
}
SHORT = {"Open Model Zoo age-gender-recognition-retail-0013": "Open Model Zoo age-gender-0013"}
TITLE = ["model", "parameters, k", "file, kB", "MFLOPs", "gender right, %", "MAE, years", "MAE, mean of 5 age groups",
         "fold"]


def results(name):
    """The figures of data/results/NAME.json, or None where there is no such file."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def section():
    """The part of the README that holds results, as Markdown."""
    peers, lfw = results("peers"), results("09_lfw")
    test = results("09_utkface_test")
    report = test or results("09_utkface_validation")
    others = peers["utkface_test"]
    ours = "test" if test else "**validation**"
    large = results("A2_full_size")
    rows = [our_row(NETWORK, ours, report["gender"]["accuracy"], report["age"]),
            our_row(LARGE, "**validation**", large["gender_accuracy"], large),
            *(peer_row(model, "test") for model in sorted(others["models"], key=by_mae))]
    table = "\n".join([line(TITLE), line(["---"] + ["--:"] * 6 + ["---"]), *map(line, rows)])
    folds = (f"The folds hold people aged 18 to 65: {others['pictures']:,} (test) and "
             f"{results('09_utkface_validation')['pictures']:,} (validation). Every public model got the crop that "
             "suits it best. face-api and the reference model learned from UTKFace, too, perhaps from these "
             "pictures. Both of ours imitated, among others, what human faceres-deep finds in a face."
             f" {passes_in_words(with_one=not test)}")
    parts = [table, folds if test else f"{folds_in_words(peers)} {folds}", ours_in_words(report)]
    if lfw:
        parts.append(lfw_in_words(lfw, peers["lfw_photographs"]))
    return "\n\n".join(parts) + "\n"


def line(cells):
    return "| " + " | ".join(cells) + " |"


def by_mae(model):
    return model["mae"]


def our_row(name, where, gender_accuracy, age):
    card = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
    size = (WEIGHTS / f"{name}.keras").stat().st_size
    return [f"**this course**, `{name}`", f"{card['parameters'] / 1e3:,.0f}", f"{size / 1e3:,.0f}",
            f"{2 * card['multiply_adds'] / 1e6:,.0f}", f"{100 * gender_accuracy:.1f}",
            f"{age['mae']:.2f}", f"{age['mae_of_groups']:.2f}", where]


def peer_row(model, where):
    note = f" ({NOTES[model['name']]})" if model["name"] in NOTES else ""
    return [SHORT.get(model["name"], model["name"]) + note, f"{model['params_k']:,}", f"{model['file_kb']:,}",
            f"{model['mflops']:,}", f"{model['gender_accuracy']:.1f}", f"{model['mae']:.2f}",
            f"{model['mae_of_groups']:.2f}", where]


def passes_in_words(with_one):
    """Whose MFLOPs stand beside errors of two passes, and what one pass gives, measured on the validation fold."""
    words = ("MFLOPs are twice the multiply-adds, of one pass. Ours is the mean over a picture and its mirror image, "
             "two passes")
    if not with_one:
        return f"{words}."
    with open(RESULTS / "A2_compared.csv", encoding="utf-8", newline="") as file:
        alone = {row["network"]: row for row in csv.DictReader(file) if row["a picture"] == "in a single pass"}
    ours, large = (f"{100 * float(row['gender_accuracy']):.1f} %, {float(row['mae']):.2f} and "
                   f"{float(row['mae_of_groups']):.2f}" for row in (alone[NETWORK], alone[LARGE]))
    return f"{words}; in one it has {ours} years (full size: {large})."


def ours_in_words(report):
    mae, right = report["age"]["intervals"]["mae"], report["gender"]["intervals"]["accuracy"]
    interval = report["interval_80"]
    return (f"95 % intervals of `{NETWORK}`: MAE {mae[0]:.2f} to {mae[1]:.2f} years, gender right "
            f"{right[0]:.1%} to {right[1]:.1%}. Its stated 80 % interval for the age holds the labelled age of "
            f"{interval['coverage']:.0%}, and is {interval['width']:.0f} years wide on average.")


def folds_in_words(peers):
    easier = peers["validation_fold"]["plain first try"]
    return ("**Mind the folds.** The public models were measured on UTKFace's test fold, ours on the validation "
            f"fold, the easier one. There the plain first try has {easier['gender_accuracy']:.1f} %, "
            f"{easier['mae']:.2f} and {easier['mae_of_groups']:.2f} years: compare ours with these "
            "three, and leave such a margin elsewhere.")


def lfw_in_words(report, peers):
    gender = report["gender"]
    low, high = gender["intervals"]["accuracy"]
    answered = report["pictures"] - report["unanswered"]
    return (f"Photographs, face detection included: on {report['pictures']:,} of Labeled Faces in the Wild (half of "
            f"its people; nothing was learned from them) gender is right for **{gender['accuracy']:.1%}** (95 % "
            f"interval {low:.1%} to {high:.1%}); a face was found in {answered:,}. On 500 of them the "
            f"reference model has {peers['reference model']['gender_accuracy']:.1f} %, the plain first try "
            f"{peers['plain first try']['gender_accuracy']:.1f} %.")


def readme(text):
    """The text of the README with the results as they are now."""
    if not BLOCK.search(text):
        raise ValueError("README.md has lost the two comments between which the results stand")
    return BLOCK.sub(lambda found: found[1] + "\n" + section() + "\n" + found[2], text)


# The figure -----------------------------------------------------------------------------------------------

def stamp():
    """A fingerprint of all that the figure is made from."""
    parts = [hashlib.sha256(path.read_bytes()).hexdigest() for path in SOURCES]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def stamp_of_figure():
    from PIL import Image

    return Image.open(FIGURE).text.get("Comment") if FIGURE.is_file() else None


def draw():
    """A photograph, faces of nobody, and the error at every age: the README's figure."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    import pandas as pd
    from skimage import data

    from fag_utils import course, datasets, plots

    course.quiet()
    from fag_utils import predictor

    network = predictor.load_predictor(NETWORK)
    ages = np.linspace(20, 64, 12).round().astype(int)
    faces, wanted = datasets.classroom.sample(12, seed=FACES_SEED, ages=ages, male=[0, 1] * 6, size=96)
    read = network.predict_crops(faces)
    figure = plt.figure(figsize=(13, 4.1), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=[3.9, 4.4, 5])
    photo = data.astronaut()[:350, 50:400]
    plots.predictions(photo, network.predict_photo(photo), left.subplots())
    left.suptitle("a photograph (NASA)", fontsize=11)
    middle.suptitle("faces of nobody: age asked for → age read", fontsize=11)
    for ax, face, asked, age in zip(middle.subplots(3, 4).flat, faces, wanted["age"], read["age"], strict=True):
        ax.imshow(face)
        ax.axis("off")
        ax.text(0.5, -0.04, f"{asked} → {age:.0f}", transform=ax.transAxes, ha="center", va="top", fontsize=9)
    report, peers = results("09_utkface_validation"), results("peers")["utkface_test"]["models"]
    steps = {model["name"].split(" age-")[0]: model["mae_by_group"] for model in peers if "mae_by_group" in model}
    with plt.rc_context(plots.STYLE):
        ax = plots.mae_by_age({"this course": pd.DataFrame(report["mae_by_age"])}, steps, right.subplots())
    ax.legend(loc="lower left", bbox_to_anchor=(-0.1, 1), ncols=2, fontsize=9, frameon=False)
    ax.set_xlabel("age (years)\nUTKFace; this course: validation fold, others: test fold", fontsize=9)
    right.suptitle("error on people, at every age", fontsize=11)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=90, facecolor="white", metadata={"Comment": stamp(), "Software": None})


def main(check):
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    changed = []
    if text != readme(text):
        changed.append(path)
        if not check:
            path.write_text(readme(text), encoding="utf-8")
    if stamp_of_figure() != stamp():
        changed.append(FIGURE)
        if not check:
            draw()
    for path in changed:
        print(path.relative_to(ROOT))
    return bool(check and changed)


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv))
