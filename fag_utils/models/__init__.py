"""The networks of the course."""

from fag_utils.models.mobilefacenet import (
    TABLES,
    add_age_branch,
    age_gender,
    count,
    gender_classifier,
    layer_table,
    mobilefacenet,
)

__all__ = [
    "TABLES",
    "add_age_branch",
    "age_gender",
    "count",
    "gender_classifier",
    "layer_table",
    "mobilefacenet",
]
