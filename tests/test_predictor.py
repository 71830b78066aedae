"""A photograph in, people out: with the shipped weights, as a user has them."""

import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage import data

import fag_utils
from fag_utils import course, datasets, evaluation, faces, labels, occlusion, predictor

NAME, LARGE = "mobilefacenet_075_62", "mobilefacenet_100_112"
PREDICTIONS = ["age", "age_low", "age_high", "male_probability"]
OF_CROPS = [*PREDICTIONS, "may_be_outside"]
COLUMNS = [*OF_CROPS, "masked_probability", "x", "y", "width", "height", "face_score"]


@pytest.fixture(scope="module")
def network():
    return fag_utils.load_predictor(NAME)


@pytest.fixture(scope="module")
def made():
    """Classroom faces of all ages and their labels: pictures (24, 124, 124, 3), table."""
    return datasets.classroom.sample(24, seed=3, ages=np.linspace(18, 65, 24).round(), size=124)


@pytest.fixture(scope="module")
def people(network):
    return network.predict_photo(data.astronaut())


def check_predictions(table, rows):
    assert list(table.columns)[:4] == PREDICTIONS
    assert len(table) == rows and list(table.index) == list(range(rows))
    assert table["male_probability"].between(0, 1).all()
    assert table["age"].between(labels.MIN_AGE, labels.MAX_AGE).all()
    assert (table["age_low"] < table["age_high"]).all()
    assert table["age_low"].ge(labels.MIN_AGE - 0.5).all() and table["age_high"].le(labels.MAX_AGE + 0.5).all()


def close(one, other, years=0.01, probability=1e-3):
    """Equal but for the last digits: sums run in another order when a batch has another size."""
    gap = (one[PREDICTIONS].reset_index(drop=True) - other[PREDICTIONS].reset_index(drop=True)).abs().max()
    return gap["age"] < years and gap["age_low"] < 5 * years and gap["age_high"] < 5 * years \
        and gap["male_probability"] < probability


# ---------------------------------------------------------------- crops

def test_crops_are_predicted_row_by_row(network, made):
    table = network.predict_crops(made[0])
    assert list(table.columns) == OF_CROPS
    check_predictions(table, 24)
    assert table["age"].std() > 3, "faces of all ages don't all get one age"


def test_a_list_is_as_good_as_an_array(network, made):
    assert network.predict_crops(list(made[0])).equals(network.predict_crops(made[0]))


def test_the_same_again(network, made):
    assert network.predict_crops(made[0]).equals(network.predict_crops(made[0]))
    assert fag_utils.load_predictor(NAME).predict_crops(made[0]).equals(network.predict_crops(made[0]))


def test_a_picture_gets_the_same_answer_alone_and_among_many(network, made):
    many = np.concatenate([made[0]] * 3)  # more than one batch
    table = network.predict_crops(many)
    check_predictions(table, 72)
    assert close(table[:24], table[48:])
    assert close(table[5:6], network.predict_crops([made[0][5]]))


def test_pictures_of_any_size_and_shape(network, made):
    sizes = [(62, 62), (124, 124), (300, 300), (200, 150), (31, 40)]
    crops = [np.asarray(Image.fromarray(made[0][4]).resize(size, Image.Resampling.LANCZOS)) for size in sizes]
    table = network.predict_crops(crops)
    check_predictions(table, 5)
    same = table.iloc[:3]  # the same face, sharp enough, in its own proportions
    assert same["age"].max() - same["age"].min() < 3
    assert same["male_probability"].max() - same["male_probability"].min() < 0.1


def test_grey_pictures(network, made):
    grey = [np.asarray(Image.fromarray(picture).convert("L")) for picture in made[0][:3]]
    table = network.predict_crops(grey)
    check_predictions(table, 3)
    assert close(table, network.predict_crops([np.stack([picture] * 3, axis=-1) for picture in grey]))
    assert close(table, network.predict_crops([picture[..., None] for picture in grey]))


def test_no_pictures_give_no_rows(network):
    for nothing in ([], np.zeros((0, 62, 62, 3), "uint8")):
        table = network.predict_crops(nothing)
        assert list(table.columns) == OF_CROPS and len(table) == 0


def test_a_mirror_image_gets_the_same_answer(network, made):
    """At 62 pixels, where nothing is resized: that need not be symmetric to the last digit."""
    crops = np.stack([faces.crop_framed(picture, size=62) for picture in made[0]])
    assert close(network.predict_crops(crops), network.predict_crops(crops[:, :, ::-1]))


def test_probabilities_are_what_the_table_is_made_from(network, made):
    probabilities = network.probabilities(made[0])
    assert probabilities["age"].shape == (24, 48) and probabilities["gender"].shape == (24, 2)
    outside = probabilities["outside"]  # younger than 18, older than 65: the rest is within
    assert outside.shape == (24, 2) and (outside.sum(axis=1) <= 1 + 1e-6).all()
    for head in probabilities.values():
        assert (head >= 0).all()
    for head in ("age", "gender"):
        np.testing.assert_allclose(probabilities[head].sum(axis=1), 1, atol=1e-6)
    table = network.predict_crops(made[0])
    np.testing.assert_allclose(table["age"], network.ages(probabilities["age"]))
    assert (table["age"] - labels.expected_age(probabilities["age"])).abs().max() < 6, "sharpened, not replaced"
    assert table["age"].between(table["age_low"], table["age_high"]).all()
    np.testing.assert_allclose(table["male_probability"], probabilities["gender"][:, labels.MALE])
    within = probabilities["age"] * (1 - outside.sum(axis=1, keepdims=True))
    belief, ages = np.hstack([outside[:, :1], within, outside[:, 1:]]), np.arange(17, 67)
    inside = [belief[i][(ages >= low - 0.5) & (ages <= high + 0.5)].sum()
              for i, (low, high) in enumerate(zip(table["age_low"], table["age_high"], strict=True))]
    assert min(inside) >= 0.8, "the interval holds 80 % of what the network believes"


def test_one_crop_without_its_list_is_refused(network, made):
    with pytest.raises(ValueError, match=r"predict_crops\(\[crop\]\)"):
        network.predict_crops(made[0][0])


def test_what_is_no_picture_is_refused(network, tmp_path):
    path = tmp_path / "face.jpg"
    path.write_text("not a picture at all")
    for crop in (path, np.zeros((62, 62, 5), "uint8")):
        with pytest.raises(ValueError, match="not a picture"):
            network.predict_crops([crop])


# ---------------------------------------------------------------- photographs

def test_the_astronaut(people):
    assert list(people.columns) == COLUMNS
    check_predictions(people, 1)
    (person,) = people.to_dict("records")
    assert person["male_probability"] < 0.5  # how sure it is of this one face differs from network to network
    assert 20 <= person["age"] <= 50
    middle = person["x"] + person["width"] / 2, person["y"] + person["height"] / 2
    assert abs(middle[0] - 224) < 25 and abs(middle[1] - 115) < 35, "the box lies on the face"
    assert 0.5 <= person["face_score"] <= 1


def test_a_photo_may_come_in_any_form(network, people, tmp_path):
    photo = data.astronaut()
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    with_alpha = np.dstack([photo, np.full(photo.shape[:2], 255, "uint8")])
    for form in (path, str(path), path.read_bytes(), Image.open(path), photo, with_alpha):
        pd.testing.assert_frame_equal(network.predict_photo(form), people)


def test_a_photo_turned_by_its_exif_data_is_turned_back(network, people):
    image = Image.fromarray(data.astronaut())
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to the right to see it upright"
    turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = exif[0x0112]
    pd.testing.assert_frame_equal(network.predict_photo(turned), people)


def test_two_people_the_larger_first(network, people):
    photo = data.astronaut()
    small = np.asarray(Image.fromarray(photo).resize((256, 256), Image.Resampling.LANCZOS))
    both = np.full((512, 768, 3), 128, "uint8")
    both[:256, :256], both[:, 256:] = small, photo
    table = network.predict_photo(both)
    check_predictions(table, 2)
    assert table["height"].is_monotonic_decreasing and table["x"][0] > 256 > table["x"][1]
    assert abs(table["age"] - people["age"][0]).max() < 6, "it is one and the same face twice"
    assert table["male_probability"].max() < 0.5


def test_a_photo_without_a_face_gives_no_rows(network):
    for photo in (np.full((300, 400, 3), 127, "uint8"), data.coffee()):
        table = network.predict_photo(photo)
        assert list(table.columns) == COLUMNS and len(table) == 0


def test_the_least_score_of_a_face_can_be_chosen(network):
    assert len(network.predict_photo(data.astronaut(), min_score=1.01)) == 0


def test_a_text_file_is_refused_with_a_sentence(network, tmp_path):
    path = tmp_path / "notes.jpg"
    path.write_text("Buy milk.")
    for photo in (path, path.read_bytes()):
        with pytest.raises(faces.PictureError, match="not a picture") as refused:
            network.predict_photo(photo)
        assert refused.value.reason == "not_a_picture"
    with pytest.raises(faces.PictureError, match="missing.jpg"):
        network.predict_photo(tmp_path / "missing.jpg")


# ---------------------------------------------------------------- weights and cards

def test_every_network_has_its_card():
    cards = fag_utils.available_weights()
    assert NAME in cards
    for name, card in cards.items():
        assert (predictor.WEIGHTS / f"{name}.keras").is_file()
        assert card["name"] == name
        assert {"what", "input", "output", "parameters", "multiply_adds", "learned_from", "licence", "not_for",
                "calibration"} <= set(card), f"{name}: {sorted(card)}"
        assert "non-commercial" in card["licence"]
        for head in ("age", "gender"):
            assert 0.2 < card["calibration"][f"{head}_temperature"] < 5


@pytest.mark.parametrize("name", fag_utils.available_weights())
def test_a_card_names_every_output_of_its_network(name):
    network = fag_utils.load_predictor(name)
    told = [part.split(":")[0] for part in network.card["output"].split("; ")]
    assert told == list(network.network.heads)


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match=NAME):
        fag_utils.load_predictor("mobilefacenet_200_400")


def test_weights_are_shipped_without_what_only_training_needs(network):
    assert network.size == 62
    assert getattr(network.model, "optimizer", None) is None
    assert (predictor.WEIGHTS / f"{NAME}.keras").stat().st_size < 5e6


def test_saved_weights_predict_the_same(network, made, tmp_path, monkeypatch):
    monkeypatch.setattr(predictor, "WEIGHTS", tmp_path)
    predictor.save_weights(network.model, "copy", network.card, tmp_path)
    assert set(fag_utils.available_weights()) == {"copy"}
    assert json.loads((tmp_path / "copy.json").read_text())["calibration"] == network.card["calibration"]
    assert close(fag_utils.load_predictor("copy").predict_crops(made[0]), network.predict_crops(made[0]))


# ---------------------------------------------------------------- covered faces

def test_a_masked_face_is_told_and_answered_for_by_the_network_for_it(network):
    photo = data.astronaut()
    face = faces.detect(photo).iloc[0]
    for kind in occlusion.KINDS:
        people = []
        for seed in range(1, 5):  # what a single mask leaves of her face is told by its folds as much as by her
            masks = occlusion.random_masks(1, [seed, 0], kind=kind, colour="white", nose=True)
            people.append(network.predict_photo(occlusion.wear_photo(photo, face, masks)))
        people = pd.concat(people)
        assert len(people) == 4 and (people["masked_probability"] > 0.8).all(), kind
        # one face with short hair: more people are below
        assert people["male_probability"].mean() < 0.35 and people["male_probability"].max() < 0.6, kind
        assert abs(people["age"].mean() - 38) < 12, kind
    (bare,) = network.predict_photo(photo).to_dict("records")
    assert bare["masked_probability"] < 0.2


def test_of_people_in_masks_most_are_told_rightly(network):
    drawn, asked = datasets.classroom.sample(24, seed=3, size=200)
    points, _ = faces.crop_landmarks(drawn)
    told = []
    for number, kind in enumerate(occlusion.KINDS):
        some = slice(8 * number, 8 * number + 8)
        masked = occlusion.wear_crops(drawn[some], 5, points=points[some], kind=kind, nose=True)
        told += [network.predict_photo(evaluation.scene(face, seed)) for seed, face in enumerate(masked)]
    assert all(len(people) for people in told), "each face is found"
    told = pd.concat([people.iloc[:1] for people in told])
    assert (told["masked_probability"] >= predictor.MASKED).mean() > 0.9
    assert ((told["male_probability"] > 0.5).to_numpy() == (asked["male"] == 1).to_numpy()).mean() > 0.8
    assert np.abs(told["age"].to_numpy() - asked["age"].to_numpy()).mean() < 12


def test_masks_are_looked_for_on_request_only(network):
    """Without them nobody is asked, and whoever else is on the photograph is answered as before."""
    plain = fag_utils.load_predictor(masks=False)
    photo = data.astronaut()
    table, usual = plain.predict_photo(photo), network.predict_photo(photo)
    assert "masked_probability" not in table and close(table, usual.drop(columns="masked_probability"))
    face = faces.detect(photo).iloc[0]
    masked = occlusion.wear_photo(photo, face, occlusion.random_masks(1, [1, 0], nose=True))
    look = network.look(masked)
    (told,), own = network.tell([look]), fag_utils.load_predictor(f"{NAME}_masked", masks=False)
    np.testing.assert_allclose(told["age"], own.predict_photo(masked)["age"], rtol=1e-3)
    assert abs(told["age"][0] - plain.predict_photo(masked)["age"][0]) > 0.5


def test_whoever_has_no_network_for_masks_leaves_them_to_the_small_one(network):
    """The full-size network answers for bare faces, the small one's companion for masked ones, from its crop."""
    large, photo = fag_utils.load_predictor(LARGE), data.astronaut()
    masked = occlusion.wear_photo(photo, faces.detect(photo).iloc[0], occlusion.random_masks(1, [1, 0], nose=True))
    (other,), (usual,) = (one.predict_photo(masked).to_dict("records") for one in (large, network))
    assert other["masked_probability"] == pytest.approx(usual["masked_probability"], abs=0.01)
    for column in ("age", "age_low", "age_high", "male_probability"):  # from the same crop of the photograph
        assert other[column] == pytest.approx(usual[column], abs=0.01)
    own = fag_utils.load_predictor(LARGE, masks=False)
    assert abs(other["age"] - own.predict_photo(masked)["age"][0]) > 0.5
    (bare,), (alone,) = (one.predict_photo(photo).to_dict("records") for one in (large, own))
    assert bare["age"] == pytest.approx(alone["age"], abs=0.01)


def test_a_cache_is_named_after_the_networks_for_masks_too(network):
    """What `predict_photo` says of a masked face comes from them: new weights there must not find old answers."""
    from fag_utils import models

    alone = fag_utils.load_predictor(masks=False)
    shipped, untrained = network.masks, models.mask_classifier(models.mobilefacenet(62, 0.25))
    companions = [None, shipped, predictor.Masks(lambda: shipped.detector, lambda: alone),
                  predictor.Masks(lambda: untrained, lambda: shipped.covered)]
    networks = [predictor.Predictor(alone.model, alone.card, masks=masks) for masks in companions]
    names = {evaluation.fingerprint(one) for one in networks}
    assert len(names) == 4


def test_an_ocular_network_takes_the_same_pictures_and_looks_at_the_eyes(made):
    ocular = fag_utils.load_predictor("mobilefacenet_075_ocular")
    assert ocular.network.shape == occlusion.eye_shape("both", 62)
    drawn = np.asarray(made[0])
    table = ocular.predict_crops(drawn)
    below = drawn.copy()
    below[:, round(0.5 * drawn.shape[1]) :] = 0
    assert close(table, ocular.predict_crops(below)), "nothing below the eyes is seen"
    above = drawn.copy()
    above[:, : round(0.5 * drawn.shape[1])] = 127
    assert np.abs(ocular.predict_crops(above)["age"] - table["age"]).max() > 3
    (person,) = ocular.predict_photo(data.astronaut()).to_dict("records")
    assert person["male_probability"] < 0.4 and 20 < person["age"] < 60


# ---------------------------------------------------------------- as a program meets it

OFFLINE = """
import socket

def refuse(*args, **kwargs):
    raise OSError("this test allows no network")
socket.socket.connect = socket.getaddrinfo = refuse

import fag_utils
from skimage import data
print(fag_utils.load_predictor().predict_photo(data.astronaut()).round(4).to_json())
"""


def program(source, cwd):
    """What a program prints that runs in an empty folder, without FAG_DATA."""
    environment = {name: value for name, value in os.environ.items() if name != "FAG_DATA"}
    done = subprocess.run([sys.executable, "-c", source], cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().splitlines()[-1]


def test_predicts_without_data_sets_and_without_network(people, tmp_path):
    answer = pd.DataFrame(json.loads(program(OFFLINE, tmp_path))).reset_index(drop=True)
    assert close(answer, people)
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_importing_the_package_takes_no_time(tmp_path):
    """Processor time, since a busy machine makes any program wait; the better of two, the first may compile."""
    source = "import sys, time; t = time.process_time(); import fag_utils; fag_utils.__version__\n" \
             "print(time.process_time() - t, 'tensorflow' in sys.modules)"
    runs = [program(source, tmp_path).split() for _ in range(2)]
    assert min(float(seconds) for seconds, _ in runs) < 0.3
    assert {tensorflow for _, tensorflow in runs} == {"False"}


# ---------------------------------------------------------------- real people

def test_validation_fold_of_utkface(network, fag_data):
    """A random 300 of the fold. The limits leave room for the draw: with 300 pictures the MAE varies by about
    0.25 years and the share of right genders by about one point (one standard error each)."""
    table = evaluation.held_out(datasets.read("utkface", fag_data / "utkface"))
    assert len(table) > 1500
    table = table.sample(300, random_state=0)
    found = network.predict_crops(list(table["path"]))
    check_predictions(found, 300)
    age, male = table["age"].to_numpy("float64"), table["male"].to_numpy("float64")
    mae = np.abs(found["age"].to_numpy() - age).mean()
    right = ((found["male_probability"].to_numpy() >= 0.5) == (male == labels.MALE)).mean()
    inside = ((found["age_low"].to_numpy() <= age) & (age <= found["age_high"].to_numpy())).mean()
    assert mae < 5.3
    assert right > 0.95
    assert 0.7 < inside < 0.9, "the 80 % interval"


def in_notebook_09():
    published = course.published("09_utkface_validation")
    return published["pictures"], published["age"]["mae"], published["gender"]["accuracy"]


def in_notebook_a2():
    published = course.published("A2_full_size")
    return published["pictures"]["validation"], published["mae"], published["gender_accuracy"]


@pytest.mark.parametrize("name, published", [(NAME, in_notebook_09), (LARGE, in_notebook_a2)])
def test_the_published_figures_are_those_of_the_shipped_network(name, published, fag_data):
    """The whole fold once more; another processor may differ in the last digits, another network would differ in
    the first. If this fails: make full, and python tools/readme.py."""
    pictures, mae, right = published()
    table = evaluation.held_out(datasets.read("utkface", fag_data / "utkface"))
    assert len(table) == pictures
    found = evaluation.report(evaluation.predict_set(table, fag_utils.load_predictor(name), progress=False), n=10)
    assert abs(found["age"]["mae"] - mae) < 0.005
    assert abs(found["gender"]["accuracy"] - right) < 0.0015


def test_photographs_of_lfw(network, fag_data):
    """Whole photographs, and who counts is whoever is largest and most central. One standard error of a share of
    95 % among 100 is two points."""
    table = evaluation.held_out(datasets.read("lfw", fag_data / "lfw")).sample(100, random_state=0)
    right, answered = 0, 0
    for path, male in zip(table["path"], table["male"], strict=True):
        people = network.predict_photo(path)
        if len(people):
            person = evaluation.main_person(people, faces.read_picture(path).shape)
            answered += 1
            right += (person["male_probability"] >= 0.5) == (male == labels.MALE)
    assert answered >= 97
    assert right / answered >= 0.93


def test_a_network_that_knows_other_ages_says_who_may_be_outside(tmp_path):
    """From training's 117 ages to a shipped file: children and the very old are told from the rest."""
    import keras

    from fag_utils import models

    wide = models.age_gender(models.mobilefacenet(32, 0.125), ages=117)
    ages = np.full(117, -20.0, "float32")
    ages[[10, 40, 90]] = 1.0, 0.5, 0.0
    kernel = wide.get_layer("age").get_weights()[0]
    wide.get_layer("age").set_weights([kernel * 0, ages])
    path = predictor.save_weights(models.narrow(wide), "tiny", {"what": "a test"}, tmp_path)
    told = predictor.Predictor(keras.saving.load_model(path, compile=False))
    table = told.predict_crops(np.zeros((2, 32, 32, 3), "uint8"))
    check_predictions(table, 2)
    share = np.exp([1.0, 0.5, 0.0]) / np.exp([1.0, 0.5, 0.0]).sum()
    outside = told.probabilities([np.zeros((32, 32, 3), "uint8")])["outside"]
    np.testing.assert_allclose(outside, [share[[0, 2]]], atol=1e-4)
    assert table["may_be_outside"].all() and np.allclose(table["age"], 40, atol=0.1)
    assert np.allclose(table["age_low"], 17.5) and np.allclose(table["age_high"], 65.5)
