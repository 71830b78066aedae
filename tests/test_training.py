"""Losses, resuming after a kill, splitting, calibrating."""

import os
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fag_utils import batches, faces, fast, labels, training
from fag_utils.datasets import classroom
from fag_utils.models import (
    age_gender,
    alexnet,
    begin_with,
    body,
    efficientnet_lite0,
    face_resnet,
    gender_classifier,
    gilnet,
    mobilefacenet,
    narrow,
    squeezenet,
    vgg_face,
    widen,
)

SMALL = """
import keras, numpy as np, pandas as pd
from fag_utils import batches, training

def network():
    keras.utils.set_random_seed(1)
    x = keras.Input((8, 8, 3))
    y = keras.layers.Rescaling(1 / 128, offset=-1)(x)
    # No bias: before batch norm its gradient is nothing but rounding, which Adam makes steps of.
    y = keras.layers.Conv2D(8, 3, strides=2, use_bias=False, name="c")(y)
    y = keras.layers.BatchNormalization(name="b")(y)
    y = keras.layers.Dropout(0.2)(keras.layers.Flatten()(y))
    heads = {"age": keras.layers.Dense(48, "softmax", name="age")(y),
             "gender": keras.layers.Dense(2, "softmax", name="gender")(y)}
    return keras.Model(x, heads, name="small")

def train(folder, on_epoch=None, epochs=4):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"age": random.integers(18, 66, 96).astype(float), "male": random.integers(0, 2, 96) * 1.0})
    crops = random.integers(0, 256, (96, 12, 12, 3), dtype="uint8")
    crops[table["male"] == 1, :, :6] //= 4  # something to learn
    model = network()
    rows = lambda epoch: batches.shuffled(table, 16, seed=epoch)
    recipe = training.OURS._replace(every_age=False)
    history = training.fit(model, crops, table, epochs, recipe, rows, 8, folder, (crops[:20], table[:20]),
                           progress=False, on_epoch=on_epoch)
    return model, history
"""
exec(SMALL)
FIGURES = ["epoch", "loss", "mae", "accuracy", "tune_mae", "tune_accuracy"]


def test_a_training_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path):
    program = SMALL + textwrap.dedent("""
        import os, signal, sys
        def die(history):
            if len(history) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        train(sys.argv[1], die)
    """)
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "killed")], capture_output=True,
                            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    seen = []
    model, history = train(tmp_path / "killed", lambda h: seen.append(len(h)))  # noqa: F821
    assert seen == [3, 4]  # the two finished epochs were not trained again
    straight, expected = train(tmp_path / "straight")  # noqa: F821
    pd.testing.assert_frame_equal(history[FIGURES], expected[FIGURES], rtol=1e-4)
    for one, two in zip(model.get_weights(), straight.get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)


def test_a_finished_training_is_loaded_not_repeated(tmp_path):
    first, history = train(tmp_path)  # noqa: F821
    again = []
    second, same = train(tmp_path, again.append)  # noqa: F821
    assert not again and history[FIGURES].equals(same[FIGURES])
    assert all(np.array_equal(a, b) for a, b in zip(first.get_weights(), second.get_weights(), strict=True))
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert len(list(tmp_path.glob("*.h5"))) == 1  # only the last checkpoint is kept


def test_a_folder_with_another_training_is_refused(tmp_path):
    train(tmp_path, epochs=1)  # noqa: F821
    with pytest.raises(ValueError, match="another training"):
        train(tmp_path, epochs=2)  # noqa: F821


def test_a_training_of_other_pictures_is_not_taken_for_this_one(tmp_path):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"age": random.integers(18, 66, 32) * 1.0, "male": random.integers(0, 2, 32) * 1.0})
    crops = random.integers(0, 256, (32, 12, 12, 3), dtype="uint8")

    def again(folder, **changes):
        rows = table.assign(crop=[f"{folder}/crops/{i}.jpg" for i in range(32)], **changes)
        return training.fit(network(), crops, rows, 1, training.OURS._replace(every_age=False),  # noqa: F821
                            lambda epoch: batches.shuffled(table, 16, epoch), 8, tmp_path, progress=False)

    first = again("work/cleaning-abc")
    assert again("moved/to/cleaning-abc").equals(first), "the work folder may move"
    with pytest.raises(ValueError, match="another training"):
        again("work/cleaning-def")  # the set was cleaned again, since its files had changed
    with pytest.raises(ValueError, match="another training"):
        again("work/cleaning-abc", age=30.0)


def test_a_kill_after_the_last_weights_leaves_nothing_behind(tmp_path):
    _, history = train(tmp_path)  # noqa: F821
    (tmp_path / "history.csv").unlink()
    for name in ("epoch-0003.weights.h5", "epoch-0004.weights.h5", "state.tmp", "unfinished.weights.h5"):
        (tmp_path / name).write_bytes(b"left")
    train(tmp_path)  # noqa: F821
    assert {path.name for path in tmp_path.iterdir()} == {"state.json", "finished.weights.h5", "history.csv"}
    np.testing.assert_allclose(pd.read_csv(tmp_path / "history.csv")[FIGURES], history[FIGURES])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has /dev/full")
@pytest.mark.parametrize("name", ["state.tmp", "epoch-0001.weights.h5"])
def test_a_full_disk_is_said_plainly_and_the_training_goes_on_afterwards(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(OSError, match="the disk is full.*next call goes on"):
        train(tmp_path, epochs=1)  # noqa: F821
    (tmp_path / name).unlink()
    assert len(train(tmp_path, epochs=1)[1]) == 1  # noqa: F821


def test_epochs_go_on_from_the_plain_weights_not_from_their_average(tmp_path):
    ours = training.OURS._replace(every_age=False)
    plain = ours._replace(average=False)
    random = np.random.default_rng(0)
    table = pd.DataFrame({"age": random.integers(18, 66, 64) * 1.0, "male": random.integers(0, 2, 64) * 1.0})
    crops = random.integers(0, 256, (64, 12, 12, 3), dtype="uint8")
    losses = [
        training.fit(network(), crops, table, 4, recipe, lambda epoch: batches.shuffled(table, 16, seed=epoch),  # noqa: F821
                     8, tmp_path / str(recipe.average), progress=False)["loss"]
        for recipe in (ours, plain)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)  # averaging changes what is kept, not what is trained


def test_the_step_is_traced_once(tmp_path, monkeypatch):
    """To trace is what takes the time in a short training: for each of the course's fits tens of seconds."""
    traced = []
    step = keras.Model.train_step
    monkeypatch.setattr(keras.Model, "train_step", lambda model, data: traced.append(1) or step(model, data))
    train(tmp_path, epochs=2)  # noqa: F821
    assert len(traced) == 1


def test_age_distribution_is_least_at_the_age_and_grows_with_the_distance():
    peaks = np.exp(-0.5 * ((np.arange(48) - np.arange(48)[:, None]) / 2) ** 2)
    peaks = (peaks / peaks.sum(axis=1, keepdims=True)).astype("float32")
    loss = np.asarray(training.AgeDistribution(sigma=2, reduction=None)(np.full(48, 20), peaks))
    assert loss.argmin() == 20
    assert (np.diff(loss[20:]) > 0).all() and (np.diff(loss[:21]) < 0).all()


def test_age_distribution_by_hand():
    flat = np.full((1, 48), 1 / 48, "float32")
    loss = float(training.AgeDistribution(sigma=2, mean_weight=0.1)(np.array([0]), flat))
    assert loss == pytest.approx(np.log(48) + 0.1 * 23.5, rel=1e-4)  # entropy, and a mean 23.5 years off


def test_expected_age_error_is_in_years_and_heeds_weights():
    metric = training.ExpectedAgeError()
    metric.update_state(np.array([10, 20]), np.eye(48, dtype="float32")[[13, 21]], np.array([1.0, 0.0]))
    assert float(metric.result()) == pytest.approx(3)


def test_fused_batch_norm_is_batch_norm():
    x = np.random.default_rng(0).normal(2, 3, (64, 5, 5, 4)).astype("float32")
    plain = keras.layers.BatchNormalization(momentum=0.9, name="n")
    fused = training.FusedBatchNormalization(momentum=0.9, name="n")
    for _ in range(2):
        np.testing.assert_allclose(plain(x, training=True), fused(x, training=True), atol=1e-4)
    for a, b in zip(plain.get_weights(), fused.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(plain(x), fused(x), rtol=2e-3, atol=2e-3)


def test_settled_batch_norm_holds_the_statistics_of_all_batches():
    x = keras.Input((4, 4, 3))
    model = training.fast_copy(keras.Model(x, keras.layers.BatchNormalization(momentum=0.9, name="n")(x)))
    pictures = np.random.default_rng(0).normal(5, 2, (4, 64, 4, 4, 3)).astype("float32")
    training.settle_batch_norm(model, [(batch, None, None) for batch in pictures])
    layer = model.get_layer("n")
    np.testing.assert_allclose(layer.moving_mean, pictures.mean(axis=(0, 1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, pictures.var(axis=(0, 1, 2, 3)), rtol=1e-2)
    assert layer.momentum == 0.9


def test_the_fast_copy_is_the_same_network():
    model = gender_classifier(mobilefacenet(32, 0.125))
    copy = training.fast_copy(model)
    x = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    np.testing.assert_allclose(model(x)["gender"], copy(x)["gender"], atol=1e-6)
    assert [w.path for w in model.weights] == [w.path for w in copy.weights]


def test_published_recipe_is_adam_at_a_hundredth_without_decay():
    model = network()  # noqa: F821
    training.compile_model(model, training.PUBLISHED, steps=100, steps_per_epoch=10)
    assert type(model.optimizer) is keras.optimizers.Adam
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert model.optimizer.weight_decay is None
    assert training.PUBLISHED.age_loss == "sparse" and training.PUBLISHED.balance == "published"


def cleaned(n=400):
    random = np.random.default_rng(0)
    return pd.DataFrame({
        "path": [f"p{i}.jpg" for i in range(n)], "crop": [f"c{i}.jpg" for i in range(n)],
        "identity": [f"who{i // 4}" if i < 200 else None for i in range(n)],
        "age": random.integers(1, 90, n).astype(float), "male": random.integers(0, 2, n).astype(float),
        "fold": random.choice(["train", "validation", "test"], n, p=[0.8, 0.1, 0.1]), "keep": random.random(n) < 0.9,
    })


def test_the_tuning_part_shares_nobody_with_the_rest_and_no_other_fold_is_touched():
    table = cleaned()
    learn, tune = training.split(table)
    assert set(learn["fold"]) == set(tune["fold"]) == {"train"}
    assert learn["keep"].all() and tune["keep"].all()
    assert not set(learn["path"]) & set(tune["path"])
    assert not set(learn["identity"].dropna()) & set(tune["identity"].dropna())
    assert len(learn) + len(tune) == (table["keep"] & (table["fold"] == "train")).sum()
    assert 0.01 < len(tune) / len(learn) < 0.2


def test_nothing_to_learn_is_said():
    with pytest.raises(ValueError, match="nothing to learn"):
        training.split(cleaned().assign(keep=False))


def test_validation_rows_never_teach_gender_either(monkeypatch, tmp_path):
    seen = {}
    monkeypatch.setattr(
        batches, "load_crops", lambda paths, size, eyes=None: np.zeros((len(list(paths)), 97, 97, 3), "uint8"))
    monkeypatch.setattr(training, "fit", lambda model, crops, table, *a, **k: seen.update(table=table))
    table = cleaned()
    training.train_multitask(table, tmp_path, beside=cleaned(), epochs=1, width=0.125)
    assert set(seen["table"]["fold"]) == {"train"} and seen["table"]["keep"].all()


def test_calibration_brings_intervals_to_80_percent():
    random = np.random.default_rng(0)
    n = 4000
    truth = random.integers(25, 60, n)
    guess = np.clip(truth + random.normal(0, 4, n), 18, 65)  # errors of 4 years ...
    sure = np.exp(-0.5 * ((labels.AGES - guess[:, None]) / 2.5) ** 2)  # ... from a network that claims 2.5
    sure /= sure.sum(axis=1, keepdims=True)
    male = random.integers(0, 2, n)
    right = random.random(n) < 0.8
    p = np.where(right == male, 0.99, 0.01)  # claims 99 % and is right in 80 %
    probabilities = {"age": sure, "gender": np.stack([1 - p, p], axis=1)}
    found = training.calibrate(probabilities, pd.DataFrame({"age": truth * 1.0, "male": male * 1.0}))
    assert found["age_temperature"] > 1.5 and found["gender_temperature"] > 1.5
    errors = {t: np.abs(labels.expected_age(labels.temper(sure, t)) - truth).mean()
              for t in (found["decoding_temperature"], 0.5, 1, 2)}
    assert errors[found["decoding_temperature"]] <= min(errors.values()) + 0.01
    low, high = labels.age_interval(labels.temper(sure, found["age_temperature"]))
    assert ((truth >= low) & (truth <= high)).mean() == pytest.approx(0.8, abs=0.03)
    tempered = labels.temper(probabilities["gender"], found["gender_temperature"])
    assert tempered.max(axis=1).mean() == pytest.approx(0.8, abs=0.05)


def test_with_every_age_the_expectation_is_still_the_one_over_18_to_65():
    loss = training.AgeDistribution(sigma=2, mean_weight=1.0, reduction=None)
    p = np.zeros((3, 117), "float32")
    p[0, 30] = p[1, 30] = p[2, 5] = 1.0
    p[1] = 0.5 * p[1] + 0.5 * np.eye(117, dtype="float32")[90]  # half of it beyond 65: of the rest, 30 is the mean
    values = np.asarray(loss(np.array([30, 30, 5]), p))
    assert np.isfinite(values).all()
    # Half of it beyond 65 costs likelihood, but of the rest 30 is the mean: no year is added.
    assert values[1] - values[0] < 1
    other = np.asarray(training.AgeDistribution(sigma=2, mean_weight=9.0, reduction=None)(np.array([30, 30, 5]), p))
    np.testing.assert_allclose(other, values, rtol=1e-4)  # a child's mean within 18..65 is not asked for
    metric = training.ExpectedAgeError()
    metric.update_state(np.array([40, 5]), np.eye(117, dtype="float32")[[30, 60]])
    assert float(metric.result()) == pytest.approx(10)  # the child is left out


def test_a_distribution_is_a_target_like_its_age():
    loss = training.AgeDistribution(sigma=2, mean_weight=0.1, reduction=None)
    classes = np.arange(48)
    target = np.exp(-0.5 * ((classes - 20) / 2) ** 2).astype("float32")
    answer = np.random.default_rng(0).dirichlet(np.ones(48), 1).astype("float32")
    one = np.asarray(loss(np.array([20]), answer))
    other = np.asarray(loss((target / target.sum())[None], answer))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_narrow_keeps_the_distribution_given_18_to_65():
    from fag_utils.models import age_gender, narrow

    keras.utils.set_random_seed(0)
    wide = age_gender(mobilefacenet(32, 0.125), ages=117)
    small = narrow(wide)
    pictures = np.random.default_rng(0).uniform(0, 255, (3, 32, 32, 3)).astype("float32")
    training.settle_batch_norm(wide, [(pictures,)])
    a, b = wide(pictures), small(pictures)
    assert b["age"].shape == (3, 48)
    np.testing.assert_allclose(labels.adult(a["age"].numpy()), b["age"].numpy(), atol=1e-6)
    beyond = np.stack([a["age"].numpy()[:, :18].sum(1), a["age"].numpy()[:, 66:].sum(1)], axis=1)
    np.testing.assert_allclose(b["outside"], beyond, atol=1e-6)
    np.testing.assert_array_equal(a["gender"].numpy(), b["gender"].numpy())
    assert narrow(small) is small


def test_a_teacher_has_its_share_and_all_of_what_has_no_label():
    recipe = training.OURS._replace(teacher_share=0.75)
    answers = {"age": np.full((2, 117), 1 / 117), "gender": np.array([[0.9, 0.1], [0.9, 0.1]])}
    targets = {"age": np.array([30, 0]), "gender": np.array([[0.0, 1.0], [0.0, 1.0]])}
    weights = {"age": np.array([1.0, 0.0]), "gender": np.array([1.0, 1.0])}
    mixed, sure = training.soft_targets(targets, weights, answers, recipe)
    np.testing.assert_allclose(mixed["age"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(mixed["age"][1], 1 / 117, rtol=1e-5)
    assert mixed["age"][0].argmax() == 30 and mixed["age"][0, 100] == pytest.approx(0.75 / 117, rel=1e-4)
    np.testing.assert_allclose(mixed["gender"][0], [0.675, 0.325], rtol=1e-5)
    assert sure["age"].tolist() == [1, 1]


def test_the_recipes_of_the_shipped_networks_differ_from_ours_where_they_say():
    """One thing halved, then shown plainly: what chapter 04's ablation compares stays comparable."""
    def differing(one, other):
        return {name for name, value in one._asdict().items() if value != getattr(other, name)}

    half, ours = training.HALF_AS_VARIED, training.OURS
    assert differing(half, ours) == {"name", "augmentation"}
    assert differing(half.augmentation, ours.augmentation) == {"turn", "scale", "shift"}
    for name in ("turn", "scale", "shift"):
        assert getattr(half.augmentation, name) == getattr(ours.augmentation, name) / 2
    assert differing(training.SETTLING, half) == {"name", "augmentation", "learning_rate", "blended"}
    assert training.SETTLING.learning_rate == pytest.approx(ours.learning_rate / 5)
    for name, value in training.SETTLING.augmentation._asdict().items():
        assert value <= getattr(half.augmentation, name), f"{name} is varied more where faces are shown nearly plain"


def test_the_teacher_of_a_covered_face_sees_it_bare(tmp_path):
    """Turned and lit as the pupil sees it, but without the mask, and whole where the pupil sees the eyes."""
    drawn, _ = classroom.sample(6, seed=3, size=97)
    table = pd.DataFrame({"age": [30.0] * 6, "male": [1.0] * 6})
    seen = []
    keras.utils.set_random_seed(0)
    teacher = training.Teacher([age_gender(mobilefacenet(32, 0.25))], {32: drawn})
    ((_, (answer,)),) = teacher.networks
    teacher.networks = [(32, [lambda pictures: seen.append(np.array(pictures)) or answer(pictures)])]
    rows = np.arange(6)[None]
    other_hair = training.PLAIN._replace(augmentation=training.NEARLY_PLAIN._replace(hair=1.0))
    for recipe in (training.COVERED, training.OCULAR, other_hair):
        see = {"augmentation": recipe.augmentation, "seed": 7, "ahead": 2, "blended": 0.0}
        data = batches.dataset(drawn, table, rows, 32, **see, eyes=recipe.eyes)
        ((pictures, targets, _),) = teacher.taught(data, table, rows, see, recipe)
        bare = see | {"augmentation": recipe.augmentation._replace(mask=0.0, hair=0.0)}
        ((wanted, *_),) = batches.dataset(drawn, table, rows, 32, **bare)
        np.testing.assert_allclose(seen.pop(), wanted, atol=1e-3)
        assert targets["age"].shape == (6, 48)
        if recipe.eyes:
            assert pictures.shape[1:3] == faces.eye_shape("both", 32)
        else:
            assert np.abs(pictures - wanted).max() > 50, "the pupil sees masks, or other hair"


def drawn_faces(folder):
    """A cleaned table of 160 drawn faces of 18 to 65, kept in a folder."""
    drawn, about = classroom.sample(160, seed=1, size=134)
    for i, picture in enumerate(drawn):
        Image.fromarray(picture).save(folder / f"{i}.jpg")
    names = [str(folder / f"{i}.jpg") for i in range(160)]
    return pd.DataFrame({"path": names, "crop": names, "identity": None, "fold": "train", "keep": True,
                         "age": np.clip(about["age"], 18, 65).round(), "male": about["male"].astype(float)})


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.text("xyz", min_size=1)), min_size=1, max_size=30))
def test_a_person_is_in_one_half_in_every_table(people):
    table = pd.DataFrame([{"identity": who, "path": f"/some/{name}.jpg"} for who, name in people])
    halves = training.half(table)
    assert set(halves) <= {0, 1}
    assert (pd.Series(halves).groupby(table["identity"]).nunique() == 1).all()
    shuffled = table.sample(frac=1, random_state=0)
    assert (training.half(shuffled) == halves[shuffled.index]).all()
    nameless = table.assign(identity=None)
    moved = nameless.assign(path=nameless["path"].str.replace("/some/", "/other/"))
    assert (training.half(nameless) == training.half(moved)).all()


def test_of_a_pair_the_teacher_answers_that_has_not_seen_the_face(tmp_path, monkeypatch):
    """Blended faces too: what is laid over a face is of the same half."""
    table = drawn_faces(tmp_path)
    halves = training.half(table)
    assert 50 < halves.sum() < 110
    keras.utils.set_random_seed(0)
    pair = tiny((32, 32)), tiny((32, 32))
    asked, answering, answers = [], training.answering, training.Teacher.answers

    def told(network, engine):
        answer, number = answering(network, engine), [each is network for each in pair].index(True)
        return lambda pictures: asked.append((number, len(pictures))) or answer(pictures)

    def checked(self, everything, rows, see):
        of = training.half(everything)
        assert (np.diff(of[rows], axis=1) >= 0).all(), "a batch holds one half, then the other"
        for index, answer in zip(rows, answers(self, everything, rows, see), strict=True):
            asked_now = dict(asked)
            asked.clear()
            assert asked_now == {1: (of[index] == 0).sum(), 0: (of[index] == 1).sum()}
            yield answer

    monkeypatch.setattr(training, "answering", told)
    monkeypatch.setattr(training.Teacher, "answers", checked)
    _, history = training.train_multitask(table, tmp_path / "pupil", tiny((32, 32)), epochs=2, progress=False,
                                          teachers=[pair])
    assert np.isfinite(history[["loss", "tune_mae", "tune_accuracy"]].to_numpy()).all()
    for wrong in ((), (*pair, tiny((32, 32))), (pair[0], tiny((16, 16)))):
        with pytest.raises(ValueError, match="two of one input"):
            training.Teacher([wrong], {})
    # What they say lies where it belongs.
    constant = [lambda pictures, k=k: {"age": np.full((len(pictures), 3), k)} for k in (0, 1)]
    said = training._divided(constant, np.zeros((4, 8, 8, 3)), np.array([1, 0, 0, 1]))
    assert said["age"][:, 0].tolist() == [1, 0, 0, 1]


def test_a_frozen_teacher_speaks_of_nobody_whom_it_learned_from(tmp_path, monkeypatch):
    """What is learned by heart from labels that say nothing is no use to tell them of other people."""
    table = drawn_faces(tmp_path)
    table["male"] = np.random.default_rng(0).integers(0, 2, len(table)) * 1.0
    learn, tune = training.split(table)
    learned, learn_heads = {}, training.FrozenTeacher._learn

    def watched(self, found, people, number):
        heads = learn_heads(self, found, people, number)
        said = heads.predict(found[0], verbose=0)["gender"][:, 1] > 0.5
        learned[number] = set(people["crop"]), (said == people["male"]).mean()
        return heads

    monkeypatch.setattr(training.FrozenTeacher, "_learn", watched)
    frozen = training.FrozenTeacher([backbone(32)], table, tmp_path, epochs=60)
    said = frozen.answers(learn)
    assert said["age"].shape == (len(learn), 117) and said["gender"].shape == (len(learn), 2)
    for answer in said.values():
        np.testing.assert_allclose(answer.sum(axis=1), 1, atol=1e-4)
    assert min(accuracy for _, accuracy in learned.values()) > 0.9  # they know by heart
    assert ((said["gender"][:, 1] > 0.5) == learn["male"]).mean() < 0.65  # and it helps nobody
    times = learn["crop"].map(lambda crop: sum(crop in seen for seen, _ in learned.values()))
    assert (times == 4).all() and not any(seen & set(tune["crop"]) for seen, _ in learned.values())

    monkeypatch.setattr(training, "embed", None)  # who asks again, or in another order, hears what was kept
    again = training.FrozenTeacher(frozen.networks, table, tmp_path, epochs=60).answers(learn[::-1])
    np.testing.assert_array_equal(again["age"][::-1], said["age"])
    with pytest.raises(TypeError):  # other labels, other heads
        training.FrozenTeacher(frozen.networks, table.assign(male=1.0), tmp_path, epochs=60).answers(learn)
    with pytest.raises(ValueError, match="was not shown elsewhere.jpg"):
        frozen.answers(learn.assign(crop="elsewhere.jpg"))
    with pytest.raises(ValueError, match=r"one size and two parts or more; got the sizes \[24, 32\] and 5"):
        training.FrozenTeacher([backbone(32), backbone(24)], table, tmp_path)


def test_a_frozen_teacher_counts_as_many(tmp_path, monkeypatch):
    """Its answers are mixed with those of the networks that see each view; two faces in one it can't have seen."""
    table = drawn_faces(tmp_path)
    keras.utils.set_random_seed(0)
    network = tiny((32, 32))
    frozen = training.FrozenTeacher([backbone(32)], table, tmp_path, parts=2, epochs=2, weight=3)
    mixed, answers = [], training.Teacher.answers

    def checked(self, everything, rows, see):
        alone = training.Teacher([network], self.crops)
        for index, one, both in zip(rows, answers(alone, everything, rows, see), answers(self, everything, rows, see),
                                    strict=True):
            slow = frozen.answers(everything.iloc[index])
            for head in both:
                np.testing.assert_allclose(both[head], (one[head] + 3 * slow[head]) / 4, atol=1e-5)
            mixed.append(len(index))
            yield both

    monkeypatch.setattr(training.Teacher, "answers", checked)
    for name, teachers in (("both", [network, frozen]), ("frozen", [frozen])):
        if name == "frozen":
            monkeypatch.setattr(training.Teacher, "answers", answers)
        _, history = training.train_multitask(table, tmp_path / name, tiny((32, 32)), epochs=2, recipe=training.PLAIN,
                                              progress=False, teachers=teachers)
        assert np.isfinite(history[["loss", "tune_mae", "tune_accuracy"]].to_numpy()).all()
    assert sum(mixed) > 200
    with pytest.raises(ValueError, match="ours doesn't suit a frozen teacher"):
        training.train_multitask(table, tmp_path / "blended", tiny((32, 32)), teachers=[frozen])


def tiny(shape, ages=labels.N_EVERY_AGE):
    """A network with both heads for pictures of this (height, width), built and traced in no time."""
    picture = keras.Input((*shape, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1)(picture)
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(8, 3, strides=2, name="c")(x))
    return age_gender(keras.Model(picture, keras.layers.GlobalMaxPooling2D()(x), name="tiny"), ages=ages)


def backbone(size):
    """Enough to see a mask: what is bright and dark in the lower half. size : of the picture, or (height, width)."""
    picture = keras.Input((*np.broadcast_to(size, 2).tolist(), 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1)(picture)
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(16, 5, strides=2)(x))
    x = keras.layers.MaxPooling2D(2)(keras.layers.ReLU()(x))
    return keras.Model(picture, keras.layers.Flatten()(x), name="backbone")


def test_an_ocular_network_begins_with_the_layers_of_the_full_face():
    keras.utils.set_random_seed(0)
    teacher = age_gender(mobilefacenet(32, 0.125), ages=labels.N_EVERY_AGE)
    pictures = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3)).astype("float32")
    again = widen(narrow(teacher))
    np.testing.assert_allclose(again(pictures)["age"], teacher(pictures)["age"], rtol=1e-4)
    eyes = age_gender(mobilefacenet(faces.eye_shape("both", 48), 0.125), ages=labels.N_EVERY_AGE)
    begin_with(eyes, teacher)
    same = [layer.name for layer, other in zip(eyes.layers, teacher.layers, strict=True) if layer.weights and all(
        a.shape == b.shape and np.array_equal(a, b) for a, b in zip(layer.weights, other.weights, strict=True))]
    assert "row1_conv" in same and "age" in same and not any("gdconv" in name and "norm" not in name for name in same)


def test_landmarks_are_kept_for_the_crops_they_were_found_in(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr(faces, "crop_landmarks", lambda crops, margin: (
        looked.append(1) or crops[:, :5, :2, 0].astype("float32"), None))
    crops = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), "uint8")
    first = training.landmarks(crops, tmp_path)
    np.testing.assert_array_equal(training.landmarks(crops, tmp_path), first)
    assert len(looked) == 1
    np.testing.assert_array_equal(training.landmarks(crops[::-1], tmp_path), first[::-1])
    assert len(looked) == 2 and [file.name for file in tmp_path.iterdir()] == ["landmarks.npy"]


def test_covered_and_ocular_pupils_and_a_mask_detector_are_trained_from_a_table(tmp_path, monkeypatch):
    table = drawn_faces(tmp_path)
    _, tune = training.split(table)
    keras.utils.set_random_seed(0)
    teacher = tiny((32, 32))
    pupils = {"covered": (training.COVERED, tiny((32, 32))),
              "ocular": (training.OCULAR, tiny(faces.eye_shape("both", 32)))}
    for name, (recipe, pupil) in pupils.items():
        model, history = training.train_multitask(table, tmp_path / name, pupil, epochs=1, recipe=recipe,
                                                  progress=False, teachers=[teacher])
        assert np.isfinite(history[["loss", "tune_mae", "tune_accuracy"]].to_numpy()).all()
        assert (tmp_path / name / "landmarks.npy").exists() == (name == "covered")
    monkeypatch.setattr(training, "mobilefacenet", lambda size, width: backbone(size))
    recipe = training.MASKS._replace(learning_rate=3e-2)
    detector, history = training.train_mask_detector(table, tmp_path / "detector", 32, epochs=12, recipe=recipe,
                                                     progress=False)
    crops, who = training.covered_too(tune, 32)
    assert len(crops) == 2 * len(tune) and who["masked"].tolist() == [0] * len(tune) + [1] * len(tune)
    assert history["tune_accuracy"].iloc[-1] > 0.8, history.round(2).to_string()


def test_a_pupil_learns_from_pictures_without_labels(tmp_path):
    exec(SMALL, globals())
    random = np.random.default_rng(0)
    crops = random.integers(0, 256, (64, 12, 12, 3), dtype="uint8")
    male = random.integers(0, 2, 64)
    crops[male == 1, :, :6] //= 4
    labelled = pd.DataFrame({"age": 30.0, "male": male * 1.0})
    rows = lambda epoch: batches.shuffled(labelled, 16, seed=epoch)  # noqa: E731
    recipe = training.OURS._replace(every_age=False, learning_rate=2e-2)
    teacher = network()  # noqa: F821
    training.fit(teacher, crops, labelled, 12, recipe, rows, 8, tmp_path / "teacher", progress=False)
    pupil = network()  # noqa: F821
    unlabelled = labelled.assign(age=np.nan, male=np.nan)
    training.fit(pupil, crops, unlabelled, 12, recipe, rows, 8, tmp_path / "pupil", progress=False,
                 teacher=training.Teacher([teacher], {8: crops}))
    said = training.predict(pupil, crops, 8)
    taught = training.predict(teacher, crops, 8)
    assert ((said["gender"][:, 1] > 0.5) == (taught["gender"][:, 1] > 0.5)).mean() > 0.9
    assert np.abs(labels.expected_age(said["age"]) - labels.expected_age(taught["age"])).mean() < 4


def test_a_backbone_learns_to_find_what_others_find(tmp_path, monkeypatch):
    """Without a label; a killed run goes on; of another fold, and of the tuning part, no picture is looked at."""
    pictures, _ = classroom.sample(120, seed=4, size=112)
    paths = [str(tmp_path / f"{number}.png") for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        Image.fromarray(picture).save(path)
    table = pd.DataFrame({"path": paths, "crop": paths, "keep": True, "fold": "train", "age": np.nan, "male": np.nan,
                          "identity": [f"person {number}" for number in range(len(paths))]})
    table.loc[:9, ["fold", "crop"]] = ["validation", "not to be read.png"]
    for path in training.split(table)[1]["crop"]:
        os.remove(path)
    keras.utils.set_random_seed(0)
    networks = [squeezenet(40), age_gender(mobilefacenet(32, 0.5))]  # of the second what comes before its heads
    recipe = training.IMITATION._replace(learning_rate=3e-3)

    def learned(folder, **settings):
        keras.utils.set_random_seed(1)
        pupil = backbone(32)
        model, history = training.imitate(table, tmp_path / folder, pupil, networks, epochs=10, recipe=recipe,
                                          progress=False, **settings)
        return pupil, model, history

    pupil, model, history = learned("run")
    first, second = (network.output_shape[-1] for network in map(body, networks))
    assert first != second and model.output["features"].shape == (None, first + second)
    assert history["loss"].iloc[0] > 0.9 and history["loss"].iloc[-1] < 0.9 * history["loss"].iloc[0]
    wanted = training.Features(networks, {size: batches.load_crops(training.split(table)[0]["crop"], size)
                                          for size in (32, 40)}).found
    np.testing.assert_allclose(wanted.mean(axis=0), 0, atol=1e-3)
    weights = [(wanted[:, :first] ** 2).sum(), (wanted[:, first:] ** 2).sum()]
    np.testing.assert_allclose(weights, wanted.size / 2, rtol=1e-3)  # alike, and variance 1
    np.testing.assert_array_equal(pupil.get_weights()[0], model.get_weights()[0])

    def stop(history):
        if len(history) == 2:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        learned("killed", on_epoch=stop)
    with monkeypatch.context() as patch:  # what was found is kept, for whoever imitates the same
        patch.setattr(training, "embed", None)
        np.testing.assert_allclose(learned("killed")[2]["loss"], history["loss"], rtol=1e-5)
        networks.reverse()
        with pytest.raises(TypeError):
            learned("others")
        networks.reverse()
    if fast.available():
        for file in tmp_path.glob("features-*"):
            file.unlink()
        other = learned("fast", engine="fast")[2]
        assert other["loss"].iloc[0] == pytest.approx(history["loss"].iloc[0], rel=0.05)
        assert other["loss"].iloc[-1] < 0.9 * other["loss"].iloc[0]
    monkeypatch.delattr(training, "embed")  # a finished training is loaded, and no network is asked again
    for value, again in zip(pupil.get_weights(), learned("run")[0].get_weights(), strict=True):
        np.testing.assert_array_equal(value, again)


def test_who_imitates_may_see_less_than_those_who_are_imitated(tmp_path, monkeypatch):
    """The pupil sees masks, or the eyes alone; what it has to find is what others found in the bare face."""
    table = drawn_faces(tmp_path)[:64]
    keras.utils.set_random_seed(0)
    network, seen, taught = squeezenet(40), {}, training.Features.taught

    def imitate(name, pupil, recipe, mask=0.0):
        def watched(self, *of_epoch):
            for pictures, targets, weights in taught(self, *of_epoch):
                seen.setdefault(name, (np.asarray(pictures), targets["features"]))
                yield pictures, targets, weights

        monkeypatch.setattr(training.Features, "taught", watched)
        keras.utils.set_random_seed(1)
        recipe = recipe._replace(augmentation=batches.NO_AUGMENTATION._replace(mask=mask), learning_rate=2e-3)
        return training.imitate(table, tmp_path / name, pupil, [network], epochs=4, recipe=recipe, progress=False)

    shape = faces.eye_shape("both", 40)
    for name, size, *recipe in (("bare", 40, training.COVERED), ("masked", 40, training.COVERED, 1.0),
                                ("eyes", shape, training.OCULAR)):
        model, history = imitate(name, backbone(size), *recipe)
        assert history["loss"].iloc[-1] < history["loss"].iloc[0]
        assert seen[name][0].shape[1:] == model.input_shape[1:]
        np.testing.assert_array_equal(seen[name][1], seen["bare"][1])
    assert seen["eyes"][0].shape[1:3] == shape
    changed = np.abs(seen["masked"][0] - seen["bare"][0]).max(axis=-1) > 20
    assert changed[:, 24:34, 14:26].mean() > 0.6 and changed[:, :10].mean() < 0.01


def test_a_teacher_is_asked_once_for_views_that_come_again(tmp_path, monkeypatch):
    """With `views`, and after a kill too; a pupil that hears what was kept learns what it would have learned."""
    exec(SMALL, globals())
    crops = np.random.default_rng(0).integers(0, 256, (64, 12, 12, 3), dtype="uint8")
    table = pd.DataFrame({"age": np.arange(64) % 48 + 18.0, "male": np.arange(64) % 2 * 1.0})
    recipe = training.OURS._replace(every_age=False)
    keras.utils.set_random_seed(1)
    network_of_teacher, start = network(), network()  # noqa: F821
    weights = start.get_weights()
    asked, answering = [], training.answering

    def counted(*which):
        answer = answering(*which)
        return lambda pictures: asked.append(len(pictures)) or answer(pictures)

    monkeypatch.setattr(training, "answering", counted)

    def train(folder, views, rows=lambda epoch: batches.shuffled(table, 16, seed=epoch)):
        asked.clear()
        start.set_weights(weights)
        teacher = training.Teacher([network_of_teacher], {8: crops}, views=views)
        history = training.fit(start, crops, table, 5, recipe, rows, 8, tmp_path / folder, progress=False,
                               teacher=teacher)
        return history.drop(columns=["seconds", "pictures_per_second"]), len(asked)

    again, times = train("again", 2)
    assert times == 2 * 4, "two epochs of four batches"
    left = sorted(path.name for path in (tmp_path / "again").iterdir())
    assert left == ["finished.weights.h5", "history.csv", "state.json"]
    # The same views, with a teacher that answers each time.
    monkeypatch.setattr(training, "_kept", lambda answers, number, path: answers)
    anew, times = train("anew", 2)
    assert times == 5 * 4
    np.testing.assert_allclose(again, anew, rtol=2e-3)
    _, times = train("ever new", None)
    assert times == 5 * 4
    monkeypatch.undo()
    monkeypatch.setattr(training, "answering", counted)

    def killed(epoch):
        if len(asked) == 2 * 4 and (tmp_path / "killed" / "epoch-0003.weights.h5").exists():
            raise KeyboardInterrupt
        return batches.shuffled(table, 16, seed=epoch)

    with pytest.raises(KeyboardInterrupt):
        train("killed", 2, killed)
    after, times = train("killed", 2)
    assert times == 0, "what was kept is read"
    np.testing.assert_array_equal(after, again)
    save = training._save_state

    def killed_before_the_checkpoint(trainer, folder, file, state):
        assert (folder / "answers-0001.npz").exists() or len(state["history"]) < 2
        if len(state["history"]) == 2:
            raise KeyboardInterrupt
        save(trainer, folder, file, state)

    monkeypatch.setattr(training, "_save_state", killed_before_the_checkpoint)
    with pytest.raises(KeyboardInterrupt):
        train("second epoch", 2)
    monkeypatch.setattr(training, "_save_state", save)
    after, times = train("second epoch", 2)
    assert times == 0, "the answers were whole, the weights were not"
    np.testing.assert_array_equal(after, again)
    # Answers without a state are those of a run that was killed in its first epoch: perhaps another teacher's.
    (tmp_path / "stale").mkdir()
    (tmp_path / "stale" / "answers-0000.npz").write_bytes(b"of another teacher")
    after, times = train("stale", 2)
    assert times == 2 * 4
    np.testing.assert_array_equal(after, again)
    with pytest.raises(ValueError, match="1 or more"):
        training.Teacher([network_of_teacher], {8: crops}, views=0)
    with pytest.raises(ValueError, match="seen again"):
        training.train_multitask(table, tmp_path / "no", recipe=training.PUBLISHED, views=2)


# Fine-tuning a part -------------------------------------------------------------------------------------


def faces_of_noise(n=64, size=40):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"age": random.integers(18, 66, n) * 1.0, "male": random.integers(0, 2, n) * 1.0})
    return random.integers(0, 256, (n, size + 12, size + 12, 3), dtype="uint8"), table


def changed(model, before):
    """Names of the layers whose weights are not what they were."""
    return {layer.name for layer, weights in zip(model.layers, before, strict=True)
            if any(not np.array_equal(a, b) for a, b in zip(layer.get_weights(), weights, strict=True))}


@pytest.mark.parametrize("engine", ["keras", "fast"])
@pytest.mark.parametrize("learn", training.LEARN)
def test_only_what_is_to_learn_changes(learn, engine, tmp_path):
    """Weights, and the running statistics of batch norm: those of a frozen layer stay to the last digit."""
    if engine == "fast" and not fast.available():
        pytest.skip("needs PyTorch and a C++ compiler")
    keras.utils.set_random_seed(0)
    model = age_gender(mobilefacenet(40, 0.125))
    crops, table = faces_of_noise()
    weights = training.freeze(model, learn)
    before = [layer.get_weights() for layer in model.layers]
    recipe = training.OURS._replace(every_age=False)
    training.fit(model, crops, table, 2, recipe, lambda epoch: batches.shuffled(table, 16, epoch), 40, tmp_path,
                 progress=False, engine=engine)
    learned = changed(model, before)
    heads, weighty = {"age", "gender"}, {layer.name for layer in model.layers if layer.weights}
    if learn == "last layer":
        assert learned == heads
        assert weights == 128 * (48 + 2) + 48 + 2
    elif learn == "last block":
        assert heads < learned
        assert {name.split("_")[0] for name in learned - heads} == {"row7", "row8", "row9", "row10"}
        assert not any(name.startswith("row7_1") for name in learned)
    else:
        assert learned == weighty


def test_frozen_batch_norm_answers_in_training_as_in_use(tmp_path):
    keras.utils.set_random_seed(0)
    model = age_gender(mobilefacenet(40, 0.125), dropout=0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(layer.moving_mean + 0.3)
    training.freeze(model, "last layer")
    copy = training.fast_copy(model)
    pictures = np.random.default_rng(0).uniform(0, 255, (4, 40, 40, 3)).astype("float32")
    for head, answer in copy(pictures, training=True).items():
        np.testing.assert_allclose(answer, model(pictures, training=False)[head], atol=1e-6)


@pytest.mark.parametrize("build, block", [
    (lambda: efficientnet_lite0(64), {"stage8", "stage9"}),
    (lambda: face_resnet(64), {"stage5"}),
    (lambda: gilnet(64, 0.125), {"fc6", "fc7"}),
    (lambda: alexnet(64, 0.125), {"fc6", "fc7"}),
    (lambda: vgg_face(64, width=0.125), {"fc6", "fc7"}),
])
def test_every_start_has_a_last_block(build, block):
    model = age_gender(build())
    counts = [training.freeze(model, learn) for learn in training.LEARN]
    assert 0 < counts[0] < counts[1] < counts[2]
    training.freeze(model, "last block")
    free = {layer.name.split("_")[0] for layer in model.layers if layer.trainable and layer.weights}
    assert free == block | {"age", "gender"}


def test_what_cannot_be_frozen_is_said():
    model = age_gender(mobilefacenet(40, 0.125))
    with pytest.raises(ValueError, match="learn must be one of"):
        training.freeze(model, "first layer")
    model.name = "mine"
    with pytest.raises(ValueError, match="no last block is known for mine"):
        training.freeze(model, "last block")


def test_a_folder_with_another_part_learned_is_refused(tmp_path):
    train(tmp_path, epochs=1)  # noqa: F821
    model = network()  # noqa: F821
    model.get_layer("c").trainable = False
    crops, table = faces_of_noise(96, 0)
    with pytest.raises(ValueError, match="another training"):
        training.fit(model, crops, table, 1, training.OURS._replace(every_age=False),
                     lambda epoch: batches.shuffled(table, 16, epoch), 8, tmp_path, progress=False)


@pytest.mark.parametrize("engine", ["keras", "fast"])
def test_features_are_the_backbones_answers(engine):
    if engine == "fast" and not fast.available():
        pytest.skip("needs PyTorch and a C++ compiler")
    keras.utils.set_random_seed(0)
    backbone, (crops, _) = mobilefacenet(40, 0.125), faces_of_noise(5)
    expected = backbone.predict(next(iter(batches.in_order(crops, 40))), verbose=0)
    features = training.embed(backbone, crops, 40, engine)
    assert features.shape == (5, 128)
    assert np.corrcoef(features.ravel(), expected.ravel())[0, 1] > 0.999  # 16 bits in the fast one
