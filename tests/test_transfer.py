"""Heads for groups and people, features block by block, the margin loss, and the SVM on frozen features."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from fag_utils import batches, fast, models, occlusion, training
from fag_utils.cleaning import CROP_MARGIN
from fag_utils.datasets import classroom

NETWORKS = {"mobilefacenet": models.mobilefacenet, "mobiface": models.mobiface, "squeezenet": models.squeezenet,
            "mobilenet_v2": models.mobilenet_v2, "efficientnet_lite0": models.efficientnet_lite0,
            "face_resnet": models.face_resnet}
# name -> first and last block, and how many: the rows of the published tables
BLOCKS = {"mobilefacenet": ("row1", "row10", 20), "mobiface": ("row1_1", "row8_1", 17),
          "squeezenet": ("conv1", "fire9", 9), "mobilenet_v2": ("Conv1", "Conv_1", 19),
          "efficientnet_lite0": ("stage1", "stage9", 18), "face_resnet": ("stem", "stage5_1", 15)}


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_those_of_the_published_tables(name):
    backbone = NETWORKS[name](62)
    blocks = models.blocks(backbone)
    assert (list(blocks)[0], list(blocks)[-1], len(blocks)) == BLOCKS[name]
    told = models.features(backbone, most=4)
    assert len(told.output) == 5 and list(told.output)[-1] == "embedding"
    assert [list(told.output)[0], list(told.output)[3]] == list(BLOCKS[name][:2])
    for block, output in told.output.items():
        channels = backbone.output.shape[1] if block == "embedding" else blocks[block].output.shape[-1]
        assert output.shape == (None, channels)


def test_features_are_means_over_the_map_of_the_same_network():
    backbone = models.squeezenet(40)
    pictures = np.random.default_rng(0).uniform(0, 255, (3, 40, 40, 3)).astype("float32")
    found = models.features(backbone).predict(pictures, verbose=0)
    whole = keras.Model(backbone.input, backbone.get_layer("fire4").output).predict(pictures, verbose=0)
    np.testing.assert_allclose(found["fire4"], whole.mean(axis=(1, 2)), rtol=1e-5)
    np.testing.assert_allclose(found["embedding"], backbone.predict(pictures, verbose=0), rtol=1e-5)


def test_arcface_by_hand():
    """Two directions at a right angle, a face 60 degrees from its own: the margin adds to that angle."""
    cosines = np.array([[0.5, np.sqrt(0.75)]], "float32")
    loss = float(training.ArcFace(margin=0.4, scale=10)(np.array([0]), cosines))
    right, wrong = 10 * np.cos(np.pi / 3 + 0.4), 10 * np.sqrt(0.75)
    assert loss == pytest.approx(np.log(np.exp(right) + np.exp(wrong)) - right, rel=1e-5)
    plain = float(training.ArcFace(margin=0, scale=10)(np.array([0]), cosines))
    assert plain == pytest.approx(np.log(np.exp(5) + np.exp(wrong)) - 5, rel=1e-5)


def test_arcface_falls_all_the_way_to_its_own_direction():
    """Also where angle and margin together are more than 180 degrees, and with a slope everywhere."""
    angles = tf.Variable(np.linspace(0.0, np.pi, 181), dtype="float32")
    with tf.GradientTape() as tape:
        cosines = tf.stack([tf.cos(angles), tf.zeros(181)], axis=1)
        loss = training.ArcFace(margin=0.5, scale=4, reduction=None)(np.zeros(181), cosines)
    assert (np.diff(loss) > 0).all()
    assert np.isfinite(tape.gradient(loss, angles)).all()


def test_a_face_recogniser_is_saved_and_answers_with_cosines(tmp_path):
    model = models.face_recogniser_head(models.mobilefacenet(32, 0.125), people=5, margin=0.3, scale=20, numbers=16)
    pictures = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    cosines = model.predict(pictures, verbose=0)["person"]
    face = keras.Model(model.input, model.get_layer("face").output).predict(pictures, verbose=0)
    kernel = model.get_layer("person").get_weights()[0]
    expected = face @ kernel / np.linalg.norm(face, axis=1)[:, None] / np.linalg.norm(kernel, axis=0)
    np.testing.assert_allclose(cosines, expected, atol=1e-5)
    model.save(tmp_path / "faces.keras")
    again = keras.models.load_model(tmp_path / "faces.keras")
    np.testing.assert_allclose(again.predict(pictures, verbose=0)["person"], cosines, atol=1e-6)
    head = training.class_loss(again.get_layer("person"))
    assert (head.margin, head.scale) == (0.3, 20)


def small(heads):
    keras.utils.set_random_seed(0)
    x = keras.Input((24, 24, 3))
    y = keras.layers.Rescaling(1 / 64, offset=-2)(x)
    y = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, name="row1_conv")(y)
    y = keras.layers.GlobalAveragePooling2D(name="embedding")(keras.layers.BatchNormalization(name="row1_norm")(y))
    return heads(keras.Model(x, y, name="small"))


def problem(n=192):
    """Pictures whose colour tells one of eight groups; for some pictures it isn't known, or the gender isn't."""
    random = np.random.default_rng(0)
    group = random.integers(0, 8, n)
    crops = random.integers(0, 60, (n, 36, 36, 3))
    crops = crops + 180 * ((group[:, None] >> np.arange(3)) & 1)[:, None, None]
    known = np.where(random.random(n) < 0.1, -1, group)
    table = pd.DataFrame({"group": known, "male": group % 2 * 1.0, "age": np.nan})
    table["male"] = table["male"].where(random.random(n) < 0.9)
    return crops.astype("uint8"), table, group


ENGINES = ["keras", pytest.param("fast", marks=pytest.mark.skipif(not fast.available(), reason="needs PyTorch"))]
RECIPE = training.OURS._replace(learning_rate=0.05, augmentation=batches.NO_AUGMENTATION)


@pytest.mark.parametrize("engine", ENGINES)
def test_groups_are_learned_beside_gender_and_measured(engine, tmp_path):
    crops, table, group = problem()
    model = small(lambda backbone: models.group_gender(backbone, dropout=0.0))
    history = training.fit(model, crops, table, 8, RECIPE, lambda epoch: batches.shuffled(table, 32, epoch), 24,
                           tmp_path, (crops[:64], table[:64]), progress=False, engine=engine)
    told = training.predict(model, crops, 24)
    assert (told["group"].argmax(axis=1) == group).mean() > 0.9  # also where the label was withheld
    assert (told["gender"].argmax(axis=1) == group % 2).mean() > 0.9
    assert history["tune_group"].iloc[-1] > 0.9 and history["loss"].iloc[-1] < history["loss"].iloc[0]


@pytest.mark.parametrize("engine", ENGINES)
def test_face_recognition_learns_people_and_others_can_be_told_apart_by_it(engine, tmp_path):
    crops, table, group = problem()
    table = table.assign(person=group)
    model = small(lambda backbone: models.face_recogniser_head(backbone, 8, margin=0.3, scale=16, numbers=8))
    training.fit(model, crops, table, 8, RECIPE, lambda epoch: batches.shuffled(table, 32, epoch), 24, tmp_path,
                 progress=False, engine=engine)
    assert (training.predict(model, crops, 24)["person"].argmax(axis=1) == group).mean() > 0.9


@pytest.mark.skipif(not fast.available(), reason="needs PyTorch and a C++ compiler")
@pytest.mark.parametrize("heads", ["group", "person"])
def test_the_fast_engine_has_the_losses_of_keras(heads):
    crops, table, group = problem(32)
    table = table.assign(person=group)
    build = {"group": lambda b: models.group_gender(b, dropout=0.0),
             "person": lambda b: models.face_recogniser_head(b, 8, numbers=8)}[heads]
    rows, losses = batches.shuffled(table, 32), []
    for engine in (training.KerasEngine, fast.FastEngine):
        trainer = engine(small(build), RECIPE._replace(gender_smoothing=0.0), 4, 1)
        names = trainer.model.output_names if engine is training.KerasEngine else trainer.net.model.output_names
        data = batches.dataset(crops, table, rows, 24, heads=names, ahead=trainer.ahead)
        data = training.with_classes(data, table, rows, names)
        losses.append(trainer.epoch(data, 1, [0, 0], lambda: None)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # bfloat16 in one of them


def cleaned(folder, people=6, each=4):
    """A cleaned table of drawn people with their crops: every second fold entry is for validation."""
    pictures, _ = classroom.sample(people * each, seed=3, size=80)
    rows = []
    for i, picture in enumerate(pictures):
        path = folder / f"{i}.jpg"
        keras.utils.save_img(path, picture, scale=False)
        rows.append({"path": str(path), "crop": str(path), "keep": True, "identity": f"p{i // each}", "age": np.nan,
                     "male": i // each % 2 * 1.0, "fold": "validation" if i // each == 0 else "train"})
    return pd.DataFrame(rows)


def test_identities_are_learned_of_people_with_several_pictures_of_the_training_fold(tmp_path):
    table = cleaned(tmp_path)
    table.loc[4:6, "keep"] = False  # of p1 one picture is left
    model, history = training.pretrain_identity(table, tmp_path / "run", models.squeezenet(32), epochs=1, at_least=2,
                                                progress=False)
    assert model.output["person"].shape == (None, 4) and len(history) == 1  # not p0, who is for validation
    with pytest.raises(ValueError, match="nobody in the fold train has 9 pictures"):
        training.pretrain_identity(table, tmp_path / "no", models.squeezenet(32), at_least=9)


@pytest.mark.parametrize("build", [lambda: models.mobilefacenet(32, 0.25), lambda: models.gilnet(64)])
def test_the_body_of_a_network_is_the_backbone_that_it_was_made_from(build):
    """Of GilNet too, which has layers of dropout of its own."""
    backbone = build()
    assert models.body(backbone) is backbone
    pictures = np.random.default_rng(0).uniform(0, 255, (2, *backbone.input_shape[1:])).astype("float32")
    for network in (models.gender_classifier(backbone), models.narrow(models.age_gender(backbone, ages=117))):
        np.testing.assert_array_equal(models.body(network)(pictures), backbone(pictures))


def test_gender_pretraining_takes_any_backbone(tmp_path):
    table = pd.concat([cleaned(tmp_path, people=30, each=1).assign(fold="train")], ignore_index=True)
    model, _ = training.pretrain_gender(table, tmp_path / "run", epochs=1, progress=False,
                                        backbone=models.squeezenet(40))
    assert model.name == "squeezenet_11_40_gender"


def test_ocular_crops_show_what_the_ocular_region_shows():
    crops, _ = classroom.sample(3, seed=1, size=97)
    eyes = training.ocular_crops(crops)
    assert eyes.shape == crops.shape and eyes.dtype == np.uint8
    seen = batches.see(eyes, 62, batches.NO_AUGMENTATION, tf.constant([0, 0])).numpy()
    region = tf.image.resize(occlusion.ocular(crops, "both", 62, CROP_MARGIN), (62, 62)).numpy()
    assert np.abs(seen - region).mean() < 3
    right = batches.see(training.ocular_crops(crops, "right"), 62, batches.NO_AUGMENTATION, tf.constant([0, 0]))
    assert np.abs(right - occlusion.ocular(crops, "right", 62, CROP_MARGIN)).mean() < 3  # a square already


def test_frozen_features_of_a_random_network_tell_colours_apart():
    crops, _, group = problem()
    found = training.block_features(models.squeezenet(32), crops, 32, most=3)
    machine = training.linear_svm(found["conv1"][:128], group[:128])
    assert (machine.predict(found["conv1"][128:]) == group[128:]).mean() > 0.8
