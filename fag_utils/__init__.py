"""Helpers of the course "Age and gender from a face, with a network small enough for a phone".

Importing the package is cheap: TensorFlow is loaded by the modules that need it, when they are used.
"""

import importlib

__version__ = "0.1.0"

_MODULES = {
    "labels", "table", "datasets", "faces", "cleaning", "occlusion", "batches", "models", "training",
    "evaluation", "plots", "runtimes", "predictor", "export", "video", "widgets", "course",
}
_FUNCTIONS = {"load_predictor": "predictor", "available_weights": "predictor", "predict_folder": "predictor"}

__all__ = sorted(_MODULES | set(_FUNCTIONS))


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f"fag_utils.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"fag_utils.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'fag_utils' has no attribute {name!r}")


def __dir__():
    return __all__
