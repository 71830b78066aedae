"""The fast step computes what Keras computes: answers, gradients, trainings."""

import keras
import numpy as np
import pandas as pd
import pytest

from fag_utils import batches, fast, labels, models, training

needs_torch = pytest.mark.skipif(not fast.available(), reason="needs PyTorch and a C++ compiler")


def networks():
    """Name, network, how far a gradient may be off: rounding decides at a kink, and with depth more hangs on it."""
    yield "mobilefacenet", lambda: models.age_gender(models.mobilefacenet(62, 0.25), dropout=0.0), 0.01
    yield "odd size", lambda: models.age_gender(models.mobilefacenet(45, 0.25), dropout=0.0, ages=117), 0.03
    # 5x5 kernels, ReLU6, channels that are no multiple of 16
    yield "efficientnet", lambda: models.age_gender(models.efficientnet_lite0(40), dropout=0.0), 0.01
    # masks, pooling over the edge, enlarging, and a softmax that another head is told
    yield "attention", lambda: models.tell_gender(models.residual_attention(46), dropout=0.0), 0.06
    yield "resnet", lambda: models.age_gender(models.resnet(40), dropout=0.0), 0.01
    yield "depthwise convolutions with bias", depthwise_with_bias, 0.01


def depthwise_with_bias():
    """As networks have them whose batch norm has melted into the convolutions; the last one as large as the map."""
    x = picture = keras.Input((17, 17, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1)(x)
    x = keras.layers.Conv2D(8, 3, 2, padding="same", name="stem")(x)
    x = keras.layers.DepthwiseConv2D(3, 2, padding="same", name="strided")(keras.layers.ReLU(max_value=6)(x))
    x = keras.layers.DepthwiseConv2D(5, padding="valid", name="whole")(keras.layers.ReLU()(x))
    return models.age_gender(keras.Model(picture, keras.layers.Flatten()(x)), dropout=0.0)


@needs_torch
@pytest.mark.parametrize("build, off", [case[1:] for case in networks()], ids=[case[0] for case in networks()])
def test_answers_and_gradients_are_those_of_keras(build, off):
    import tensorflow as tf
    import torch

    keras.utils.set_random_seed(0)
    model = build()
    random = np.random.default_rng(0)
    for variable in model.weights:  # nothing at its starting value: shifts and slopes count too
        if "moving_variance" not in variable.path:
            variable.assign(variable + 0.1 * random.normal(size=variable.shape) * np.abs(variable).max())
    net = fast.FastModel(model, mixed=False)
    size = model.input_shape[1]
    pictures = random.uniform(0, 255, (16, size, size, 3)).astype("float32")
    ages, genders = random.integers(0, 48, 16), random.integers(0, 2, 16)

    asked = model(pictures, training=False)
    answers = net.probabilities(pictures)
    for head in ("age", "gender"):
        np.testing.assert_allclose(answers[head], asked[head].numpy(), atol=2e-4)

    with tf.GradientTape() as tape:
        outputs = model(pictures, training=True)
        loss = sum(tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(y, outputs[head]))
                   for head, y in (("age", ages), ("gender", genders)))
    theirs = tape.gradient(loss, model.trainable_variables)
    logits = net(pictures, training=True)
    mine = sum(torch.nn.functional.cross_entropy(logits[head], torch.tensor(y))
               for head, y in (("age", ages), ("gender", genders)))
    mine.backward()
    assert mine.item() == pytest.approx(float(loss), rel=1e-4)
    for variable, gradient, tensor in zip(model.trainable_variables, theirs, net.trainable, strict=True):
        wanted, got = np.array(gradient), tensor.grad.numpy()
        # What a batch norm behind it takes away again has a gradient of rounding errors only: an absolute limit.
        limit = off * np.linalg.norm(wanted) + 2e-4 * np.sqrt(wanted.size)
        assert np.linalg.norm(got - wanted) <= limit, variable.path
    moved = dict(zip((v.path for v in model.weights), net.get_weights(), strict=True))
    for variable in model.weights:  # Keras has updated its statistics, the fast net its own
        if "moving" in variable.path:
            wanted = keras.ops.convert_to_numpy(variable)
            np.testing.assert_allclose(moved[variable.path], wanted, rtol=2e-3, atol=2e-3)


@needs_torch
def test_an_answer_takes_the_memory_of_a_few_layers():
    import weakref

    net = fast.FastModel(models.gender_classifier(models.mobilenet_v2(62), dropout=0.0), mixed=False)
    compute, made, held = net._batchnormalization, [], []

    def watched(*inputs):
        output = compute(*inputs)
        made.append((output.nbytes, weakref.ref(output)))
        held.append(sum(size for size, tensor in made if tensor() is not None))
        return output

    net.program = [(watched if step == compute else step, *rest) for step, *rest in net.program]
    net.probabilities(np.zeros((8, 62, 62, 3), "float32"))
    assert len(made) == 52 and max(held) < 0.4 * sum(size for size, _ in made)


@needs_torch
def test_bfloat16_is_near():
    model = models.age_gender(models.mobilefacenet(62, 0.25))
    pictures = np.random.default_rng(0).uniform(0, 255, (8, 62, 62, 3)).astype("float32")
    answers = []
    for mixed in (False, True):
        net = fast.FastModel(model, mixed)
        net.momentum = 0.0
        net(pictures, training=True)  # statistics that fit: else the answers are all 0 or 1
        answers.append(net.probabilities(pictures)["age"])
    exact, near = answers
    np.testing.assert_allclose(near, exact, atol=0.05)
    assert not np.array_equal(near, exact)


def problem(n=256):
    random = np.random.default_rng(0)
    male = random.integers(0, 2, n)
    crops = random.integers(80, 120, (n, 58, 58, 3)).astype("uint8")
    crops[male == 1, :, :, 0] += 100
    return crops, pd.DataFrame({"age": random.integers(0, 90, n) * 1.0, "male": male * 1.0})


def small():
    keras.utils.set_random_seed(0)
    return models.age_gender(models.mobilefacenet(32, 0.125), ages=labels.N_EVERY_AGE)


def learn(folder, engine, epochs=4, on_epoch=None):
    crops, table = problem()
    model = small()
    recipe = training.OURS._replace(learning_rate=1e-2)

    def rows(epoch):
        return batches.shuffled(table, 32, seed=epoch)

    history = training.fit(model, crops, table, epochs, recipe, rows, 32, folder, (crops, table), progress=False,
                           on_epoch=on_epoch, engine=engine)
    return model, history


@needs_torch
def test_both_engines_learn_alike(tmp_path):
    curves = {engine: learn(tmp_path / engine, engine)[1] for engine in ("fast", "keras")}
    for history in curves.values():
        assert history["loss"].iloc[-1] < 0.9 * history["loss"].iloc[0]
        assert history["tune_accuracy"].iloc[-1] > 0.9
    assert curves["fast"]["loss"].iloc[0] == pytest.approx(curves["keras"]["loss"].iloc[0], rel=0.1)


@needs_torch
def test_an_interrupted_fast_training_ends_in_the_same_weights(tmp_path):
    whole, curve = learn(tmp_path / "whole", "fast")

    class Stop(Exception):
        pass

    def stop(history):
        if len(history) == 2:
            raise Stop

    with pytest.raises(Stop):
        learn(tmp_path / "broken", "fast", on_epoch=stop)
    resumed, again = learn(tmp_path / "broken", "fast")
    np.testing.assert_allclose(again["loss"], curve["loss"], rtol=1e-3)
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3)


@needs_torch
def test_a_finished_training_of_another_engine_is_not_taken_for_this_one(tmp_path):
    learn(tmp_path, "fast", epochs=1)
    with pytest.raises(ValueError, match="another training"):
        learn(tmp_path, "keras", epochs=1)


@needs_torch
def test_an_unknown_layer_is_named():
    x = keras.Input((8, 8, 3))
    for pool in (keras.layers.GlobalMaxPooling2D(name="pool"),
                 keras.layers.AveragePooling2D(8, padding="same", name="pool")):
        y = keras.layers.Flatten()(pool(x))
        model = keras.Model(x, {"gender": keras.layers.Dense(2, "softmax")(y)})
        with pytest.raises(ValueError, match="pool.*Pooling2D"):
            fast.FastModel(model)


def test_an_engine_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ValueError, match="engine must be"):
        learn(tmp_path, "warp", epochs=1)


# Other layers: ReLU inside a convolution, maps side by side, a maximum over the edge; padding, valid and by 1
OTHERS = {"squeezenet": lambda: models.squeezenet(62), "squeezenet, odd maps": lambda: models.squeezenet(75),
          "mobilenet_v2": lambda: models.mobilenet_v2(62), "mobiface": lambda: models.mobiface(48)}


@needs_torch
@pytest.mark.parametrize("name", OTHERS)
def test_the_light_networks_are_computed_as_keras_does(name):
    keras.utils.set_random_seed(1)
    model = models.gender_classifier(OTHERS[name](), dropout=0.0)
    size = model.input_shape[1]
    pictures = np.random.default_rng(0).uniform(0, 255, (8, size, size, 3)).astype("float32")
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(pictures, training=True)  # statistics that fit: else the answers are all 0 or 1
    net = fast.FastModel(model, mixed=False)
    asked = np.array(model(pictures)["gender"])
    assert 1e-3 < asked[:, 0].mean() < 1 - 1e-3
    np.testing.assert_allclose(net.probabilities(pictures)["gender"], asked, atol=1e-4)
    logits = net(pictures, training=True)["gender"]
    (logits[:, 0] - logits[:, 1]).mean().backward()
    assert all(np.isfinite(tensor.grad.numpy()).all() for tensor in net.trainable)
