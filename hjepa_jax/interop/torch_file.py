"""Reading a torch checkpoint (.pth, .pt) without torch.

The format is a zip archive: `<name>/data.pkl` is a pickle in which every tensor refers to a raw
little-endian storage `<name>/data/<key>`. Only the classes a plain checkpoint needs are allowed, so
a malicious file cannot run code.
"""

from __future__ import annotations

import collections
import math
import pathlib
import pickle
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """The array a tensor's storage, offset and strides (in elements) describe, as a copy."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if any(step < 0 for step in stride) or (0 not in size and not 0 <= last < storage.size):
        raise pickle.UnpicklingError("a tensor reaches outside its storage")
    # Strides of 0 would let a small file ask for any amount of memory.
    if math.prod(size) > storage.size:
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} is larger than its storage")
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


class _Reader(pickle.Unpickler):
    """Unpickles containers, numbers, strings and tensors, and refuses everything else."""

    def __init__(self, archive: zipfile.ZipFile, pickled: str) -> None:
        super().__init__(archive.open(pickled))
        self._archive = archive
        self._folder = pickled.removesuffix("data.pkl")

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if module_name == "torch" and global_name in _STORAGES:
            return _STORAGES[global_name]
        if (module_name, global_name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module_name, global_name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module_name, global_name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        raise pickle.UnpicklingError(f"it holds a {module_name}.{global_name}, not plain data")

    def persistent_load(self, pid: Any) -> np.ndarray:
        kind, dtype, key, _, _ = pid
        if kind != "storage":
            raise pickle.UnpicklingError(f"it holds an unknown object '{kind}'")
        return np.frombuffer(self._archive.read(f"{self._folder}data/{key}"), dtype)


def load_torch_file(path: str | pathlib.Path) -> Any:
    """Returns the object that `torch.save` wrote, with NumPy arrays in place of tensors.

    Raises:
      FileNotFoundError: no such file.
      ValueError: not a torch zip checkpoint (torch >= 1.6), or one with more than plain data.
    """
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no checkpoint at '{path}'.")
    try:
        with zipfile.ZipFile(path) as archive:
            # torch stores without compression: what unpacks to more than the file is a trap.
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > pathlib.Path(path).stat().st_size:
                raise ValueError(f"it would unpack to {unpacked} bytes, more than the file has")
            pickled = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(pickled) != 1:
                raise ValueError("it has no single data.pkl")
            return _Reader(archive, pickled[0]).load()
    except (zipfile.BadZipFile, pickle.UnpicklingError, ValueError, KeyError, EOFError) as error:
        raise ValueError(f"'{path}' is not a torch checkpoint we can read: {error}.") from error
