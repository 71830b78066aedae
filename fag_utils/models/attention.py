"""A residual attention network, a residual network, and an ensemble of both, for age and gender.

Wang et al. (2017), "Residual Attention Network for Image Classification"; He et al. (2016), "Deep Residual Learning
for Image Recognition". Joined as Abdolrashidi et al. (2020), "Age and Gender Prediction From Face Images Using
Attentional Convolutional Network", do. Keras only, as the other networks; Grad-CAM needs TensorFlow's gradients.
"""

from typing import NamedTuple

import keras
import numpy as np
from keras import layers

from fag_utils.labels import N_AGES
from fag_utils.models.mobilefacenet import BATCH_NORM_MOMENTUM, convolution


class Stage(NamedTuple):
    """A stage on one map size: a residual unit to `channels`, then attention modules or plain units."""

    channels: int
    modules: int = 0
    levels: int = 0  # how often a module's mask halves the map
    units: int = 0


class Attention(NamedTuple):
    """The layout of a residual attention network."""

    stem: int  # channels of the first convolution
    published: bool  # with the 7x7 stem and its pooling, for pictures of 224; otherwise 3x3 without, for small ones
    trunk: int  # t: residual units of a trunk branch
    stages: list


# "56" is the authors' (Table 2, and github.com/fwang91/residual-attention-network); "small" is ours, for pictures of
# 62 pixels: maps of 31, 16, 8 and 4 pixels a side take the place of 56, 28, 14 and 7.
ATTENTION = {
    "56": Attention(64, True, 2, [Stage(256, 1, 3), Stage(512, 1, 2), Stage(1024, 1, 1), Stage(2048, units=2)]),
    "small": Attention(16, False, 1, [Stage(32, 1, 2), Stage(64, 1, 1), Stage(128, 1, 1), Stage(256)]),
}

# Residual networks by layers: kind of unit, and units of each stage (He et al., Table 1). "small" is ours.
RESNETS = {
    "18": ("basic", 64, True, [2, 2, 2, 2]),
    "50": ("bottleneck", 64, True, [3, 4, 6, 3]),
    "small": ("basic", 16, False, [2, 2, 2, 2]),
}

# What is reported for 224x224 pixels and 1,000 classes: by Wang et al. in Table 2; by He et al. in Table 1, but
# multiply-adds only, so that the parameters are those of torchvision's networks.
ATTENTION_PUBLISHED = {
    "attention 56": {"parameters": 31.9e6, "multiply_adds": 6.2e9},
    "resnet 18": {"parameters": 11.7e6, "multiply_adds": 1.8e9},
    "resnet 50": {"parameters": 25.6e6, "multiply_adds": 3.8e9},
}


def _norm(x, name, relu=True):
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name=f"{name}_norm")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _stem(size, channels, published, name):
    """Input and first convolution: (picture, map of a quarter of its side, or half where not `published`)."""
    size = int(size)
    if size < 32:
        raise ValueError(f"size must be 32 pixels or more, got {size}")
    picture = keras.Input((size, size, 3), name="picture")
    x = layers.Rescaling(1 / 128, offset=-127.5 / 128, name="rescale")(picture)
    x = _norm(convolution(x, channels, 7 if published else 3, 2, f"{name}_conv"), name)
    if published:
        x = layers.MaxPooling2D(3, 2, padding="same", name=f"{name}_pool")(x)
    return picture, x


def residual_unit(x, channels, strides, name):
    """A bottleneck with batch norm and ReLU before each convolution: 1x1 to a quarter of the channels, 3x3, 1x1 back,
    and the input added (He et al. 2016, "Identity Mappings in Deep Residual Networks").

    (n, h, w, c) -> (n, h / strides, w / strides, channels)
    """
    y = _norm(x, f"{name}_1")
    if strides > 1 or x.shape[-1] != channels:
        x = convolution(y, channels, 1, strides, f"{name}_shortcut")
    y = convolution(y, channels // 4, 1, 1, f"{name}_1")
    y = convolution(_norm(y, f"{name}_2"), channels // 4, 3, strides, f"{name}_2")
    y = convolution(_norm(y, f"{name}_3"), channels, 1, 1, f"{name}_3")
    return layers.Add(name=f"{name}_add")([y, x])


def soft_mask(x, levels, name):
    """The mask branch M of an attention module: down to see the whole face, up to say where. Same shape, 0..1.

    Pooling halves the map `levels` times; on each size a residual unit, two on the smallest. On the way back up each
    map is enlarged, what was seen at that size on the way down is added through a unit, and another unit follows.
    """
    channels, seen = x.shape[-1], []
    for level in range(1, levels + 1):
        x = layers.MaxPooling2D(3, 2, padding="same", name=f"{name}_pool{level}")(x)
        x = residual_unit(x, channels, 1, f"{name}_down{level}")
        seen.append(x)
    x = residual_unit(x, channels, 1, f"{name}_bottom")
    for level in range(levels - 1, 0, -1):
        skip = seen[level - 1]
        x = layers.Resizing(*skip.shape[1:3], name=f"{name}_enlarge{level}")(x)
        x = layers.Add(name=f"{name}_join{level}")([x, residual_unit(skip, channels, 1, f"{name}_skip{level}")])
        x = residual_unit(x, channels, 1, f"{name}_up{level}")
    return x


def attention_module(x, levels, trunk, name, attention=True):
    """(1 + M) * T: what the trunk branch T finds is strengthened where the mask M, 0..1, looks; nothing is lost.

    A residual unit, then the two branches side by side, then another unit. (n, h, w, c) -> the same.
    attention : False leaves the mask away, the rest stays
    """
    channels = x.shape[-1]
    x = t = residual_unit(x, channels, 1, f"{name}_before")
    for unit in range(1, trunk + 1):
        t = residual_unit(t, channels, 1, f"{name}_trunk{unit}")
    if attention:
        m = soft_mask(x, levels, f"{name}_mask")
        m = layers.Resizing(*t.shape[1:3], name=f"{name}_mask_enlarge")(m)
        for linear in (1, 2):
            m = _norm(m, f"{name}_mask_linear{linear}")
            m = convolution(m, channels, 1, 1, f"{name}_mask_linear{linear}")
        m = layers.Activation("sigmoid", name=f"{name}_mask")(m)
        strengthened = layers.Multiply(name=f"{name}_multiply")([t, m])
        t = layers.Add(name=f"{name}_add")([strengthened, t])
    return residual_unit(t, channels, 1, f"{name}_after")


def residual_attention(size=62, layout="small", attention=True):
    """The backbone: pictures (n, size, size, 3), RGB 0..255 -> features (n, channels of the last stage), float32.

    layout : a key of ATTENTION; attention : False builds the same trunk without masks

    Raises ValueError for a size below 32 pixels or a layout it doesn't know.
    """
    if layout not in ATTENTION:
        raise ValueError(f"layout must be one of {sorted(ATTENTION)}, got {layout!r}")
    plan = ATTENTION[layout]
    picture, x = _stem(size, plan.stem, plan.published, "stem")
    for number, stage in enumerate(plan.stages, start=1):
        x = residual_unit(x, stage.channels, 1 if number == 1 else 2, f"stage{number}_enter")
        for module in range(1, stage.modules + 1):
            x = attention_module(x, stage.levels, plan.trunk, f"stage{number}_module{module}", attention)
        for unit in range(1, stage.units + 1):
            x = residual_unit(x, stage.channels, 1, f"stage{number}_unit{unit}")
    x = layers.GlobalAveragePooling2D(name="embedding")(_norm(x, "last"))
    name = "attention" if attention else "trunk"
    return keras.Model(picture, x, name=f"{name}_{layout}_{size}")


def resnet_unit(x, kind, channels, strides, name):
    """A unit of a ResNet: two 3x3 convolutions ("basic"), or 1x1, 3x3, 1x1 to four times the channels ("bottleneck"),
    and the input added before the last ReLU; where its shape differs, through a 1x1 convolution.
    """
    plan = {"basic": [(3, 1, strides), (3, 1, 1)], "bottleneck": [(1, 1, strides), (3, 1, 1), (1, 4, 1)]}[kind]
    y = x
    for number, (kernel, times, stride) in enumerate(plan, start=1):
        y = convolution(y, channels * times, kernel, stride, f"{name}_{number}")
        y = _norm(y, f"{name}_{number}", relu=number < len(plan))
    if x.shape != y.shape:
        x = _norm(convolution(x, y.shape[-1], 1, strides, f"{name}_shortcut"), f"{name}_shortcut", relu=False)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def resnet(size=62, layout="small"):
    """The other backbone, a plain ResNet: pictures and features as of `residual_attention`.

    layout : a key of RESNETS
    """
    if layout not in RESNETS:
        raise ValueError(f"layout must be one of {sorted(RESNETS)}, got {layout!r}")
    kind, channels, published, stages = RESNETS[layout]
    picture, x = _stem(size, channels, published, "stem")
    for number, units in enumerate(stages, start=1):
        for unit in range(1, units + 1):
            strides = 2 if number > 1 and unit == 1 else 1
            x = resnet_unit(x, kind, channels * 2 ** (number - 1), strides, f"stage{number}_unit{unit}")
    x = layers.GlobalAveragePooling2D(name="embedding")(x)
    return keras.Model(picture, x, name=f"resnet_{layout}_{size}")


def tell_gender(backbone, dropout=0.2, ages=N_AGES):
    """Both heads, the age head told what the gender head answers: outputs as of `age_gender`.

    The two probabilities of gender stand beside the features that the age is read from. Nobody's true gender is used.
    """
    features = backbone.output
    x = layers.Dropout(dropout, name="gender_dropout")(features)
    gender = layers.Dense(2, dtype="float32", name="gender_logits")(x)
    gender = layers.Softmax(dtype="float32", name="gender")(gender)
    x = layers.Dropout(dropout, name="age_dropout")(features)
    x = layers.Concatenate(name="features_and_gender")([x, gender])
    age = layers.Dense(ages, activation="softmax", dtype="float32", name="age")(x)
    return keras.Model(backbone.input, {"age": age, "gender": gender}, name=f"{backbone.name}_told")


def ensemble(networks):
    """One network that answers with the mean of several networks' answers: names differ, inputs agree."""
    picture = keras.Input(networks[0].input_shape[1:], name="picture")
    answers = [network(picture) for network in networks]
    outputs = {head: layers.Average(name=head)([answer[head] for answer in answers]) for head in ("age", "gender")}
    return keras.Model(picture, outputs, name="ensemble")


# Where it looks ------------------------------------------------------------------------------------------


def attention_maps(model, pictures):
    """The masks of each attention module, mean over the channels: {module: (n, h, w)}, 0..1, each at its own size.

    pictures : (n, size, size, 3), 0..255. ValueError for a network without such modules
    """
    masks = {layer.name.removesuffix("_mask"): keras.ops.mean(layer.output, axis=-1)
             for layer in model.layers if layer.name.endswith("_mask")}
    if not masks:
        raise ValueError(f"{model.name} has no attention modules")
    return keras.Model(model.input, masks).predict(np.asarray(pictures, "float32"), verbose=0)


def last_map(model, least=7):
    """The name of the last layer whose map has `least` pixels a side or more, before the features are pooled."""
    sides = [(layer.name, layer.output.shape) for layer in model.layers if len(layer.output.shape) == 4]
    return [name for name, shape in sides if min(shape[1:3]) >= least][-1]


def grad_cam(model, pictures, head="age", layer=None, batch_size=64):
    """Where the evidence for the network's own answer lies: (n, h, w) float32, 0 or more.

    Each channel of a layer's map is weighted with the mean gradient by it of the answer's score before the softmax;
    what of the sum lies below zero speaks against the answer and is cut (Selvaraju et al. 2017, "Grad-CAM").

    head : "age" or "gender": its most probable class is the answer
    layer : a name; None takes `last_map`
    """
    import tensorflow as tf

    top = model.get_layer(head)  # Dense with a softmax in it, or a softmax of its own
    dense = top if isinstance(top, layers.Dense) else None
    view = keras.Model(model.input, [model.get_layer(layer or last_map(model)).output, top.input])
    maps = []
    for start in range(0, len(pictures), batch_size):
        with tf.GradientTape() as tape:
            found, x = view(np.asarray(pictures[start : start + batch_size], "float32"), training=False)
            score = tf.matmul(x, dense.kernel) + dense.bias if dense else x
            answer = tf.reduce_max(score, axis=1)
        weight = tf.reduce_mean(tape.gradient(answer, found), axis=(1, 2), keepdims=True)
        maps.append(tf.nn.relu(tf.reduce_sum(weight * found, axis=-1)).numpy())
    return np.concatenate(maps)


def shares(maps, regions, names):
    """How much of each picture's map falls on each region: (n, regions) shares that sum to 1; NaN for an empty map.

    maps : (n, h, w), 0 or more; regions : (n, s, s) numbers of `names`, in the same frame, s >= h. Each pixel of a
    map is laid over the pixels of `regions` that it covers.
    """
    large = enlarged(maps, regions.shape[1])
    sums = np.stack([(large * (regions == number)).sum(axis=(1, 2)) for number in range(len(names))], axis=1)
    total = sums.sum(axis=1, keepdims=True)
    return np.where(total > 0, sums / np.where(total > 0, total, 1), np.nan)


def enlarged(maps, side):
    """Maps (n, h, w) at side x side, linear between their pixels' middles."""
    scaled = keras.ops.image.resize(np.asarray(maps, "float32")[..., None], (side, side), interpolation="bilinear")
    return keras.ops.convert_to_numpy(scaled)[..., 0]
