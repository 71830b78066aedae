"""Faces in a video: followed, numbered, and told without flicker."""

import cv2
import numpy as np
import photos
import pytest
from PIL import Image
from skimage import data

import fag_utils
from fag_utils import faces, video


@pytest.fixture(scope="module")
def network():
    return fag_utils.load_predictor()


def shots(number=40, noise=14, seed=0):
    """The astronaut at 640 x 480, by a shaky hand and a noisy camera."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(data.astronaut())
    for at in np.cumsum(rng.normal(0, 1.2, (number, 2)), axis=0):
        shot = image.transform((640, 480), Image.AFFINE, (0.6, 0, 60 + at[0], 0, 0.6, 15 + at[1]), Image.BICUBIC)
        yield (np.asarray(shot) + rng.normal(0, noise, (480, 640, 3))).clip(0, 255).astype("uint8")


@pytest.fixture(scope="module")
def told(network):
    return video.predict_video(shots(), network)


def test_one_person_keeps_her_number_and_is_seen_in_every_frame(told):
    assert told["person"].unique().tolist() == [1]
    assert told["frame"].tolist() == list(range(40))
    assert told["male_probability"].iloc[-1] < 0.5


def test_the_averaged_age_does_not_flicker(told):
    late = told[told["frame"] >= 15]
    assert late["age"].diff().abs().mean() < 0.3 * late["age_now"].diff().abs().mean()
    assert abs(late["age"].mean() - late["age_now"].mean()) < 2
    assert told["age"].between(told["age_low"], told["age_high"]).all()


def test_the_box_moves_with_the_face(told):
    """Against the detector, which sees every frame on its own."""
    for number, frame in enumerate(shots(16)):
        row = told[told["frame"] == number].iloc[0]
        assert faces.overlap(row, faces.detect(frame, thorough=False).iloc[0]) > 0.5


def test_people_who_come_and_go(network):
    """First one person, then a second, then only the second one, then nobody."""
    left, right = (np.asarray(Image.fromarray(one).resize((267, 327))) for one in photos.portraits()[[0, 7]])

    def frame(*who):
        picture = np.full((480, 640, 3), 110, "uint8")
        if "left" in who:
            picture[60:387, 30:297] = left
        if "right" in who:
            picture[60:387, 340:607] = right
        return picture

    film = [frame("left")] * 10 + [frame("left", "right")] * 10 + [frame("right")] * 10 + [frame()] * 10
    told = video.predict_video(film, network)
    here = [sorted(told.loc[told["frame"] == number, "person"]) for number in (4, 14, 26, 36)]
    assert here == [[1], [1, 2], [2], []]
    assert len(told["person"].unique()) == 2


def test_a_film_is_read_from_its_file(network, tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (640, 480))
    for shot in shots(6, noise=0):
        writer.write(shot[..., ::-1])
    writer.release()
    read = list(video.frames(path))
    assert len(read) == 6 and read[0].shape == (480, 640, 3)
    first = next(shots(1, noise=0))
    assert np.abs(read[0].astype(int) - first).mean() < 6, "RGB, not BGR"
    told = video.predict_video(path, network, limit=3)
    assert told["frame"].tolist() == [0, 1, 2]


def test_what_is_no_video_is_refused(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_text("no film")
    for source in (path, str(tmp_path / "absent.avi")):
        with pytest.raises(video.VideoError, match="save it as MP4"):
            next(video.frames(source))


def test_no_frames_and_frames_without_faces(network):
    assert len(video.predict_video([], network)) == 0
    told = video.predict_video([np.full((48, 64, 3), 90, "uint8")] * 7, network)
    assert len(told) == 0 and told.attrs["frames_per_second"] > 0
