"""Kill full-scale notebooks at random moments, start them again, and compare: data/results/01_kills.csv.

    python tools/kill.py FOLDER 01 03 04 --kills 10 --pictures 1000

FOLDER holds the real sets (data/README.md), of which the first so many pictures of UTKFace and CelebA are laid out
in a scratch folder. Each notebook runs once undisturbed; then again in another work folder, killed with all its
processes at moments drawn from a seed over the time that the undisturbed run took, and started again each time,
until it was killed often enough; the last start finishes. Compared are the cleaned table, every curve (rounding
allowed, times not) and what is left behind: unfinished files and processes. It works in a copy of the project, for
full runs write results and weights. A run that ends before its moment has come is compared as well, and the next
begins anew, with nothing done (`ends` counts the runs compared).
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "data" / "results" / "01_kills.csv"
LEFT = ("*.unfinished", "*.tmp", "epoch-*", "unfinished.*")
ROUNDING = 0.02  # of a loss or an error; of 1 for shares of pictures


def lay_out(real, folder, number):
    """A data folder with `number` pictures each of UTKFace and CelebA, as links in their authors' layout.

    Of UTKFace the validation fold and the rest are drawn alike, so that there is something to measure on.
    """
    faces = sorted((real / "utkface" / "UTKFace").glob("*.jpg"))
    step = max(1, len(faces) // number)
    (folder / "utkface" / "UTKFace").mkdir(parents=True)
    for path in faces[::step][:number]:
        (folder / "utkface" / "UTKFace" / path.name).symlink_to(path)
    listed = real / "utkface" / "val.txt"
    if listed.exists():
        names = {path.name for path in faces[::step][:number]}
        lines = [line for line in listed.read_text().splitlines() if line.split("/")[-1].strip() in names]
        (folder / "utkface" / "val.txt").write_text("\n".join(lines) + "\n")
    celeba, target = real / "celeba", folder / "celeba"
    (target / "img_align_celeba").mkdir(parents=True)
    pictures = sorted((celeba / "img_align_celeba").glob("*.jpg"))
    pictures = pictures[:: max(1, len(pictures) // number)][:number]
    names = {path.name for path in pictures}
    for path in pictures:
        (target / "img_align_celeba" / path.name).symlink_to(path)
    for path in celeba.glob("*.txt"):
        lines = path.read_text().splitlines()
        kept = [line for line in lines if line.split()[:1] and line.split()[0] in names]
        if path.name.startswith("list_attr"):
            kept = [str(len(kept)), lines[1], *kept]
        (target / path.name).write_text("\n".join(kept) + "\n")


def start(notebook, copy, data, work, log):
    """papermill on a notebook at full scale; FAG_WORK in their environment tells its processes from all others."""
    environment = {**os.environ, "FAG_DATA": str(data), "FAG_WORK": str(work), "PYTHONPATH": str(copy),
                   "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONHASHSEED": "0"}
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", "-k", "python3", notebook.name,
               str(work / notebook.name), "-p", "scale", "full"]
    if '"ablate = ' in notebook.read_text(encoding="utf-8"):  # the same code as the training's, and hours of it
        command += ["-p", "ablate", "False"]
    work.mkdir(parents=True, exist_ok=True)
    return subprocess.Popen(command, cwd=notebook.parent, env=environment, stdout=log, stderr=log)


def wait(process, seconds, work, log):
    """True when it finished within these seconds; else all its processes were killed. SystemExit where it failed."""
    try:
        if process.wait(seconds):
            sys.exit(f"the notebook failed: see {log.name}")
        return True
    except subprocess.TimeoutExpired:
        for pid in processes(work):  # the kernel and what it started, as a power failure would
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        process.wait()
        return False


def processes(work):
    """Numbers of the processes that work for this folder, as their environment says (Linux)."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            state = (place / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if state != "Z" and f"FAG_WORK={work}\0".encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def curves(work):
    """Every curve and the cleaned table below a work folder, without what differs each time: name -> DataFrame."""
    found = {str(path.relative_to(work)): pd.read_csv(path) for path in sorted(work.glob("full/**/history.csv"))}
    found |= {path.name: pd.read_csv(path, low_memory=False) for path in work.glob("full/01_cleaned.csv")}
    for name, table in found.items():
        table = table.drop(columns=["seconds", "pictures_per_second"], errors="ignore")
        if "crop" in table:
            table["crop"] = [Path(crop).name if isinstance(crop, str) else "" for crop in table["crop"]]
        found[name] = table
    return found


def difference(one, other):
    """The largest difference of two tables' numbers, as a fraction; infinite where anything else differs."""
    if one.shape != other.shape or list(one.columns) != list(other.columns):
        return float("inf")
    numbers = one.select_dtypes("number").columns
    if not one.drop(columns=numbers).equals(other.drop(columns=numbers)):
        return float("inf")
    a, b = one[numbers].to_numpy("float64"), other[numbers].to_numpy("float64")
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        return float("inf")
    return float(np.nan_to_num(np.abs(a - b) / np.maximum(1, np.abs(a))).max(initial=0.0))


def undisturbed(notebook, copy, data, work, log):
    """One run that nobody kills: -> seconds."""
    began = time.monotonic()
    wait(start(notebook, copy, data, work, log), None, work, log)
    return time.monotonic() - began


def disturbed(notebook, copy, data, plain, work, log, draw, whole, kills):
    """Kill after up to `whole` seconds, drawn anew each time, until it was done so often, then let it finish.

    -> the moments at which it was killed, and of each run that came to its end what `compared` says
    """
    before = {path.relative_to(work) for path in work.glob("full/*")}
    killed, ends = [], []
    while True:
        moment = draw.uniform(0, whole) if len(killed) < kills else None
        ended = wait(start(notebook, copy, data, work, log), moment, work, log)
        if not ended:
            killed.append(round(moment, 1))
            print(f"{notebook.stem}: killed after {moment:.0f} s, {len(killed)} of {kills}", flush=True)
            continue
        time.sleep(2)
        ends.append(compared(plain, work))
        if moment is None or not ends[-1]["as_undisturbed"]:
            return killed, ends
        for path in work.glob("full/*"):  # it was faster, since much was done: begin anew
            if path.relative_to(work) not in before:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def trial(number, copy, data, scratch, kills, seed):
    """Undisturbed, and killed: -> dict, a row of the result."""
    (notebook,) = (copy / "notebooks").glob(f"{number}_*.ipynb")
    draw = random.Random(f"{seed} {number}")
    plain, killed = scratch / "plain", scratch / "killed"
    with open(scratch / f"{number}.log", "w") as log:
        whole = undisturbed(notebook, copy, data, plain, log)
        moments, ends = disturbed(notebook, copy, data, plain, killed, log, draw, whole, kills)
    worst = {name: max(end[name] for end in ends) for name in ("largest_difference", "files_left", "processes_left")}
    return {"notebook": number, "kills": len(moments), "ends": len(ends), "undisturbed_seconds": round(whole, 1),
            "killed_after_seconds": " ".join(map(str, moments)), "compared": ends[-1]["compared"], **worst,
            "as_undisturbed": all(end["as_undisturbed"] for end in ends)}


def compared(plain, killed):
    """What the two work folders hold, beside each other: -> dict, the last columns of a row."""
    expected, found = curves(plain), curves(killed)
    largest = max((difference(expected[name], found[name]) for name in expected), default=float("nan"))
    left = [path for pattern in LEFT for path in killed.glob(f"full/**/{pattern}")]
    alive = len(processes(killed))
    same = expected.keys() == found.keys() and largest <= ROUNDING
    return {"compared": " ".join(expected), "largest_difference": largest, "files_left": len(left),
            "processes_left": alive, "as_undisturbed": bool(same and not left and not alive)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("notebooks", nargs="+")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    wish = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="kill-"))
    print(f"working in {scratch}")
    data, copy = scratch / "data", scratch / "project"
    lay_out(wish.data.resolve(), data, wish.pictures)
    for name in ("notebooks", "fag_utils", "data/results", "data/weights"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for number in wish.notebooks:
        row = {"pictures": wish.pictures, "seed": wish.seed, "load": round(os.getloadavg()[0], 1),
               **trial(number, copy, data, scratch, wish.kills, wish.seed)}
        print(row, flush=True)
        # Read now: another run of this program may have added its own.
        rows = pd.read_csv(RESULT, dtype={"notebook": str}) if RESULT.exists() else pd.DataFrame()
        rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
        rows.drop_duplicates(["notebook", "pictures", "kills", "seed"], keep="last").to_csv(RESULT, index=False)
        if not row["as_undisturbed"]:
            sys.exit(f"notebook {number}: not as undisturbed; both work folders are kept in {scratch}")
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
