"""Losses, the two recipes, gender pre-training and multitask training that can be interrupted.

Both trainings share one loop, `fit`: an epoch is one array of row numbers (see `batches`), a checkpoint is
written after each, and a run that was killed goes on after the last one with the same batches.
"""

import functools
import hashlib
import json
import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from keras import ops
from tqdm.auto import tqdm

from fag_utils import batches, cleaning, course, faces, labels, occlusion
from fag_utils.models import (
    Cosine,
    add_age_branch,
    body,
    face_recogniser_head,
    features,
    gender_classifier,
    imitator,
    mask_classifier,
    mobilefacenet,
    reader,
)
from fag_utils.table import fold_keys, hash_fold, hash_part


class AgeDistribution(keras.losses.Loss):
    """Loss of a distribution over ages, for a target that is one age or a distribution.

    One age is spread over its neighbours by a normal distribution of `sigma` years, since a face of 30
    looks much like one of 31 (Gao et al. 2017, "Deep Label Distribution Learning"), and the expected age,
    which is what the network will answer, is pulled to the target's by `mean_weight` times its absolute
    error in years (Gao et al. 2018, "Age Estimation Using Expectation of Label Distribution Learning").
    The expectation is the one over 18..65, also where the network tells all 117 ages apart: see `every_age`.

    y_true (n,) class, 0..47 or 0..116, or (n, classes) probabilities; y_pred (n, 48) or (n, 117)
    probabilities; -> (n,) losses.
    """

    def __init__(self, sigma=2.0, mean_weight=0.1, name="age_distribution", **kwargs):
        super().__init__(name=name, **kwargs)
        self.sigma, self.mean_weight = sigma, mean_weight

    def call(self, y_true, y_pred):
        mean, _ = _expectation(y_pred)
        if _is_distribution(y_true, y_pred):
            target, (wanted, inside) = y_true, _expectation(y_true)
        else:
            classes = ops.arange(y_pred.shape[-1], dtype="float32")
            age = ops.cast(ops.reshape(y_true, (-1, 1)), "float32")
            target = ops.softmax(-0.5 * ((classes - age) / self.sigma) ** 2)
            # Of the age itself: at 18 and 65 the mean of its spread is drawn inwards.
            wanted, inside = _expectation(ops.one_hot(ops.cast(age[:, 0], "int32"), y_pred.shape[-1]))
        crossentropy = -ops.sum(target * ops.log(y_pred + 1e-7), axis=-1)
        return crossentropy + self.mean_weight * inside * ops.abs(mean - wanted)


def _is_distribution(y_true, y_pred):
    return len(y_true.shape) == 2 and y_true.shape[-1] == y_pred.shape[-1]


def _expectation(probabilities):
    """(n, 48) or (n, 117) -> expected class within 18..65 (n,), and the probability of that range (n,)."""
    if probabilities.shape[-1] != labels.N_AGES:
        probabilities = probabilities[:, labels.MIN_AGE : labels.MAX_AGE + 1]
    inside = ops.sum(probabilities, axis=-1)
    classes = ops.arange(labels.N_AGES, dtype="float32")
    return ops.sum(probabilities * classes, axis=-1) / (inside + 1e-7), inside


class ExpectedAgeError(keras.metrics.Mean):
    """Mean absolute error in years of the expected age over 18..65; targets outside are left out.

    y_true (n,) class or (n, classes), y_pred (n, classes).
    """

    def __init__(self, name="mae", **kwargs):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        if not _is_distribution(y_true, y_pred):
            y_true = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), y_pred.shape[-1])
        (mean, _), (wanted, inside) = _expectation(y_pred), _expectation(ops.cast(y_true, "float32"))
        weight = inside if sample_weight is None else inside * ops.cast(sample_weight, "float32")
        super().update_state(ops.abs(mean - wanted), weight)


class ArcFace(keras.losses.Loss):
    """Loss of face recognition: the angle to one's own direction must be smaller than any other by `margin` radians.

    Deng, Guo, Xue, Zafeiriou (2019), "ArcFace: Additive Angular Margin Loss for Deep Face Recognition": cross-entropy
    over `scale` times the cosines, the right one taken at its angle plus the margin. Where that sum passes 180
    degrees the cosine falls on in a straight line instead, as in the authors' code.

    y_true (n,) class; y_pred (n, classes) cosines, as `models.Cosine` gives them; -> (n,) losses.
    """

    def __init__(self, margin=0.5, scale=64.0, name="arcface", **kwargs):
        super().__init__(name=name, **kwargs)
        self.margin, self.scale = margin, scale

    def call(self, y_true, y_pred):
        right = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), y_pred.shape[-1])
        cosine = ops.sum(right * y_pred, axis=-1, keepdims=True)
        sine = ops.sqrt(ops.maximum(1 - cosine**2, 1e-6))  # where it is 0, a square root has no slope
        moved = ops.where(cosine > -np.cos(self.margin), cosine * np.cos(self.margin) - sine * np.sin(self.margin),
                          cosine - self.margin * np.sin(self.margin))
        logits = self.scale * (y_pred + right * (moved - cosine))
        return ops.logsumexp(logits, axis=-1) - ops.sum(right * logits, axis=-1)


class Recipe(NamedTuple):
    """How to train: everything that differs between the published way and ours."""

    name: str
    age_loss: str  # "sparse" (categorical crossentropy of one class) or "distribution"
    optimizer: str  # "adam" or "adamw"
    learning_rate: float
    cosine: bool  # warm up for one epoch, then fall to zero along a cosine
    average: bool  # evaluate and keep an exponential moving average of the weights
    gender_smoothing: float
    augmentation: batches.Augmentation
    balance: str  # "published" (tables of 16 groups), "tempered" or "shuffled"
    beside: int  # places of a batch for pictures without an age, or one outside 18..65
    every_age: bool = False  # learn all ages 0..116, of which 18..65 are kept (see `models.narrow`)
    teacher_share: float = 0.8  # of the targets, where there is a teacher
    blended: float = 0.5  # with a teacher: share of the pictures over which another one is laid
    eyes: str | None = None  # see the region of the eyes alone: a key of `faces.EYES`


# The reference recipe: Adam at 0.01 without decay, one class an age, pictures turned up to 45 degrees.
PUBLISHED = Recipe("published", "sparse", "adam", 0.01, False, False, 0.0,
                   batches.REFERENCE_AUGMENTATION, "published", 0)
OURS = Recipe("ours", "distribution", "adamw", 3e-3, True, True, 0.05,
              batches.Augmentation(), "tempered", 32, every_age=True)
RECIPES = {recipe.name: recipe for recipe in (PUBLISHED, OURS)}

# Where the face lies, varied half as much: the ablation of chapter 04 says why. What is shipped was trained with it.
HALF_AS_VARIED = OURS._replace(name="half as varied",
                               augmentation=OURS.augmentation._replace(turn=6, scale=0.06, shift=0.03))
# For a network that has seen faces askew, badly lit and hidden before: all is shown nearly as it is.
NEARLY_PLAIN = HALF_AS_VARIED.augmentation._replace(brightness=0.1, contrast=0.1, saturation=0.15, grey=0.02,
                                                    blur=0.05, erase=0)
# The end of a training: faces to be read never have another one laid over them.
SETTLING = HALF_AS_VARIED._replace(name="settling", learning_rate=OURS.learning_rate / 5, blended=0.0,
                                   augmentation=NEARLY_PLAIN)
# For a trained network that learns on: faces nearly as they are, at half the rate.
PLAIN = OURS._replace(name="plain", learning_rate=OURS.learning_rate / 2, blended=0.0, augmentation=NEARLY_PLAIN)
# For covered faces: half of the pictures in a mask, or the eyes alone. Both begin with trained layers.
COVERED = PLAIN._replace(name="covered", augmentation=NEARLY_PLAIN._replace(mask=0.5))
OCULAR = PLAIN._replace(name="ocular", learning_rate=2e-3, eyes="both")
# The mask detector: a grey rectangle over a face is no mask.
MASKS = OURS._replace(name="masks", balance="shuffled", augmentation=batches.Augmentation(mask=0.5))
# What another network finds in a face: no labels, so nothing to balance, and no picture laid over another.
IMITATION = HALF_AS_VARIED._replace(name="imitation", balance="shuffled", blended=0.0)
# Heads that read what frozen networks find (see `FrozenTeacher`): small, and soon done.
READING, READING_BATCH = OURS._replace(name="reading", learning_rate=2e-3, average=False), 256


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch norm whose training step is one kernel of TensorFlow, instead of a dozen operations.

    With it the networks of the course train 1.5 times as fast on a CPU. The variance is the unbiased one.
    A frozen one keeps to its running statistics, as Keras' does.
    """

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable) or keras.backend.backend() != "tensorflow" or len(inputs.shape) != 4:
            return super().call(inputs, training=training, mask=mask)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma, self.beta, epsilon=self.epsilon, is_training=True)
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(self.momentum * moving + (1 - self.momentum) * now)
        return outputs


def fast_copy(model):
    """The same network with fused batch norm, for training: layers, weights and names are the same."""
    def clone(layer):
        fused = type(layer) is keras.layers.BatchNormalization
        return (FusedBatchNormalization if fused else type(layer)).from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def settle_batch_norm(model, data):
    """Measure the means and variances of batch norm anew, for averaged weights: those kept while training
    belong to other weights (Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima").
    Frozen ones belong to frozen weights, and stay.

    data : batches of the composition that was trained with; their statistics are averaged evenly
    """
    norms = [layer for layer in model.layers
             if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable]
    if not norms:
        return
    momentum = [layer.momentum for layer in norms]
    for number, (pictures, *_) in enumerate(data):
        for layer in norms:
            layer.momentum = number / (number + 1)
        model(pictures, training=True)
    for layer, value in zip(norms, momentum, strict=True):
        layer.momentum = value


LEARN = ("last layer", "last block", "whole net")

# How the names of the layers in the last block of each backbone begin.
LAST_BLOCK = {
    "mobilefacenet": ("row7_2_", "row8_", "row9_", "row10_"),
    "efficientnet_lite0": ("stage8_", "stage9_"),
    "face_resnet": ("stage5_",),
    "gilnet": ("fc6", "fc7"),
    "alexnet": ("fc6", "fc7"),
    "vgg_face": ("fc6", "fc7"),
}


def freeze(model, learn="last layer"):
    """Choose what of a network with heads will learn (see `models.age_gender`): the number of weights that will.

    learn : "last layer", the heads alone; "last block", them and the backbone's last block (see LAST_BLOCK); or
        "whole net". Frozen batch norm computes as in use, with the statistics it came with: those of a few pictures
        of another kind would spoil what was learned.
    """
    if learn not in LEARN:
        raise ValueError(f"learn must be one of {LEARN}, got {learn!r}")
    block = next((names for network, names in LAST_BLOCK.items() if model.name.startswith(network)), None)
    if learn == "last block" and block is None:
        raise ValueError(f"no last block is known for {model.name}: there is one for {sorted(LAST_BLOCK)}")
    head = False
    for layer in model.layers:
        in_block = learn == "last block" and layer.name.startswith(block)
        layer.trainable = learn == "whole net" or in_block or head
        head = head or layer.name == "embedding"  # the layers after it are the heads'
    return int(sum(np.prod(weight.shape) for weight in model.trainable_weights))


def learning_rate(recipe, steps, steps_per_epoch):
    """A recipe's learning rate: a number, or a Keras schedule that takes the step."""
    rate = recipe.learning_rate
    if not recipe.cosine:
        return rate
    warm_up = min(steps_per_epoch, steps // 10 + 1)
    return keras.optimizers.schedules.CosineDecay(
        rate / 20, max(1, steps - warm_up), warmup_target=rate, warmup_steps=warm_up)


BATCH_HEADS = ("age", "gender", "masked", "features")  # whose targets `batches.dataset` makes, or `Features`
WEIGHT_DECAY, CLIP = 0.02, 5.0
NO_DECAY = ["bias", "gamma", "beta", "alpha"]


def average_momentum(steps):
    """The average looks back over a twentieth of the training: in a short one too it forgets the start."""
    return 1 - 1 / max(10, steps / 20)


def compile_model(model, recipe, steps, steps_per_epoch):
    """Give a model the losses, metrics and optimizer of a recipe, for a training of `steps` steps."""
    rate = learning_rate(recipe, steps, steps_per_epoch)
    if recipe.optimizer == "adamw":
        averaging = {"use_ema": True, "ema_momentum": average_momentum(steps)} if recipe.average else {}
        optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY, clipnorm=CLIP, **averaging)
        optimizer.exclude_from_weight_decay(var_names=NO_DECAY)
    else:
        optimizer = keras.optimizers.Adam(rate)
    age_loss = (AgeDistribution() if recipe.age_loss == "distribution"
                else keras.losses.SparseCategoricalCrossentropy())
    losses = {"age": age_loss, "features": keras.losses.MeanSquaredError(),
              "gender": keras.losses.CategoricalCrossentropy(label_smoothing=recipe.gender_smoothing),
              "masked": keras.losses.CategoricalCrossentropy(label_smoothing=recipe.gender_smoothing)}
    metrics = {"age": [ExpectedAgeError(name="mae")], "features": [],
               **{head: [keras.metrics.CategoricalAccuracy(name="accuracy")] for head in ("gender", "masked")}}
    heads = model.output_names
    for head in set(heads) - set(losses):
        losses[head] = class_loss(model.get_layer(head))
        metrics[head] = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
    # XLA is several times slower than TensorFlow's own kernels for these networks on a CPU.
    model.compile(optimizer=optimizer, loss={head: losses[head] for head in heads},
                  weighted_metrics={head: metrics[head] for head in heads}, jit_compile=False)


def class_loss(layer):
    """The loss of a head that tells classes apart: ArcFace's for cosines, else categorical cross-entropy."""
    if isinstance(layer, Cosine):
        return ArcFace(layer.margin, layer.scale)
    return keras.losses.SparseCategoricalCrossentropy()


class KerasEngine:
    """Trains a copy of a model with `keras.Model.fit`. `fast.FastEngine` does the same with other means."""

    def __init__(self, model, recipe, steps, steps_per_epoch):
        self.model, self.recipe = fast_copy(model), recipe
        compile_model(self.model, recipe, steps, steps_per_epoch)
        self.model.optimizer.build(self.model.trainable_variables)
        # The losses' trackers too: whatever makes its variables in the first step has Keras trace that step twice.
        answers = {head: ops.ones((1, answer.shape[-1])) for head, answer in self.model.output.items()}
        targets = {head: answer if head in ("gender", "masked", "features") else ops.zeros((1,), "int32")
                   for head, answer in answers.items()}
        self.model.compute_loss(y=targets, y_pred=answers)
        self.model.reset_metrics()

    suffix, ahead = ".weights.h5", 2

    def save(self, path):
        self.model.save_weights(path)

    def load(self, path):
        self.model.load_weights(path)

    def epoch(self, data, steps, seed, on_step):
        """Learn from the batches of one epoch, `steps` of them; -> dict of its loss and metrics."""
        for layer in self.model.layers:  # dropout too follows from the epoch's number, not from what ran before
            if hasattr(layer, "seed_generator"):
                layer.seed_generator.state.assign(seed)
        # Keras puts the averaged weights in place whenever `fit` ends; training must go on from the others.
        plain = {}
        step = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: on_step(),
            on_epoch_end=lambda epoch, logs: plain.update(weights=self.model.get_weights()))
        logs = self.model.fit(data, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[step]).history
        self.model.set_weights(plain["weights"])
        return {key: values[-1] for key, values in _named(logs).items()}

    def averaged_weights(self):
        """Weights to evaluate: the moving average, where the recipe keeps one."""
        plain = self.model.get_weights()
        if self.recipe.average:
            self.model.optimizer.finalize_variable_values(self.model.trainable_variables)
        averaged = self.model.get_weights()
        self.model.set_weights(plain)
        return averaged

    def finish(self, data):
        """Weights of the trained network; `data`: batches to measure batch norm's statistics on."""
        if self.recipe.average:
            self.model.set_weights(self.averaged_weights())
            settle_batch_norm(self.model, data)
        return self.model.get_weights()


def _engine(name, devices="one"):
    """What makes the object that computes the steps: "keras", or "fast" where that can be had and on one device."""
    if devices != "one":
        from fag_utils.devices import SharedEngine, strategy

        return functools.partial(SharedEngine, strategy=strategy(devices))
    if name == "keras":
        return KerasEngine
    from fag_utils import fast

    if name != "fast" or not fast.available():
        raise ValueError(f'engine must be "keras", or "fast" with PyTorch and a C++ compiler; got {name!r}')
    return fast.FastEngine


def fit(model, crops, table, epochs, recipe, epoch_rows, size, folder, tuning=None, seed=0,
        progress=True, on_epoch=None, engine="keras", teacher=None, points=None, devices="one"):
    """Train a model; interrupted, it goes on from its last finished epoch when called again.

    Parameters
    ----------
    crops, table : stored crops (n, s, s, 3) and their rows. A head that is neither "age" nor "gender" learns the
        column of its name: classes 0, 1, ..., and -1 where it isn't known
    epoch_rows : function(epoch) -> (steps, batch) row numbers, the same for the same epoch
    folder : where the checkpoint and `history.csv` lie; a finished training is loaded from there
    tuning : (crops, table) measured after each epoch, or None
    on_epoch : function(history DataFrame), called after each epoch, for live curves
    engine : what computes the steps, "keras" or "fast" (see `fast`)
    teacher : `Teacher` that sees the same pictures and gives its answers as targets, or `Features`, or None
    size : of the pictures in pixels; where the recipe sees the eyes alone, the width
    points : landmarks of the crops, (n, 5, 2), for recipes that draw masks (see `batches.see`), or None
    devices : "one", "all" the GPUs of this machine, or the "workers" of a cluster; Keras computes on several, with
        the losses of one (see `devices`)

    The model's weights are those of the trained network when this returns.

    Returns
    -------
    DataFrame, a row an epoch: loss, age MAE in years and gender accuracy on the training batches
    (augmented pictures) and on the tuning part (tune_mae, tune_accuracy; pictures as they are), seconds,
    pictures a second.
    """
    folder = Path(folder)
    if devices != "one":
        engine = "keras"
    with course.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    state_file, finished = folder / "state.json", folder / "finished.weights.h5"
    steps_per_epoch = len(epoch_rows(0))
    settings = {"recipe": recipe.name, "epochs": epochs, "rows": len(table), "steps": steps_per_epoch,
                "seed": seed, "size": size, "model": model.name, "engine": engine,
                "teacher": teacher and teacher.name, "pictures": _fingerprint(table)}
    views = teacher.views if teacher and teacher.views else epochs
    if views < epochs:
        settings["views"] = views
    if not all(layer.trainable for layer in model.layers):
        settings["learns"] = sum(layer.trainable for layer in model.layers)
    history = []
    if state_file.exists():
        state = json.loads(state_file.read_text())
        if settings != {"pictures": settings["pictures"], **state["settings"]}:  # older ones lack these
            raise ValueError(
                f"{folder} holds another training ({state['settings']}, now {settings}): "
                "give this one another folder, or delete that one")
        history = state["history"]
        if finished.exists():
            model.load_weights(finished)
            _finish(folder, history)
            return pd.DataFrame(history)
    if not history:  # a run that was killed in its first epoch may have had other pictures or another teacher
        for stale in folder.glob("answers-*"):
            stale.unlink(missing_ok=True)
    keras.utils.set_random_seed(seed)
    trainer = _engine(engine, devices)(model, recipe, epochs * steps_per_epoch, steps_per_epoch)
    if history:
        # The checkpoint is named by its epoch: the state file, written last, says which one is whole.
        trainer.load(_checkpoint(folder, trainer, len(history)))
    crops = batches.ready(crops)  # once: every epoch's batches are gathered from the same memory
    bar = tqdm(total=epochs * steps_per_epoch, initial=len(history) * steps_per_epoch, unit="step",
               disable=not progress or len(history) >= epochs)

    def dataset(rows, number, teacher=None, kept=None):
        see = {"augmentation": recipe.augmentation, "seed": 1000 * seed + number, "ahead": trainer.ahead,
               "blended": recipe.blended if teacher else 0.0}
        data = batches.dataset(crops, table, rows, size, **see, heads=model.output_names, every_age=recipe.every_age,
                               points=points, eyes=recipe.eyes)
        data = with_classes(data, table, rows, model.output_names)
        return data if teacher is None else teacher.taught(data, table, rows, see, recipe, kept)

    for epoch in range(len(history), epochs):
        began = time.perf_counter()
        view = epoch % views
        rows, kept = epoch_rows(view), folder / f"answers-{view:04d}.npz" if views < epochs else None
        logs = trainer.epoch(dataset(rows, view, teacher, kept), len(rows), [seed, epoch], lambda: bar.update(1))
        seconds = time.perf_counter() - began
        row = {"epoch": epoch + 1, **{key: float(value) for key, value in logs.items()},
               "seconds": seconds, "pictures_per_second": rows.size / seconds}
        if tuning is not None:
            model.set_weights(trainer.averaged_weights())
            row |= _measure(model, *tuning, size, recipe.eyes)
        history.append(row)
        if course.is_first():
            with course.writing(folder):
                _save_state(trainer, folder, state_file, {"settings": settings, "history": history})
        bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if k in ("loss", "tune_mae", "tune_accuracy")})
        if on_epoch:
            on_epoch(pd.DataFrame(history))
    bar.close()
    model.set_weights(trainer.finish(dataset(epoch_rows(epochs - 1)[:64], epochs)))
    if course.is_first():
        with course.writing(folder):
            model.save_weights(folder / "unfinished.weights.h5")
            (folder / "unfinished.weights.h5").replace(finished)  # whole or not there
            _finish(folder, history)
    return pd.DataFrame(history)


def _finish(folder, history):
    """What comes after the last weights; a kill in between is made up for at the next call."""
    pd.DataFrame(history).to_csv(folder / "history.csv", index=False)
    for pattern in ("epoch-*", "answers-*", "*.tmp", "unfinished.*"):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)
    course.tidy(folder)


def _fingerprint(table):
    """Changes with the rows, their labels, and the pictures: a crop's folder is named by their sizes and dates."""
    crops = ["/".join(Path(crop).parts[-3:]) if isinstance(crop, str) else "" for crop in table.get("crop", [])]
    text = table[["age", "male"]].to_csv() + "\n".join(crops)
    return hashlib.sha1(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def with_classes(data, table, rows, heads):
    """The batches of `batches.dataset` with targets and weights for heads that it doesn't know (see `fit`)."""
    columns = {head: tf.constant(table[head].to_numpy("int32")) for head in heads
               if head not in BATCH_HEADS}
    if not columns:
        return data

    def add(batch, index):
        pictures, targets, weights = batch
        classes = {head: tf.gather(column, index) for head, column in columns.items()}
        return (pictures, targets | {head: tf.maximum(value, 0) for head, value in classes.items()},
                weights | {head: tf.cast(value >= 0, tf.float32) for head, value in classes.items()})

    rows = rows.astype("int32")
    if isinstance(data, tf.data.Dataset):
        return tf.data.Dataset.zip(data, tf.data.Dataset.from_tensor_slices(rows)).map(add)
    return (add(batch, index) for batch, index in zip(data, rows, strict=True))


def _checkpoint(folder, trainer, epoch):
    return folder / f"epoch-{epoch:04d}{trainer.suffix}"


def _save_state(trainer, folder, state_file, state):
    """Write a checkpoint so that a kill at any moment leaves the last whole one in force."""
    weights = _checkpoint(folder, trainer, len(state["history"]))
    trainer.save(weights)
    unfinished = state_file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(state))
    unfinished.replace(state_file)
    for old in folder.glob(f"epoch-*{trainer.suffix}"):
        if old != weights:
            old.unlink()


def _named(logs):
    """Keras' names of metrics in short: age_mae -> mae, gender_accuracy -> accuracy."""
    short = {"age_mae": "mae", "gender_accuracy": "accuracy", "masked_accuracy": "accuracy"}
    for long, name in short.items():
        logs = {key.replace(long, name): value for key, value in logs.items()}
    return logs


def _measure(model, crops, table, size, eyes=None):
    probabilities = predict(model, crops, size, eyes=eyes)
    result = {}
    for head, column in (("gender", "male"), ("masked", "masked")):
        if head in probabilities:
            truth = table[column].to_numpy("float64")
            known = ~np.isnan(truth)
            result["tune_accuracy"] = float(((probabilities[head][known, 1] > 0.5) == truth[known]).mean())
    for head in set(probabilities) - set(BATCH_HEADS):
        classes = table[head].to_numpy()
        result[f"tune_{head}"] = float((probabilities[head].argmax(axis=1) == classes)[classes >= 0].mean())
    if "age" in probabilities:
        age = table["age"].to_numpy()
        known = labels.age_group(np.nan_to_num(age, nan=-1)) >= 0
        error = labels.expected_age(labels.adult(probabilities["age"][known])) - age[known]
        result["tune_mae"] = float(np.abs(error).mean())
    return result


class Teacher:
    """Larger networks whose averaged answers a smaller one learns from, picture by picture.

    Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network". Teacher and pupil see the same
    view of a picture, as Beyer et al. (2022), "Knowledge distillation: A good teacher is patient and consistent",
    found best: turned, scaled and lit alike, each in its own resolution. A picture without an age is taught too.
    But for one thing: where the pupil sees a mask, or the eyes alone, the teacher sees the bare face. What is told
    to a pupil by one who knows more than it will ever see is privileged information (Vapnik, Vashist 2009;
    Lopez-Paz et al. 2016, "Unifying distillation and privileged information").

    networks : Keras models with both heads, their ages those of the pupil's (48, or 117 with `every_age`). A pair of
        models is one teacher: the first learned from half 0 of the people, the second from half 1 (see `half`), and
        each picture is answered by the one that has not seen it. What a network says of the pictures it learned
        from is half learned by heart (cross-fitting: Chernozhukov et al. 2018).
    crops : dict size -> stored crops (n, s, s, 3) of the table's pictures (see `batches.load_crops`)
    views : the pupil sees this many epochs of different views, then the same once more, and again, with the answers
        that were given the first time: large teachers take longer than a small pupil's step. None: ever new ones
    frozen : pairs of a `FrozenTeacher` and its answers to the table's pictures

    ValueError for views below 1, and for what is neither a network nor two of one input.
    """

    def __init__(self, networks, crops, engine="keras", views=None, frozen=()):
        if views is not None and views < 1:
            raise ValueError(f"views must be a number of epochs, 1 or more, or None; got {views}")
        each = [_pair(network) for network in networks]
        names = [network.name for pair in each for network in pair] + [teacher.name for teacher, _ in frozen]
        self.name, self.views, self.frozen = ", ".join(names), views, [answers for _, answers in frozen]
        self.weights = [1] * len(each) + [teacher.weight for teacher, _ in frozen]
        self.pairs = any(len(pair) > 1 for pair in each)
        self.crops = {size: batches.ready(stored) for size, stored in crops.items()}
        self.networks = [(pair[0].input_shape[1], [answering(network, engine) for network in pair]) for pair in each]

    def taught(self, data, table, rows, see, recipe, kept=None):
        """The batches of `data`, their targets mixed with the teachers' answers: distributions for both heads.

        kept : file for the answers to these batches, or None; where it exists, they are read from there
        """
        answers = self.answers(table, rows, see)
        if kept is not None:
            answers = _kept(answers, len(rows), kept)
        for (pictures, targets, weights), mean in zip(data, answers, strict=True):
            yield pictures, *soft_targets(targets, weights, mean, recipe)

    def answers(self, table, rows, see):
        """The mean of the teachers' answers, batch by batch: dicts of probabilities, (batch, ages) and (batch, 2)."""
        sizes = sorted({size for size, _ in self.networks})
        see = see | {"augmentation": see["augmentation"].uncovered}  # all else is alike
        data = (batches.dataset(self.crops[size], table, rows, size, **see) for size in sizes)
        unseen = 1 - half(table) if self.pairs else np.zeros(len(table), int)  # number of the network that may answer
        for index, *seen in zip(rows, *data, strict=True):
            view = {size: pictures for size, (pictures, *_) in zip(sizes, seen, strict=True)}
            each = [_divided(pair, view[size], unseen[index]) for size, pair in self.networks]
            each += [{head: said[index] for head, said in answers.items()} for answers in self.frozen]
            yield {head: np.average([answer[head] for answer in each], 0, self.weights).astype("float32")
                   for head in each[0]}


class FrozenTeacher:
    """A teacher whose networks are left as they are: what they find in a face, and heads that learned to read it.

    What frozen networks find in a picture is found once, and heads learn to read it in seconds (chapter 08). So the
    people can be cut into many parts, and each part is answered by heads that learned from all the others
    (cross-fitting: Chernozhukov et al. 2018): they have seen most of the people, where one of a pair has seen half.
    Who is in the tuning part is answered by the mean of all heads, for none has learned from them. A picture has one
    answer, the mean of the answers to it as it is and to its mirror image.

    networks : backbones for pictures of one size (see `models.face_resnet`)
    table : cleaned rows; those kept of the fold "train" can be answered
    folder : where the answers are kept: who asks the same networks about the same pictures there reads them
    parts, epochs : of the people; over what is found, for each head
    weight : as how many of the other teachers this one counts (see `Teacher`)

    ValueError for fewer than two parts, networks of several sizes, and a picture that isn't in the table.
    """

    def __init__(self, networks, table, folder, parts=5, epochs=12, weight=4, engine="keras"):
        self.sizes = {network.input_shape[1] for network in networks}
        if parts < 2 or len(self.sizes) != 1:
            raise ValueError(f"a frozen teacher takes networks of one size and two parts or more; got the sizes "
                             f"{sorted(self.sizes)} and {parts}")
        known = table["keep"] & table["crop"].notna() & (table["fold"] == "train")
        self.networks, self.table = networks, table[known].reset_index(drop=True)
        self.parts, self.epochs, self.weight, self.engine = parts, epochs, weight, engine
        self.name = f"{parts} heads on " + " and ".join(network.name for network in networks)
        key = _key(self.table, networks, *(self.table[label].to_numpy("float64") for label in ("age", "male")))
        self.file = Path(folder) / f"said-{key}-{parts}-{epochs}.npy"

    def answers(self, table):
        """What it says of each row's picture: {"age": (n, 117), "gender": (n, 2)}, float32 probabilities."""
        rows = pd.Index(self.table["crop"]).get_indexer(table["crop"])
        if (rows < 0).any():
            raise ValueError(f"the frozen teacher was not shown {table['crop'].iloc[np.argmin(rows)]}")
        said = self._said[rows]
        return {"age": said[:, :-2], "gender": said[:, -2:]}

    @functools.cached_property
    def _said(self):
        """Of all rows: (n, 119) float32, the 117 ages and the two genders."""
        return _once(self.file, self._say)

    def _say(self):
        size, = self.sizes
        crops = batches.ready(batches.open_crops(self.table["crop"], size))
        found = np.stack([np.hstack([embed(network, crops, size, self.engine, mirror) for network in self.networks])
                          for mirror in (False, True)])
        learn, _ = split(self.table)
        to_learn = self.table["crop"].isin(learn["crop"]).to_numpy()  # the others are the tuning part
        learned = to_learn & self.table["male"].notna().to_numpy()
        part, said = _part(self.table, self.parts), 0.0
        for number in range(self.parts):
            others = learned & (part != number)
            heads = self._learn(found[:, others], self.table[others], number)
            told = [np.hstack([answer[head] for head in ("age", "gender")])
                    for answer in (heads.predict(seen, batch_size=1024, verbose=0) for seen in found)]
            asked = np.where(to_learn, part == number, 1 / self.parts)
            said = said + asked[:, None].astype("float32") * np.mean(told, axis=0)
        return said

    def _learn(self, found, table, number):
        keras.utils.set_random_seed(number)
        heads, found = reader(found.shape[-1]), np.concatenate(found)
        heads.get_layer("normalise").adapt(found)
        targets, sure = batches.targets_of(pd.concat([table, table]), every_age=True)
        steps = -(-len(found) // READING_BATCH)
        compile_model(heads, READING, self.epochs * steps, steps)
        heads.fit(found, targets, READING_BATCH, self.epochs, verbose=0, sample_weight=sure)
        return heads


class Features:
    """What frozen networks find in pictures, for a pupil to imitate: it takes a `Teacher`'s place in `fit`.

    Romero et al. (2015), "FitNets: Hints for Thin Deep Nets". A picture has one answer, that to the picture as it is:
    who is turned, or badly lit, is still the same person.

    networks : backbones, or trained networks, whose heads are left away (see `models.body`)
    crops : dict size -> stored crops of the table's pictures (see `batches.load_crops`)
    kept : file to keep the features in, and to read them from where it is there
    """

    views, pairs = None, False

    def __init__(self, networks, crops, engine="keras", kept=None):
        self.networks, self.crops, self.engine = [body(network) for network in networks], crops, engine
        self.kept = kept
        self.name = ", ".join(network.name for network in self.networks)
        self.number = sum(network.output_shape[-1] for network in self.networks)

    @functools.cached_property  # when first asked: who loads a finished training needs none of it
    def found(self):
        """All features of all pictures, (n, number) float32: variance 1, and each network weighs alike."""
        return _once(self.kept, self._find)

    def _find(self):
        sizes = [network.input_shape[1] for network in self.networks]
        each = [embed(network, self.crops[size], size, self.engine)
                for network, size in zip(self.networks, sizes, strict=True)]
        scale = np.sqrt(self.number / len(each))
        return np.concatenate([scale * (one - one.mean(axis=0)) / np.sqrt(one.var(axis=0).sum()) for one in each],
                              axis=1).astype("float32")

    def taught(self, data, table, rows, see, recipe, kept=None):
        """The batches of `data` with features, (batch, f) float32, in place of their targets."""
        for (pictures, *_), index in zip(data, rows, strict=True):
            yield pictures, {"features": self.found[index]}, {"features": np.ones(len(index), "float32")}


def _key(table, networks, *arrays):
    """What a file is named by that holds what networks find in a table's pictures: 12 hexadecimal digits."""
    key = hashlib.sha1(_fingerprint(table).encode())
    for array in (*(weights for network in networks for weights in network.get_weights()), *arrays):
        key.update(np.ascontiguousarray(array))
    return key.hexdigest()[:12]


def _once(path, compute):
    """The array that `compute` returns; where there is a path it is kept in that file, and read there next time."""
    if path and path.exists():
        return np.load(path)
    found = compute()
    if path and course.is_first():
        _write(path, found)
    return found


def _write(path, array):
    """An array into a file that is whole or not there."""
    with course.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = course.unfinished(path)
        with open(unfinished, "wb") as file:
            np.save(file, array)
        unfinished.replace(path)


def _pair(teacher):
    pair = teacher if isinstance(teacher, (tuple, list)) else (teacher,)
    shapes = {network.input_shape for network in pair}
    if len(pair) not in (1, 2) or len(shapes) != 1:
        raise ValueError(f"a teacher is a network, or two of one input; got {len(pair)} of {shapes or 'none'}")
    return pair


def _divided(functions, pictures, which):
    """Answers to pictures (n, ...), each by the function of its number, `which` (n,); one function answers all."""
    if len(functions) == 1:
        return functions[0](pictures)
    pictures, answers = np.asarray(pictures), {}
    for number, function in enumerate(functions):
        mine = which == number
        if mine.any():
            for head, said in function(pictures[mine]).items():
                answers.setdefault(head, np.empty((len(pictures), said.shape[1]), "float32"))[mine] = said
    return answers


def _kept(answers, number, path):
    """What `answers` yields, `number` dicts of arrays; written to a file with the last, and next time read there.

    They are rounded as the file rounds them from the first: who is killed between the file and the checkpoint hears
    them from the file the next time.
    """
    if path.exists():
        with np.load(path) as stored:
            found = dict(stored)
        for each in zip(*found.values(), strict=True):
            yield {head: value.astype("float32") for head, value in zip(found, each, strict=True)}
        return
    given = []
    for answer in answers:
        given.append({head: value.astype("float16") for head, value in answer.items()})
        if len(given) == number and course.is_first():  # now: who trains will not ask for more; one writes for all
            unfinished = course.unfinished(path)
            with course.writing(path.parent), open(unfinished, "wb") as file:
                np.savez(file, **{head: np.stack([each[head] for each in given]) for head in answer})
            unfinished.replace(path)
        yield {head: value.astype("float32") for head, value in given[-1].items()}


def answering(network, engine="keras"):
    """A network as a function: pictures (n, size, size, 3) -> dict of probabilities, as arrays."""
    if engine == "fast":
        from fag_utils import fast

        return fast.FastModel(network).probabilities
    function = tf.function(lambda x: network(x, training=False), reduce_retracing=True)
    return lambda pictures: {head: value.numpy() for head, value in function(pictures).items()}


def soft_targets(targets, weights, answers, recipe):
    """Labels and a teacher's answers in one distribution for each picture: (targets, weights), dicts of arrays.

    Where there is a label, it has (1 - teacher_share) of the target; where there is none, the teacher has all.
    """
    share = recipe.teacher_share
    hard = {"gender": np.asarray(targets["gender"])}
    if "age" in targets:
        age = np.asarray(targets["age"])[:, None]
        spread = -0.5 * ((np.arange(answers["age"].shape[1]) - age) / AgeDistribution().sigma) ** 2
        hard["age"] = np.exp(spread) / np.exp(spread).sum(axis=1, keepdims=True)
    mixed, sure = {}, {}
    for head in targets:
        known = np.asarray(weights[head])[:, None] * (1 - share)
        mixed[head] = (known * hard[head] + (1 - known) * answers[head]).astype("float32")
        sure[head] = np.ones(len(known), "float32")
    return mixed, sure


def embed(backbone, crops, size, engine="keras", mirror=False):
    """What a backbone answers to stored crops, not augmented, or to their mirror images: (n, features) float32."""
    data = batches.in_order(crops, size)
    if mirror:
        data = data.map(lambda pictures: pictures[:, :, ::-1])
    if engine == "fast":
        from fag_utils import fast

        network = fast.FastModel(keras.Model(backbone.input, {"embedding": backbone.output}))
        return np.concatenate([network.features(pictures)["embedding"] for pictures in data])
    function = tf.function(lambda x: backbone(x, training=False), reduce_retracing=True)
    return np.concatenate([function(pictures).numpy() for pictures in data])


def predict(model, crops, size, mirror=False, eyes=None, engine="keras"):
    """Outputs of a model for stored crops, not augmented: dict of arrays (n, 48) and (n, 2).

    mirror : average them with the outputs for the mirror images, as a `Predictor` does
    eyes : for a network that sees the region of the eyes alone, `size` pixels wide (see `batches.see`)
    engine : what computes them, "keras" or "fast" (see `fast`)
    """
    if mirror:
        views = [predict(model, view, size, eyes=eyes, engine=engine) for view in (crops, crops[:, :, ::-1])]
        return {head: (views[0][head] + views[1][head]) / 2 for head in views[0]}
    data = batches.in_order(crops, size, eyes=eyes)
    if engine == "fast":
        answer = answering(model, engine)
        parts = [answer(pictures) for pictures in data]
        return {head: np.concatenate([part[head] for part in parts]) for head in parts[0]}
    outputs = model.predict(data, verbose=0)
    return outputs if isinstance(outputs, dict) else dict(zip(model.output_names, outputs, strict=True))


def block_features(backbone, crops, size, most=None):
    """What a frozen network finds in stored crops: dict block -> (n, channels) (see `models.features`)."""
    return predict(features(backbone, most), crops, size)


def ocular_crops(crops, eyes="both"):
    """Stored crops of the region of the eyes alone, stretched to squares: (n, s, s, 3) uint8, as the crops given.

    Around the region is the room that augmentation needs, as around a face. `batches.see` then shows a network what
    `occlusion.ocular` shows, in a square.
    """
    left, top, right, bottom = occlusion.EYES[eyes]
    crops = tf.convert_to_tensor(crops)
    side = crops.shape[1]

    def ends(low, high):
        """Where the middles of the first and last sample lie, as crop_and_resize counts; the room is in it."""
        middle, half = ((low + high) / 2 - 0.5) / cleaning.CROP_MARGIN + 0.5, (high - low) / 2 * (1 - 1 / side)
        return [(place * side - 0.5) / (side - 1) for place in (middle - half, middle + half)]

    (top, bottom), (left, right) = ends(top, bottom), ends(left, right)
    parts = []
    for start in range(0, len(crops), 512):  # float32 is four times the memory
        part = tf.cast(crops[start : start + 512], tf.float32)
        boxes = tf.tile([[top, left, bottom, right]], (len(part), 1))
        seen = tf.image.crop_and_resize(part, boxes, tf.range(len(part)), (side, side))
        parts.append(tf.cast(tf.round(seen), tf.uint8).numpy())
    return np.concatenate(parts)


def linear_svm(found, classes, c=0.01):
    """A linear support vector machine on features (n, d) for classes (n,), one against the rest; `.predict` asks it.

    The features are brought to mean 0 and spread 1 first. `c` is scikit-learn's C: the smaller, the wider the margin.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    # Primal: its answer has no chance in it, and hundreds of features for thousands of pictures are solved at once.
    machine = make_pipeline(StandardScaler(), LinearSVC(C=c, dual=False, tol=1e-3, max_iter=200))
    return machine.fit(found, classes)


def calibrate(probabilities, table):
    """How to correct a trained network's certainty, fitted on pictures it did not learn from: a dict of
    temperatures, which divide the logits.

    probabilities : {"age": (n, 48), "gender": (n, 2)}, "outside": (n, 2) if it is told, for the rows of `table`
    `gender_temperature` makes the likelihood of the genders largest (Guo et al. 2017, "On Calibration of
    Modern Neural Networks"); with `age_temperature` 80 % of the ages lie in the 80 % interval;
    `decoding_temperature` sharpens the distribution of which the mean is told as the age, so that the mean
    absolute error is least: the mean of a broad distribution lies too far in the middle of 18..65.
    """
    age, male = table["age"].to_numpy("float64"), table["male"].to_numpy("float64")
    grid = np.exp(np.linspace(np.log(0.3), np.log(4.0), 131))
    gender, truth = probabilities["gender"][~np.isnan(male)], male[~np.isnan(male)].astype(int)
    known = labels.age_group(np.nan_to_num(age, nan=-1)) >= 0

    def gender_loss(temperature):
        return -np.log(labels.temper(gender, temperature)[np.arange(len(truth)), truth] + 1e-12).mean()

    def missed_coverage(temperature):
        outside = probabilities["outside"][known] if "outside" in probabilities else None
        answer, outside = labels.temper_ages(probabilities["age"][known], outside, temperature)
        low, high = labels.age_interval(answer, outside=outside)
        return abs(((age[known] >= low) & (age[known] <= high)).mean() - 0.8)

    def error(temperature):
        decoded = labels.expected_age(labels.temper(probabilities["age"][known], temperature))
        return np.abs(decoded - age[known]).mean()

    return {"age_temperature": float(min(grid, key=missed_coverage)),
            "decoding_temperature": float(min(grid, key=error)),
            "gender_temperature": float(min(grid, key=gender_loss)), "tuning_pictures": len(table)}


# --- The two trainings -----------------------------------------------------------------------


def _in_new_order(table, seed, batch_size=batches.BATCH_SIZE):
    """`epoch_rows` for `fit`: each row once an epoch, every epoch in another order."""
    return lambda epoch: batches.shuffled(table, batch_size, 1000 * seed + epoch)


def pretrain_gender(table, folder, size=62, width=0.75, epochs=8, recipe=OURS, seed=0, progress=True,
                    on_epoch=None, engine="keras", backbone=None, devices="one", batch_size=batches.BATCH_SIZE):
    """Train a gender classifier on the kept rows of a cleaned table (CelebA): (model, history).

    Parameters
    ----------
    table : its kept rows of the fold "train" with a gender are used (see `split`)
    folder : where checkpoints lie: called again, it resumes, or loads what was finished (see `fit`)
    size, width : of the MobileFaceNet to train, where `backbone` is None
    epochs, recipe, batch_size : for how long and how; batch_size pictures are a step
    seed : of the first weights and of every batch
    progress, on_epoch, engine, devices : as for `fit`
    backbone : the network to train instead (see `models.mobilefacenet`)

    Raises ValueError where nothing is left to learn from or to tune on, or `folder` holds another training.
    """
    learn, tune = split(table[table["male"].notna()])
    keras.utils.set_random_seed(seed)
    model = gender_classifier(backbone or mobilefacenet(size, width))
    size = model.input_shape[1]
    crops, tuning_crops = batches.open_crops(learn["crop"], size), batches.load_crops(tune["crop"], size)
    history = fit(model, crops, learn, epochs, recipe, _in_new_order(learn, seed, batch_size), size, folder,
                  (tuning_crops, tune), seed, progress, on_epoch, engine, devices=devices)
    return model, history


def pretrain_identity(table, folder, backbone, epochs=8, recipe=OURS, at_least=3, margin=0.5, scale=64.0, seed=0,
                      progress=True, on_epoch=None, engine="keras", batch_size=batches.BATCH_SIZE):
    """Train face recognition with ArcFace on the kept rows of a cleaned table (CelebA): (model, history).

    There is no tuning part: who is in it would be nobody the network can name. `evaluation.verification` measures on
    other people.

    Parameters
    ----------
    table : its kept rows of the fold "train" with an identity are used
    folder : as for `pretrain_gender`
    backbone : the network to train, in place
    at_least : people with fewer pictures are left out
    margin, scale : those of `models.Cosine`
    epochs, recipe, batch_size, seed, progress, on_epoch, engine : as for `pretrain_gender`

    Raises ValueError where nobody has `at_least` pictures, or `folder` holds another training.
    """
    learn = table[table["keep"] & table["crop"].notna() & (table["fold"] == "train") & table["identity"].notna()]
    pictures = learn.groupby("identity")["path"].transform("size")
    learn = learn[pictures >= at_least].reset_index(drop=True)
    if not len(learn):
        raise ValueError(f"nothing to learn: nobody in the fold train has {at_least} pictures")
    learn["person"] = pd.factorize(learn["identity"])[0]
    keras.utils.set_random_seed(seed)
    model = face_recogniser_head(backbone, int(learn["person"].max()) + 1, margin, scale)
    size = model.input_shape[1]
    history = fit(model, batches.load_crops(learn["crop"], size), learn, epochs, recipe,
                  _in_new_order(learn, seed, batch_size), size, folder, None, seed, progress, on_epoch, engine)
    return model, history


def imitate(table, folder, backbone, networks, epochs=20, recipe=IMITATION, seed=0, progress=True, on_epoch=None,
            engine="keras", devices="one"):
    """Teach a backbone to find in faces what larger networks find there, in place: (model, history).

    No label is needed. What millions of faces taught them is passed on with a few thousand.

    Parameters
    ----------
    table : cleaned rows; those kept of the fold "train" are used, but for the tuning part (see `split`)
    folder : as for `pretrain_gender`. What the networks find is kept beside it, in the folder that it lies in: who
        imitates them in the same pictures there reads it
    backbone : the network to train (see `models.mobilefacenet`)
    networks : what to imitate (see `Features`). Where the recipe draws masks, or shows the eyes alone, they see the
        bare face all the same, as a `Teacher` does
    epochs, recipe, seed, progress, on_epoch, engine, devices : as for `pretrain_gender`

    The loss is the mean squared difference of the features, whose variance is 1: what a backbone that tells no face
    from another would reach. Errors as for `pretrain_gender`.
    """
    learn, _ = split(table)
    size = backbone.input_shape[2]
    crops, points = _seen(learn, size, recipe, folder)
    wanted = Features(networks, {s: batches.open_crops(learn["crop"], s)
                                 for s in {net.input_shape[1] for net in networks}}, engine,
                      Path(folder).parent / f"features-{_key(learn, networks)}.npy")
    keras.utils.set_random_seed(seed)
    model = imitator(backbone, wanted.number)
    history = fit(model, crops, learn, epochs, recipe, _in_new_order(learn, seed), size, folder, None, seed,
                  progress, on_epoch, engine, wanted, points, devices)
    return model, history


def train_mask_detector(table, folder, size=62, width=0.25, epochs=4, recipe=MASKS, seed=0, progress=True,
                        on_epoch=None, engine="keras"):
    """Train a network that tells masked faces from bare ones, on drawn masks: (model, history).

    Parameters
    ----------
    table : cleaned rows of any set; labels are not needed, for who wears a mask is known to whoever drew it
    folder, size, width, epochs, recipe, seed, progress, on_epoch, engine : as for `pretrain_gender`

    Raises ValueError where nothing is left to learn from or to tune on, or `folder` holds another training.
    """
    learn, tune = split(table)
    keras.utils.set_random_seed(seed)
    model = mask_classifier(mobilefacenet(size, width))
    crops, points = _seen(learn, size, recipe, folder)
    history = fit(model, crops, learn, epochs, recipe, _in_new_order(learn, seed), size, folder,
                  covered_too(tune, size), seed, progress, on_epoch, engine, points=points)
    return model, history


def covered_too(table, size, eyes=None, seed=0):
    """Pictures to measure on, first bare, then all once more in drawn masks: (stored crops, table).

    table : rows with stored crops; its column "masked" is 0 or 1 in what is returned. size, eyes : as in
    `batches.load_crops`.
    """
    crops = batches.load_crops(table["crop"], size, eyes)
    points, _ = faces.crop_landmarks(crops, cleaning.CROP_MARGIN)
    worn = occlusion.wear_crops(crops, seed, cleaning.CROP_MARGIN, points)
    both = pd.concat([table.assign(masked=masked) for masked in (0, 1)], ignore_index=True)
    return np.concatenate([crops, worn]), both


def _seen(table, size, recipe, folder):
    """Stored crops of rows for a pupil, and their landmarks where the recipe draws masks, else None."""
    masks = recipe.augmentation.mask > 0
    crops = (batches.load_crops if masks else batches.open_crops)(table["crop"], size, recipe.eyes)
    return crops, landmarks(crops, folder) if masks else None


def landmarks(crops, folder):
    """`faces.crop_landmarks` of stored crops, (n, 5, 2), looked for once and kept in a training's folder.

    A checksum of the crops lies in the same file: those of other crops are never taken for these.
    """
    path, key = Path(folder) / "landmarks.npy", hashlib.sha1(np.ascontiguousarray(crops)).hexdigest()
    if path.exists() and (kept := np.load(path)).dtype.names and str(kept["key"]) == key:
        return kept["points"]
    points, _ = faces.crop_landmarks(crops, cleaning.CROP_MARGIN)
    _write(path, np.array((key, points), [("key", "U40"), ("points", points.dtype, points.shape)]))
    return points


def train_multitask(table, folder, pretrained=None, beside=None, size=62, width=0.75, epochs=40,
                    recipe=OURS, seed=0, progress=True, on_epoch=None, engine="keras", teachers=(), views=None,
                    devices="one"):
    """Train age and gender on the kept rows of a cleaned table: (model, history).

    Parameters
    ----------
    table : its kept rows of the fold "train" with a gender and an age in 18..65 are used (see `split`)
    pretrained : the network to go on with, of any size and kind: a gender classifier, which gets an age branch, or
        one with both heads (see `models.widen`); None starts from random weights, a MobileFaceNet of `size` and
        `width`
    beside : cleaned rows without an age (CelebA's) or with one outside 18..65, for recipes that give them
        places in a batch
    recipe : PUBLISHED or OURS, HALF_AS_VARIED, SETTLING, PLAIN, COVERED or OCULAR, or one made from them with
        `_replace`. With its `every_age` the model returned tells 117 ages apart: `models.narrow` makes the 48 of it.
    engine : what computes the steps, "keras" or "fast" (see `fast`)
    teachers : trained networks with the recipe's ages to learn from, or pairs of them (see `Teacher`), or a
        `FrozenTeacher`
    views : epochs until the pupil sees the same views, and hears the same answers, again (see `Teacher`); without
        teachers every epoch has new ones
    devices : what shares the steps, "one", "all" or "workers" (see `fit`)
    """
    if views and recipe.balance == "published":
        raise ValueError("the published composition changes while it trains: its batches can't be seen again (views)")
    known = labels.age_group(table["age"].fillna(-1)) >= 0
    learn, tune = split(table[known & table["male"].notna()])
    keras.utils.set_random_seed(seed)
    ages = labels.N_EVERY_AGE if recipe.every_age else labels.N_AGES
    model = pretrained or gender_classifier(mobilefacenet(size, width))
    if "age" not in model.output_names:
        model = add_age_branch(model, ages=ages)
    elif model.output["age"].shape[-1] != ages:
        raise ValueError(f"the recipe learns {ages} ages, and the network has {model.output['age'].shape[-1]}")
    size, eyes = model.input_shape[2], recipe.eyes
    places = recipe.beside if beside is not None and len(beside) else 0
    everything = learn
    if places:
        extra = beside[beside["keep"] & beside["male"].notna()]
        extra = extra[extra["fold"] == "train"]  # never a picture of a fold that is measured on
        everything = pd.concat([learn, extra], ignore_index=True)
    crops, points = _seen(everything, size, recipe, folder)
    steps = max(1, len(learn) // (batches.BATCH_SIZE - places))
    teacher = None
    if teachers:
        frozen = [one for one in teachers if isinstance(one, FrozenTeacher)]
        if frozen and (recipe.blended or not recipe.every_age):
            raise ValueError(f"the recipe {recipe.name} doesn't suit a frozen teacher, which tells 117 ages, and of "
                             "pictures over which no other is laid: it needs every_age, and blended 0")
        networks = [one for one in teachers if not isinstance(one, FrozenTeacher)]
        sizes = {_pair(network)[0].input_shape[1] for network in networks}
        seen = {s: batches.open_crops(everything["crop"], s) for s in sizes}
        teacher = Teacher(networks, seen, engine, views, [(one, one.answers(everything)) for one in frozen])
    halves = half(everything) if teacher and teacher.pairs else None

    def epoch_rows(epoch):
        number = 1000 * seed + epoch
        if recipe.balance == "published":
            table_now = batches.composition_at(epoch / epochs)
            rows = batches.balanced(learn, table_now, steps, number)
        elif recipe.balance == "tempered":
            rows = batches.tempered(learn, steps, batches.BATCH_SIZE - places, seed=number)
        else:
            rows = batches.shuffled(learn, batches.BATCH_SIZE - places, number)
        if places:
            others = batches.dealt(len(everything) - len(learn), len(rows), places, epoch, seed)
            rows = batches.mixed(rows, len(learn) + others)
        if halves is not None:  # a face laid over another (see `batches.blend`) is of its half: the asked saw neither
            rows = np.take_along_axis(rows, np.argsort(halves[rows], axis=1, kind="stable"), axis=1)
        return rows

    # Where masks are learned, half of the tuning pictures wear one.
    tuning = (batches.load_crops(tune["crop"], size, eyes), tune) if points is None else covered_too(tune, size, eyes)
    history = fit(model, crops, everything, epochs, recipe, epoch_rows, size, folder, tuning, seed, progress,
                  on_epoch, engine, teacher, points, devices)
    return model, history


def half(table):
    """Which half of the people each row belongs to: (n,) 0 or 1, the same on every machine, and for every table."""
    return _part(table, 2, "half")


def _part(table, parts, name="part"):
    """As `half`, for more parts: (n,) 0 to parts - 1. Another name cuts the people otherwise."""
    return np.array([hash_part(f"{name} {key}", parts) for key in fold_keys(table)], int)


def split(table):
    """Kept rows of the fold "train" in two: to learn from, and about a sixteenth to tune on.

    Learning curves, calibration and choices use the tuning part, so that the validation fold is looked at
    only for the figures that are reported. No person is in both parts.
    """
    kept = table[table["keep"] & table["crop"].notna() & (table["fold"] == "train")]
    folds = [hash_fold(key, test=None, validation=2, parts=20) for key in fold_keys(kept)]
    held_out = np.array([fold == "validation" for fold in folds], bool)
    learn, tune = kept[~held_out].reset_index(drop=True), kept[held_out].reset_index(drop=True)
    if not len(learn) or not len(tune):
        raise ValueError(f"nothing to learn: {len(learn)} rows to learn from and {len(tune)} to tune on were kept")
    return learn, tune
