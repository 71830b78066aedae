"""README.md shows what was measured, in words and in its figure, and names every notebook."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from fag_utils import course

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import book  # noqa: E402
import readme  # noqa: E402

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
OUT_OF_STEP = "README and data/results/ are out of step: python tools/readme.py"


def cells(text):
    """The rows of the table of results: lists of cells."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row for row in rows if len(row) == len(readme.TITLE)]


def test_results_are_those_of_the_full_run():
    assert readme.readme(TEXT) == TEXT, OUT_OF_STEP


def test_figure_was_made_from_these_results_and_weights():
    assert readme.stamp_of_figure() == readme.stamp(), OUT_OF_STEP
    assert f"](docs/{readme.FIGURE.name})" in TEXT
    assert readme.FIGURE.stat().st_size < 1e6
    assert Image.open(readme.FIGURE).width > 1000


def test_every_public_model_is_in_the_table_with_its_fold():
    title, _, ours, large, *others = cells(TEXT)
    assert title == readme.TITLE
    assert readme.NETWORK in ours[0] and readme.LARGE in large[0]
    peers = readme.results("peers")["utkface_test"]["models"]
    assert len(others) == len(peers)
    assert {float(row[5]) for row in others} == {model["mae"] for model in peers}
    assert {row[-1] for row in others} == {"test"}


def test_another_fold_of_ours_is_said_aloud():
    """Until the network was measured on the test fold, as the others were, the README warns of the difference."""
    ours = cells(TEXT)[2]
    if readme.results("09_utkface_test"):
        assert ours[-1] == "test"
    else:
        assert "validation" in ours[-1]
        assert "Mind the folds" in TEXT and "the easier one" in TEXT


def test_once_measured_on_the_test_fold_the_remark_goes(tmp_path, monkeypatch):
    for path in readme.RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    shutil.copy(readme.RESULTS / "09_utkface_validation.json", tmp_path / "09_utkface_test.json")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    changed = readme.readme(TEXT)
    assert "Mind the folds" not in changed
    assert cells(changed)[2][-1] == "test"


def test_the_shares_of_children_that_are_marked_are_those_measured():
    marks = course.published("09_outside").set_index("ages")
    children = marks.loc[["0-9", "10-14"]]
    under_15 = (children["marked"] * children["pictures"]).sum() / children["pictures"].sum()
    sentence = (f"of those under 15, {under_15:.0%} are marked `may_be_outside`, of those of 15 to 17 "
                f"{marks.loc['15-17', 'marked']:.0%}").replace("%", " %")
    assert sentence in " ".join(TEXT.split())


def test_mflops_of_one_pass_do_not_stand_beside_errors_of_two_without_a_word():
    alone = course.published("A2_compared").query("`a picture` == 'in a single pass'").set_index("network")
    ours = alone.loc[readme.NETWORK]
    assert "two passes" in TEXT
    assert f"in one it has {100 * ours['gender_accuracy']:.1f} %, {ours['mae']:.2f} and" in TEXT


def test_a_readme_without_the_place_for_results_is_refused():
    with pytest.raises(ValueError, match="two comments"):
        readme.readme(TEXT.replace("<!-- end of results -->", ""))


def test_every_notebook_has_a_row_with_aim_time_and_badge():
    for path in book.paths():
        (row,) = [line for line in TEXT.splitlines() if line.startswith("|") and f"(notebooks/{path.name})" in line]
        name, aim, time, _, badge = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(aim) > 15 and re.match(r"\d+ (s|min)", time)
        assert path.name in badge and "colab" in badge


def test_links_to_files_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_commands_of_the_makefile_are_named_as_they_are():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"^    make (\w+)", TEXT, re.M))
    assert {"course", "test", "lab", "full"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_fits_on_two_screens():
    """Two screens of a page of 1012 pixels hold about 110 lines of source with 110 characters of prose each."""
    prose = [line for line in TEXT.splitlines() if line.strip()]
    length = sum(1 if line.startswith(("|", " ", "#", "!")) else 1 + len(line) // 110 for line in prose)
    assert length < 90


def test_two_chapters_say_the_same_of_one_network_on_the_same_photographs():
    small = course.published("A2_lfw").set_index("network").loc[readme.NETWORK]
    whole = course.published("09_lfw")
    assert small["photographs"] == whole["pictures"]
    for gender in ("male", "female"):
        assert abs(small[f"f1_{gender}"] - whole["gender"][gender]["f1"]) < 1e-5
    assert small["wrong"] == round((1 - whole["gender"]["accuracy"]) * whole["gender"]["count"])
