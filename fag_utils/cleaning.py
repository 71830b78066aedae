"""A table in, the same table out, with a verdict for every picture. Nothing is deleted.

Each picture is looked at once, by several processes, in chunks whose results are written to disk:
a run that was killed goes on with the chunk it was at, and no more than a chunk of pictures is ever
held in memory. What needs all pictures at once (duplicates) is decided from a few bytes of each.
Instead of processes of this machine those of a Dask cluster can do it: see `clean`.
"""

import functools
import hashlib
import json
import multiprocessing
import os
import re
import threading
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image
from tqdm.auto import tqdm

from fag_utils import course, faces

MIN_SIDE = 32  # pixels: smaller pictures show too little
MIN_SHARPNESS = 12.0  # variance of the Laplacian of the crop at SHARPNESS_SIZE pixels
SHARPNESS_SIZE = 96
SECOND_FACE = 0.4  # a second face counts if its box is at least so large, compared with the largest
CROP_SIZE, CROP_MARGIN = 134, 1.2  # stored crops: the frame is 112 pixels wide, the rest is room around
CHUNK = 256

# The rules in the order in which they are asked: the first that applies is the reason.
RULES = {
    "unreadable": "the file can't be opened",
    "not a picture": "the file holds something else",
    "truncated": "the file breaks off",
    "too large": f"more than {faces.MAX_PIXELS / 1e6:.0f} megapixels",
    "too small": f"smaller than {MIN_SIDE} x {MIN_SIDE} pixels",
    "no face": "no face was found",
    "several faces": "there is more than one face, so the label may be another person's",
    "blurred": f"the variance of the crop's Laplacian is below {MIN_SHARPNESS:g}",
    "exact duplicate": "the same file occurs again",
    "near duplicate": "the same picture occurs again, saved in another way",
}
MEASURES = ["width", "height", "sharpness", "faces", "face_score", "crop",
            "verdict", "digest", "thumbnail", "seconds"]


class ChangedError(RuntimeError):
    """A picture is not what it was when the cleaning began, or a worker of a cluster would judge by other rules."""


class Job(NamedTuple):
    """A chunk of pictures to look at: all that a process, here or on another machine, needs to know."""

    rows: list  # (number in the table, path, set) of each picture
    stamps: list  # what `_stamp` said of each of them
    rules: str
    crops: str  # folder for the crops
    part: str  # file for the result, .csv or .parquet


def clean(table, work, processes=None, progress=True, client=None):
    """Look at every picture of a table and say whether to keep it, and if not, why.

    Parameters
    ----------
    table : the table of one or several sets (see `fag_utils.table`)
    work : folder for crops and unfinished work; calling again with the same table, files and rules
        goes on where the last call stopped, and returns at once when it had finished
    processes : how many look at pictures, default one a core
    progress : show a progress bar
    client : a `dask.distributed.Client`, such as Client("tcp://scheduler:8786") or Client(n_workers=4), whose workers
        look at the pictures in the place of `processes` (extra `cluster`). They need this package in the same
        version, and must see the pictures and `work` under the same paths. A worker that dies costs the chunk it
        was at, which another one does again. The table is the same, row for row.

    Returns
    -------
    DataFrame: the table, and for each row `width`, `height` (pixels), `sharpness` (variance of the
    Laplacian), `faces` (how many), `face_score`, `crop` (path of the stored crop, CROP_SIZE pixels with
    CROP_MARGIN around the frame, or missing), `same_as` (path of the kept picture that a duplicate
    repeats, or missing), `keep` (bool) and `reason` (missing where kept).
    `.attrs["pictures_per_second"]` is the speed at which they were looked at, in this call or before;
    `.attrs["folder"]` is where the unfinished work and the crops lie: a file for each chunk, Parquet from a
    cluster and CSV else, and one may go on with what the other began.
    OSError says when a disk is full or a folder can't be written, ChangedError when a picture changed meanwhile.

    In a program of your own call it below `if __name__ == "__main__":`, as all that starts processes.
    """
    work = Path(work)
    stamps = [_stamp(path) for path in table["path"]]
    folder = work / f"cleaning-{_key(table['path'], stamps)}"
    crops = folder / "crops"
    rows = table[["path", "set"]].reset_index(drop=True)
    parts = [folder / f"part-{start // CHUNK:06d}" for start in range(0, len(rows), CHUNK)]
    processes = len(client.nthreads()) if client else processes or os.cpu_count() or 1
    processes = min(processes, max(len(parts), 1))
    with course.writing(folder):
        crops.mkdir(parents=True, exist_ok=True)
        jobs = []
        for number, part in enumerate(parts):
            if not _finished(part):
                of = slice(number * CHUNK, (number + 1) * CHUNK)
                pictures = list(rows.iloc[of].itertuples(index=True, name=None))
                part = part.with_suffix(".parquet" if client else ".csv")
                jobs.append(Job(pictures, stamps[of], _rules(), str(crops), str(part)))
        with tqdm(total=sum(len(job.rows) for job in jobs), unit="picture", disable=not progress or not jobs) as bar:
            for n in _on_cluster(jobs, client) if client else _each(jobs, min(processes, len(jobs))):
                bar.update(n)
        course.tidy(folder)
    measured = [_read(_finished(part)) for part in parts]
    result = table.reset_index(drop=True)
    if measured:
        result = pd.concat([result, pd.concat(measured, ignore_index=True)[MEASURES]], axis=1)
    else:
        result = result.assign(**{name: None for name in MEASURES})
    names = [str(crops / name) if isinstance(name, str) else None for name in result["crop"]]
    result["crop"] = pd.Series(names, index=result.index, dtype="object")  # pandas 3 would make None a NaN
    speed = processes / result["seconds"].mean() if len(result) else float("nan")
    result = _judge(result)
    result.attrs |= {"pictures_per_second": speed, "folder": str(folder)}
    return result


def _stamp(path):
    """Size and date of a file as text, or "absent"."""
    try:
        stat = os.stat(path)
    except (OSError, TypeError, ValueError):
        return "absent"
    return f"{stat.st_size}|{stat.st_mtime_ns}"


def _rules():
    """All that what is seen in a picture depends on, as text."""
    return json.dumps([2, MIN_SIDE, SHARPNESS_SIZE, SECOND_FACE, CROP_SIZE, CROP_MARGIN, faces.FRAMES,
                       faces.FOUND.tolist(), faces.default_detector()[0]])


def _key(paths, stamps):
    """Changes when the pictures, their files or the rules change, so old work is never taken for new."""
    digest = hashlib.sha1(f"{_rules()} {CHUNK}".encode())
    for path, stamp in zip(paths, stamps, strict=True):
        digest.update(f"{path}|{stamp}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def _finished(part):
    """The file of a finished chunk (`part` lacks the suffix), or None."""
    return next((file for file in map(part.with_suffix, (".csv", ".parquet")) if file.exists()), None)


def _read(file):
    if file.suffix == ".parquet":
        return pd.read_parquet(file)
    texts = {name: str for name in ("crop", "verdict", "digest", "thumbnail")}
    return pd.read_csv(file, dtype=texts)


def _each(jobs, processes):
    """Run the chunks, in this process or in several; yields how many pictures each held."""
    if processes <= 1:
        yield from map(_chunk, jobs)
        return
    # "spawn": a forked TensorFlow or OpenCV can hang.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin_process) as pool:
        yield from pool.map(_chunk, jobs)


def _on_cluster(jobs, client):
    """The same on a Dask cluster, a task a chunk, in whatever order they come."""
    from dask.distributed import as_completed

    futures = client.map(_task, jobs, key=[f"clean-{uuid.uuid4().hex}" for _ in jobs], batch_size=64)
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        client.cancel(futures)


_alone = threading.Lock()  # the detectors' networks answer one thread at a time


def _task(job):
    with _alone:
        _one_thread()
        if Path(job.part).exists():  # Dask asks again when a worker died, which only held how many there were
            return len(job.rows)
        if not Path(job.crops).is_dir():
            raise FileNotFoundError(f"{job.crops} isn't there: every worker must see it, and the pictures, as here")
        if job.rules != _rules():
            raise ChangedError(f"a worker has other rules: here {job.rules}, there {_rules()}. Install the same "
                               "version of fag_utils, and the same detector, on all machines")
        return _chunk(job)


def _begin_process():
    """No process outlives its parent."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    _one_thread()


@functools.cache
def _one_thread():
    """One thread in each process: the processes share the cores already."""
    os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")
    course.quiet()
    try:
        import cv2

        cv2.setNumThreads(1)
    except ImportError:
        pass


def _chunk(job):
    measures = []
    for (index, path, set_name), stamp in zip(job.rows, job.stamps, strict=True):
        began = time.perf_counter()
        measures.append(_look(path, set_name, index, Path(job.crops)))
        measures[-1]["seconds"] = time.perf_counter() - began
        if _stamp(path) != stamp:
            raise ChangedError(f"{path} has changed since the cleaning began, or can't be seen from every machine: "
                               "call again when nothing writes to the set any more")
    measures = pd.DataFrame(measures).reindex(columns=MEASURES)
    part = Path(job.part)
    unfinished = course.unfinished(part)  # a killed process must not leave half a part behind
    try:
        if part.suffix == ".parquet":
            measures.to_parquet(unfinished, index=False)
        else:
            measures.to_csv(unfinished, index=False)
        unfinished.replace(part)
    finally:
        unfinished.unlink(missing_ok=True)
    return len(job.rows)


def _look(path, set_name, index, crops):
    """What there is to know of one picture: a dict of MEASURES."""
    try:
        data = Path(path).read_bytes()
        picture = faces.read_picture(data)
    except faces.PictureError as error:
        return {"verdict": error.reason.replace("_", " ")}
    except (OSError, TypeError, ValueError):
        return {"verdict": "unreadable"}
    height, width = picture.shape[:2]
    seen = {"width": width, "height": height, "digest": hashlib.sha1(data).hexdigest()}
    if min(width, height) < MIN_SIDE:
        return {**seen, "verdict": "too small"}
    found = faces.detect(picture, filled=set_name == "utkface" or None, thorough=False)
    area = found["width"] * found["height"]
    count = int((area >= SECOND_FACE * area.max()).sum()) if len(found) else 0
    seen |= {"faces": count, "face_score": found["face_score"].max() if len(found) else np.nan}
    if count == 0:
        return {**seen, "thumbnail": thumbnail(picture), "verdict": "no face"}
    if set_name in faces.FRAMES:  # aligned by its publisher, more steadily than we could
        crop = faces.crop_framed(picture, set_name, CROP_SIZE, CROP_MARGIN)
    else:
        crop = faces.crop_face(picture, found.iloc[0], CROP_SIZE, CROP_MARGIN)
    name = f"{index:07d}-{re.sub(r'[^A-Za-z0-9]+', '-', Path(path).stem)[:40]}.jpg"
    Image.fromarray(crop).save(crops / name, quality=95)
    verdict = "several faces" if count > 1 else None
    seen |= {"sharpness": sharpness(crop), "thumbnail": thumbnail(picture)}
    return {**seen, "crop": name, "verdict": verdict}


def sharpness(crop):
    """Variance of the Laplacian of a crop (stored size, uint8 RGB) at a fixed size, in grey levels squared.

    Pech-Pacheco et al. (2000). The size is fixed because sharpness depends on it: any picture looks
    sharp when it is small enough.
    """
    side = round(SHARPNESS_SIZE * CROP_MARGIN)
    grey = np.asarray(Image.fromarray(crop).convert("L").resize((side, side), Image.BILINEAR), "float64")
    edge = round(side * (1 - 1 / CROP_MARGIN) / 2)
    grey = grey[edge : side - edge, edge : side - edge]
    middle = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * middle
    return float(laplacian.var())


def thumbnail(picture):
    """9 x 8 grey pixels of a picture as hexadecimal text: enough to recognise the same picture again.

    By way of 200 x 200 pixels, so that the same picture saved smaller or larger falls into the same 72 cells.
    """
    image = Image.fromarray(picture).convert("L")
    if image.size != (200, 200):
        image = image.resize((200, 200), Image.BILINEAR)
    return np.asarray(image.resize((9, 8), Image.BOX, reducing_gap=3)).tobytes().hex()


def _judge(table):
    """Fill `keep`, `reason` and `same_as` from the measures and from what needs several rows at once."""
    reason, same_as = table["reason"].copy(), pd.Series(None, index=table.index, dtype="object")
    verdict = table["verdict"].where(table["verdict"].notna(), None)
    reason = reason.where(reason.notna(), verdict)
    blurred = reason.isna() & (table["sharpness"] < MIN_SHARPNESS)
    reason[blurred] = "blurred"
    # Of equal pictures one is kept, and rather in the test and validation folds than in training.
    rank = table["fold"].map({"test": 0, "validation": 1}).fillna(2)
    for name, column, find in [("exact duplicate", "digest", _exact_duplicates),
                               ("near duplicate", "thumbnail", _near_duplicates)]:
        order = rank[reason.isna()].sort_values(kind="stable").index
        first = find(table.loc[order, column])
        reason[first.index] = name
        same_as[first.index] = table.loc[first, "path"].to_numpy()
    reason = reason.astype("object").where(reason.notna(), None)
    table = table.drop(columns=["verdict", "digest", "thumbnail", "seconds"])
    return table.assign(same_as=same_as, keep=reason.isna(), reason=reason)


def _exact_duplicates(digests):
    """Series: index label of each repeated digest -> label of its first occurrence."""
    first = pd.Series(digests.index, digests.index).groupby(digests).transform("first")
    return first[digests.duplicated()]


def _near_duplicates(thumbnails, max_bits=3, max_difference=3.0):
    """Series: index label of each picture that repeats an earlier one -> label of the first such picture.

    thumbnails : Series of `thumbnail` texts, in order.

    Two pictures are the same when their difference hashes (is each pixel brighter than its neighbour?
    64 bits) differ in at most `max_bits` and their thumbnails by at most `max_difference` grey levels
    on average. Of four 16-bit parts of two such hashes one at least is equal: so only pictures that
    share a part are compared, and the time grows with the pictures, not with their square.
    """
    labels = thumbnails.index.to_numpy()
    pixels = np.array([thumbnail_pixels(text) for text in thumbnails], "uint8").reshape(-1, 8, 9)
    bits = difference_hash(pixels)
    pixels = pixels.reshape(len(labels), 72).astype("float32")
    first_of = np.arange(len(labels))
    for part in range(4):
        code = bits[:, 16 * part : 16 * part + 16] @ (1 << np.arange(16))
        order = np.argsort(code, kind="stable")
        for step in range(1, len(order)):  # each picture and the one `step` places further in this order
            one, other = order[:-step], order[step:]
            shared = code[one] == code[other]
            if not shared.any():
                break
            one, other = one[shared], other[shared]
            near = (bits[one] != bits[other]).sum(axis=1) <= max_bits
            one, other = one[near], other[near]
            same = np.abs(pixels[one] - pixels[other]).mean(axis=1) <= max_difference
            np.minimum.at(first_of, other[same], one[same])
    for i in range(len(labels)):  # a picture that repeats a repetition repeats its first picture
        first_of[i] = first_of[first_of[i]]
    repeated = first_of != np.arange(len(labels))
    return pd.Series(labels[first_of[repeated]], labels[repeated])


def thumbnail_pixels(text):
    """The 8 x 9 grey levels (uint8) of a thumbnail's text."""
    return np.frombuffer(bytes.fromhex(text), "uint8").reshape(8, 9)


def difference_hash(thumbnails):
    """64 bits of each thumbnail (..., 8, 9): is a pixel brighter than its left neighbour? bool (..., 64)."""
    thumbnails = np.asarray(thumbnails)
    return (thumbnails[..., 1:] > thumbnails[..., :-1]).reshape(*thumbnails.shape[:-2], 64)


def summary(cleaned, by="reason"):
    """How many pictures each rule sets aside, by set: a DataFrame of counts, kept pictures last."""
    label = cleaned["reason"].where(~cleaned["keep"], "kept")
    if by == "reason":
        counts = pd.crosstab(label, cleaned["set"])
        order = [name for name in RULES if name in counts.index]
        rest = [name for name in counts.index if name not in RULES and name != "kept"]
        return counts.loc[[*rest, *order, *(["kept"] if "kept" in counts.index else [])]]
    return pd.crosstab(cleaned[by], label)
