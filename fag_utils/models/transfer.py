"""What a network can be taught beside age and gender, and what one that was taught something else already knows.

Heads for the eight age groups of Adience and for face recognition, and the features of a frozen network, block by
block, as Alonso-Fernandez et al. (2021), "Facial Masks and Soft-Biometrics", read them with a linear SVM.
"""

import re

import keras
import numpy as np
from keras import layers, ops

from fag_utils.labels import N_EVERY_AGE
from fag_utils.models.mobilefacenet import BATCH_NORM_MOMENTUM, _head, age_gender


def group_gender(backbone, dropout=0.2, groups=8):
    """Two heads on a backbone's output: a Model with outputs {"group": (n, groups), "gender": (n, 2)}, softmax.

    For sets that tell age groups instead of ages; 8 are Adience's, `labels.ADIENCE_GROUPS`. Gender's index 1 is
    male. The backbone's layers are shared.
    """
    outputs = {"group": _head(backbone.output, "group", groups, dropout),
               "gender": _head(backbone.output, "gender", 2, dropout)}
    return keras.Model(backbone.input, outputs, name=f"{backbone.name}_group_gender")


@keras.saving.register_keras_serializable("fag_utils")
class Cosine(layers.Layer):
    """The cosine between an embedding and one learned direction for each class: (n, d) -> (n, classes), float32.

    The head of ArcFace (Deng, Guo, Xue, Zafeiriou 2019, "ArcFace: Additive Angular Margin Loss for Deep Face
    Recognition"): neither the length of an embedding nor that of a direction counts. `margin` (radians) and `scale`
    are those of the loss, `training.ArcFace`; the defaults are published for millions of pictures.
    """

    def __init__(self, classes, margin=0.5, scale=64.0, dtype="float32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.classes, self.margin, self.scale = classes, margin, scale

    def build(self, shape):
        self.kernel = self.add_weight(name="kernel", shape=(shape[-1], self.classes), initializer="glorot_normal")

    def call(self, x):
        return ops.matmul(ops.normalize(x, axis=-1), ops.normalize(self.kernel, axis=0))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.classes)

    def get_config(self):
        return super().get_config() | {"classes": self.classes, "margin": self.margin, "scale": self.scale}


def face_recogniser_head(backbone, people, margin=0.5, scale=64.0, numbers=128):
    """A network that learns who is who: a Model with the output {"person": (n, people)}, cosines.

    Between backbone and head stands the face's embedding, `numbers` numbers and a batch norm, the layer "face": what
    is compared to tell whether two pictures show one person. The backbone's layers are shared. `margin`, `scale`: see
    `Cosine`.
    """
    x = layers.Dense(numbers, use_bias=False, name="face_numbers")(backbone.output)
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, name="face")(x)
    person = Cosine(people, margin, scale, name="person")(x)
    return keras.Model(backbone.input, {"person": person}, name=f"{backbone.name}_person")


def body(network):
    """A trained network without its heads: a Model, pictures -> embedding (n, features). The layers are shared.

    A backbone, which has none, is returned as it is.
    """
    before = [layer for layer in network.layers if layer.name == "gender_dropout"]  # as every gender head has it
    return keras.Model(network.input, before[0].input, name=f"{network.name}_body") if before else network


def reader(features, units=512):
    """Heads that read what frozen networks find: (n, features) float32 -> {"age": (n, 117), "gender": (n, 2)}.

    The first layer, `normalise`, brings each number to mean 0 and variance 1, once it is adapted to some.
    """
    found = keras.Input((features,), name="found")
    x = layers.Dropout(0.2, name="forget")(layers.Normalization(name="normalise")(found))
    x = layers.Dense(units, use_bias=False, name="read")(x)
    x = layers.ReLU(name="read_relu")(layers.BatchNormalization(name="read_norm")(x))
    return age_gender(keras.Model(found, x, name="reader"), dropout=0.5, ages=N_EVERY_AGE)


def imitator(backbone, features):
    """A network that says what another one finds in a face: a Model with the output {"features": (n, features)}.

    One linear layer on the backbone, whose layers are shared: what it has learned is there when the head is dropped.
    """
    found = layers.Dense(features, dtype="float32", name="features")(backbone.output)
    return keras.Model(backbone.input, {"features": found}, name=f"{backbone.name}_imitator")


BLOCK = re.compile(r"(?:row|stage|fire|block_|expanded_conv|[cC]onv|stem)\d*(?:_\d+)?")


def blocks(backbone):
    """Where each block of a light network ends: dict of its name to its last layer, in the order of computing.

    The blocks are told by the names of the layers, row3_1_expand, row3_1_depthwise, ...: those of all networks of
    this package and of Keras' MobileNetV2.
    """
    ends, name = {}, None
    for layer in backbone.layers:
        found = BLOCK.match(layer.name)
        if len(layer.output.shape) == 4 and (found or isinstance(layer, layers.ReLU)):
            name = found[0] if found else name
            ends[name] = layer
    return ends


def features(backbone, most=None):
    """A network that tells what each block has found: {block: (n, channels)}, and its output as "embedding".

    A block's map is averaged over its places (global average pooling). With `most`, so many blocks, evenly spread.
    The backbone's layers are shared, not copied.
    """
    ends = list(blocks(backbone).items())
    if most and len(ends) > most:
        ends = [ends[i] for i in np.linspace(0, len(ends) - 1, most).round().astype(int)]
    outputs = {name: layers.GlobalAveragePooling2D(name=f"{name}_mean")(layer.output) for name, layer in ends}
    return keras.Model(backbone.input, outputs | {"embedding": backbone.output}, name=f"{backbone.name}_features")
