"""Where the landmarks of a found face lie in the frame: what `faces.FOUND` holds.

    python tools/found.py FOLDER [PICTURES]    the folder with the data sets; 1200 training pictures of UTKFace

Each picture is set into a scene, where it is known how it should be cut, and its face is looked for. Printed are the
medians of the five landmarks in the frame, and the same drawn apart until the crop of the median face is the frame:
least squares take some of the landmarks' scatter for size. Pictures of no other fold are touched.
"""

import sys
from pathlib import Path

import numpy as np

from fag_utils import datasets, evaluation, faces, labels


def landmarks(table, seed=0):
    """Landmarks of the faces that are found, in the frame, 0..1: (n, 5, 2)."""
    places = []
    for number, path in enumerate(table["path"]):
        photo, (a, b) = evaluation.scene_and_place(faces.read_picture(path), [seed, number])
        found = faces.detect(photo)
        if len(found):
            z = (faces.points_of(evaluation.main_person(found, photo.shape)) @ [1, 1j] - b) / a
            places.append(np.stack([z.real, z.imag], axis=1))
    return np.array(places)


def spread(places):
    """The medians, and the medians drawn apart so that the median crop is as wide as the frame: two of (5, 2)."""
    medians = np.median(places, axis=0)
    too_wide = np.median([1 / abs(faces.similarity(points, target=medians)[0]) for points in places])
    middle = medians.mean(axis=0)
    return medians, middle + too_wide * (medians - middle)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    people = datasets.read("utkface", Path(sys.argv[1]) / "utkface")
    people = people[(people["fold"] == "train") & people["reason"].isna()
                    & people["age"].between(labels.MIN_AGE, labels.MAX_AGE)]
    people = people.sample(int(sys.argv[2]) if len(sys.argv) > 2 else 1200, random_state=0)
    found = landmarks(people)
    for name, points in zip(("medians", "drawn apart"), spread(found), strict=True):
        print(f"{name}, of {len(found)} faces:", points.round(3).tolist())
