"""A face recognition network with public weights, as a start for age and gender: dlib's ResNet of 29 layers.

It has learned to tell people apart on some three million pictures (Davis King, github.com/davisking/dlib-models,
in the public domain by CC0 1.0), without a word about age or gender. Keras only, as the other networks.
"""

import hashlib
import re

import keras
import numpy as np
from keras import layers

from fag_utils.models.checkpoints import WeightsError, package_file

# Blocks of each stage: their channels and their number; from the second stage on the first block halves the map.
FACE_RESNET = [(32, 3), (64, 4), (128, 3), (256, 3), (256, 1)]
SIZE = 150  # the side of the pictures that the weights were trained on
MEAN = (122.782, 117.001, 104.298)  # of red, green, blue

WEIGHTS = ("face_recognition_models", "models/dlib_face_recognition_resnet_model_v1.dat")
SHA256 = "55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30"

TENSOR = re.compile(rb"\x01\x02[\x01-\x04]")


def _convolution(x, channels, kernel, strides, padding, name):
    """With bias: the batch norm it was trained with has melted into it."""
    return layers.Conv2D(channels, kernel, strides, padding=padding, kernel_initializer="he_normal", name=name)(x)


def residual_block(x, channels, halve, name):
    """Two 3x3 convolutions, and the input added (He et al. 2016, "Deep Residual Learning for Image Recognition").

    (n, h, w, c) -> (n, h, w, channels), or half of h and w, rounded down, with `halve`. There the input is
    averaged, and a 1x1 convolution widens it; it starts as the identity with channels of zeros beside it.
    """
    y = _convolution(x, channels, 3, 2 if halve else 1, "valid" if halve else "same", f"{name}_1")
    y = layers.ReLU(name=f"{name}_1_relu")(y)
    y = _convolution(y, channels, 3, 1, "same", f"{name}_2")
    if halve:
        even = [1 - side % 2 for side in x.shape[1:3]]  # there "valid" leaves one row less than averaging
        if any(even):
            y = layers.ZeroPadding2D(((0, even[0]), (0, even[1])), name=f"{name}_pad")(y)
        x = layers.AveragePooling2D(2, name=f"{name}_half")(x)
        if channels != x.shape[-1]:
            x = layers.Conv2D(channels, 1, use_bias=False, name=f"{name}_widen")(x)
    y = layers.Add(name=f"{name}_add")([x, y])
    return layers.ReLU(name=f"{name}_relu")(y)


def face_resnet(size=112, weights=None):
    """The backbone: pictures (n, size, size, 3), RGB 0..255 -> features (n, 256), float32.

    Parameters
    ----------
    size : side of the pictures in pixels, at least 32. They are scaled to 150 x 150, which the published
        weights are used to.
    weights : None for a random start, or "faces" for the published ones. These need the package
        face-recognition-models, which the extra `transfer` brings; dlib itself is not needed.

    Raises ValueError for a size or weights it doesn't know, WeightsError where the weights can't be had.
    """
    size = int(size)
    if size < 32:
        raise ValueError(f"size must be 32 pixels or more, got {size}")
    if weights not in (None, "faces"):
        raise ValueError(f'weights must be None or "faces", got {weights!r}')
    x = picture = keras.Input((size, size, 3), name="picture")
    if size != SIZE:
        x = layers.Resizing(SIZE, SIZE, name="resize")(x)
    x = layers.Rescaling(1 / 256, offset=[-m / 256 for m in MEAN], name="rescale")(x)
    x = layers.ReLU(name="stem_relu")(_convolution(x, 32, 7, 2, "valid", "stem"))
    x = layers.MaxPooling2D(3, 2, name="stem_pool")(x)
    for stage, (channels, number) in enumerate(FACE_RESNET, start=1):
        for block in range(number):
            x = residual_block(x, channels, stage > 1 and block == 0, f"stage{stage}_{block + 1}")
    features = layers.GlobalAveragePooling2D(name="embedding")(x)
    model = keras.Model(picture, features, name=f"face_resnet_{size}")
    for layer in model.layers:
        if layer.name.endswith("_widen"):
            layer.set_weights([np.eye(*layer.kernel.shape[2:])[None, None]])
    if weights:
        _load_faces(model)
    return model


def face_recogniser(size=112):
    """The published network whole: pictures as above -> (n, 128), float32, errors as for `face_resnet`.

    Two pictures of one person are mostly less than 0.6 apart (Euclidean), of two people more.
    """
    backbone = face_resnet(size)
    x = layers.Dense(128, use_bias=False, name="identity")(backbone.output)
    model = keras.Model(backbone.input, x, name=f"{backbone.name}_recogniser")
    _load_faces(model)
    return model


def _load_faces(model):
    """Put the published weights into a network with or without its last layer."""
    arrays = iter(read_dlib(package_file(*WEIGHTS)))
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D) and layer.use_bias:
            filters = layer.filters
            numbers, (scale, shift) = next(arrays), next(arrays).reshape(2, filters)
            kernel = numbers[:-filters].reshape(filters, -1, *layer.kernel_size).transpose(2, 3, 1, 0)
            layer.set_weights([kernel * scale, numbers[-filters:] * scale + shift])
        elif isinstance(layer, layers.Dense):
            layer.set_weights([next(arrays).reshape(layer.kernel.shape)])


def _integer(data, place):
    """dlib's integers: a byte that counts the bytes to come, then these, the lowest first."""
    end = place + 1 + data[place]
    return int.from_bytes(data[place + 1 : end], "little"), end


def read_dlib(path):
    """The trained numbers of dlib's face recognition network, in the order of its layers: list of (n,) float32.

    For each convolution two arrays: kernels (output, input, height, width) followed by biases; scales followed by
    shifts of what was a batch norm. The last layer has one, (256, 128). Raises WeightsError for any other file.

    A tensor stands in the file as its format's number, 2, four sizes and its numbers; between tensors are the
    layers' settings, which we know.
    """
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise WeightsError(f"{path.name} isn't the file it should be: reinstall face-recognition-models 0.3.0")
    arrays, place = [], 0
    while found := TENSOR.search(data, place):
        end, sizes = found.start() + 2, []
        while len(sizes) < 4 and 1 <= data[end] <= 4:
            number, end = _integer(data, end)
            sizes.append(number)
        count = int(np.prod(sizes, dtype="int64")) if len(sizes) == 4 else 0
        if count >= 64 and sizes[2:] == [1, 1] and end + 4 * count <= len(data):
            arrays.append(np.frombuffer(data, "<f4", count, end))
            place = end + 4 * count
        else:
            place = found.start() + 1
    return arrays
