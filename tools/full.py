"""Run the course at full scale on the real data sets, with papermill; executed copies go to build/full/.

    python tools/full.py FOLDER

A notebook whose copy is complete is skipped, unless it, or one whose results it uses, has changed since.
One that was interrupted runs again, and goes on from what it kept in its work folder.
"""

import hashlib
import os
import sys
import time
from pathlib import Path

import book

OUT = book.ROOT / "build" / "full"
# In the order of running, each with those whose results it uses.
STEPS = {"01": [], "03": ["01"], "04": ["01", "03"], "05": ["01", "04"], "06": ["01"], "07": ["01"],
         "A2": ["01", "04"], "08": ["03", "04", "A2"], "09": ["04", "05"], "11": ["04"], "A1": ["01"]}


def main(data):
    if not data or not Path(data).is_dir():
        sys.exit("make full DATA=folder: name the folder that holds the data sets (see data/README.md)")
    os.environ["FAG_DATA"] = str(Path(data).resolve())
    OUT.mkdir(parents=True, exist_ok=True)
    keys = {}
    for step, needs in STEPS.items():
        path = next(path for path in book.paths() if path.name.startswith(step + "_"))
        keys[step] = key(book.read(path), os.environ["FAG_DATA"], [keys[need] for need in needs])
        done = OUT / f"{path.stem}.done"
        if done.is_file() and done.read_text() == keys[step]:
            print(f"{path.stem}: complete, build/full/{path.name}", flush=True)
            continue
        done.unlink(missing_ok=True)
        print(f"{path.stem}: running", flush=True)
        start = time.perf_counter()
        run(path)
        done.write_text(keys[step])
        print(f"{path.stem}: ok, {(time.perf_counter() - start) / 60:.1f} minutes", flush=True)


def run(path):
    import papermill

    try:
        papermill.execute_notebook(
            path, OUT / path.name, {"scale": "full"}, cwd=book.FOLDER, kernel_name="python3")
    except papermill.PapermillExecutionError as problem:
        sys.exit(f"{path.stem} failed; make full goes on from here\n{problem}")


def key(notebook, data, needs):
    """Changes when the code of the notebook does, or the data folder, or a notebook before it."""
    parts = [cell.source for cell in notebook.cells if cell.cell_type == "code"] + [data] + needs
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "")
