"""Every notebook is made as the course promises, and all follow the one address of the project.

What the cells do is tested by nbval: it runs every notebook from top to bottom (see pyproject.toml).
"""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement

from fag_utils import course

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import book  # noqa: E402
import requirements  # noqa: E402
import sync  # noqa: E402

CHAPTERS = ["00_start_here", "01_cleaning", "02_building_mobilefacenet", "03_gender_pretraining",
            "04_balanced_multitask_training", "05_covered_faces", "06_light_networks", "07_attention_ensemble",
            "08_transfer_learning", "09_evaluation", "10_photo_demo", "11_on_a_phone", "A1_classroom_faces",
            "A2_full_size"]
# A path that is true on one machine only: a home, a temporary folder, where packages lie, a drive.
MACHINE_PATH = re.compile(
    r"(?<![\w.:/])/(?:home|root|Users|tmp|work|content|opt|mnt|var|usr)/|\b[A-Z]:\\\\?\w|site-packages")


@pytest.fixture(scope="module", params=[path.name for path in book.paths()])
def path(request):
    return ROOT / "notebooks" / request.param


@pytest.fixture(scope="module")
def notebook(path):
    return book.read(path)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs(notebook):
    return [output for cell in code(notebook) for output in cell.outputs]


def texts(notebook):
    """All that a reader sees as text: sources, printed text, and every text-like output."""
    for cell in notebook.cells:
        yield cell.source
        for output in cell.get("outputs", []):
            yield output.get("text", "")
            yield from (value for mime, value in output.get("data", {}).items() if isinstance(value, str)
                        and (mime.startswith("text/") or mime == "image/svg+xml"))


def tagged(notebook, tag):
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def test_the_course_has_its_chapters():
    assert set(CHAPTERS) <= {path.stem for path in book.paths()}


def test_is_valid_and_small_enough_to_be_shown_on_a_web_page(path, notebook):
    nbformat.validate(notebook)
    assert path.stat().st_size < 5e6


def test_begins_with_title_badge_aim_and_running_time(path, notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    number = path.name.split("_")[0]
    assert re.match(rf"# {number}\b", first.source), "the title begins with the notebook's number"
    assert course.badge(path.name) in first.source.splitlines()
    assert len(book.aim(notebook)) > 60, "a paragraph says what will be true at the end"
    assert re.search(r"second|minute|\bs\b", book.running_time(notebook)), "the running time is stated"


def test_scale_is_the_parameter_and_classroom_is_what_it_is_kept_at(notebook):
    (cell,) = tagged(notebook, "parameters")
    assert cell == code(notebook)[0]
    assert 'scale = "classroom"' in cell.source.splitlines()[0]


def test_set_up_is_the_second_code_cell_and_the_same_everywhere(notebook):
    assert [sync.is_setup(cell) for cell in code(notebook)].count(True) == 1
    assert code(notebook)[1].source == course.setup_cell()


def test_has_solutions(notebook):
    assert tagged(notebook, "solution")


def test_what_follows_the_exercises_is_tagged_so_that_a_teacher_can_hand_them_out_alone(notebook):
    """Up to the next section, all but headings: texts too, since they give the answers away."""
    (start,) = [i for i, cell in enumerate(notebook.cells) if re.search(r"^## Exercises$", cell.source, re.M)]
    open_to_all = []
    for cell in notebook.cells[start + 1:]:
        if cell.source.startswith("## "):
            break
        heading = all(line.startswith("#") for line in cell.source.splitlines() if line.strip())
        if "solution" not in cell.metadata.get("tags", []) and not heading:
            open_to_all.append(cell.source[:60])
    assert not open_to_all


def test_runs_in_any_python_3_kernel(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.language == "python"


def test_was_run_once_from_top_to_bottom(notebook):
    run = [cell for cell in code(notebook) if cell.source.strip()]
    assert [cell.execution_count for cell in run] == list(range(1, len(run) + 1))
    assert outputs(notebook)


def test_outputs_hold_no_error_no_warning_and_no_dead_widget(notebook):
    assert "widgets" not in notebook.metadata
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text[:300]
        assert book.WIDGET not in output.get("data", {})


def test_shows_no_path_of_a_machine(notebook):
    found = [match[0] for text in texts(notebook) if (match := MACHINE_PATH.search(text))]
    assert not found


def test_imports_only_what_is_declared(notebook):
    """Standard library, the package, what it needs, and what the extras `course` and `lite` add."""
    allowed = {"fag_utils", *sys.stdlib_module_names, *declared("base", "course", "lite")}
    for cell in code(notebook):
        python = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("%", "!"))]
        assert set(imported(ast.parse("\n".join(python)))) <= allowed


def imported(tree):
    """The top names of the modules that a syntax tree imports, relative imports aside."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def needs():
    """The requirements of pyproject.toml, parsed: {"base": [...], "course": [...], ..., "test": [...]}."""
    lists = requirements.requirements((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {group: [Requirement(line) for line in lines] for group, lines in lists.items()}


def declared(*groups):
    """The modules that the packages of these groups of pyproject.toml are imported as."""
    packages = {need.name for group in groups for need in needs()[group]}
    other_name = {"scikit-learn": "sklearn", "scikit-image": "skimage", "opencv-python-headless": "cv2",
                  "pillow": "PIL", "pillow-heif": "pillow_heif", "pyyaml": "yaml", "setuptools": "pkg_resources",
                  "ipykernel": "IPython", "ai-edge-litert": "ai_edge_litert"}
    modules = {other_name.get(package, package) for package in packages}
    return modules | {"cycler" for module in modules if module == "matplotlib"}  # a part of its interface


def test_readme_opens_every_notebook_in_colab():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in book.paths():
        assert course.colab_address(path.name) in readme, path.name
    assert readme == sync.synced_readme(readme)


def test_address_comes_from_the_package_where_there_is_no_checkout(monkeypatch):
    here = course.repository()
    monkeypatch.setattr(course, "_repository", lambda: None)
    assert course.repository() == here
