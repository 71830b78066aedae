"""Write the badge and the set-up cell into every notebook, and the project's address into the README.

    python tools/sync.py            # after [project.urls] Repository in pyproject.toml was changed
    python tools/sync.py --check    # change nothing, name what is out of step, exit 1
"""

import re
import sys

import book
import nbformat

from fag_utils import course

BADGE = re.compile(r"^\[!\[[^\]]*\]\([^)]*colab[^)]*\)\]\([^)]*\)$", re.M)
COLAB = re.compile(r"https://colab\.research\.google\.com/github/[^/]+/[^/]+/blob/[^/]+/notebooks/([\w.]+\.ipynb)")
CLONE = re.compile(r"(git clone(?: --?\S+)* |pip install \S*git\+)https?://[^\s\"'`)]+")


def synced_notebook(path):
    """The notebook at this path as it should be; a ValueError if it has no badge or no set-up cell."""
    notebook = book.read(path)
    first = notebook.cells[0]
    if not BADGE.search(first.source):
        raise ValueError(f"{path.name}: the first cell has no line with a Colab badge")
    first.source = BADGE.sub(course.badge(path.name), first.source)
    setups = [cell for cell in notebook.cells if is_setup(cell)]
    if len(setups) != 1:
        raise ValueError(f"{path.name}: {len(setups)} set-up cells, and there must be one")
    setups[0].source = course.setup_cell()
    return notebook


def is_setup(cell):
    return cell.cell_type == "code" and "course.begin(scale)" in cell.source


def synced_readme(text):
    """The text of the README with the address of every badge and of git clone as it should be."""
    text = COLAB.sub(lambda found: course.colab_address(found[1]), text)
    return CLONE.sub(lambda found: found[1] + course.repository(), text)


def out_of_step():
    """(path, text) of every file that sync would change."""
    wanted = [(path, nbformat.writes(synced_notebook(path)) + "\n", nbformat.writes(book.read(path)) + "\n")
              for path in book.paths()]
    readme = book.ROOT / "README.md"
    wanted.append((readme, synced_readme(readme.read_text("utf-8")), readme.read_text("utf-8")))
    return [(path, new) for path, new, old in wanted if new != old]


if __name__ == "__main__":
    changes = out_of_step()
    for path, text in changes:
        print(path.relative_to(book.ROOT))
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    sys.exit("--check" in sys.argv and bool(changes))
