"""MobileFaceNet, built from the published table, and its age and gender heads.

Chen, Liu, Gao, Han (2018), "MobileFaceNets: Efficient CNNs for Accurate Real-Time Face Verification
on Mobile Devices", Table 1. Keras only, no TensorFlow call: any backend of Keras 3 trains these networks,
and a saved .keras file loads without custom objects.
"""

from typing import NamedTuple

import keras
import numpy as np
import pandas as pd
from keras import layers

from fag_utils.labels import MAX_AGE, MIN_AGE, N_AGES


class Row(NamedTuple):
    """A row of the published table: operator, expansion t, channels c, repeats n, first stride s."""

    operator: str
    t: int | None
    c: int
    n: int
    s: int


def table_rows(size):
    """Table 1 for pictures of size x size, or (height, width), pixels: only GDConv's kernel, the map that is left,
    depends on it."""
    height, width = (-(-side // 16) for side in _sides(size))  # four strides of 2, each rounded up
    return [
        Row("conv3x3", None, 64, 1, 2),
        Row("depthwise conv3x3", None, 64, 1, 1),
        Row("bottleneck", 2, 64, 5, 2),
        Row("bottleneck", 4, 128, 1, 2),
        Row("bottleneck", 2, 128, 6, 1),
        Row("bottleneck", 4, 128, 1, 2),
        Row("bottleneck", 2, 128, 2, 1),
        Row("conv1x1", None, 512, 1, 1),
        Row(f"linear GDConv{height}x{width}", None, 512, 1, 1),
        Row("linear conv1x1", None, 128, 1, 1),
    ]


def _sides(size):
    """(height, width) of a size: one number, or two."""
    height, width = size if isinstance(size, tuple) else (size, size)
    return int(height), int(width)


# The two published networks, by input size.
TABLES = {size: table_rows(size) for size in (112, 62)}

# What the authors report: of 112 at width 1.0 in the paper above; of 62 at width 0.75, with both heads, the
# author of the age and gender recipe (github.com/vaan2010/FaceAgeGenderRecognition): recipe="reference" below.
PUBLISHED = {
    (112, 1.0): {"parameters": 0.99e6, "multiply_adds": 221e6},
    (62, 0.75): {"parameters": 0.531e6, "flops": 0.074e9},
}

RECIPES = ("paper", "reference")

# The running mean and variance follow 0.9 of their last value, not Keras' 0.99: the latter needs about
# 500 steps until they have forgotten their start, more than a short run has, and then validation is nonsense.
BATCH_NORM_MOMENTUM = 0.9


def normalise(x, name, linear=False):
    """Batch norm, and unless `linear` a PReLU with one slope for each channel, shared over space."""
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_norm")(x)
    if linear:
        return x
    return layers.PReLU(
        alpha_initializer=keras.initializers.Constant(0.25), shared_axes=[1, 2], name=f"{name}_prelu"
    )(x)


def convolution(x, channels, kernel, strides, name):
    """An ordinary convolution without bias: the batch norm that follows has one."""
    return layers.Conv2D(
        channels, kernel, strides, padding="same", use_bias=False, kernel_initializer="he_normal", name=name
    )(x)


def depthwise(x, kernel, strides, name, padding="same"):
    """One kernel for each channel: no sum over channels."""
    # He initialisation by fan_out, k * k: for Keras, fan_in counts all channels, of which a kernel sees one.
    he_normal = keras.initializers.VarianceScaling(2.0, mode="fan_out")
    return layers.DepthwiseConv2D(
        kernel, strides, padding=padding, use_bias=False, depthwise_initializer=he_normal, name=name
    )(x)


def bottleneck(x, expanded_channels, output_channels, strides, name):
    """Widen with a 1x1 convolution, look around with a depthwise 3x3, narrow with a linear 1x1.

    (n, h, w, c) -> (n, h / strides, w / strides, output_channels). The input is added to the output
    wherever the two have the same shape (Sandler et al. 2018, "MobileNetV2").
    """
    y = convolution(x, expanded_channels, 1, 1, f"{name}_expand")
    y = normalise(y, f"{name}_expand")
    y = depthwise(y, 3, strides, f"{name}_depthwise")
    y = normalise(y, f"{name}_depthwise")
    y = convolution(y, output_channels, 1, 1, f"{name}_project")
    y = normalise(y, f"{name}_project", linear=True)
    if strides == 1 and x.shape[-1] == output_channels:
        y = layers.Add(name=f"{name}_add")([x, y])
    return y


def global_depthwise(x, name):
    """GDConv: one kernel for each channel, as large as the map. (n, h, w, c) -> (n, 1, 1, c).

    Average pooling with a weight for every place, learned for each channel.
    """
    x = depthwise(x, x.shape[1:3], 1, f"{name}_gdconv", padding="valid")
    return normalise(x, f"{name}_gdconv", linear=True)


def mobilefacenet(size=112, width=1.0, recipe="paper"):
    """The backbone: pictures (n, size, size, 3), RGB 0..255 -> embedding (n, 128), float32.

    Parameters
    ----------
    size : side of the pictures in pixels, at least 32; the published sizes are 112 and 62. Or (height, width), at
        least 16 each: `occlusion.eye_shape()` for the region of the eyes.
    width : what the channels of the first seven rows are multiplied with. 512 and 128 stay as they are.
    recipe : "paper" builds the published table as it stands. "reference" builds what the age and gender
        recipe with 0.531 M parameters means by it: the expanded channels of a bottleneck are multiplied
        with `width` once more, the second row's depthwise convolution is followed by a 1x1 convolution,
        and the last row has a PReLU. (Its blocks add their input from the second of a row on only; ours
        wherever they can: that costs no parameter.)

    Raises ValueError for a size, width or recipe it can't build.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe must be one of {RECIPES}, got {recipe!r}")
    sides = _sides(size)
    if min(sides) < (16 if isinstance(size, tuple) else 32):
        raise ValueError(f"size must be 32 pixels or more, 16 of (height, width), got {size}")
    if not 0.125 <= width <= 4:
        raise ValueError(f"width must lie in 0.125..4 (published: 1.0 and 0.75), got {width}")
    reference = recipe == "reference"
    picture = keras.Input((*sides, 3), name="picture")
    x = layers.Rescaling(1 / 128, offset=-127.5 / 128, name="rescale")(picture)
    for number, (operator, t, c, n, s) in enumerate(table_rows(size), start=1):
        for block in range(n):
            name = f"row{number}" if n == 1 else f"row{number}_{block + 1}"
            strides = s if block == 0 else 1
            if operator == "conv3x3":
                x = normalise(convolution(x, int(c * width), 3, strides, f"{name}_conv"), name)
            elif operator == "depthwise conv3x3":
                x = depthwise(x, 3, strides, f"{name}_depthwise")
                if reference:
                    x = convolution(x, int(c * width), 1, 1, f"{name}_conv")
                x = normalise(x, name)
            elif operator == "bottleneck":
                expanded = int(x.shape[-1] * t * (width if reference else 1))
                x = bottleneck(x, expanded, int(c * width), strides, name)
            elif "GDConv" in operator:
                x = global_depthwise(x, name)
            else:  # conv1x1 and linear conv1x1
                x = convolution(x, c, 1, strides, f"{name}_conv")
                x = normalise(x, name, linear="linear" in operator and not reference)
    embedding = layers.Flatten(name="embedding")(x)
    side = "x".join(str(side) for side in dict.fromkeys(sides))
    return keras.Model(picture, embedding, name=f"mobilefacenet_{round(100 * width):03d}_{side}")


def _head(embedding, name, classes, dropout, hidden=None):
    x = layers.Dropout(dropout, name=f"{name}_dropout")(embedding)
    if hidden:
        x = layers.Dense(hidden, use_bias=False, name=f"{name}_hidden")(x)
    # float32 also where the rest of the network computes in float16: probabilities need the digits.
    return layers.Dense(classes, activation="softmax", dtype="float32", name=name)(x)


def age_gender(backbone, dropout=0.2, hidden=None, ages=N_AGES):
    """Both heads on a backbone's output: a Model with outputs {"age": (n, ages), "gender": (n, 2)}, softmax.

    Gender's index 1 is male. The backbone's layers are shared, not copied. `hidden` puts a linear layer of so
    many units before each head: the reference recipe has 128. For `ages` see `narrow`.
    """
    outputs = {
        "age": _head(backbone.output, "age", ages, dropout, hidden),
        "gender": _head(backbone.output, "gender", 2, dropout, hidden),
    }
    return keras.Model(backbone.input, outputs, name=f"{backbone.name}_age_gender")


def gender_classifier(backbone, dropout=0.2):
    """The network of the pre-training: output {"gender": (n, 2)}, softmax, index 1 is male."""
    outputs = {"gender": _head(backbone.output, "gender", 2, dropout)}
    return keras.Model(backbone.input, outputs, name=f"{backbone.name}_gender")


def mask_classifier(backbone, dropout=0.2):
    """A network that tells masked faces from bare ones: output {"masked": (n, 2)}, softmax, index 1 is masked.

    A backbone of a quarter of the width is enough to see it; `batches.dataset` gives the targets.
    """
    outputs = {"masked": _head(backbone.output, "masked", 2, dropout)}
    return keras.Model(backbone.input, outputs, name=f"{backbone.name}_masked")


def add_age_branch(gender_model, dropout=0.2, ages=N_AGES):
    """An age head beside the gender head of a pre-trained `gender_classifier`.

    Returns a Model like `age_gender`'s. It shares all layers with `gender_model`: what was learned stays.
    """
    if "gender" not in gender_model.output_names or "age" in gender_model.output_names:
        raise ValueError('add_age_branch needs a model with the output "gender" only: see gender_classifier')
    embedding = gender_model.get_layer("gender_dropout").input
    outputs = {"age": _head(embedding, "age", ages, dropout), "gender": gender_model.output["gender"]}
    name = gender_model.name.removesuffix("_gender") + "_age_gender"
    return keras.Model(gender_model.input, outputs, name=name)


def narrow(model):
    """A network with heads for the ages 0..116 -> one for use, with the outputs

    age : (n, 48), the distribution over 18..65 given that the person is in this range
    gender : (n, 2), as it was
    outside : (n, 2), the probabilities that the person is younger than 18, and older than 65

    All layers are shared. A network that has 48 ages is returned as it is. Layers only, and each of them of Keras'
    oldest, so that a saved file loads with any version of it.
    """
    ages = model.output["age"].shape[-1]
    if ages == N_AGES:
        return model
    head = model.get_layer("age")
    logits = layers.Dense(ages, dtype="float32", name="every_age")
    column = layers.Reshape((ages, 1), name="ages_as_column")(logits(head.input))
    inside = layers.Flatten(name="adults")(layers.Cropping1D((MIN_AGE, ages - 1 - MAX_AGE))(column))
    probability = layers.Softmax(axis=1, name="every_age_softmax")(column)
    # a mean times its number of entries: their sum
    parts = [layers.Rescaling(size, name=name)(layers.GlobalAveragePooling1D()(layers.Cropping1D(crop)(probability)))
             for name, size, crop in (("under", MIN_AGE, (0, ages - MIN_AGE)),
                                      ("over", ages - 1 - MAX_AGE, (MAX_AGE + 1, 0)))]
    outputs = {"age": layers.Softmax(name="age")(inside), "gender": model.output["gender"],
               "outside": layers.Concatenate(name="outside")(parts)}
    logits.set_weights(head.get_weights())
    return keras.Model(model.input, outputs, name=model.name)


def widen(model):
    """What `narrow` made, as it learned: a network with heads for the ages 0..116 and for gender, to learn on.

    All layers are shared. A network with a head for 48 ages alone is returned as it is.
    """
    if "outside" not in model.output_names:
        return model
    logits = model.get_layer("every_age")
    head = layers.Dense(logits.units, activation="softmax", dtype="float32", name="age")
    outputs = {"age": head(logits.input), "gender": model.output["gender"]}
    head.set_weights(logits.get_weights())
    return keras.Model(model.input, outputs, name=model.name)


def begin_with(model, other):
    """Give a network the weights of another one's layers wherever name and shapes are the same; returns it.

    So an ocular network begins with what the full face's has learned: all but the kernel over the whole map.
    """
    known = {layer.name: layer.get_weights() for layer in other.layers if layer.weights}
    for layer in model.layers:
        found = known.get(layer.name)
        if found and [w.shape for w in found] == [tuple(w.shape) for w in layer.weights]:
            layer.set_weights(found)
    return model


def multiply_adds(layer):
    """Multiply-adds of one layer for one picture: each weight of a kernel works at every output position.

    Convolutions and dense layers only, as in the publications: batch norm melts into the convolution
    before it, PReLU and the additions are little beside them.
    """
    if not isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D, layers.Dense)):
        return 0
    positions = np.prod(layer.output.shape[1:-1], dtype="int64")
    return int(np.prod(layer.kernel.shape) * positions)


def deployed_parameters(layer):
    """Parameters of one layer in a network that is done learning.

    Of a batch norm's four numbers for each channel, the convolution before it takes in all but one, its bias.
    """
    norm = isinstance(layer, layers.BatchNormalization)
    return layer.count_params() // 4 if norm else layer.count_params()


def count(model):
    """What a built model costs: a dict of

    parameters : all of them, as Keras counts
    trainable : without the running means and variances of batch norm
    deployed : with batch norm melted into the convolutions, as it runs on a phone
    multiply_adds : for one picture
    """
    return {
        "parameters": model.count_params(),
        "trainable": int(sum(np.prod(w.shape) for w in model.trainable_weights)),
        "deployed": sum(deployed_parameters(layer) for layer in model.layers),
        "multiply_adds": sum(multiply_adds(layer) for layer in model.layers),
    }


def layer_table(size=112, width=1.0, recipe="paper"):
    """The published table beside what it costs, measured on the built network.

    DataFrame, one row (1 to 10) a row of the table: operator, t, c, n, s as published; output (height x width x
    channels); parameters, deployed and multiply_adds (see `count`) summed over the row's layers.
    """
    model = mobilefacenet(size, width, recipe)
    rows = []
    for number, row in enumerate(table_rows(size), start=1):
        mine = [layer for layer in model.layers if layer.name.split("_")[0] == f"row{number}"]
        rows.append({
            **row._asdict(),
            "output": " x ".join(str(side) for side in mine[-1].output.shape[1:]),
            "parameters": sum(layer.count_params() for layer in mine),
            "deployed": sum(deployed_parameters(layer) for layer in mine),
            "multiply_adds": sum(multiply_adds(layer) for layer in mine),
        })
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="row")).astype({"t": "Int64"})
