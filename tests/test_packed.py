"""Crops are stored once, read back as they were decoded, and never when their files have changed."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fag_utils import batches, course, packed, training

SIDE = batches.stored_side(62)


@pytest.fixture
def crops(tmp_path, monkeypatch):
    """Ten crops of a cleaned set, in shards of four."""
    monkeypatch.setattr(packed, "SHARD", 4)
    folder = tmp_path / "cleaning-abc" / "crops"
    folder.mkdir(parents=True)
    for number in range(10):
        write(folder / f"{number}.jpg", number)
    return [folder / f"{number}.jpg" for number in (3, 9, 0, 5, 1, 8)]


def write(path, seed):
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype="uint8")
    Image.fromarray(small).resize((134, 134), Image.BICUBIC).save(path, quality=95)


def shards(crops):
    return {file.name: file.stat().st_mtime_ns for file in (crops[0].parents[1] / f"crops-{SIDE}").iterdir()}


def test_packed_crops_are_the_decoded_ones_in_the_order_asked_for(crops, tmp_path):
    plain = np.stack(list(packed.decode(crops, SIDE)))
    np.testing.assert_array_equal(batches.load_crops(crops, 62), plain)
    before = shards(crops)
    assert len(before) == 3
    stored = packed.Crops(crops, SIDE)
    assert stored.shape == plain.shape and len(stored) == 6
    np.testing.assert_array_equal(stored.take(np.array([5, 0, 0, 3])), plain[[5, 0, 0, 3]])
    assert shards(crops) == before, "packed once"


def test_crops_that_stay_on_disk_are_seen_in_order_as_those_in_memory_are(crops, monkeypatch):
    whole = [pictures.numpy() for pictures in batches.in_order(batches.load_crops(crops, 62), 62, batch_size=4)]
    monkeypatch.setattr(batches, "IN_MEMORY", 0)
    on_disk = batches.open_crops(crops, 62)
    assert isinstance(on_disk, packed.Crops)
    seen = [pictures.numpy() for pictures in batches.in_order(on_disk, 62, batch_size=4)]
    assert [len(pictures) for pictures in seen] == [4, 2]
    for one, other in zip(seen, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_changed_a_new_and_a_lost_crop_are_noticed(crops):
    batches.load_crops(crops, 62)
    before = shards(crops)
    time.sleep(0.01)
    write(crops[0], 77)  # 3.jpg, in the first shard
    np.testing.assert_array_equal(batches.load_crops(crops, 62), np.stack(list(packed.decode(crops, SIDE))))
    assert len(set(before) - set(shards(crops))) == 1 and len(shards(crops)) == 3
    write(crops[0].with_name("99.jpg"), 99)
    assert batches.load_crops([*crops, crops[0].with_name("99.jpg")], 62).shape[0] == 7
    crops[1].unlink()
    with pytest.raises(FileNotFoundError, match="9.jpg.*clean the set again"):
        batches.load_crops(crops, 62)


def test_what_a_killed_process_left_is_no_shard_and_is_tidied_away(crops):
    folder = crops[0].parents[1] / f"crops-{SIDE}"
    folder.mkdir()
    left = subprocess.run(  # by a process that is no more
        [sys.executable, "-c", "import sys; from pathlib import Path; from fag_utils import course; "
         "course.unfinished(Path(sys.argv[1]) / '00000-0123456789ab.npy').write_bytes(b'half a shard')", folder],
        env=os.environ | {"PYTHONPATH": str(Path(packed.__file__).parents[1])})
    assert left.returncode == 0 and len(list(folder.glob("*.unfinished"))) == 1
    course.unfinished(folder / "00001-0123456789ab.npy").write_bytes(b"this process is at it")
    np.testing.assert_array_equal(batches.load_crops(crops, 62), np.stack(list(packed.decode(crops, SIDE))))
    assert [file.name[:5] for file in folder.glob("*.unfinished")] == ["00001"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_is_said_plainly(crops, monkeypatch):
    monkeypatch.setattr(packed, "open", lambda path, mode: open("/dev/full", mode), raising=False)
    with pytest.raises(OSError, match="the disk is full"):
        batches.load_crops(crops, 62)
    monkeypatch.undo()
    assert batches.load_crops(crops, 62).shape[0] == 6


def test_crops_elsewhere_are_decoded_and_nothing_is_put_beside_them(crops, tmp_path):
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "a.jpg"
    write(path, 1)
    assert batches.load_crops([path], 62).shape == (1, SIDE, SIDE, 3)
    assert os.listdir(tmp_path / "mine") == ["a.jpg"]


def test_training_from_disk_is_training_from_memory(crops, tmp_path, monkeypatch):
    import keras

    table = pd.DataFrame({"age": [20.0, 30, 40, 50, 60, 30], "male": [0.0, 1, 0, 1, 0, 1]})
    curves = []
    for limit in (0, 1e9):
        monkeypatch.setattr(batches, "IN_MEMORY", limit)
        keras.utils.set_random_seed(0)
        x = keras.Input((62, 62, 3))
        y = keras.layers.GlobalAveragePooling2D()(x)
        heads = {"age": keras.layers.Dense(48, "softmax", name="age")(y),
                 "gender": keras.layers.Dense(2, "softmax", name="gender")(y)}
        stored = batches.open_crops(crops, 62)
        assert isinstance(stored, packed.Crops) == (limit == 0)
        curves.append(training.fit(
            keras.Model(x, heads), stored, table, 2, training.OURS._replace(every_age=False),
            lambda epoch: batches.shuffled(table, 4, epoch), 62, tmp_path / str(limit), progress=False))
    pd.testing.assert_frame_equal(*(curve[["loss", "mae", "accuracy"]] for curve in curves))
