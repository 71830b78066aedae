"""The project holds together: what is installed, what is shipped, and the commands of the Makefile."""

import ast
import base64
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from unittest import mock

import nbformat
import pytest
import yaml
from nbformat import v4
from packaging.requirements import Requirement
from test_notebooks import declared, imported, needs

import fag_utils
from fag_utils import course

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import book  # noqa: E402
import requirements  # noqa: E402

# The order of the way of the data: a module imports from those before it, never from those after it.
ORDER = ["labels", "table", "course", "datasets", "runtimes", "faces", "cleaning", "occlusion", "packed", "batches",
         "models", "training", "evaluation", "plots", "predictor", "export", "video", "widgets"]


def run(*command, cwd=ROOT, **environment):
    """A finished program with its text; the caller looks at the exit status."""
    return subprocess.run([str(part) for part in command], cwd=cwd, env={**os.environ, **environment},
                          capture_output=True, text=True, timeout=300)


def committed_files():
    listing = run("git", "ls-files", "-z")
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


# ---------------------------------------------------------------- what is needed

def ranges(requirements):
    return {(need.name, str(need.specifier)) for need in requirements}


def test_requirements_are_read_as_pip_reads_them():
    """Against the metadata of the installed package: after a change of pyproject.toml, install again."""
    installed = [Requirement(line) for line in metadata.requires("fag-utils")]
    for group, ours in needs().items():
        extra = {"extra": "" if group == "base" else group}
        theirs = [need for need in installed if (need.marker is None and group == "base")
                  or (need.marker and group != "base" and need.marker.evaluate(extra))]
        assert ranges(ours) == ranges(theirs), group


def test_conda_environment_has_the_same_packages_and_ranges():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip["pip"].pop() == "-e ."
    assert ranges(map(Requirement, pip["pip"])) == ranges(sum(map(needs().get, requirements.INSTALLED), []))


def test_another_build_of_tensorflow_takes_its_place():
    plain = run(sys.executable, "tools/requirements.py").stdout.splitlines()
    other = run(sys.executable, "tools/requirements.py", "tensorflow-cpu").stdout.splitlines()
    changed = [(a, b) for a, b in zip(plain, other, strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0][1] == changed[0][0].replace("tensorflow", "tensorflow-cpu")


COLAB = {"tensorflow": "2.20.0", "keras": "3.13.2", "numpy": "2.1.3", "pandas": "2.2.3", "pillow": "11.3.0",
         "scikit-learn": "1.6.1", "matplotlib": "3.10.0", "ipywidgets": "7.7.1"}
NEWEST = {"tensorflow": "2.21.0", "keras": "3.15.1", "numpy": "2.4.0", "ipywidgets": "8.1.9"}


@pytest.mark.parametrize("versions", [COLAB, NEWEST], ids=["Colab", "newest"])
def test_versions_are_welcome(versions):
    welcome = {need.name: need.specifier for need in sum(needs().values(), [])}
    assert [name for name, version in versions.items() if version not in welcome[name]] == []


def test_plain_install_brings_no_opencv():
    assert not {"cv2", "cvlib"} & declared("base")


def module_files():
    return [(path.relative_to(ROOT / "fag_utils").parts[0].removesuffix(".py"), path)
            for path in sorted((ROOT / "fag_utils").rglob("*.py"))]


@pytest.mark.parametrize("name, path", module_files(), ids=lambda value: getattr(value, "stem", value))
def test_package_imports_what_is_declared(name, path):
    """At the top of a module only what a plain install brings; inside functions what an extra brings too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {"fag_utils", *sys.stdlib_module_names}
    top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert set(imported(top)) <= own | declared("base")
    assert set(imported(tree)) <= own | declared(*set(needs()) - {"test"})


@pytest.mark.parametrize("name, path", [pair for pair in module_files() if pair[0] in ORDER],
                         ids=lambda value: getattr(value, "stem", value))
def test_modules_import_forward_only(name, path):
    later = ORDER[ORDER.index(name) + 1:]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""] + [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        if name == "course" and "datasets" in modules:
            continue  # the one look ahead: a Run finds its data when asked
        ours = {part for module in modules for part in module.removeprefix("fag_utils.").split(".")[:1]}
        assert not ours & set(later), f"{path.name} imports {ours & set(later)}"


def test_importing_the_package_is_cheap():
    program = "import sys, fag_utils; print([m for m in ('tensorflow', 'keras', 'cv2') if m in sys.modules])"
    assert run(sys.executable, "-c", program).stdout.strip() == "[]"


# ---------------------------------------------------------------- what is shipped

@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the working tree as `pip install .` would."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder)
    assert built.returncode == 0, built.stderr
    return next(folder.glob("*.whl"))


def test_wheel_holds_weights_results_and_the_classroom_model(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "fag_utils/weights/mobilefacenet_075_62.keras" in names
    assert "fag_utils/weights/mobilefacenet_075_62.json" in names
    assert [name for name in names if re.fullmatch(r"fag_utils/datasets/.*\.npz", name)]
    assert "fag_utils/fast.cpp" in names
    results = {path.name for path in (ROOT / "data" / "results").glob("*.[jc]s*")}
    assert results
    assert {f"fag_utils/results/{name}" for name in results} <= set(names)
    assert wheel.stat().st_size < 20e6


def test_source_distribution_builds_the_same_package(wheel, tmp_path):
    built = run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path)
    assert built.returncode == 0, built.stderr
    with tarfile.open(next(tmp_path.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    source = next((tmp_path / "out").iterdir())
    again = run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=source)
    assert again.returncode == 0, again.stderr
    assert contents(next(tmp_path.glob("*.whl"))) == contents(wheel)


def contents(wheel):
    """Name and checksum of every file of the package in a wheel."""
    return {item.filename: item.CRC for item in zipfile.ZipFile(wheel).infolist()
            if "dist-info" not in item.filename}


OFFLINE = """
import importlib.abc, socket, sys
sys.path.insert(0, sys.argv[1])

def refuse(*args, **kwargs):
    raise OSError("this test allows no network")
socket.socket.connect = socket.getaddrinfo = refuse

class Absent(importlib.abc.MetaPathFinder):  # what only the extra `course` would bring
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"cv2", "cvlib", "skimage", "IPython", "ipywidgets", "imutils"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())

import fag_utils
import numpy as np
from PIL import Image
assert fag_utils.__file__.startswith(sys.argv[1]), fag_utils.__file__
assert fag_utils.course.repository().startswith("https://")
predictor = fag_utils.load_predictor("mobilefacenet_075_62")
crops = predictor.predict_crops([np.asarray(Image.open(sys.argv[2]))])
people = predictor.predict_photo(sys.argv[2])
print(len(crops), len(people), sorted(people.columns))
"""


def test_plain_install_predicts_without_network_and_extras(wheel, tmp_path):
    from skimage import data, io

    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    io.imsave(tmp_path / "astronaut.png", data.astronaut())
    done = run(sys.executable, "-c", OFFLINE, tmp_path / "site", tmp_path / "astronaut.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    crops, people, columns = done.stdout.strip().splitlines()[-1].split(" ", 2)
    assert (crops, people) == ("1", "1")
    wanted = {"age", "age_low", "age_high", "male_probability", "x", "y", "width", "height", "face_score"}
    assert wanted <= set(ast.literal_eval(columns))


def test_versions_agree():
    assert fag_utils.__version__ == metadata.version("fag-utils")
    assert f'version = "{fag_utils.__version__}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_no_file_names_a_home_folder_or_a_package_index():
    """Such a name is true for one machine only; in a notebook's output it comes easily."""
    home = re.compile(rb"(?<![\w.])/(?:home|Users)/\w|/root/\w")
    index = re.compile(rb"pypi\.(?:org|python)|files\.pythonhosted\.|registry\.npmjs\.|deb\.debian\.org")
    found = []
    for path in committed_files():
        text = path.read_bytes()
        if b"\0" not in text[:8000] and path != Path(__file__):
            found += [(path.name, match[0]) for match in (home.search(text), index.search(text)) if match]
    assert not found


# ---------------------------------------------------------------- the set-up cell and the address

def test_setup_cell_installs_the_package_where_it_is_lacking(monkeypatch):
    """The cell runs as IPython runs it: with the package absent, pip gets the address of the project."""
    from IPython.core.inputtransformer2 import TransformerManager

    asked = []

    class Shell:
        def run_line_magic(self, name, line, *_):
            asked.append((name, line))
            monkeypatch.setitem(sys.modules, "fag_utils", fag_utils)

    monkeypatch.setattr(course, "quiet", lambda: None)
    program = TransformerManager().transform_cell(course.setup_cell())
    monkeypatch.setitem(sys.modules, "fag_utils", None)  # an import raises ImportError
    names = {"scale": "classroom", "get_ipython": Shell}
    exec(program, names)
    assert names["run"].scale == "classroom"
    ((magic, line),) = asked
    assert magic == "pip"
    assert line.startswith("install -q ")
    assert f"git+{course.repository()}" in line
    assert "--upgrade" not in line and "-U" not in line


def test_a_notebook_begins_in_silence(tmp_path):
    program = "from fag_utils import course; print(course.begin().scale)"
    done = run(sys.executable, "-c", program, FAG_WORK=str(tmp_path))
    assert (done.stdout, done.stderr) == ("classroom\n", "")


def test_a_run_reads_a_cleaned_set_and_says_where_a_missing_one_comes_from(tmp_path, monkeypatch):
    monkeypatch.setenv("FAG_WORK", str(tmp_path / "work"))
    monkeypatch.setenv("FAG_DATA", str(tmp_path / "nothing"))
    table = course.Run("classroom").cleaned("utkface")
    assert table["crop"].notna().any() and (tmp_path / "work" / "classroom" / "cleaning").is_dir()
    with pytest.raises(FileNotFoundError, match=r"celeba isn't in .*nothing: data/README.md"):
        course.Run("full").cleaned("celeba")


def test_what_is_shown_is_the_full_run_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.setenv("FAG_WORK", str(tmp_path))
    run = course.Run("classroom")
    assert run.shown("A2_full_size", {"mae": -1})["mae"] > 0
    assert run.shown("never measured", {"mae": -1}) == {"mae": -1}


def test_a_method_is_shown_without_the_indent_of_its_class():
    from fag_utils import training

    with mock.patch("IPython.display.display") as shown:
        course.show_source(training.Teacher.taught)
    ((text,), _) = shown.call_args
    assert text.data.startswith("```python\ndef taught(") and text.data.endswith("\n```")


def test_badge_needs_an_address_that_colab_can_open(monkeypatch):
    monkeypatch.setattr(course, "repository", lambda: "https://example.org/course")
    with pytest.raises(ValueError, match=r"github\.com"):
        course.badge("00_start_here.ipynb")


@pytest.fixture
def copy(tmp_path):
    """A copy of the project in which a test may change things; the notebooks are those of the project."""
    for name in ("tools", "notebooks", "fag_utils"):
        ignore = shutil.ignore_patterns("__pycache__", "*.keras", ".*")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_sync_moves_the_project_to_a_new_address(copy):
    def sync(*flags):
        return run(sys.executable, "tools/sync.py", *flags, cwd=copy, PYTHONPATH=str(copy))

    assert sync("--check").returncode == 0, "badges, set-up cells and README are out of step: make sync"
    old, new = course.repository(), "https://github.com/someone-else/their-course"
    pyproject = copy / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace(old, new))
    assert sync("--check").returncode == 1
    assert sync().returncode == 0
    assert sync("--check").returncode == 0
    where = old.removeprefix("https://github.com/")
    for path in [*(copy / "notebooks").glob("*.ipynb"), copy / "README.md"]:
        text = path.read_text(encoding="utf-8")
        assert where not in text, path.name
        assert "someone-else/their-course" in text, path.name


# ---------------------------------------------------------------- the commands

PIXEL = base64.b64encode(b"a picture").decode()


def write(folder, name, *sources, title=None):
    """A small notebook in the manner of the course."""
    text = f"# {title or name}\n\nAt the end a small thing is true.\n\nRunning time: 1 s"
    cells = [v4.new_markdown_cell(text),
             v4.new_code_cell('scale = "classroom"', metadata={"tags": ["parameters"]})]
    cells += [v4.new_code_cell(source) for source in sources]
    path = folder / "notebooks" / f"{name}.ipynb"
    notebook = v4.new_notebook(cells=cells)
    book.strip(notebook)  # sets the kernel
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def small(copy):
    """A copy of the project with no notebooks yet."""
    for path in (copy / "notebooks").glob("*.ipynb"):
        path.unlink()
    return copy


@pytest.mark.slow
def test_course_runs_all_renders_all_and_reports_failures(small):
    write(small, "A1_appendix", "print('the appendix ran')")
    write(small, "00_good", f"from IPython.display import display\n"
          f"display({{'image/png': '{PIXEL}'}}, raw=True)", title="00 Good & <small>")
    write(small, "01_bad", "print('as far as here')", "1 / 0", "print('never')")
    done = run(sys.executable, "tools/course.py", cwd=small)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines[:3]] == ["00_good", "01_bad", "A1_appendix"]
    assert [line.split()[-1] for line in lines[:3]] == ["ok", "FAILED", "ok"]
    assert done.stdout.index("01_bad failed:") < done.stdout.rindex("ZeroDivisionError")
    out = small / "build" / "course"
    index = (out / "index.html").read_text()
    assert "00 Good &amp; &lt;small&gt;" in index
    assert "At the end a small thing is true." in index
    for name in ("00_good", "01_bad", "A1_appendix"):
        assert f'href="{name}.html"' in index
        assert (out / f"{name}.html").is_file() and (out / f"{name}.ipynb").is_file()
    assert (out / "00_good.png").read_bytes() == b"a picture"
    assert "as far as here" in (out / "01_bad.html").read_text()
    assert "never" not in nbformat.read(out / "01_bad.ipynb", 4).cells[-1].get("outputs", "")


@pytest.mark.slow
def test_full_run_skips_what_is_complete_and_goes_on_after_a_failure(small, tmp_path):
    data = tmp_path / "sets"
    data.mkdir()
    log = tmp_path / "log"
    names = {"01": "01_cleaning", "03": "03_pre", "04": "04_train", "05": "05_covered", "06": "06_light",
             "07": "07_attention", "08": "08_transfer", "09": "09_evaluation", "11": "11_phone", "A1": "A1_faces",
             "A2": "A2_large"}
    for step, name in names.items():
        write(small, name, f"import os\nassert scale == 'full' and os.environ['FAG_DATA'] == {str(data)!r}\n"
              f"open({str(log)!r}, 'a').write('{step} ')")
    broken = write(small, "04_train", "1 / 0")

    def full():
        log.write_text("")
        done = run(sys.executable, "tools/full.py", data, cwd=small)
        return done, log.read_text().split()

    done, ran = full()
    assert done.returncode != 0 and "04_train failed" in done.stderr
    assert ran == ["01", "03"]
    broken = write(small, "04_train", f"open({str(log)!r}, 'a').write('04 ')")
    done, ran = full()
    assert done.returncode == 0, done.stderr
    assert ran == ["04", "05", "06", "07", "A2", "08", "09", "11", "A1"], "01 and 03 were complete"
    executed = nbformat.read(small / "build" / "full" / broken.name, 4)
    assert all(cell.execution_count for cell in executed.cells if cell.cell_type == "code")
    assert full()[1] == []
    write(small, "03_pre", f"open({str(log)!r}, 'a').write('03 again ')")
    assert full()[1] == ["03", "again", "04", "05", "A2", "08", "09", "11"], \
        "what uses a changed notebook's results runs again"
    write(small, "A2_large", f"open({str(log)!r}, 'a').write('A2 again ')")
    assert full()[1] == ["A2", "again", "08"], "chapter 08 starts from the network that A2 ships"


def test_full_run_without_data_says_what_to_do():
    done = run(sys.executable, "tools/full.py", "")
    assert done.returncode != 0
    assert "DATA=" in done.stderr


def test_strip_keeps_results_and_drops_what_differs():
    def stream(name, text):
        return v4.new_output("stream", name=name, text=text)

    kept = [stream("stdout", "MAE 5.1"), stream("stderr", "UserWarning: look here"),
            v4.new_output("display_data", {"text/plain": "<Axes at 0x7f00>", "image/png": PIXEL})]
    dropped = [stream("stderr", "  5%|█ | 1/20 [00:01<00:19]\r 10%|██ | 2/20"),
               v4.new_output("display_data", {"text/plain": "HBox()", book.WIDGET: {"model_id": "x"}})]
    times = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
    about = {"tags": ["solution"], "execution": times}
    cell = v4.new_code_cell("1", outputs=[*kept, *dropped], metadata=about)
    notebook = v4.new_notebook(cells=[cell], metadata={"widgets": {"state": {}}, "papermill": {}})
    book.strip(notebook)
    assert [output.get("text") or output.data["text/plain"] for output in notebook.cells[0].outputs] == [
        "MAE 5.1", "UserWarning: look here", "<Axes>"]
    assert notebook.cells[0].metadata == {"tags": ["solution"]}
    assert set(notebook.metadata) == {"kernelspec", "language_info"}


def test_the_plan_for_many_devices_follows_from_what_was_measured():
    import plan

    assert not plan.main(check=True), "docs/teaching.md is out of step: python tools/plan.py"


def test_every_target_that_the_makefile_explains_is_there():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    explained = set(re.findall(r"^# make (\w+)", text, re.M))
    assert {"course", "lab", "test", "full", "notebooks", "clean"} <= explained
    for target in explained:
        assert re.search(rf"^{target}:", text, re.M), target
