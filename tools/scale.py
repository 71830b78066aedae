"""How the time and the memory of cleaning grow with the set: data/results/01_scale.csv.

    python tools/scale.py FOLDER 2000 20000 200000            # on all cores of this machine
    python tools/scale.py FOLDER 2000 --cluster               # on a Dask cluster of as many workers

FOLDER holds the real sets (data/README.md). Pictures of UTKFace, under other names (links), are cleaned by a fresh
process, into a folder that is deleted afterwards. A row remembers how busy the machine was when it began: times can
be compared where `load` was near 0. A row takes the place of an older one of the same number and way.
"""

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "data" / "results" / "01_scale.csv"


def linked(data, number, folder):
    """A table of `number` pictures: those of UTKFace, again and again, as links with names of their own."""
    from fag_utils import datasets, table

    found = datasets.find(data)["utkface"]
    real = datasets.read("utkface", found)["path"]
    folder.mkdir()
    rows = []
    for index, path in enumerate(itertools.islice(itertools.cycle(real), number)):
        link = folder / f"{index:07d}.jpg"
        link.symlink_to(path)
        rows.append({"path": str(link), "fold": "train"})
    return table.make(rows, "utkface")


def measure(data, number, processes, cluster):
    """Clean once, in this process; -> dict, a row of the result."""
    from fag_utils import cleaning, course

    course.quiet()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        table = linked(data, number, Path(folder) / "pictures")
        client = None
        if cluster:
            from dask.distributed import Client

            client = Client(n_workers=processes, threads_per_worker=1, dashboard_address=None)
            client.run(cleaning.faces.default_detector)  # imports aren't what is measured
        began = time.perf_counter()
        cleaned = cleaning.clean(table, Path(folder) / "work", processes, progress=False, client=client)
        seconds = time.perf_counter() - began
        if cluster:
            worker = max(client.run(lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss).values())
            client.close()
        else:
            worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return {"pictures": number, "way": "cluster" if cluster else "processes", "processes": processes,
            "seconds": round(seconds, 1), "pictures_per_second": round(number / seconds, 2),
            "parent_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
            "worker_mb": round(worker / 1024), "kept": int(cleaned["keep"].sum()), "load": round(load, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("pictures", type=int, nargs="+")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--cluster", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    wish = parser.parse_args()
    if wish.alone:
        print(json.dumps(measure(wish.data, wish.pictures[0], wish.processes, wish.cluster)))
        return
    rows = pd.read_csv(RESULT) if RESULT.exists() else pd.DataFrame()
    for number in wish.pictures:  # each in a process of its own, so that memory is its own, too
        command = [sys.executable, __file__, wish.data, str(number), "--processes", str(wish.processes), "--alone"]
        done = subprocess.run(command + ["--cluster"] * wish.cluster, stdout=subprocess.PIPE, text=True, check=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)})
        row = json.loads(done.stdout.splitlines()[-1])
        print(row, flush=True)
        rows = pd.concat([rows, pd.DataFrame([row])], ignore_index=True)
        rows = rows.drop_duplicates(["pictures", "way", "processes"], keep="last").sort_values(["way", "pictures"])
        rows.to_csv(RESULT, index=False)


if __name__ == "__main__":
    main()
