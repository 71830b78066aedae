"""Training on several devices is the training of one: the same losses, also when a worker is killed."""

import inspect
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_training import FIGURES, SMALL, backbone, drawn_faces, train

import fag_utils
from fag_utils import batches, course, devices

THREE = """
    # three devices of one machine: parts of 5, 5 and 6 pictures
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 3)
    mirrored = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(3)])
    devices.strategy = lambda name: mirrored
"""
START = textwrap.dedent("""
    import json, os, sys, time
    import tensorflow as tf
    from fag_utils import course, devices
    kind, folder = sys.argv[1:]
    if kind == "workers":
        devices.strategy(kind)
        with open(f"{folder}/pids", "a") as file:
            file.write(f"{os.getpid()}\\n")
    else:
    """) + THREE + SMALL.replace("progress=False,", "progress=False, devices=kind,") + textwrap.dedent("""
    # Slow enough to be killed between two checkpoints.
    model, history = train(folder, (lambda h: time.sleep(0.5)) if kind == "workers" else None)
    if course.is_first():
        history.to_pickle(f"{folder}/history.pkl")
    """)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The curve of one device."""
    return train(tmp_path_factory.mktemp("one"))[1]


def start(*command, log):
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(Path(fag_utils.__file__).parents[1])}
    return subprocess.Popen([sys.executable, *map(str, command)], stdout=log, stderr=log, env=environment)


def same_curve(folder, one):
    history = pd.read_pickle(folder / "history.pkl")
    pd.testing.assert_frame_equal(history[FIGURES], one[FIGURES], rtol=1e-4)


def test_three_devices_of_a_machine_have_the_losses_of_one(one, tmp_path):
    (tmp_path / "program.py").write_text(START)
    with open(tmp_path / "log", "w") as log:
        code = start(tmp_path / "program.py", "all", tmp_path, log=log).wait(600)
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
    same_curve(tmp_path, one)


IMITATE = "import keras\nimport numpy as np\n\n" + inspect.getsource(backbone) + textwrap.dedent("""
    import pandas as pd
    from fag_utils import training

    def imitate(folder, devices):
        keras.utils.set_random_seed(0)
        pupil, other = backbone(32), backbone(40)
        table = pd.read_pickle(f"{folder}/table.pkl")
        return training.imitate(
            table, f"{folder}/{devices}", pupil, [other], epochs=4, progress=False, devices=devices)[1]
    """)
exec(IMITATE)


def test_three_devices_imitate_as_one(tmp_path):
    drawn_faces(tmp_path).to_pickle(tmp_path / "table.pkl")
    (tmp_path / "program.py").write_text(
        "import sys\nimport tensorflow as tf\nfrom fag_utils import devices\n" + textwrap.dedent(THREE) + IMITATE
        + "imitate(sys.argv[1], 'all').to_pickle(sys.argv[1] + '/history.pkl')\n")
    with open(tmp_path / "log", "w") as log:
        code = start(tmp_path / "program.py", tmp_path, log=log).wait(600)
    assert code == 0, (tmp_path / "log").read_text()[-3000:]
    shared, alone = pd.read_pickle(tmp_path / "history.pkl"), imitate(tmp_path, "one")  # noqa: F821
    assert set(shared) == {"epoch", "loss", "seconds", "pictures_per_second"} and len(shared) == 4
    np.testing.assert_allclose(shared["loss"], alone["loss"], rtol=1e-3)


@pytest.mark.slow
def test_two_workers_have_the_losses_of_one_also_when_one_of_them_is_killed(one, tmp_path):
    (tmp_path / "program.py").write_text(START)
    with open(tmp_path / "log", "w") as log:
        launcher = start("-m", "fag_utils.devices", 2, tmp_path / "program.py", "workers", tmp_path, log=log)
        try:
            end = time.time() + 600
            while not (tmp_path / "state.json").exists() or len(epochs(tmp_path)) < 2:
                assert time.time() < end and launcher.poll() is None, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.05)
            pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
            os.kill(pids[1], signal.SIGKILL)
            assert launcher.wait(600) == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            launcher.send_signal(signal.SIGINT)
            launcher.wait(20)
    assert len((tmp_path / "pids").read_text().split()) == 4, "both were started again"
    assert "all are started again" in (tmp_path / "log").read_text()
    same_curve(tmp_path, one)
    kept = epochs(tmp_path)
    assert len(kept) == 4
    assert not list(tmp_path.glob("epoch-*")) and not list(tmp_path.glob("unfinished*"))


def epochs(folder):
    return json.loads((folder / "state.json").read_text())["history"]


@pytest.mark.parametrize("number", [1, 2, 3, 5, 8, 64, 128])
def test_the_parts_of_a_batch_are_the_batch_with_its_composition(number):
    random = np.random.default_rng(0)
    people = pd.DataFrame({"age": random.integers(18, 66, 2000) * 1.0,
                           "region": random.choice(batches.REGIONS, 2000)})
    batch = batches.balanced(people, batches.FIRST_TABLE, steps=1)[0]
    bounds = devices.parts(len(batch), number)
    sizes = np.diff(bounds)
    assert sizes.min() >= 1 and sizes.max() - sizes.min() <= 1
    cut = np.concatenate([batch[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)])
    assert np.array_equal(cut, batch)


def test_what_can_not_be_shared_is_said(monkeypatch):
    with pytest.raises(ValueError, match="128 pictures .* can't be shared by 129"):
        devices.parts(128, 129)
    with pytest.raises(ValueError, match="one of .*'two'"):
        devices.strategy("two")
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match="TF_CONFIG on every machine"):
        devices.strategy("workers")
    assert course.is_first()
