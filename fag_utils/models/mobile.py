"""The light networks of Alonso-Fernandez et al. (2021), "Facial Masks and Soft-Biometrics", beside MobileFaceNet.

SqueezeNet and MobileNetV2 were made for ImageNet, MobiFace for face recognition on a phone. Keras only, as
`mobilefacenet`: any backend trains these networks, and a saved .keras file loads without custom objects.
"""

import warnings
from typing import NamedTuple

import keras
from keras import layers

from fag_utils.models.checkpoints import WeightsError
from fag_utils.models.mobilefacenet import BATCH_NORM_MOMENTUM, Row, bottleneck, convolution, depthwise, normalise


class Fire(NamedTuple):
    """A row of SqueezeNet's table: a 1x1 convolution to few channels, then 1x1 and 3x3 ones side by side."""

    squeeze: int
    expand: int  # channels of each of the two


class Conv(NamedTuple):
    """A convolution without padding."""

    kernel: int
    channels: int


POOL = "maximum of 3x3, stride 2"
FIRES = [Fire(16, 64), Fire(16, 64), Fire(32, 128), Fire(32, 128), Fire(48, 192), Fire(48, 192), Fire(64, 256),
         Fire(64, 256)]

# 1.0: Iandola et al. (2016), "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5 MB model size",
# Table 1; 1.1: the authors' own revision (github.com/forresti/SqueezeNet), which halves the map earlier.
SQUEEZENET = {
    "1.0": [Conv(7, 96), POOL, *FIRES[:3], POOL, *FIRES[3:7], POOL, *FIRES[7:]],
    "1.1": [Conv(3, 64), POOL, *FIRES[:2], POOL, *FIRES[2:4], POOL, *FIRES[4:]],
}

# Duong et al. (2019), "MobiFace: A Lightweight Deep Learning Face Recognition on Mobile Devices". The paper was not
# at hand: these rows are as a public reimplementation has them. A row that halves the map has no residual, those
# after it do. The layers are those of MobileFaceNet.
MOBIFACE = [
    Row("conv3x3", None, 64, 1, 2),
    Row("depthwise conv3x3", None, 64, 1, 1),
    Row("bottleneck", 2, 64, 3, 2),
    Row("bottleneck", 4, 128, 1, 2),
    Row("bottleneck", 2, 128, 3, 1),
    Row("bottleneck", 4, 256, 1, 2),
    Row("bottleneck", 2, 256, 6, 1),
    Row("conv1x1", None, 512, 1, 1),
]

# SqueezeNet's parameters are those of the authors' files, with 1,000 classes; multiply-adds of 1.1 as torchvision's
# page of the model gives them; MobileNetV2: Sandler et al. (2018), Table 4; MobiFace as Zhang (2019),
# "SeesawFaceNets", gives it, where a multiply-add seems to count as two: this layout has 232 M.
MOBILE_PUBLISHED = {
    "squeezenet 1.0": {"parameters": 1_248_424, "size": 224},
    "squeezenet 1.1": {"parameters": 1_235_496, "multiply_adds": 0.35e9, "size": 224},
    "mobilenet_v2": {"parameters": 3.4e6, "multiply_adds": 300e6, "size": 224},
    "mobiface": {"parameters": 2.4e6, "flops": 462e6, "size": 112},
}


def _input(size, least=32):
    size = int(size)
    if size < least:
        raise ValueError(f"size must be {least} pixels or more, got {size}")
    return keras.Input((size, size, 3), name="picture")


def _plain(x, channels, kernel, name, strides=1, padding="same"):
    """A convolution with bias and ReLU: SqueezeNet has no batch norm."""
    return layers.Conv2D(channels, kernel, strides, padding=padding, activation="relu",
                         kernel_initializer="he_uniform", name=name)(x)


def fire(x, squeeze, expand, name):
    """Squeeze to few channels, then look at each place alone and at its neighbours: (n, h, w, 2 * expand)."""
    x = _plain(x, squeeze, 1, f"{name}_squeeze")
    return layers.Concatenate(name=name)([_plain(x, expand, 1, f"{name}_expand1x1"),
                                          _plain(x, expand, 3, f"{name}_expand3x3")])


def _squeezenet(size, version):
    """Input and last map of the network."""
    if version not in SQUEEZENET:
        raise ValueError(f"version must be one of {sorted(SQUEEZENET)}, got {version!r}")
    picture = _input(size)
    x = layers.Rescaling(1 / 58, offset=-117 / 58, name="rescale")(picture)  # ImageNet's mean and spread, about
    number = 0
    for row in SQUEEZENET[version]:
        number += row is not POOL
        if row is POOL:  # the last window of an even side looks over the edge by one
            padding = "same" if x.shape[1] % 2 == 0 else "valid"
            x = layers.MaxPooling2D(3, 2, padding=padding, name=f"pool{number}")(x)
        elif isinstance(row, Conv):
            x = _plain(x, row.channels, row.kernel, f"conv{number}", strides=2, padding="valid")
        else:
            x = fire(x, *row, f"fire{number}")
    return picture, x


def squeezenet(size=224, version="1.1"):
    """The backbone: pictures (n, size, size, 3), RGB 0..255 -> features (n, 512), float32, from a random start.

    size : side of the pictures in pixels, at least 32; version : a key of SQUEEZENET. Keras has no weights for it.
    Raises ValueError for a size or version it doesn't know.
    """
    picture, x = _squeezenet(size, version)
    embedding = layers.GlobalAveragePooling2D(name="embedding")(x)
    return keras.Model(picture, embedding, name=f"squeezenet_{version.replace('.', '')}_{int(size)}")


def squeezenet_classifier(size=224, version="1.1", classes=1000):
    """SqueezeNet as published, head and all: probabilities (n, classes), float32. Arguments as for `squeezenet`."""
    picture, x = _squeezenet(size, version)
    x = layers.Dropout(0.5, name="dropout")(x)
    x = layers.GlobalAveragePooling2D(name="pool10")(_plain(x, classes, 1, "conv10"))
    return keras.Model(picture, layers.Softmax(dtype="float32", name="classes")(x), name=f"squeezenet_{version}")


def mobilenet_v2(size=224, weights=None, width=1.0):
    """The backbone of `keras.applications.MobileNetV2`: pictures (n, size, size, 3), RGB 0..255 -> (n, 1280).

    Parameters
    ----------
    size : side of the pictures in pixels, at least 32
    weights : None for a random start, or "imagenet": Keras downloads them once and keeps them
    width : what channels are multiplied with; Keras has ImageNet weights for 0.35, 0.5, 0.75, 1.0, 1.3, 1.4

    Raises ValueError for a size or weights it doesn't know, WeightsError where the weights can't be had.
    """
    if weights not in (None, "imagenet"):
        raise ValueError(f'weights must be None or "imagenet", got {weights!r}')
    picture = _input(size)
    x = layers.Rescaling(1 / 127.5, offset=-1, name="rescale")(picture)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras': its weights were trained at another size
        try:
            model = keras.applications.MobileNetV2(input_tensor=x, alpha=width, include_top=False, weights=weights,
                                                   pooling="avg")
        except ValueError:
            raise
        except Exception as error:  # Keras says it in different ways
            raise WeightsError("Keras could not download MobileNetV2's weights, try again with a network connection: "
                               f"{error}") from error
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = BATCH_NORM_MOMENTUM  # Keras' 0.999 forgets its start in some thousand steps only
    return keras.Model(model.input, model.output, name=f"mobilenet_v2_{round(100 * width):03d}_{int(size)}")


def mobiface(size=112):
    """The backbone: pictures (n, size, size, 3), RGB 0..255 -> embedding (n, 512), float32.

    size : side of the pictures in pixels, at least 32; published for 112. The network is said to end in a dense layer
    of 512. On the map of 7x7 that layer alone would have 12.8 M parameters, five times the published size, so here it
    sees the mean over the map. Raises ValueError for a smaller size.
    """
    picture = _input(size)
    x = layers.Rescaling(1 / 128, offset=-127.5 / 128, name="rescale")(picture)
    for number, (operator, t, c, n, s) in enumerate(MOBIFACE, start=1):
        for block in range(n):
            name, strides = f"row{number}_{block + 1}", s if block == 0 else 1
            if operator == "bottleneck":
                x = bottleneck(x, t * x.shape[-1], c, strides, name)
            elif operator == "depthwise conv3x3":
                x = normalise(depthwise(x, 3, strides, f"{name}_depthwise"), name)
            else:
                kernel = int(operator[-1])
                x = normalise(convolution(x, c, kernel, strides, f"{name}_conv"), name)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    embedding = layers.Dense(512, use_bias=False, name="embedding")(x)
    return keras.Model(picture, embedding, name=f"mobiface_{int(size)}")
