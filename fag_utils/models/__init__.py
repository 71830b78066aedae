"""The networks of the course.

`models.mobilefacenet` is the function; its module's other names are here as well.
"""

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
    mobilefacenet,
    multiply_adds,
    normalise,
)

__all__ = [
    "PUBLISHED",
    "RECIPES",
    "TABLES",
    "add_age_branch",
    "age_gender",
    "bottleneck",
    "convolution",
    "count",
    "depthwise",
    "gender_classifier",
    "global_depthwise",
    "layer_table",
    "mobilefacenet",
    "multiply_adds",
    "normalise",
]
