"""Losses, the two recipes, gender pre-training and multitask training that can be interrupted.

Both trainings share one loop, `fit`: an epoch is one array of row numbers (see `batches`), a checkpoint is
written after each, and a run that was killed goes on after the last one with the same batches.
"""

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

from fag_utils import batches, labels
from fag_utils.models import add_age_branch, gender_classifier, mobilefacenet
from fag_utils.table import hash_fold


class AgeDistribution(keras.losses.Loss):
    """Loss of a distribution over the 48 ages, for a target that is one age.

    The target is spread over its neighbours by a normal distribution of `sigma` years, since a face of 30
    looks much like one of 31 (Gao et al. 2017, "Deep Label Distribution Learning"), and the expected age,
    which is what the network will answer, is pulled to the target by `mean_weight` times its absolute
    error in years (Gao et al. 2018, "Age Estimation Using Expectation of Label Distribution Learning").

    y_true (n,) class 0..47; y_pred (n, 48) probabilities; -> (n,) losses.
    """

    def __init__(self, sigma=2.0, mean_weight=0.1, name="age_distribution", **kwargs):
        super().__init__(name=name, **kwargs)
        self.sigma, self.mean_weight = sigma, mean_weight

    def call(self, y_true, y_pred):
        classes = ops.arange(labels.N_AGES, dtype="float32")
        target = ops.cast(ops.reshape(y_true, (-1, 1)), "float32")
        spread = ops.softmax(-0.5 * ((classes - target) / self.sigma) ** 2)
        crossentropy = -ops.sum(spread * ops.log(y_pred + 1e-7), axis=-1)
        error = ops.abs(ops.sum(y_pred * classes, axis=-1) - target[:, 0])
        return crossentropy + self.mean_weight * error


class ExpectedAgeError(keras.metrics.Mean):
    """Mean absolute error in years of the expected age. y_true (n,) class, y_pred (n, 48)."""

    def __init__(self, name="mae", **kwargs):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        age = ops.sum(y_pred * ops.arange(labels.N_AGES, dtype="float32"), axis=-1)
        target = ops.cast(ops.reshape(y_true, (-1,)), "float32")
        super().update_state(ops.abs(age - target), sample_weight)


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
    gender_only: int  # pictures of a batch that teach gender only: no age, or one outside 18..65


# The reference recipe: Adam at 0.01 without decay, one class an age, pictures turned up to 45 degrees.
PUBLISHED = Recipe("published", "sparse", "adam", 0.01, False, False, 0.0,
                   batches.REFERENCE_AUGMENTATION, "published", 0)
OURS = Recipe("ours", "distribution", "adamw", 3e-3, True, True, 0.05,
              batches.Augmentation(), "tempered", 24)
# A warm restart (Loshchilov and Hutter 2017, "SGDR"): lower, shorter, and with pictures varied less.
SECOND_ROUND = OURS._replace(name="second round", learning_rate=2e-3, augmentation=batches.Augmentation(
    turn=6.0, scale=0.07, shift=0.03, brightness=0.2, contrast=0.2, saturation=0.2, grey=0.03, blur=0.08, erase=0.0))
RECIPES = {recipe.name: recipe for recipe in (PUBLISHED, OURS)}


class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Batch norm whose training step is one kernel of TensorFlow, instead of a dozen operations.

    With it the networks of the course train 1.5 times as fast on a CPU. The variance is the unbiased one.
    """

    def call(self, inputs, training=None, mask=None):
        if not training or keras.backend.backend() != "tensorflow" or len(inputs.shape) != 4:
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

    data : batches of the composition that was trained with; their statistics are averaged evenly
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momentum = [layer.momentum for layer in norms]
    for number, (pictures, *_) in enumerate(data):
        for layer in norms:
            layer.momentum = number / (number + 1)
        model(pictures, training=True)
    for layer, value in zip(norms, momentum, strict=True):
        layer.momentum = value


def compile_model(model, recipe, steps, steps_per_epoch):
    """Give a model the losses, metrics and optimizer of a recipe, for a training of `steps` steps."""
    rate = recipe.learning_rate
    if recipe.cosine:
        warm_up = min(steps_per_epoch, steps // 10 + 1)
        rate = keras.optimizers.schedules.CosineDecay(
            rate / 20, max(1, steps - warm_up), warmup_target=rate, warmup_steps=warm_up)
    if recipe.optimizer == "adamw":
        # The average looks back over a twentieth of the training: in a short one too it forgets the start.
        momentum = 1 - 1 / max(10, steps / 20)
        averaging = {"use_ema": True, "ema_momentum": momentum} if recipe.average else {}
        optimizer = keras.optimizers.AdamW(rate, weight_decay=0.02, clipnorm=5.0, **averaging)
        optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "alpha"])
    else:
        optimizer = keras.optimizers.Adam(rate)
    age_loss = (AgeDistribution() if recipe.age_loss == "distribution"
                else keras.losses.SparseCategoricalCrossentropy())
    losses = {"age": age_loss,
              "gender": keras.losses.CategoricalCrossentropy(label_smoothing=recipe.gender_smoothing)}
    metrics = {"age": [ExpectedAgeError(name="mae")],
               "gender": [keras.metrics.CategoricalAccuracy(name="accuracy")]}
    heads = model.output_names
    # XLA is several times slower than TensorFlow's own kernels for these networks on a CPU.
    model.compile(optimizer=optimizer, loss={head: losses[head] for head in heads},
                  weighted_metrics={head: metrics[head] for head in heads}, jit_compile=False)


def fit(model, crops, table, epochs, recipe, epoch_rows, size, folder, tuning=None, seed=0,
        progress=True, on_epoch=None):
    """Train a model; interrupted, it goes on from its last finished epoch when called again.

    Parameters
    ----------
    crops, table : stored crops (n, s, s, 3) and their rows
    epoch_rows : function(epoch) -> (steps, batch) row numbers, the same for the same epoch
    folder : where the checkpoint and `history.csv` lie; a finished training is loaded from there
    tuning : (crops, table) measured after each epoch, or None
    on_epoch : function(history DataFrame), called after each epoch, for live curves

    The model's weights are those of the trained network when this returns.

    Returns
    -------
    DataFrame, a row an epoch: loss, age MAE in years and gender accuracy on the training batches
    (augmented pictures) and on the tuning part (tune_mae, tune_accuracy; pictures as they are), seconds,
    pictures a second.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state_file, finished = folder / "state.json", folder / "finished.weights.h5"
    steps_per_epoch = len(epoch_rows(0))
    settings = {"recipe": recipe.name, "epochs": epochs, "rows": len(table), "steps": steps_per_epoch,
                "seed": seed, "size": size, "model": model.name}
    history = []
    if state_file.exists():
        state = json.loads(state_file.read_text())
        if state["settings"] != settings:
            raise ValueError(
                f"{folder} holds another training ({state['settings']}, now {settings}): "
                "give this one another folder, or delete that one")
        history = state["history"]
        if finished.exists():
            model.load_weights(finished)
            return pd.DataFrame(history)
    keras.utils.set_random_seed(seed)
    trained, model = model, fast_copy(model)
    compile_model(model, recipe, epochs * steps_per_epoch, steps_per_epoch)
    model.optimizer.build(model.trainable_variables)
    if history:
        # The checkpoint is named by its epoch: the state file, written last, says which one is whole.
        model.load_weights(folder / f"epoch-{len(history):04d}.weights.h5")
    crops = tf.convert_to_tensor(crops)  # once: every epoch's batches are gathered from the same memory
    bar = tqdm(total=epochs * steps_per_epoch, initial=len(history) * steps_per_epoch, unit="step",
               disable=not progress or len(history) >= epochs)
    for epoch in range(len(history), epochs):
        began = time.perf_counter()
        rows = epoch_rows(epoch)
        for layer in model.layers:  # dropout too follows from the epoch's number, not from what ran before
            if hasattr(layer, "seed_generator"):
                layer.seed_generator.state.assign([seed, epoch])
        data = batches.dataset(crops, table, rows, size, recipe.augmentation, 1000 * seed + epoch,
                               model.output_names)
        # Keras puts the averaged weights in place whenever `fit` ends; training must go on from the others.
        plain = {}
        step = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: bar.update(1),
            on_epoch_end=lambda epoch, logs, plain=plain: plain.update(weights=model.get_weights()))
        logs = model.fit(data, epochs=epoch + 1, initial_epoch=epoch, verbose=0, callbacks=[step]).history
        model.set_weights(plain["weights"])
        seconds = time.perf_counter() - began
        row = {"epoch": epoch + 1, **{key: float(values[-1]) for key, values in _named(logs).items()},
               "seconds": seconds, "pictures_per_second": rows.size / seconds}
        if tuning is not None:
            row |= _measure(model, *tuning, size, recipe)
        history.append(row)
        _save_state(model, folder, state_file, {"settings": settings, "history": history})
        bar.set_postfix({k: f"{v:.3g}" for k, v in row.items() if k in ("loss", "tune_mae", "tune_accuracy")})
        if on_epoch:
            on_epoch(pd.DataFrame(history))
    bar.close()
    if recipe.average:
        model.optimizer.finalize_variable_values(model.trainable_variables)
        settle_batch_norm(model, batches.dataset(crops, table, epoch_rows(epochs - 1)[:64], size, recipe.augmentation,
                                                 1000 * seed + epochs))
    trained.set_weights(model.get_weights())
    trained.save_weights(folder / "unfinished.weights.h5")
    (folder / "unfinished.weights.h5").replace(finished)  # whole or not there
    (folder / f"epoch-{epochs:04d}.weights.h5").unlink(missing_ok=True)
    history = pd.DataFrame(history)
    history.to_csv(folder / "history.csv", index=False)
    return history


def _save_state(model, folder, state_file, state):
    """Write a checkpoint so that a kill at any moment leaves the last whole one in force."""
    weights = folder / f"epoch-{len(state['history']):04d}.weights.h5"
    model.save_weights(weights)
    unfinished = state_file.with_suffix(".tmp")
    unfinished.write_text(json.dumps(state))
    unfinished.replace(state_file)
    for old in folder.glob("epoch-*.weights.h5"):
        if old != weights:
            old.unlink()


def _named(logs):
    """Keras' names of metrics in short: age_mae -> mae, gender_accuracy -> accuracy."""
    return {key.replace("age_mae", "mae").replace("gender_accuracy", "accuracy"): value
            for key, value in logs.items()}


def _measure(model, crops, table, size, recipe):
    callbacks = [keras.callbacks.SwapEMAWeights()] if recipe.average else []
    probabilities = predict(model, crops, size, callbacks)
    result = {}
    male = table["male"].to_numpy()
    known = ~np.isnan(male)
    result["tune_accuracy"] = float(((probabilities["gender"][known, 1] > 0.5) == male[known]).mean())
    if "age" in probabilities:
        age = table["age"].to_numpy()
        known = labels.age_group(np.nan_to_num(age, nan=-1)) >= 0
        error = labels.expected_age(probabilities["age"][known]) - age[known]
        result["tune_mae"] = float(np.abs(error).mean())
    return result


def predict(model, crops, size, callbacks=None, mirror=False):
    """Outputs of a model for stored crops, not augmented: dict of arrays (n, 48) and (n, 2).

    mirror : average them with the outputs for the mirror images, as a `Predictor` does
    """
    if mirror:
        views = [predict(model, view, size, callbacks) for view in (crops, crops[:, :, ::-1])]
        return {head: (views[0][head] + views[1][head]) / 2 for head in views[0]}
    outputs = model.predict(batches.in_order(crops, size), verbose=0, callbacks=callbacks)
    return outputs if isinstance(outputs, dict) else dict(zip(model.output_names, outputs, strict=True))


def calibrate(probabilities, table):
    """How to correct a trained network's certainty, fitted on pictures it did not learn from: a dict of
    temperatures, which divide the logits.

    probabilities : {"age": (n, 48), "gender": (n, 2)} for the rows of `table`
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
        low, high = labels.age_interval(labels.temper(probabilities["age"][known], temperature))
        return abs(((age[known] >= low) & (age[known] <= high)).mean() - 0.8)

    def error(temperature):
        decoded = labels.expected_age(labels.temper(probabilities["age"][known], temperature))
        return np.abs(decoded - age[known]).mean()

    return {"age_temperature": float(min(grid, key=missed_coverage)),
            "decoding_temperature": float(min(grid, key=error)),
            "gender_temperature": float(min(grid, key=gender_loss)), "tuning_pictures": len(table)}


# --- The two trainings -----------------------------------------------------------------------


def pretrain_gender(table, folder, size=62, width=0.75, epochs=8, recipe=OURS, seed=0, progress=True,
                    on_epoch=None):
    """Train a gender classifier on the kept rows of a cleaned table (CelebA): (model, history).

    Only the fold "train" is used. Called again, it resumes, or loads what was finished.
    """
    learn, tune = split(table[table["male"].notna()])
    keras.utils.set_random_seed(seed)
    model = gender_classifier(mobilefacenet(size, width))
    crops, tuning_crops = (batches.load_crops(part["crop"], size) for part in (learn, tune))

    def epoch_rows(epoch):
        return batches.shuffled(learn, seed=1000 * seed + epoch)

    history = fit(model, crops, learn, epochs, recipe, epoch_rows, size, folder, (tuning_crops, tune), seed,
                  progress, on_epoch)
    return model, history


def train_multitask(table, folder, pretrained=None, gender_only=None, size=62, width=0.75, epochs=40,
                    recipe=OURS, seed=0, progress=True, on_epoch=None, start=None):
    """Train age and gender on the kept rows of a cleaned table: (model, history).

    Parameters
    ----------
    table : its kept rows of the fold "train" with a gender and an age in 18..65 are used (see `split`)
    pretrained : the gender classifier whose layers to go on with; None starts from random weights
    gender_only : cleaned rows that teach gender alone (CelebA's, or ages outside 18..65); used by
        recipes that give them places in a batch
    recipe : PUBLISHED, OURS or SECOND_ROUND, or one made from them with `_replace`
    start : a network with both heads to go on with, instead of `pretrained`
    """
    known = labels.age_group(table["age"].fillna(-1)) >= 0
    learn, tune = split(table[known & table["male"].notna()])
    keras.utils.set_random_seed(seed)
    model = start or add_age_branch(pretrained or gender_classifier(mobilefacenet(size, width)))
    places = recipe.gender_only if gender_only is not None and len(gender_only) else 0
    everything = learn
    if places:
        extra = gender_only[gender_only["keep"] & gender_only["male"].notna()]
        extra = extra[extra["fold"] == "train"]  # never a picture of a fold that is measured on
        everything = pd.concat([learn, extra], ignore_index=True)
    crops = batches.load_crops(everything["crop"], size)
    steps = max(1, len(learn) // (batches.BATCH_SIZE - places))

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
            beside = batches.dealt(len(everything) - len(learn), len(rows), places, epoch, seed)
            rows = batches.mixed(rows, len(learn) + beside)
        return rows

    tuning = (batches.load_crops(tune["crop"], size), tune)
    history = fit(model, crops, everything, epochs, recipe, epoch_rows, size, folder, tuning, seed, progress,
                  on_epoch)
    return model, history


def split(table):
    """Kept rows of the fold "train" in two: to learn from, and about a sixteenth to tune on.

    Learning curves, calibration and choices use the tuning part, so that the validation fold is looked at
    only for the figures that are reported. No person is in both parts.
    """
    kept = table[table["keep"] & table["crop"].notna() & (table["fold"] == "train")]
    keys = [who if isinstance(who, str) else Path(path).name
            for who, path in zip(kept["identity"], kept["path"], strict=True)]
    held_out = np.array([hash_fold(key, test=None, validation=2, parts=20) == "validation" for key in keys], bool)
    learn, tune = kept[~held_out].reset_index(drop=True), kept[held_out].reset_index(drop=True)
    if not len(learn) or not len(tune):
        raise ValueError(f"nothing to learn: {len(learn)} rows to learn from and {len(tune)} to tune on were kept")
    return learn, tune
