"""Crops in the form in which training reads them: decoded, in the size it needs, some thousand to a file.

A cleaned set has a JPEG file for each crop. To open and decode them takes minutes for a large set, at each start, and
what they become may not fit into memory. So they are decoded once, into shards of raw pixels beside them: plain
`.npy` files, written and read from front to back, in which each picture has its place, so that a balanced batch
can be picked from them too. (`tools/input.py` measures TFRecord and ArrayRecord beside it.)

The name of a shard holds a checksum of the names, sizes and dates of its JPEG files: another file, another shard.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from fag_utils import course

SHARD = 4096  # pictures
VERSION = 1  # of how they are decoded


class Crops:
    """Stored crops (n, side, side, 3) uint8 RGB that stay on disk; `np.asarray` reads all of them, in order.

    paths : crops as `cleaning.clean` names them, of one or several sets; what is not packed yet is packed first
    """

    def __init__(self, paths, side):
        paths = [Path(path) for path in paths]
        self.shape, self.dtype = (len(paths), side, side, 3), np.dtype("uint8")
        self.shards, self.where = [], np.empty((len(paths), 2), "int64")  # shard, place in it
        places = {}
        for folder in dict.fromkeys(path.parent for path in paths):
            for shard, names in pack(folder, side):
                places |= {folder / name: (len(self.shards), place) for place, name in enumerate(names)}
                self.shards.append(np.load(shard, mmap_mode="r"))
        for number, path in enumerate(paths):
            if path not in places:
                raise FileNotFoundError(f"{path} isn't there any more: clean the set again")
            self.where[number] = places[path]

    def __len__(self):
        return len(self.where)

    def take(self, rows):
        """Crops of these row numbers (k,), as an array (k, side, side, 3)."""
        pictures = np.empty((len(rows), *self.shape[1:]), "uint8")
        where = self.where[rows]
        for place in np.lexsort(where.T[::-1]):  # in the order in which they lie
            shard, row = where[place]
            pictures[place] = self.shards[shard][row]
        return pictures

    def __array__(self, dtype=None, copy=None):
        return self.take(np.arange(len(self)))


def can_pack(paths):
    """True for crops of cleaned sets, where a file can be put beside them."""
    folders = {Path(path).parent for path in paths}
    return all(folder.name == "crops" and os.access(folder.parent, os.W_OK) for folder in folders)


def pack(folder, side):
    """The shards of a folder of crops, made where they are lacking or stale: list of (file, names in their order)."""
    target = folder.parent / f"crops-{side}"
    with os.scandir(folder) as entries:
        files = sorted((entry.name, entry.stat().st_size, entry.stat().st_mtime_ns) for entry in entries)
    shards = []
    with course.writing(target):
        target.mkdir(exist_ok=True)
        for start in range(0, len(files), SHARD):
            part = files[start : start + SHARD]
            key = hashlib.sha1(repr((VERSION, part)).encode("utf-8", "surrogateescape")).hexdigest()[:12]
            shard = target / f"{start // SHARD:05d}-{key}.npy"
            names = [name for name, *_ in part]
            if not shard.exists():
                for stale in target.glob(f"{start // SHARD:05d}-*.npy"):
                    stale.unlink(missing_ok=True)
                _write(shard, decode([folder / name for name in names], side), (len(names), side, side, 3))
            shards.append((shard, names))
        course.tidy(target)
    return shards


def _write(shard, pictures, shape):
    """Put a shard there as a whole, or not at all."""
    unfinished = course.unfinished(shard)
    try:
        with open(unfinished, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for picture in pictures:
                file.write(picture.tobytes())
        unfinished.replace(shard)
    finally:
        unfinished.unlink(missing_ok=True)


def decode(paths, side):
    """Picture files one after the other as arrays (side, side, 3) uint8, several being decoded at a time."""
    def read(path):
        picture = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        picture = tf.image.resize(picture, (side, side), antialias=True)
        return tf.cast(tf.round(picture), tf.uint8)

    data = tf.data.Dataset.from_tensor_slices([str(path) for path in paths])
    return data.map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(64).as_numpy_iterator()
