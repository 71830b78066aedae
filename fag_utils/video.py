"""Faces in a video: followed from frame to frame, with estimates that are averaged and so do not flicker."""

import os
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fag_utils import faces
from fag_utils.predictor import Look, load_predictor


class VideoError(ValueError):
    """A video that can't be read; the text says what to do."""


def frames(source):
    """The frames of a video, one after the other: arrays (height, width, 3) of uint8 RGB.

    source : path of a video file, or the number of a camera (0 is the first). Needs OpenCV, 4 or 5.

    Raises VideoError where nothing can be read.
    """
    import cv2

    camera = isinstance(source, int)
    name = f"camera {source}" if camera else f"'{os.fspath(source)}'"
    capture = cv2.VideoCapture(source if camera else os.fspath(source))
    try:
        good, frame = capture.read()
        if not good:
            advice = "Is it connected, and free?" if camera else "Check the path, or save it as MP4 or AVI."
            raise VideoError(f"{name} gives no picture. {advice}")
        while good:
            yield np.ascontiguousarray(frame[..., ::-1])
            good, frame = capture.read()
    finally:
        capture.release()


@dataclass
class Person:
    """Somebody who is being followed.

    number : 1, 2, ... in the order of coming
    face : a row of `faces.detect`, as it was last seen
    age, gender : means of what the network believed of the face in about the last `memory` frames (see `Follower`)
    seen : in how many frames
    missed : how many times in a row it was looked for and not found
    """

    number: int
    face: pd.Series
    age: np.ndarray
    gender: np.ndarray
    seen: int
    missed: int = 0


class Follower:
    """Follow the faces of a video, frame by frame.

    The detector looks at every `every`-th frame; in between, mtcnn's third network finds the landmarks near where
    they were, which takes a tenth of the time. What the network believes of a face is averaged over the frames:
    over all at first, later over about the last `memory`.

    predictor : a Predictor; None loads the default one
    every, memory : in frames, as said
    min_score : faces the detector is less sure of are left out (0..1)
    """

    def __init__(self, predictor=None, every=5, memory=60, min_score=0.5):
        self.predictor = predictor or load_predictor()
        self.every, self.memory, self.min_score = every, memory, min_score
        self.people, self._frame, self._numbers = [], 0, 0

    def step(self, frame):
        """The people in the next frame, uint8 RGB (h, w, 3).

        Returns a DataFrame, a row a person: person (a number that stays), the columns of `predict_photo`, where
        age, interval and gender are the averaged ones, and age_now, what this frame alone would say.
        """
        if self._frame % self.every == 0:
            self._match(faces.detect(frame, self.min_score, thorough=False))
        else:
            self._move(frame)
        self._frame += 1
        here = [person for person in self.people if not person.missed]
        found = pd.DataFrame([person.face for person in here], columns=faces.BOX_COLUMNS + faces.LANDMARK_COLUMNS)
        look = Look(frame, found.reset_index(drop=True), self.predictor.crops(frame, found), [])
        now = self.predictor.probabilities_of(look)
        for person, age, gender in zip(here, now["age"], now["gender"], strict=True):
            person.seen += 1
            weight = max(1 / person.seen, 1 / self.memory)
            person.age = person.age + weight * (age - person.age)
            person.gender = person.gender + weight * (gender - person.gender)
        mean = {"age": np.array([person.age for person in here]).reshape(now["age"].shape),
                "gender": np.array([person.gender for person in here]).reshape(now["gender"].shape)}
        table = self.predictor.people(look, mean).assign(age_now=self.predictor.ages(now["age"]))
        table.insert(0, "person", [person.number for person in here])
        return table

    def _match(self, found):
        """Who of those followed is who of those found; the others found are new."""
        rows = dict(found.iterrows())
        for person in self.people:
            near = {i: faces.overlap(person.face, face) for i, face in rows.items()}
            best = max(near, key=near.get, default=None)
            if best is not None and near[best] > 0.3:
                person.face, person.missed = rows.pop(best), 0
            else:
                person.missed += 1
        for face in rows.values():
            self._numbers += 1
            self.people.append(Person(self._numbers, face, np.zeros(()), np.zeros(()), 0))
        self.people = [person for person in self.people if person.missed < 5]

    def _move(self, frame):
        for person in self.people:
            if not person.missed:
                person.face, sure = faces.follow(frame, person.face)
                person.missed = int(sure < 0.3)


def predict_video(source, predictor=None, limit=None, **follower):
    """Follow the faces of a video file or camera.

    Parameters
    ----------
    source : what `frames` takes, or any list of frames, uint8 RGB (h, w, 3)
    predictor : a Predictor; None loads the default one
    limit : frames to read, None for all (a camera never ends)
    follower : `every`, `memory`, `min_score` of `Follower`

    Returns
    -------
    DataFrame, a row a person and frame: frame (0, 1, ...) and the columns of `Follower.step`.
    `.attrs["frames_per_second"]` is how many were read and answered in a second, the first aside, on which
    networks are still being compiled; `.attrs["frames_per_core_second"]` how many in a second of one core's
    work, which does not depend on what else the machine has to do.
    """
    follow, tables, times = Follower(predictor, **follower), [], []
    for number, frame in enumerate(frames(source) if isinstance(source, (int, str, os.PathLike)) else source):
        if number == limit:
            break
        table = follow.step(frame)
        table.insert(0, "frame", number)
        tables.append(table)
        times.append((time.perf_counter(), time.process_time()))
    whole = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["frame", "person"])
    warm = np.array(times[follow.every :])  # by then the detector and the follower have both been at work
    rate = (len(warm) - 1) / np.ptp(warm, axis=0) if len(warm) > 1 else (np.nan, np.nan)
    whole.attrs = {"frames_per_second": float(rate[0]), "frames_per_core_second": float(rate[1])}
    return whole
