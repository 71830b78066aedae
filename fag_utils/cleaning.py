"""A table in, the same table out, with a verdict for every picture. Nothing is deleted.

Each picture is looked at once, by several processes, in chunks whose results are written to disk:
a run that was killed goes on with the chunk it was at, and no more than a chunk of pictures is ever
held in memory. What needs all pictures at once (duplicates) is decided from a few bytes of each.
"""

import hashlib
import json
import multiprocessing
import os
import re
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

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


def clean(table, work, processes=None, progress=True):
    """Look at every picture of a table and say whether to keep it, and if not, why.

    Parameters
    ----------
    table : the table of one or several sets (see `fag_utils.table`)
    work : folder for crops and unfinished work; calling again with the same table, files and rules
        goes on where the last call stopped, and returns at once when it had finished
    processes : how many look at pictures, default one a core
    progress : show a progress bar

    Returns
    -------
    DataFrame: the table, and for each row `width`, `height` (pixels), `sharpness` (variance of the
    Laplacian), `faces` (how many), `face_score`, `crop` (path of the stored crop, CROP_SIZE pixels with
    CROP_MARGIN around the frame, or missing), `same_as` (path of the kept picture that a duplicate
    repeats, or missing), `keep` (bool) and `reason` (missing where kept).
    `.attrs["pictures_per_second"]` is the speed at which they were looked at, in this call or before;
    `.attrs["folder"]` is where the unfinished work and the crops lie.

    In a program of your own call it below `if __name__ == "__main__":`, as all that starts processes.
    """
    work = Path(work)
    folder = work / f"cleaning-{_key(table)}"
    crops = folder / "crops"
    crops.mkdir(parents=True, exist_ok=True)
    rows = table[["path", "set"]].reset_index(drop=True)
    jobs, parts = [], []
    for start in range(0, len(rows), CHUNK):
        part = folder / f"part-{start // CHUNK:06d}.csv"
        parts.append(part)
        if not part.exists():
            chunk = rows.iloc[start : start + CHUNK]
            jobs.append((list(chunk.itertuples(index=True, name=None)), str(crops), str(part)))
    processes = min(processes or os.cpu_count() or 1, max(len(parts), 1))
    with tqdm(total=sum(len(j[0]) for j in jobs), unit="picture", disable=not progress or not jobs) as bar:
        for n in _each(jobs, min(processes, len(jobs))):
            bar.update(n)
    measured = [pd.read_csv(part, dtype={"crop": str, "verdict": str, "digest": str, "thumbnail": str})
                for part in parts]
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


def _key(table):
    """Changes when the pictures, their files or the rules change, so old work is never taken for new."""
    digest = hashlib.sha1()
    rules = [2, MIN_SIDE, SHARPNESS_SIZE, SECOND_FACE, CROP_SIZE, CROP_MARGIN, CHUNK, faces.FRAMES]
    digest.update(json.dumps([*rules, faces.default_detector()[0]]).encode())
    for path in table["path"]:
        try:
            stat = os.stat(path)
            digest.update(f"{path}|{stat.st_size}|{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except (OSError, TypeError, ValueError):
            digest.update(f"{path}|absent\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:12]


def _each(jobs, processes):
    """Run the chunks, in this process or in several; yields how many pictures each held."""
    if processes <= 1:
        yield from map(_chunk, jobs)
        return
    # "spawn": a forked TensorFlow or OpenCV can hang.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin_process) as pool:
        yield from pool.map(_chunk, jobs)


def _begin_process():
    """One thread in each process: the processes share the cores already. No process outlives its parent."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()
    os.environ.update(TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")
    course.quiet()
    try:
        import cv2

        cv2.setNumThreads(1)
    except ImportError:
        pass


def _chunk(job):
    rows, crops, part = job
    measures = []
    for index, path, set_name in rows:
        began = time.perf_counter()
        measures.append(_look(path, set_name, index, Path(crops)))
        measures[-1]["seconds"] = time.perf_counter() - began
    measures = pd.DataFrame(measures)
    measures = measures.reindex(columns=MEASURES)
    unfinished = Path(f"{part}.{os.getpid()}")  # a killed process must not leave half a part behind
    measures.to_csv(unfinished, index=False)
    unfinished.replace(part)
    return len(rows)


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
