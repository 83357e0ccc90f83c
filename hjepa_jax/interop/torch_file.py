"""Reads a torch checkpoint (.pth, .pt) without torch.

The format is a zip archive: `<name>/data.pkl` is a pickle whose tensors refer to raw little-endian
storages `<name>/data/<key>`. Only the classes that a plain checkpoint needs are allowed, so a
malicious file cannot run code.
"""

from __future__ import annotations

import math
import pathlib
import struct
import zipfile
from typing import Any

import ml_dtypes
import numpy as np

from hjepa_jax.data.formats import plain_pickle
from hjepa_jax.storage.files import check_regular

_MAX_FILE_BYTES = 1 << 40
_MAX_MEMBERS = 1_000_000
_STORAGES = {
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}


def _whole(*numbers: object) -> bool:
    return all(type(number) is int and 0 <= number < 2**62 for number in numbers)


def _rebuild_tensor(storage: object = None, offset: Any = None, *rest: Any) -> np.ndarray:
    """Returns a view of a tensor's storage with its offset, size and strides (in elements).

    Every number is checked before an address is computed from it.
    """
    size, stride = rest[:2] if len(rest) >= 2 else (None, None)
    if (
        not isinstance(storage, np.ndarray)
        or not isinstance(size, tuple)
        or not isinstance(stride, tuple)
        or not len(size) == len(stride) <= 32
        or not _whole(offset, *size, *stride)
    ):
        raise ValueError("a tensor has an offset, size or stride that is not an integer")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if 0 not in size and last >= storage.size:
        raise ValueError("a tensor reaches outside its storage")
    # Strides of 0 would let a small file ask for any amount of memory.
    if math.prod(size) > storage.size:
        raise ValueError(f"a tensor of shape {size} is larger than its storage")
    if 0 in size:
        return np.empty(size, storage.dtype)
    strides = tuple(step * storage.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _parameter(data: object = None, *_: object) -> object:
    return data


_CALLS = {
    "collections.OrderedDict": lambda: {},
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _parameter,
}

# Errors of zipfile for a damaged or encrypted file, and errors raised here.
_FAULTS = (
    zipfile.BadZipFile,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
)


class _Storages:
    """The storages of a checkpoint, each read once."""

    def __init__(self, archive: zipfile.ZipFile, folder: str):
        self._archive = archive
        self._folder = folder
        self._contents: dict[str, bytes] = {}

    def __call__(self, reference: Any) -> np.ndarray:
        """Returns the storage of a persistent reference, read-only [elements]."""
        if not isinstance(reference, tuple) or len(reference) != 5:
            raise ValueError("it refers to a storage in an unknown way")
        kind, name, key, _, count = reference
        dtype = _STORAGES.get(name.name) if isinstance(name, plain_pickle.Name) else None
        if kind not in ("storage", b"storage") or dtype is None:
            raise ValueError("it refers to something other than a storage of numbers")
        key = key.decode("utf-8", "replace") if isinstance(key, bytes) else str(key)
        if key not in self._contents:
            member = self._archive.NameToInfo.get(f"{self._folder}data/{key}")
            if member is None:
                raise ValueError(f"it has no storage {key[:40]!r}")
            self._contents[key] = self._archive.read(member)
        content = self._contents[key]
        if not _whole(count) or count * dtype.itemsize != len(content):
            raise ValueError(f"the storage {key[:40]!r} has the wrong size")
        return np.frombuffer(content, dtype)


def _check_members(archive: zipfile.ZipFile, size: int) -> str:
    """Checks the member list of a zip archive and returns the name of its pickle.

    Declared sizes are untrusted too: a compressed member may unpack to any multiple of its size.
    """
    members = archive.infolist()
    # torch stores without compression: a file that unpacks to more than its size is malicious.
    unpacked = sum(member.file_size for member in members)
    if unpacked > size:
        raise ValueError(f"it would unpack to {unpacked} bytes, more than the file has")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ValueError("its members are compressed, which torch never does; save it again")
    names = [member.filename for member in members]
    if len(names) > _MAX_MEMBERS or len(set(names)) < len(names):
        raise ValueError("it has duplicate members, or too many")
    pickled = [name for name in names if name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise ValueError("it has no single data.pkl")
    order = f"{pickled[0].removesuffix('data.pkl')}byteorder"
    if order in names and archive.read(order).strip() != b"little":
        raise ValueError("it was not written on a little-endian machine")
    return pickled[0]


def load_torch_file(path: str | pathlib.Path) -> object:
    """Returns the object written by `torch.save`.

    Tensors become read-only NumPy arrays, and ordered dictionaries plain ones.

    Raises:
      FileNotFoundError: if the file does not exist.
      ValueError: if it is not a torch zip checkpoint (torch >= 1.6), or holds more than plain data.
    """
    if not pathlib.Path(path).exists():
        raise FileNotFoundError(f"the checkpoint '{path}' does not exist.")
    try:
        size = check_regular(path, _MAX_FILE_BYTES).st_size
        with zipfile.ZipFile(path) as archive:
            pickled = _check_members(archive, size)
            storages = _Storages(archive, pickled.removesuffix("data.pkl"))
            names = tuple(_STORAGES)
            return plain_pickle.load(archive.read(pickled), _CALLS, names, storages)
    except _FAULTS as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"'{path}' is not a readable torch checkpoint: {reason}.") from error
