"""A verdict for every picture: the planted faults, duplicates, and work that survives being killed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

from fag_utils import cleaning, datasets, faces, table
from fag_utils.datasets import classroom

# The reason that each planted fault must get; None: not a fault, the picture is kept.
EXPECTED = {fault: fault for fault in classroom.FAULTS} | {
    "grey": None, "CMYK": None, "rotated": None, "malformed name": "malformed name: no race"}
CHUNK = 8


@pytest.fixture(scope="module", autouse=True)
def small_chunks():
    """Chunks of a few pictures, so that a small set has many."""
    before, cleaning.CHUNK = cleaning.CHUNK, CHUNK
    yield
    cleaning.CHUNK = before


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The table of a small classroom set."""
    folder = classroom.write(tmp_path_factory.mktemp("set") / "data", {"utkface": 72}, seed=3)
    return datasets.read("utkface", folder / "utkface")


@pytest.fixture(scope="module")
def faults(rows):
    folder = Path(rows["path"][0]).parents[2]
    listed = pd.read_csv(folder / "faults.csv")
    return {str(folder / path): fault for path, fault in zip(listed["path"], listed["fault"], strict=True)}


@pytest.fixture(scope="module")
def cleaned(rows, tmp_path_factory):
    return cleaning.clean(rows, tmp_path_factory.mktemp("work"), processes=1, progress=False)


def same(one, other):
    """Two cleaned tables say the same, wherever their crops lie."""
    def name(crop):
        return Path(crop).name if isinstance(crop, str) else ""

    one, other = (t.assign(crop=[name(crop) for crop in t["crop"]]) for t in (one, other))
    pd.testing.assert_frame_equal(one, other)


def small_table(paths, set_name="photos", **columns):
    return table.make([{"path": str(path), "fold": "train"} for path in paths], set_name).assign(**columns)


# --- verdicts


@pytest.mark.parametrize("fault", classroom.FAULTS)
def test_every_planted_fault_gets_its_reason(cleaned, faults, fault):
    planted = cleaned[cleaned["path"].map(faults) == fault]
    assert len(planted) >= 3
    if fault in ("exact duplicate", "near duplicate"):  # one of each pair goes, whichever lies in training
        pairs = set(planted["path"]) | set(planted["same_as"].dropna())
        planted = cleaned[cleaned["path"].isin(pairs) | cleaned["same_as"].isin(pairs)]
        planted = planted[~planted["keep"]]
        assert len(planted) >= 3
    if EXPECTED[fault] is None:
        assert planted["keep"].all(), planted["reason"].tolist()
    else:
        assert (planted["reason"] == EXPECTED[fault]).mean() >= (0.6 if fault == "several faces" else 1)
        assert not planted["keep"].any()


def test_faultless_pictures_are_kept(cleaned, faults):
    faultless = cleaned[~cleaned["path"].isin(faults)]
    pair = cleaned["same_as"].dropna()
    faultless = faultless[~faultless["same_as"].isin(faults) & ~faultless["path"].isin(pair)]
    assert len(faultless) > 25
    assert faultless["keep"].mean() >= 0.95, faultless["reason"].value_counts()


def test_nothing_is_deleted_and_nothing_lost(cleaned, rows):
    assert len(cleaned) == len(rows)
    assert cleaned["path"].tolist() == rows["path"].tolist()
    assert all(os.path.exists(path) for path in rows["path"])
    for column in rows.columns.drop("reason"):
        pd.testing.assert_series_equal(cleaned[column], rows[column])
    assert cleaned["keep"].dtype == bool
    assert (cleaned["keep"] == cleaned["reason"].isna()).all()


def test_measures_and_crops_of_what_is_kept(cleaned):
    kept = cleaned[cleaned["keep"]]
    assert (kept["faces"] == 1).all()
    assert (kept[["width", "height"]] >= cleaning.MIN_SIDE).all(axis=None)
    assert (kept["sharpness"] >= cleaning.MIN_SHARPNESS).all()
    assert kept["face_score"].between(0.5, 1).all()
    for path in kept["crop"]:
        assert faces.read_picture(path).shape == (cleaning.CROP_SIZE, cleaning.CROP_SIZE, 3)
    assert cleaned.attrs["pictures_per_second"] > 0


def test_every_reason_is_explained(cleaned):
    known = set(cleaning.RULES)
    assert {r for r in cleaned["reason"].dropna() if not r.startswith("malformed name")} <= known


def test_summary_counts_every_picture_once(cleaned):
    counts = cleaning.summary(cleaned)
    assert counts.to_numpy().sum() == len(cleaned)
    assert counts.index[-1] == "kept"
    assert counts.loc["kept", "utkface"] == cleaned["keep"].sum()
    by_gender = cleaning.summary(cleaned, by="male")
    assert by_gender.to_numpy().sum() == cleaned["male"].notna().sum()


def test_rows_without_a_file_and_odd_files(tmp_path):
    (tmp_path / "empty.jpg").touch()
    Image.new("RGB", (31, 200)).save(tmp_path / "narrow.png")
    Image.new("RGB", (200, 200), "grey").save(tmp_path / "grey.png")
    paths = ["absent.jpg", "empty.jpg", "narrow.png", "grey.png"]
    result = cleaning.clean(small_table([tmp_path / path for path in paths]), tmp_path / "w", 1, progress=False)
    assert result["reason"].tolist() == ["unreadable", "not a picture", "too small", "no face"]
    assert result["crop"].isna().all()


def test_a_reason_of_the_reader_stays(tmp_path):
    rows = table.make([{"path": "list.txt:7", "reason": "broken line in list.txt"}, {"reason": "no path"}], "photos")
    result = cleaning.clean(rows, tmp_path, 1, progress=False)
    assert result["reason"].tolist() == ["broken line in list.txt", "no path"]


def test_an_empty_table_comes_back_empty(tmp_path, cleaned):
    result = cleaning.clean(table.make([], "photos"), tmp_path, progress=False)
    assert len(result) == 0
    assert list(result.columns) == list(cleaned.columns)
    assert cleaning.summary(result).empty


def test_a_photograph_is_cropped_by_its_landmarks_and_one_face_of_two_is_too_many(tmp_path):
    photo = data.astronaut()
    Image.fromarray(photo).save(tmp_path / "one.png")
    Image.fromarray(np.hstack([photo, photo[:, ::-1]])).save(tmp_path / "two.png")
    result = cleaning.clean(small_table([tmp_path / "one.png", tmp_path / "two.png"]), tmp_path, 1, progress=False)
    assert result["faces"].tolist() == [1, 2]
    assert result["reason"].tolist() == [None, "several faces"]
    face = faces.detect(photo).iloc[0]
    crop = faces.crop_face(photo, face, cleaning.CROP_SIZE, cleaning.CROP_MARGIN)
    assert np.abs(faces.read_picture(result["crop"][0]).astype(int) - crop).mean() < 5


# --- sharpness


def test_sharpness_falls_with_blur_and_does_not_depend_on_the_size_of_the_picture():
    from PIL import ImageFilter

    photo = Image.fromarray(data.astronaut()[:220, 120:340])
    blurred = [photo.filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2, 4, 8)]
    values = [cleaning.sharpness(stored(image)) for image in blurred]
    assert values == sorted(values, reverse=True)
    assert values[0] > cleaning.MIN_SHARPNESS > values[-1]
    larger = photo.resize((880, 880), Image.Resampling.BICUBIC)
    assert cleaning.sharpness(stored(larger)) == pytest.approx(values[0], rel=0.25)
    assert cleaning.sharpness(np.full((134, 134, 3), 80, "uint8")) == 0


def stored(image):
    return faces.crop_framed(np.asarray(image), "utkface", cleaning.CROP_SIZE)


# --- duplicates


def hashes(pictures):
    return pd.Series([cleaning.thumbnail(picture) for picture in pictures])


def resaved(picture, size, quality):
    import io

    file = io.BytesIO()
    Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
    return faces.read_picture(file.getvalue())


@pytest.fixture(scope="module")
def people():
    """300 different classroom faces."""
    pictures = classroom.sample(300, seed=11, size=96)
    return list(pictures[0] if isinstance(pictures, tuple) else pictures)


def test_different_people_are_never_taken_for_duplicates(people):
    assert len(cleaning._near_duplicates(hashes(people))) == 0


@pytest.mark.parametrize("size, quality", [((96, 96), 30), ((60, 60), 80), ((200, 200), 70)])
def test_the_same_picture_saved_in_another_way_is_recognised(people, size, quality):
    again = [resaved(picture, size, quality) for picture in people[:100]]
    found = cleaning._near_duplicates(hashes([*people, *again]))
    assert (found.index - found >= 300).all() and (found.index - 300 == found).all(), "each finds its own"
    assert len(found) >= 97


def test_a_row_of_copies_leaves_one(people):
    copies = [people[0], *(resaved(people[0], (96, 96), quality) for quality in (90, 80, 70))]
    found = cleaning._near_duplicates(hashes([*people[1:20], *copies]))
    assert found.to_dict() == {20: 19, 21: 19, 22: 19}


def test_comparing_by_parts_finds_what_comparing_all_finds():
    """Against the plain comparison of every pair, on thumbnails that are often nearly equal."""
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (40, 8, 9))
    pixels = (base[rng.integers(0, 40, 300)] + rng.integers(-3, 4, (300, 8, 9))).clip(0, 255).astype("uint8")
    bits = cleaning.difference_hash(pixels)
    apart = (bits[:, None] != bits[None]).sum(axis=-1)
    grey = np.abs(pixels[:, None].astype(float) - pixels[None]).mean(axis=(-2, -1))
    plain = {j for i in range(300) for j in range(i + 1, 300) if apart[i, j] <= 3 and grey[i, j] <= 3}
    found = cleaning._near_duplicates(pd.Series([p.tobytes().hex() for p in pixels]))
    assert set(found.index) == plain and len(plain) > 20


def test_of_equal_pictures_the_one_in_the_test_or_validation_fold_stays(tmp_path):
    face = data.astronaut()[:260, 100:360]
    for name in "abc":
        Image.fromarray(face).save(tmp_path / f"{name}.png")
    Image.fromarray(face).save(tmp_path / "d.jpg", quality=80)
    rows = small_table([tmp_path / name for name in ("a.png", "b.png", "c.png", "d.jpg")],
                       fold=["train", "validation", "train", "train"])
    result = cleaning.clean(rows, tmp_path, 1, progress=False)
    assert result["reason"].tolist() == ["exact duplicate", None, "exact duplicate", "near duplicate"]
    assert set(result["same_as"].dropna()) == {str(tmp_path / "b.png")}


def test_no_duplicate_is_kept_across_folds(cleaned, faults):
    """After cleaning, a kept picture has no equal in any fold."""
    kept = cleaned[cleaned["keep"]]
    thumbnails = hashes(faces.read_picture(path) for path in kept["path"])
    assert len(cleaning._near_duplicates(thumbnails)) == 0


# --- work that goes on


def test_the_second_call_returns_at_once_and_says_the_same(cleaned, rows):
    began = time.process_time()
    again = cleaning.clean(rows, Path(cleaned.attrs["folder"]).parent, processes=1, progress=False)
    assert time.process_time() - began < 1.5
    same(again, cleaned)
    assert again.attrs == cleaned.attrs


def test_a_changed_file_is_looked_at_again(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(data.astronaut()).save(path)
    rows = small_table([path])
    first = cleaning.clean(rows, tmp_path / "w", progress=False)
    assert first["keep"].all()
    path.write_bytes(path.read_bytes()[:2000])
    second = cleaning.clean(rows, tmp_path / "w", progress=False)
    assert second["reason"].tolist() == ["truncated"]
    assert second.attrs["folder"] != first.attrs["folder"]


def test_only_the_missing_part_is_done_again(cleaned, rows, tmp_path):
    folder = Path(cleaned.attrs["folder"])
    shutil.copytree(folder, tmp_path / folder.name)
    parts = sorted((tmp_path / folder.name).glob("part-*.csv"))
    before = {part: part.stat().st_mtime_ns for part in parts}
    parts[-1].unlink()
    same(cleaning.clean(rows, tmp_path, progress=False), cleaned)
    changed = [part for part in parts if part.stat().st_mtime_ns != before[part]]
    assert changed == parts[-1:]


PROGRAM = textwrap.dedent("""\
    import sys
    import pandas as pd
    from fag_utils import cleaning
    if __name__ == "__main__":
        cleaning.CHUNK = int(sys.argv[3])
        cleaning.clean(pd.read_pickle(sys.argv[1]), sys.argv[2], processes=2, progress=False)
    """)


def test_killed_and_called_again_gives_the_same_table_and_leaves_no_process(cleaned, rows, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    rows.to_pickle(tmp_path / "rows.pkl")
    work = tmp_path / "work"
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "rows.pkl"), str(work), str(CHUNK)]
    environment = {**os.environ, "PYTHONPATH": str(Path(cleaning.__file__).parents[1])}
    log = open(tmp_path / "log", "w")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_for(lambda: len(list(work.glob("*/part-*.csv"))) >= 2 or process.poll() is not None)
        assert process.poll() is None, (tmp_path / "log").read_text()[-2000:]
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    wait_for(lambda: not members(process.pid), 30)
    done = len(list(work.glob("*/part-*.csv")))
    assert 2 <= done < -(-len(rows) // CHUNK), "killed half-way"
    same(cleaning.clean(rows, work, processes=2, progress=False), cleaned)  # and two processes say what one says
    ours, theirs = (Path(t) / "crops" for t in (cleaned.attrs["folder"], next(work.glob("cleaning-*"))))
    for crop in ours.iterdir():
        assert crop.read_bytes() == (theirs / crop.name).read_bytes()


def wait_for(condition, seconds=240):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, "waited in vain"
        time.sleep(0.05)


def members(group):
    """Processes of a process group that are still there, read from /proc where there is one."""
    def group_of(stat):
        try:
            state, _, own_group = stat.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            return None
        return None if state == "Z" else int(own_group)

    return [stat for stat in Path("/proc").glob("[0-9]*/stat") if group_of(stat) == group]


# --- many machines


NO_DASK = "the extra `cluster` (dask, distributed, pyarrow) is not installed"


def test_two_workers_of_a_cluster_say_what_one_process_says_and_a_killed_one_costs_its_chunk(cleaned, rows, tmp_path):
    distributed = pytest.importorskip("distributed", reason=NO_DASK)
    pytest.importorskip("pyarrow", reason=NO_DASK)
    cluster = distributed.LocalCluster(n_workers=0, host="127.0.0.1", protocol="tcp://", dashboard_address=None)
    environment = {**os.environ, "PYTHONPATH": str(Path(cleaning.__file__).parents[1])}
    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address, "--no-nanny",
               "--no-dashboard", "--nthreads", "1", "--local-directory", str(tmp_path)]
    log = open(tmp_path / "log", "w")
    workers = [subprocess.Popen(command, env=environment, stdout=log, stderr=log) for _ in range(2)]
    finished = {}  # when each chunk was written, of those that were there when a worker was killed

    def kill_one():
        wait_for(lambda: len(list(tmp_path.glob("*/part-*.parquet"))) >= 3 or stop.is_set())
        workers[0].kill()
        finished.update({part: part.stat().st_mtime_ns for part in tmp_path.glob("*/part-*.parquet")})

    stop, killer = threading.Event(), threading.Thread(target=kill_one)
    try:
        with distributed.Client(cluster.scheduler_address) as client:
            client.wait_for_workers(2, timeout=120)
            killer.start()
            result = cleaning.clean(rows, tmp_path, progress=False, client=client)
        same(result, cleaned)
        killer.join()
        assert workers[0].wait(10) == -signal.SIGKILL and workers[1].poll() is None
        assert 3 <= len(finished) < -(-len(rows) // CHUNK), "killed half-way"
        assert all(part.stat().st_mtime_ns == moment for part, moment in finished.items())
        assert not list(tmp_path.glob("*/*.unfinished"))
    finally:
        stop.set()
        for worker in workers:
            worker.kill()
        cluster.close()
    # What a cluster began another process finishes, without looking again at what is there.
    next(iter(finished)).unlink()
    same(cleaning.clean(rows, tmp_path, processes=1, progress=False), cleaned)
    assert len(list(tmp_path.glob("*/part-*.csv"))) == 1


def test_a_worker_with_other_rules_or_another_disk_is_refused(rows, tmp_path, monkeypatch):
    job = cleaning.Job([], [], cleaning._rules(), str(tmp_path), str(tmp_path / "part-000000.parquet"))
    monkeypatch.setattr(cleaning, "_one_thread", lambda: None)
    with pytest.raises(FileNotFoundError, match="every worker must see it"):
        cleaning._task(job._replace(crops=str(tmp_path / "elsewhere")))
    monkeypatch.setattr(cleaning, "MIN_SIDE", 33)
    with pytest.raises(cleaning.ChangedError, match="other rules.*same version"):
        cleaning._task(job)


# --- disks and folders


def test_a_picture_that_changes_while_it_is_cleaned_stops_the_work(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        Image.fromarray(data.astronaut()).save(path)
    look = cleaning._look

    def meanwhile(path, *rest):
        if Path(path) == paths[1]:  # somebody copies another version of the set over it
            Image.fromarray(data.astronaut()[:, ::-1]).save(path)
        return look(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(cleaning, "_look", meanwhile)
        with pytest.raises(cleaning.ChangedError, match="b.png has changed"):
            cleaning.clean(small_table(paths), tmp_path / "w", 1, progress=False)
    assert not list(tmp_path.glob("w/*/part*"))
    again = cleaning.clean(small_table(paths), tmp_path / "w", 1, progress=False)
    assert again["keep"].all()  # the two pictures are no duplicates now


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_full_disk_is_said_plainly_and_leaves_no_half_chunk(tmp_path):
    Image.fromarray(data.astronaut()).save(tmp_path / "a.png")
    rows = small_table([tmp_path / "a.png"])
    folder = Path(cleaning.clean(rows.head(0), tmp_path / "w", 1, progress=False).attrs["folder"])
    folder = folder.with_name(f"cleaning-{cleaning._key(rows['path'], [cleaning._stamp(tmp_path / 'a.png')])}")
    (folder / "crops").mkdir(parents=True)
    (folder / "crops" / "0000000-a.jpg").symlink_to("/dev/full")
    with pytest.raises(OSError, match="disk is full.*the next call goes on") as problem:
        cleaning.clean(rows, tmp_path / "w", 1, progress=False)
    assert problem.value.filename == str(folder)
    assert not list(folder.glob("part*"))
    (folder / "crops" / "0000000-a.jpg").unlink(missing_ok=True)
    assert cleaning.clean(rows, tmp_path / "w", 1, progress=False)["keep"].all()


@pytest.mark.skipif(sys.platform == "win32", reason="folders are protected in another way")
def test_the_data_may_be_read_only_and_the_work_folder_may_not():
    folder = Path(tempfile.mkdtemp())  # not in tmp_path, where other users see nothing
    user = os.geteuid()
    try:
        (folder / "data").mkdir()
        Image.fromarray(data.astronaut()).save(folder / "data" / "a.png")
        rows = small_table([folder / "data" / "a.png"])
        (folder / "work").mkdir()
        (folder / "work").chmod(0o777)
        for protected in (folder / "data", folder):
            protected.chmod(0o555)
        if user == 0:
            os.seteuid(65534)  # nothing is read-only for root
        assert cleaning.clean(rows, folder / "work", 1, progress=False)["keep"].all()
        with pytest.raises(OSError, match="nothing can be written here.*FAG_WORK"):
            cleaning.clean(rows, folder / "data" / "work", 1, progress=False)
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)


# --- real pictures


def test_real_pictures(fag_data, tmp_path):
    rows = datasets.read("utkface", fag_data / "utkface")
    rows = rows[rows["fold"] == "validation"].iloc[:400:20].reset_index(drop=True)
    first = Path(rows["path"][0])
    shutil.copy(first, tmp_path / "copy.jpg")
    Image.open(rows["path"][1]).resize((160, 160)).save(tmp_path / "smaller.jpg", quality=75)
    extra = small_table([tmp_path / "copy.jpg", tmp_path / "smaller.jpg"], "utkface")
    result = cleaning.clean(pd.concat([rows, extra], ignore_index=True), tmp_path, 1, progress=False)
    assert result["reason"].tolist()[-2:] == ["exact duplicate", "near duplicate"]
    assert result["same_as"].tolist()[-2:] == rows["path"].tolist()[:2]
    assert result["keep"][: len(rows)].mean() >= 0.9
