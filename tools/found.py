"""Where the landmarks of a found face lie in the frame: what `faces.FOUND` holds.

    python tools/found.py FOLDER [PICTURES]    the folder with the data sets; 1200 training pictures of UTKFace

Each picture is set into a scene, where it is known how it should be cut, and its face is looked for. Printed are the
medians of the five landmarks in the frame, and the same drawn apart until the crop of the median face is the frame:
least squares take some of the landmarks' scatter for size. Pictures of no other fold are touched.
"""

import sys
from pathlib import Path

import numpy as np

from fag_utils import datasets, evaluation, faces


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
    people = evaluation.adults(people[people["fold"] == "train"])
    people = people.sample(int(sys.argv[2]) if len(sys.argv) > 2 else 1200, random_state=0)
    found = evaluation.found_landmarks(people)
    for name, points in zip(("medians", "drawn apart"), spread(found), strict=True):
        print(f"{name}, of {len(found)} faces:", points.round(3).tolist())
