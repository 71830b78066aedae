"""The networks of the course.

`models.mobilefacenet` is the function; its module's other names are here as well, and those of `light`, `mobile`,
`face_resnet` and `transfer`.
"""

from fag_utils.models.checkpoints import WeightsError
from fag_utils.models.face_resnet import FACE_RESNET, face_recogniser, face_resnet
from fag_utils.models.light import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE0_PUBLISHED,
    efficientnet_lite0,
    imagenet_classifier,
    mbconv,
    normalise_relu6,
)
from fag_utils.models.mobile import (
    MOBIFACE,
    MOBILE_PUBLISHED,
    SQUEEZENET,
    fire,
    mobiface,
    mobilenet_v2,
    squeezenet,
    squeezenet_classifier,
)
from fag_utils.models.mobilefacenet import (
    PUBLISHED,
    RECIPES,
    TABLES,
    add_age_branch,
    age_gender,
    bottleneck,
    convolution,
    count,
    depthwise,
    gender_classifier,
    global_depthwise,
    layer_table,
    mask_classifier,
    mobilefacenet,
    multiply_adds,
    narrow,
    normalise,
)
from fag_utils.models.transfer import Cosine, blocks, face_recogniser_head, features, group_gender

__all__ = [
    "EFFICIENTNET_LITE0",
    "EFFICIENTNET_LITE0_PUBLISHED",
    "FACE_RESNET",
    "MOBIFACE",
    "MOBILE_PUBLISHED",
    "PUBLISHED",
    "RECIPES",
    "SQUEEZENET",
    "TABLES",
    "Cosine",
    "WeightsError",
    "add_age_branch",
    "age_gender",
    "blocks",
    "bottleneck",
    "convolution",
    "count",
    "depthwise",
    "efficientnet_lite0",
    "face_recogniser",
    "face_recogniser_head",
    "face_resnet",
    "features",
    "fire",
    "gender_classifier",
    "global_depthwise",
    "group_gender",
    "imagenet_classifier",
    "layer_table",
    "mask_classifier",
    "mbconv",
    "mobiface",
    "mobilefacenet",
    "mobilenet_v2",
    "multiply_adds",
    "narrow",
    "normalise",
    "normalise_relu6",
    "squeezenet",
    "squeezenet_classifier",
]
