"""What reading the crops costs: 04_formats.csv in data/results, ways to store them, 04_input.json, share of a step.

    python tools/input.py FOLDER [--pictures 4096] [--steps 30]

FOLDER is a folder of crops that `cleaning.clean` made (work/full/cleaning/cleaning-.../crops). It stays as it is.
TFRecord and ArrayRecord hold the JPEG bytes, `.npy` the pixels. ArrayRecord is measured where `array_record` is
installed. A batch is 128 pictures drawn at random; TFRecord can't be picked from, so its batches come in the order
of the file. "cold" is the first reading after the file was dropped from the system's memory.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from fag_utils import batches, course, fast, models, packed, training

RESULTS = Path(__file__).resolve().parent.parent / "data" / "results"
SIZE, BATCH = 62, batches.BATCH_SIZE


def drop(paths):
    """Ask the system to forget what it remembers of these files."""
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def decoded(data):
    side = batches.stored_side(SIZE)
    picture = tf.image.resize(tf.io.decode_jpeg(data, channels=3), (side, side), antialias=True)
    return tf.cast(tf.round(picture), tf.uint8)


def forms(paths, folder):
    """name -> (function that writes, files, function(batches of row numbers) that reads them one batch at a time)."""
    side = batches.stored_side(SIZE)
    record, array, raw = (folder / name for name in ("crops.tfrecord", "crops.arrayrecord", "crops.npy"))

    def write_record():
        with tf.io.TFRecordWriter(str(record)) as writer:
            for path in paths:
                writer.write(Path(path).read_bytes())

    def write_array():
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(array), "group_size:1")
        for path in paths:
            writer.write(Path(path).read_bytes())
        writer.close()

    def write_raw():
        packed._write(raw, packed.decode(paths, side), (len(paths), side, side, 3))

    decode = tf.function(lambda data: tf.map_fn(decoded, data, fn_output_signature=tf.uint8))

    def read_files(rows):
        data = tf.data.Dataset.from_tensor_slices(np.array(paths)[rows.ravel()])
        return iter(data.map(lambda path: decoded(tf.io.read_file(path)), tf.data.AUTOTUNE).batch(BATCH))

    def read_record(rows):
        return iter(tf.data.TFRecordDataset(str(record)).map(decoded, tf.data.AUTOTUNE).batch(BATCH).take(len(rows)))

    def read_array(rows):
        from array_record.python.array_record_module import ArrayRecordReader

        reader = ArrayRecordReader(str(array))
        return (decode(tf.constant(reader.read([int(row) for row in batch]))) for batch in rows)

    def read_raw(rows):
        stored = np.load(raw, mmap_mode="r")
        return (tf.constant(stored[np.sort(batch)]) for batch in rows)

    found = {"a JPEG file each": (lambda: None, paths, read_files), "TFRecord of JPEG, in order": (
        write_record, [record], read_record), "raw pixels, .npy": (write_raw, [raw], read_raw)}
    try:
        import array_record  # noqa: F401

        found["ArrayRecord of JPEG"] = (write_array, [array], read_array)
    except ImportError:
        print("array_record is not installed: left out")
    return found


def compare(paths):
    """A row a form of storing: seconds to write, kilobytes a crop, pictures a second cold and warm."""
    rows = np.random.default_rng(0).permutation(len(paths) // BATCH * BATCH).reshape(-1, BATCH)
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (write, files, read) in forms(paths, Path(folder)).items():
            began = time.perf_counter()
            write()
            row = {"form": name, "write_seconds": time.perf_counter() - began,
                   "kb_a_crop": sum(os.path.getsize(file) for file in files) / len(paths) / 1e3}
            drop(files)
            for state in ("cold", "warm"):
                began = time.perf_counter()
                for _ in read(rows):
                    pass
                row[f"{state}_pictures_per_second"] = rows.size / (time.perf_counter() - began)
            table.append(row)
            print(row, flush=True)
    return pd.DataFrame(table)


def waiting(paths, steps, engine):
    """Milliseconds of a step, and those of it in which the batch is waited for: medians over `steps` steps."""
    random = np.random.default_rng(0)
    table = pd.DataFrame({"age": random.integers(18, 66, len(paths)) * 1.0,
                          "male": random.integers(0, 2, len(paths)) * 1.0})
    model = models.age_gender(models.mobilefacenet(SIZE, 0.75), ages=117)
    recipe = training.OURS
    trainer = training._engine(engine)(model, recipe, 1000, 100)
    rows = random.integers(0, len(paths), (steps + 5, BATCH))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "crops").mkdir()
        here = [Path(folder) / "crops" / Path(path).name for path in paths]
        for link, path in zip(here, paths, strict=True):
            link.symlink_to(Path(path).resolve())
        stored = packed.Crops(here, batches.stored_side(SIZE))
        data = batches.dataset(stored, table, rows, SIZE, recipe.augmentation, heads=model.output_names,
                               every_age=recipe.every_age, ahead=trainer.ahead)
        waits, whole = [], []

        def timed():
            source = iter(data)
            while True:
                began = time.perf_counter()
                try:
                    batch = next(source)
                except StopIteration:
                    return
                waits.append(time.perf_counter() - began)
                yield batch
                whole.append(time.perf_counter() - began)

        if engine == "keras":
            for batch in timed():
                trainer.model.train_on_batch(*batch)
        else:
            trainer.epoch(timed(), len(rows), [0, 0], lambda: None)
    wait, step = (1e3 * float(np.median(values[5:])) for values in (waits, whole))
    return {"step_ms": step, "input_ms": wait, "share": wait / step}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path)
    parser.add_argument("--pictures", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=30)
    wish = parser.parse_args()
    course.quiet()
    keras.utils.set_random_seed(0)
    paths = [str(path) for path in sorted(wish.crops.glob("*.jpg"))[: wish.pictures]]
    load = os.getloadavg()[0]
    formats = compare(paths)
    formats.to_csv(RESULTS / "04_formats.csv", index=False, float_format="%.4g")
    engines = ["keras", *(["fast"] if fast.available() else [])]
    shares = {engine: waiting(paths, wish.steps, engine) for engine in engines}
    result = {"batch": BATCH, "size": SIZE, "pictures": len(paths), "steps": wish.steps, "cores": os.cpu_count(),
              "load_at_start": load, "engines": shares}
    (RESULTS / "04_input.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(shares, indent=2))


if __name__ == "__main__":
    main()
