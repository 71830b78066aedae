"""The program behind the photo demo, without a browser: messages in, messages out."""

import io
import json
import types

import ipywidgets
import numpy as np
import pandas as pd
import photos
import pytest
from PIL import Image
from skimage import data

from fag_utils import predictor, widgets


@pytest.fixture
def demo():
    """A demo whose messages to the page are kept in `sent`."""
    made = widgets.PhotoDemo()
    made.sent = []
    made.stage.send = lambda message, buffers=None: made.sent.append((message, buffers or []))
    made._networks = NETWORKS
    return made


NETWORKS = {}  # loaded once for all tests


def upload(demo, name, content, size=1000):
    """As the page sends a file, in parts; the answer: (message, buffers)."""
    parts = [content[start : start + size] for start in range(0, len(content), size)] or [b""]
    for number, part in enumerate(parts):
        message = {"kind": "file", "id": name, "name": name, "part": number, "parts": len(parts)}
        demo.stage._handle_custom_msg(message, [memoryview(part)])
    return answers(demo, "photo")[-1]


def answers(demo, kind):
    return [(message, buffers) for message, buffers in demo.sent if message["kind"] == kind]


def test_a_file_in_parts_becomes_an_annotated_picture_and_a_table(demo):
    photo = data.astronaut()
    message, (picture,) = upload(demo, "été 照片.png", photos.encoded(photo), size=50_000)
    assert message["name"] == "été 照片.png" and not message["again"]
    (person,) = message["people"]
    assert len(person["cells"]) == len(message["columns"])
    told = demo.table().iloc[0]
    assert told["file"] == "été 照片.png" and told["face"] == 1
    assert person["cells"][:2] == ["1", f"{told['age']:.0f}"]
    np.testing.assert_allclose(np.array(person["box"]) * 512, told[["x", "y", "width", "height"]].astype(float))
    shown = np.asarray(Image.open(io.BytesIO(picture)))
    assert shown.shape == photo.shape
    difference = np.abs(shown.astype(int) - photo).max(axis=2) > 100
    x, y = int(told["x"]), int(told["y"] + told["height"] / 2)
    assert difference[y - 5 : y + 5, x - 3 : x + 4].any(), "the box is drawn"


def test_what_cannot_be_used_is_a_sentence(demo):
    for name, content in {"empty.jpg": b"", "text.jpg": b"Buy milk."}.items():
        message, buffers = upload(demo, name, content)
        assert message["error"].startswith("This file is not a picture") and not buffers
    assert len(demo.table()) == 0
    demo.stage._handle_custom_msg({"kind": "save_picture", "id": "text.jpg"}, [])
    demo.stage._handle_custom_msg({"kind": "detail", "id": "text.jpg", "face": 1}, [])
    assert not answers(demo, "save") and not answers(demo, "detail")


def test_whatever_goes_wrong_is_told_to_the_page(demo, monkeypatch):
    def broken(*args):
        raise RuntimeError("a bug")

    monkeypatch.setattr(predictor.Predictor, "look", broken)
    message, _ = upload(demo, "photo.png", photos.encoded(data.astronaut()))
    assert "a bug" in message["error"]


def test_half_a_file_is_used_and_said(demo):
    whole = photos.encoded(data.astronaut(), "JPEG", quality=92)
    message, _ = upload(demo, "half.jpg", whole[: len(whole) // 2], size=1 << 20)
    assert len(message["people"]) == 1
    assert "breaks off" in message["notes"][0]


def test_a_click_on_a_face_opens_it(demo):
    upload(demo, "scene.png", photos.encoded(photos.scene()), size=1 << 20)
    demo.stage._handle_custom_msg({"kind": "detail", "id": "scene.png", "face": 2}, [])
    (message, (crop, belief)), = answers(demo, "detail")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(crop))), demo.photos["scene.png"].look.crops[1])
    assert Image.open(io.BytesIO(belief)).width > 500
    answer = f"{demo.table()['age'][1]:.1f} years"
    (mirrored,) = [line for line in message["lines"] if "Mirrored:" in line]
    assert answer in mirrored
    demo.stage._handle_custom_msg({"kind": "detail", "id": "scene.png", "face": 99}, [])
    assert len(answers(demo, "detail")) == 1


def test_sliders_change_what_is_shown_and_nothing_is_detected_again(demo, monkeypatch):
    upload(demo, "scene.png", photos.encoded(photos.scene()), size=1 << 20)
    monkeypatch.setattr(predictor.Predictor, "look", None)
    before = demo.table()
    demo.share.value = 50
    narrow = demo.table()
    assert (narrow["age_high"] - narrow["age_low"] < before["age_high"] - before["age_low"]).all()
    pd.testing.assert_series_equal(narrow["age"], before["age"])
    pd.testing.assert_series_equal(narrow["may_be_outside"], before["may_be_outside"])
    assert answers(demo, "photo")[-1][0]["columns"][2] == "50 % interval"
    demo.photos["scene.png"].look.faces.loc[0, "face_score"] = 0.4
    demo.score.value = 0.6
    message = answers(demo, "photo")[-1][0]
    assert message["again"] and len(message["people"]) == len(before) - 1
    assert [person["face"] for person in message["people"]] == [1, 2, 3]


def test_another_network_tells_the_same_faces(demo, monkeypatch, tmp_path):
    """As one that is shipped later: with crops of another size, and a word about masks."""
    upload(demo, "scene.png", photos.encoded(photos.scene()), size=1 << 20)
    before = demo.table()

    class Other(predictor.Predictor):
        def __init__(self):
            self.size, self.card, self.eyes, self.masks = 40, {}, None, None
            self.network = types.SimpleNamespace(shape=(40, 40))

        def _probabilities(self, crops):
            assert crops.shape == (4, 40, 40, 3)
            return {"age": np.full((len(crops), 48), 1 / 48), "gender": np.full((len(crops), 2), 0.5)}

        def table(self, probabilities, share=0.8):
            return super().table(probabilities, share).assign(masked_probability=0.9)

    demo._networks = {**NETWORKS, "other": Other()}
    demo.network.options = [*demo.network.options, "other"]
    demo.network.value = "other"
    message = answers(demo, "photo")[-1][0]
    assert "mask" in message["columns"] and message["people"][0]["cells"][5] == "yes"
    after = demo.table()
    pd.testing.assert_frame_equal(after[["x", "y", "width", "height"]], before[["x", "y", "width", "height"]])
    assert after["age"].round(1).eq(41.5).all()


def test_every_shipped_network_can_be_chosen(demo):
    assert set(demo.network.options) == set(predictor.available_weights())


def test_saved_picture_and_table(demo):
    group, _ = photos.group(1400, 2800, [200] * 3)
    upload(demo, "people.heic", photos.encoded(group, "HEIF", quality=80), size=1 << 20)
    demo.stage._handle_custom_msg({"kind": "save_picture", "id": "people.heic"}, [])
    demo.save_table.click()
    (picture, (jpeg,)), (table, (csv,)) = answers(demo, "save")
    assert picture["name"] == "people annotated.jpg" and picture["type"] == "image/jpeg"
    assert Image.open(io.BytesIO(jpeg)).size == (2560, 1280)
    assert len(jpeg) < 2.5e6, "Jupyter sends three megabytes at once, and not more"
    read = pd.read_csv(io.BytesIO(csv))
    assert table["name"] == "people.csv"
    assert list(read["face"]) == [1, 2, 3] and read["age"].between(18, 65).all()


def test_nothing_of_a_picture_is_in_the_state_that_notebooks_save(demo):
    upload(demo, "secret name.png", photos.encoded(data.astronaut()), size=1 << 20)
    state = json.dumps(ipywidgets.Widget.get_manager_state(), default=str)
    assert "FloatSlider" in state, "the state of this demo is among it"
    assert "secret" not in state and len(state) < 2e6
    assert "iVBOR" not in state and "/9j/" not in state


def test_old_photographs_go_and_all_can_be_forgotten(demo, monkeypatch):
    monkeypatch.setattr(widgets, "MOST_PHOTOS", 2)
    for name in "abc":
        upload(demo, name, b"no picture")
    assert list(demo.photos) == ["b", "c"]
    assert answers(demo, "dropped")[0][0]["id"] == "a"
    demo.forget_all.click()
    assert not demo.photos and answers(demo, "forget")


def test_a_page_that_is_opened_again_gets_what_is_there(demo):
    upload(demo, "a", b"no picture")
    demo.stage._handle_custom_msg({"kind": "ready"}, [])
    message, _ = answers(demo, "photo")[-1]
    assert message["id"] == "a" and message["again"]


@pytest.mark.parametrize("name", widgets.SAMPLES)
def test_samples_are_pictures(name):
    picture = widgets.SAMPLES[name]()
    assert picture.dtype == np.uint8 and picture.ndim == 3


def test_boxes_are_drawn_inside_small_and_odd_pictures():
    people = pd.DataFrame({"x": [0.0, 5], "y": [0.0, 2], "width": [12.0, 9], "height": [9.0, 7], "age": 30.0,
                           "age_low": 20.0, "age_high": 40.0, "male_probability": [0.1, 0.9]})
    for shape in ((9, 12, 3), (2000, 3, 3), (1, 1, 3)):
        picture = widgets.annotated(np.zeros(shape, "uint8"), people, 1000)
        assert picture.mode == "RGB" and max(picture.size) <= 1000


# --- the mask demo


@pytest.fixture
def mask_demo(monkeypatch):
    """A mask demo whose messages to the page are kept in `sent`."""
    monkeypatch.setattr(predictor, "load_predictor", lambda name: NETWORKS.setdefault(name, LOAD(name)))
    made = widgets.MaskDemo(networks=["mobilefacenet_075_62"])
    made.sent = []
    made.stage.send = lambda message, buffers=None: made.sent.append((message, buffers or []))
    return made


LOAD = predictor.load_predictor


def test_a_page_that_opens_gets_a_masked_face_and_both_estimates(mask_demo):
    mask_demo.stage._handle_custom_msg({"kind": "ready"}, [])
    ((message, (jpeg,)),) = mask_demo.sent
    shown = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert shown.shape == (360, 360, 3)
    assert [row[1] for row in message["rows"]] == ["bare", "masked"]
    assert all(len(row) == len(message["columns"]) for row in message["rows"])
    bare = mask_demo._look()[0].astype(int)
    changed = np.abs(shown - bare).max(axis=-1) > 60
    assert changed[200:300].mean() > 0.2 and not changed[:110].any(), "the lower part of the face"
    table = mask_demo.table()
    assert table["age"].between(18, 65).all() and table["age"].nunique() == 2
    assert f"{table['age'][1]:.1f}" == message["rows"][1][2]


def test_a_dragged_mask_follows_and_the_estimates_with_it(mask_demo):
    def rows_changed():
        bare = mask_demo._look()[0].astype(int)
        changed = np.abs(mask_demo.picture() - bare).max(axis=-1) > 10
        return np.nonzero(changed)

    ages, (y, x) = [mask_demo.table()["age"][1]], rows_changed()
    for right, down in ((0.0, -0.3), (0.25, 0.0), (2.0, 0.0)):
        mask_demo.stage._handle_custom_msg({"kind": "move", "right": right, "down": down}, [])
        message, _ = mask_demo.sent[-1]
        assert not message["reset"]
        ages.append(mask_demo.table()["age"][1])
        if right < 1:
            moved_y, moved_x = rows_changed()
            assert np.median(moved_y) - np.median(y) == pytest.approx(360 * down, abs=30)
            assert np.median(moved_x) - np.median(x) == pytest.approx(360 * right, abs=30)
    assert len(set(ages[:3])) == 3
    assert ages[-1] == pytest.approx(mask_demo.table()["age"][0], abs=0.01), "off the face"
    mask_demo.back.click()
    message, _ = mask_demo.sent[-1]
    assert (message["right"], message["down"], message["reset"]) == (0, 0, True)
    assert mask_demo.table()["age"][1] == pytest.approx(ages[0], abs=1e-6)


def test_the_mask_can_be_chosen(mask_demo):
    before = mask_demo.picture()
    for control, value in (("colour", "red"), ("another", None), ("kind", "cloth"), ("pattern", "dots"),
                           ("face", "Drawn people")):
        number, control = len(mask_demo.sent), getattr(mask_demo, control)
        if value is None:
            control.click()
        else:
            control.value = value
        assert len(mask_demo.sent) == number + 1
        assert not np.array_equal(before, mask_demo.picture())
        before = mask_demo.picture()
    mask_demo.kind.value = "none"
    assert np.array_equal(mask_demo.picture(), mask_demo._look()[0])
    bare, unmasked = mask_demo.table()["age"]
    assert unmasked == pytest.approx(bare, abs=1e-4), "the same picture, in another place of the batch"


def test_a_photograph_of_ones_own_in_the_mask_demo(mask_demo):
    own = widgets.MaskDemo(photos.scene(), ["mobilefacenet_075_62"])
    assert own.picture().shape == (360, 360, 3) and own.face.options == ("Yours",)
    with pytest.raises(ValueError, match="No face was found"):
        widgets.MaskDemo(data.chelsea(), ["mobilefacenet_075_62"])


def test_no_picture_is_in_the_saved_state_of_the_mask_demo(mask_demo):
    mask_demo.show()
    state = json.dumps(ipywidgets.Widget.get_manager_state(), default=str)
    assert "iVBOR" not in state and "/9j/" not in state
