"""Run the notebooks again at classroom scale and keep their outputs in place, without what differs each time.

    python tools/notebooks.py          # all
    python tools/notebooks.py 02 A1    # those whose names begin so
    python tools/notebooks.py --strip  # run nothing, only take out times, widgets and progress bars
"""

import os
import sys
import tempfile

import book
import nbformat


def main(wanted, run):
    for path in book.paths():
        if wanted and not path.name.startswith(tuple(wanted)):
            continue
        print(path.stem, flush=True)
        notebook = book.read(path)
        if run:
            book.execute(notebook)
        book.strip(notebook)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--strip"]
    with tempfile.TemporaryDirectory() as work:  # with nothing run before, as a reader opens them
        os.environ["FAG_WORK"] = work
        main(arguments, run="--strip" not in sys.argv)
