"""CIFAR-10 and CIFAR-100 from their Python archives, without general unpickling.

A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

import io
import pathlib
import pickle
import tarfile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.data import folder
from hjepa_jax.data.sources import ArraySource, ImageSource

# More than the largest file of either archive; bounds what a hostile archive can make us read.
_MAX_MEMBER_BYTES = 400 * 2**20


class _Archive(NamedTuple):
    folder: str
    url: str
    md5: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    label_key: bytes
    names_key: bytes


_ARCHIVES = {
    "cifar10": _Archive(
        "cifar-10-batches-py",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        b"labels",
        b"label_names",
    ),
    "cifar100": _Archive(
        "cifar-100-python",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        ("train",),
        ("test",),
        "meta",
        b"fine_labels",
        b"fine_label_names",
    ),
}


def _latin1_bytes(text: str, encoding: str) -> bytes:
    """What Python 3 writes for bytes in old pickle protocols; nothing but Latin-1 is allowed."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding} is not allowed")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Loads containers, numbers, strings and NumPy arrays; refuses every other class."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ):
            from numpy._core import multiarray

            return multiarray._reconstruct  # type: ignore[attr-defined]
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("_codecs", "encode"):
            return _latin1_bytes
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")


def load_pickle(content: bytes, name: str) -> dict[bytes, Any]:
    """Loads the dictionary of one CIFAR file.

    Raises:
      ValueError: If it is damaged, is no dictionary, or asks for any class but NumPy arrays.
    """
    try:
        loaded = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:
        raise ValueError(f"Cannot read {name} as a CIFAR file: {error}.") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{name} is not a CIFAR file: it holds no dictionary.")
    return {key.encode() if isinstance(key, str) else key: loaded[key] for key in loaded}


def _read_folder(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in names if (path / name).is_file()}


def _read_archive(path: pathlib.Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Reads members by their last path component; nothing is ever written to disk."""
    found: dict[str, bytes] = {}
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            name = pathlib.PurePosixPath(member.name).name
            if name not in names or not member.isfile():
                continue
            if member.size > _MAX_MEMBER_BYTES:
                raise ValueError(f"{path}: {member.name} is too large ({member.size} bytes).")
            extracted = archive.extractfile(member)
            if extracted is not None:
                found[name] = extracted.read()
            if len(found) == len(names):
                break
    return found


def _how_to_get(name: str, root: str | None) -> str:
    archive = _ARCHIVES[name]
    place = "data/" if root is None else str(root)
    return (
        f"download {archive.url} (md5 {archive.md5}), put it in {place}, and set data.root to the "
        f"archive, or to the folder {archive.folder} unpacked from it"
    )


def _images(name: str, source: str, batches: list[dict[bytes, Any]]) -> npt.NDArray[np.uint8]:
    """Returns uint8 [N, 32, 32, 3] from the batches' rows of 3072 planar values."""
    for batch in batches:
        data = batch.get(b"data")
        if (
            not isinstance(data, np.ndarray)
            or data.dtype != np.uint8
            or data.ndim != 2
            or data.shape[1] != 3072
        ):
            raise ValueError(f"{source} is no {name} data: no uint8 array [N, 3072] in it.")
        if _ARCHIVES[name].label_key not in batch:
            key = _ARCHIVES[name].label_key.decode()
            raise ValueError(f"{source} is no {name} data: it has no '{key}'.")
    rows = np.concatenate([batch[b"data"] for batch in batches])
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _load(name: str, path: pathlib.Path, split: str) -> ArraySource:
    archive = _ARCHIVES[name]
    files = archive.train if split == "train" else archive.test
    wanted = (*files, archive.meta)
    try:
        read = _read_folder if path.is_dir() else _read_archive
        contents = read(path, wanted)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"Cannot read the archive {path}: {error}. If its md5 is not {archive.md5}, "
            f"{_how_to_get(name, None)}."
        ) from error
    absent = [wanted_name for wanted_name in wanted if wanted_name not in contents]
    if absent:
        raise FileNotFoundError(
            f"{path} lacks {', '.join(absent)} of {name}: {_how_to_get(name, None)}."
        )
    loaded = {key: load_pickle(content, f"{path}/{key}") for key, content in contents.items()}
    batches = [loaded[key] for key in files]
    images = _images(name, str(path), batches)
    labels = [int(label) for batch in batches for label in batch[archive.label_key]]
    class_names = [
        entry.decode() if isinstance(entry, bytes) else str(entry)
        for entry in loaded[archive.meta].get(archive.names_key, [])
    ]
    return ArraySource(f"{name}/{split}", images, labels, class_names)


def open_cifar(name: str, root: str | None, split: str, cache_mb: float) -> ImageSource:
    """Opens CIFAR from `root`: its archive (.tar.gz, .tar), its unpacked folder, or images.

    Args:
      name: 'cifar10' or 'cifar100' (fine labels).
      root: The archive, the unpacked folder, a folder that holds either, or an image folder.
      split: 'train' or 'test'; other names only for image folders.
      cache_mb: MiB of encoded images to keep in memory, for image folders.

    Raises:
      FileNotFoundError: If the data is not there; the message says how to get it.
      ValueError: If the data is damaged or not CIFAR.
    """
    archive = _ARCHIVES[name]
    path = None if root is None else pathlib.Path(root).expanduser()
    if path is None or not path.exists():
        where = "data.root is not set" if path is None else f"data.root {path} does not exist"
        raise FileNotFoundError(f"{name}: {where}; {_how_to_get(name, None)}.")
    candidates = [path]
    if path.is_dir():
        archive_file = archive.url.rsplit("/", 1)[1]
        candidates = [
            path,
            path / archive.folder,
            path / archive_file,
            path / archive_file.removesuffix(".gz"),
        ]
    for candidate in candidates:
        if candidate.is_file() or (candidate / archive.meta).is_file():
            if split not in ("train", "test"):
                raise ValueError(f"{name} has the splits 'train' and 'test', not '{split}'.")
            return _load(name, candidate, split)
    if any((path / part).is_dir() for part in ("train", "test", "val")):
        return folder.open_root(str(path), split, cache_mb)
    raise FileNotFoundError(f"{name}: nothing to read in {path}; {_how_to_get(name, str(path))}.")
