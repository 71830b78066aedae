"""Three larger networks of the years before the light ones: GilNet, AlexNet and VGG-Face.

Özbulak et al. (2016) asked with them what a network that learned something else is worth for age and gender.
GilNet was made for these two tasks, AlexNet for the million pictures of ImageNet, VGG-Face to recognise people.
"""

from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from keras import layers, ops

from fag_utils.models.checkpoints import WeightsError
from fag_utils.models.mobilefacenet import _head


class Conv(NamedTuple):
    """A convolution with bias and ReLU. With strides it looks inside the picture only, else it keeps the size."""

    name: str
    kernel: int
    channels: int
    strides: int = 1
    groups: int = 1
    bias: float = 0.0  # where biases start


class Pool(NamedTuple):
    """The maximum of side x side places, at every second place. A window may look over the edge, as in Caffe."""

    name: str
    side: int


class Norm(NamedTuple):
    """A `LocalResponseNormalization`."""

    name: str


class Dense(NamedTuple):
    """A dense layer with ReLU."""

    name: str
    units: int
    bias: float = 0.0


# Levi, Hassner (2015), "Age and Gender Classification Using Convolutional Neural Networks", section 3.1; names,
# strides and starts as in the authors' training definition (github.com/GilLevi/AgeGenderDeepLearning).
GILNET = [
    Conv("conv1", 7, 96, strides=4), Pool("pool1", 3), Norm("norm1"),
    Conv("conv2", 5, 256, bias=1.0), Pool("pool2", 3), Norm("norm2"),
    Conv("conv3", 3, 384), Pool("pool5", 3),
    Dense("fc6", 512, bias=1.0), Dense("fc7", 512, bias=1.0),
]

# Krizhevsky, Sutskever, Hinton (2012), "ImageNet Classification with Deep Convolutional Neural Networks", section
# 3.5. Two groups: half of the channels was on another GPU. 227 pixels as in Caffe's definition, not the text's 224.
ALEXNET = [
    Conv("conv1", 11, 96, strides=4), Norm("norm1"), Pool("pool1", 3),
    Conv("conv2", 5, 256, groups=2, bias=1.0), Norm("norm2"), Pool("pool2", 3),
    Conv("conv3", 3, 384), Conv("conv4", 3, 384, groups=2, bias=1.0), Conv("conv5", 3, 256, groups=2, bias=1.0),
    Pool("pool5", 3),
    Dense("fc6", 4096, bias=1.0), Dense("fc7", 4096, bias=1.0),
]

# Simonyan, Zisserman (2015), "Very Deep Convolutional Networks for Large-Scale Image Recognition", configuration D;
# trained on 2.6 million faces of 2,622 people by Parkhi, Vedaldi, Zisserman (2015), "Deep Face Recognition".
VGG16 = [
    row
    for block, (channels, number) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1)
    for row in [*(Conv(f"conv{block}_{i}", 3, channels) for i in range(1, number + 1)), Pool(f"pool{block}", 2)]
] + [Dense("fc6", 4096), Dense("fc7", 4096)]

# Means of red, green and blue that the authors of each network subtract.
MEANS = {
    "gilnet": (114.8958, 87.7689, 78.4263),
    "alexnet": (123.0, 117.0, 104.0),
    "vgg_face": (129.1863, 104.7624, 93.5940),
}

# Parameters with 1,000 classes: the publications say 60 and 138 million, exact are the figures of Caffe's files.
# Multiply-adds: of convolutions and dense layers, as github.com/KamelAbdelouahab/CNN-Workload counts them there.
# Neither is published for GilNet: the text gives the sizes of its maps.
CLASSIC_PUBLISHED = {
    "gilnet": {"size": 227, "classes": 8, "maps": [28, 14, 7]},
    "alexnet": {"size": 227, "classes": 1000, "parameters": 60_965_224, "multiply_adds": 724e6},
    "vgg16": {"size": 224, "classes": 1000, "parameters": 138_357_544, "multiply_adds": 15.5e9},
}

VGG_FACE_FILES = (
    "VGG-Face's weights (some 550 MB, for non-commercial research) are not part of this project. Get one of these "
    "files and give its path: vgg_face.mat, packed in vgg_face_matconvnet.tar.gz at "
    "https://www.robots.ox.ac.uk/~vgg/software/vgg_face/ ; vgg-face.mat at "
    "https://www.vlfeat.org/matconvnet/pretrained/ ; or rcmalli_vggface_tf_vgg16.h5 at "
    "https://github.com/rcmalli/keras-vggface/releases"
)


@keras.saving.register_keras_serializable("fag_utils")
class LocalResponseNormalization(keras.layers.Layer):
    """Each number divided by (1 + alpha * mean of the squares of `depth` channels round it) ** beta.

    Krizhevsky et al. (2012), section 3.3, with 1 and a mean for their 2 and a sum, as Caffe has it, in which both
    networks were published. Any shape (..., channels), which is kept.
    """

    def __init__(self, depth=5, alpha=1e-4, beta=0.75, **kwargs):
        super().__init__(**kwargs)
        self.depth, self.alpha, self.beta = depth, alpha, beta

    def call(self, x):
        channels, side = x.shape[-1], self.depth // 2
        squares = ops.pad(ops.square(x), [(0, 0)] * (len(x.shape) - 1) + [(side, side)])
        total = sum(squares[..., i : i + channels] for i in range(self.depth))
        return x * ops.power(1.0 + self.alpha / self.depth * total, -self.beta)

    def get_config(self):
        return super().get_config() | {"depth": self.depth, "alpha": self.alpha, "beta": self.beta}


def _build(name, rows, size, width, kernels, trained_at=None):
    """The network of these rows.

    kernels : how those of convolutions and of dense layers start
    trained_at : side of the pictures that weights to be loaded know
    """
    size = int(size)
    if size < 48:
        raise ValueError(f"size must be 48 pixels or more, got {size}")
    if not 1 / 32 <= width <= 4:
        raise ValueError(f"width must lie in 1/32..4 (published: 1), got {width}")
    x = picture = keras.Input((size, size, 3), name="picture")
    if trained_at and size != trained_at:
        x = layers.Resizing(trained_at, trained_at, name="resize")(x)
    x = layers.Rescaling(1.0, offset=[-mean for mean in MEANS[name]], name="rescale")(x)
    for number, row in enumerate(rows, start=1):
        start = {"bias_initializer": keras.initializers.Constant(getattr(row, "bias", 0.0)), "name": row.name}
        if isinstance(row, Conv):
            padding = "valid" if row.strides > 1 else "same"
            channels = max(row.groups, int(row.channels * width) // row.groups * row.groups)
            x = layers.Conv2D(channels, row.kernel, row.strides, padding, groups=row.groups,
                              kernel_initializer=kernels[0], **start)(x)
            x = layers.ReLU(name=f"{row.name}_relu")(x)
        elif isinstance(row, Norm):
            x = LocalResponseNormalization(name=row.name)(x)
        elif isinstance(row, Pool):
            fits = x.shape[1] >= row.side and (x.shape[1] - row.side) % 2 == 0
            x = layers.MaxPooling2D(row.side, 2, "valid" if fits else "same", name=row.name)(x)
        else:
            if len(x.shape) == 4:
                x = layers.Flatten(name="flatten")(x)
            else:
                x = layers.Dropout(0.5, name=f"{row.name}_dropout")(x)
            x = layers.Dense(int(row.units * width), kernel_initializer=kernels[1], **start)(x)
            x = layers.ReLU(name="embedding" if number == len(rows) else f"{row.name}_relu")(x)
    return keras.Model(picture, x, name=f"{name}_{size}" if width == 1 else f"{name}_{round(100 * width):03d}_{size}")


def _normal(spread):
    return keras.initializers.RandomNormal(stddev=spread)


def gilnet(size=227, width=1.0):
    """GilNet's backbone: pictures (n, size, size, 3), RGB 0..255 -> features (n, 512), float32, from a random start.

    size : side of the pictures in pixels, at least 48; published for 227
    width : what channels and units are multiplied with, for experiments on a small machine

    Published with a dropout of 0.5 before each head: `age_gender(gilnet(), dropout=0.5)`. Raises ValueError for a
    size or width it can't build.
    """
    return _build("gilnet", GILNET, size, width, (_normal(0.01), _normal(0.005)))


def alexnet(size=227, width=1.0):
    """AlexNet's backbone: as `gilnet`, but to (n, 4096) features.

    The ImageNet weights of the publication come for Caffe only. Where ImageNet features are wanted,
    `efficientnet_lite0(weights="imagenet")` has better ones at an eighth of the cost.
    """
    return _build("alexnet", ALEXNET, size, width, (_normal(0.01), _normal(0.005)))


def vgg_face(size=224, weights=None, width=1.0):
    """VGG-Face's backbone, VGG-16 to its second dense layer: pictures (n, size, size, 3), RGB 0..255 -> (n, 4096).

    Parameters
    ----------
    size : side of the pictures in pixels, at least 48; published for 224. With weights, pictures of another size are
        scaled to 224.
    weights : None for a random start (Glorot, as the authors advise), or the path of a file with the published
        weights: MatConvNet's .mat or the .h5 of keras-vggface
    width : as for `gilnet`; with weights 1

    Raises ValueError for a size or width it can't build, WeightsError where a file can't be used; it says where to
    get another.
    """
    model = _build("vgg_face", VGG16, size, width, ("glorot_uniform", "glorot_uniform"), 224 if weights else None)
    if weights:
        load_vgg_face(model, weights)
    return model


def with_classes(backbone, classes, dropout=0.5):
    """A backbone with its published ending, one softmax over `classes`: probabilities (n, classes), float32."""
    outputs = _head(backbone.output, "classes", classes, dropout)
    return keras.Model(backbone.input, outputs, name=f"{backbone.name}_{classes}")


# VGG-Face's weights -------------------------------------------------------------------------------------


def load_vgg_face(model, path):
    """Put the weights of a file into a VGG-Face network, layer by layer (see `read_vgg_face` for files and errors).

    Layers that only the file has, as that of the 2,622 people, are left out.
    """
    path = Path(path)
    arrays = read_vgg_face(path)
    for layer in model.layers:
        if not layer.weights or layer.name not in {row.name for row in VGG16}:
            continue
        if layer.name not in arrays:
            raise WeightsError(f"{path.name} has no layer {layer.name}, so not all of VGG-Face. {VGG_FACE_FILES}")
        kernel, bias = arrays[layer.name]
        wanted = tuple(layer.kernel.shape)
        if len(wanted) == 2 and kernel.ndim == 4:  # MatConvNet: a dense layer is a convolution as large as the map
            kernel = kernel.reshape(-1, kernel.shape[-1])
        if kernel.shape != wanted or bias.shape != wanted[-1:]:
            raise WeightsError(f"{path.name}: the kernels of {layer.name} are {kernel.shape}, VGG-Face's {wanted}. "
                               f"{VGG_FACE_FILES}")
        layer.set_weights([kernel, bias])


def read_vgg_face(path):
    """The layers of a published file: {name: (kernel, bias)}, float32, for red, green, blue in this order.

    Kernels are (height, width, input, output), those of dense layers so or (input, output). The file may be
    MatConvNet's .mat, as the authors (fields in `net`) or the MatConvNet project (fields at the top) give it out, or
    the .h5 of keras-vggface. Nothing in it is run. Raises WeightsError for any other or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"there is no file {path}. {VGG_FACE_FILES}")
    readers = {".mat": _read_mat, ".h5": _read_h5}
    if path.suffix.lower() not in readers:
        raise WeightsError(f"{path.name} is neither .mat nor .h5. {VGG_FACE_FILES}")
    try:
        found = readers[path.suffix.lower()](path)
        arrays = {name: (np.asarray(kernel, "float32"), np.asarray(bias, "float32").ravel())
                  for name, (kernel, bias) in found}
    except Exception as error:  # SciPy and h5py say it in many ways
        raise WeightsError(f"{path.name} can't be read as VGG-Face ({error}). {VGG_FACE_FILES}") from error
    if not arrays:
        raise WeightsError(f"{path.name} holds no layers of a network. {VGG_FACE_FILES}")
    return arrays


def _read_mat(path):
    from scipy import io

    data = io.loadmat(path, struct_as_record=False, chars_as_strings=True)
    top = data["net"][0, 0].layers if "net" in data else data["layers"]
    for cell in top.ravel():
        layer = cell[0, 0] if isinstance(cell, np.ndarray) else cell
        fields = set(layer._fieldnames)
        if "weights" in fields and layer.weights.size == 2:
            yield str(layer.name[0]), tuple(layer.weights.ravel())
        elif "filters" in fields:  # before version 1.0 of MatConvNet
            yield str(layer.name[0]), (layer.filters, layer.biases)


def _read_h5(path):
    import h5py

    with h5py.File(path) as file:
        for name, group in file.get("model_weights", file).items():
            arrays = []
            group.visititems(lambda _, item, found=arrays: found.append(item[()]) if hasattr(item, "shape") else None)
            if len(arrays) == 2:
                bias, kernel = sorted(arrays, key=np.ndim)
                # Carried over from Caffe: there blue comes first.
                yield name, (kernel[:, :, ::-1] if name == "conv1_1" else kernel, bias)
