"""The data sets, each read into the one table (see `fag_utils.table`).

One short module for each set. `read(folder)` takes the set as its authors publish it, and gives a row for
every picture. What can't be used is a row with a `reason`: never an exception, never left out silently.
The column `region` says to which half of a training batch a picture belongs: "asian", or "western" for
all that is not known to be Asian.
"""

import importlib
import os
from pathlib import Path

import pandas as pd

from fag_utils.datasets._common import DownloadError, MissingSetError, how_to_get

# In reading order: the sets to learn from, then those to measure on.
NAMES = ["celeba", "utkface", "afad", "megaage_asian", "imdb_wiki", "adience", "lfw", "lag"]
_MODULES = [*NAMES, "classroom"]

__all__ = ["NAMES", "DownloadError", "MissingSetError", "data_dir", "find", "get", "overview", "read", *_MODULES]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"fag_utils.datasets.{name}")
    raise AttributeError(f"module 'fag_utils.datasets' has no attribute {name!r}")


def __dir__():
    return __all__


def data_dir():
    """Path of the folder with the sets: FAG_DATA, or data/ of the checkout, or data/ here."""
    if os.environ.get("FAG_DATA"):
        return Path(os.environ["FAG_DATA"])
    checkout = Path(__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "data"


def find(root=None):
    """Which sets lie under `root` (or `data_dir()`): a dict, name -> folder, or None where it is absent.

    A folder counts under its name in any spelling: utkface, UTKFace; imdb_wiki, IMDB-WIKI. What is not in
    `data_dir()` is looked for in the folder fag_data of a Google Drive that Colab has mounted, and among what
    kagglehub has downloaded.
    """
    root = Path(root) if root else data_dir()
    found = folders(root)
    if root.absolute() == data_dir().absolute():
        from fag_utils.datasets import download

        found = {**download.elsewhere(), **found}
    return {name: found.get(name) for name in NAMES}


def folders(root):
    """Dict of the folders in a folder: name in small letters with underscores -> path."""
    children = sorted(root.iterdir(), reverse=True) if root.is_dir() else []
    return {path.name.lower().replace("-", "_"): path for path in children if path.is_dir()}


def get(name, root=None, auth=None, keep=False, quiet=False):
    """The folder of a set; where it isn't there yet, it is downloaded, checked and unpacked first.

    name : one of NAMES
    root : the folder for the sets, or `data_dir()`
    auth : (user, password), for a set whose authors give them out on request (Adience)
    keep : whether the archives stay in the folder `downloads` afterwards
    quiet : no bars and no lines about what happens

    Needs the packages of the extra `download`. A call that was interrupted, even killed, is taken up again by the
    next one; a folder is a set only when all of it is there and its reader finds pictures in it.
    Raises DownloadError, whose text says what to do: where a form has to be filled in, where to put a file that
    was got by hand, how much room the disk needs.
    """
    from fag_utils.datasets import download

    return download.get(name, root, auth, keep, quiet)


def read(name, folder=None):
    """The table of a set, from `folder` (the set's own), or from its place under `data_dir()`.

    Raises ValueError for a name that isn't one of NAMES, MissingSetError when the set is not there:
    its text says how to get it, and under which licence.
    """
    if name not in _MODULES:
        raise ValueError(f"there is no set {name!r}: use one of {', '.join(NAMES)}")
    folder = folder or find().get(name) or data_dir() / name
    return importlib.import_module(f"fag_utils.datasets.{name}").read(folder)


def overview(root=None):
    """DataFrame to look at, one row a set: title, whether it was found, licence, how to get it."""
    found = find(root)
    rows = []
    for name in NAMES:
        reader = importlib.import_module(f"fag_utils.datasets.{name}")
        rows.append({"set": name, "title": reader.TITLE, "found": found[name] is not None,
                     "licence": reader.LICENCE, "how to get it": how_to_get(name)})
    return pd.DataFrame(rows).set_index("set")
