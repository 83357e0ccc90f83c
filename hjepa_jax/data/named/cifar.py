"""CIFAR-10 and CIFAR-100 from their Python archives, without general unpickling.

A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the superclasses of
CIFAR-100 are in the table on page 59.
"""

from __future__ import annotations

import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.download.cache_folder import data_folder
from hjepa_jax.data.download.catalog import CATALOG, Archive
from hjepa_jax.data.download.store import stored
from hjepa_jax.data.formats import archives, plain_pickle
from hjepa_jax.data.formats.pickled_arrays import ARRAYS, Array
from hjepa_jax.data.sources import folder, splits
from hjepa_jax.data.sources.base import NO_LABEL, ArraySource, DataSet, ImageSource
from hjepa_jax.storage import schema
from hjepa_jax.storage.files import read_regular

_log = logging.getLogger(__name__)

# Size limits: twice the largest file of each kind, since Python 3 may have pickled the pixels again
# as text, and twice the larger archive.
_MAX_META_BYTES = 1 << 20
_MAX_ARCHIVE_BYTES = 400 * 2**20
_MAX_MEMBERS = 10_000
_PIXELS = 3072


class _Layout(NamedTuple):
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    label_key: bytes
    names_key: bytes
    file_bytes: int

    def limit(self, name: str) -> int:
        """Returns the maximum number of bytes of a file in it."""
        return _MAX_META_BYTES if name == self.meta else self.file_bytes


_LAYOUTS = {
    "cifar10": _Layout(
        "cifar-10-batches-py",
        tuple(f"data_batch_{number}" for number in range(1, 6)),
        ("test_batch",),
        "batches.meta",
        b"labels",
        b"label_names",
        64 * 2**20,
    ),
    "cifar100": _Layout(
        "cifar-100-python",
        ("train",),
        ("test",),
        "meta",
        b"fine_labels",
        b"fine_label_names",
        310 * 2**20,
    ),
}


# Superclass -> its five classes, named and ordered as in the dataset's files.
CIFAR100_SUPERCLASSES: dict[str, tuple[str, str, str, str, str]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


class Cifar10(DataSet):
    """CIFAR-10, from `config.data.root` or the cache.

    Attributes:
      archive: what the cache is filled with.
    """

    archive: ClassVar[Archive] = CATALOG["cifar10"]

    def open(self, split: str, siblings: Sequence[str]) -> ImageSource:
        """Opens a split; see `open_cifar`."""
        root = self.root or stored(self.archive, download=self.data.download)
        return open_cifar(self.archive, root, split, self.data.cache_mb, siblings)


class Cifar100(Cifar10):
    """CIFAR-100 with fine labels; also evaluated on its 20 superclasses."""

    archive = CATALOG["cifar100"]

    def label_maps(self, class_names: Sequence[str]) -> dict[str, npt.NDArray[np.int32]]:
        """Returns the superclass of each class; {} for other classes."""
        superclasses = cifar100_superclasses(class_names)
        if superclasses is None:
            _log.warning(
                "The class names of the data are not those of CIFAR-100, so there are no "
                "superclasses to evaluate."
            )
            return {}
        return {"superclass": superclasses}


def cifar100_superclasses(class_names: Sequence[str]) -> npt.NDArray[np.int32] | None:
    """Returns the superclass number int32 [100] of each class; None for other classes."""
    number = {
        name: coarse
        for coarse, members in enumerate(CIFAR100_SUPERCLASSES.values())
        for name in members
    }
    if sorted(class_names) != sorted(number):
        return None
    return np.array([number[name] for name in class_names], np.int32)


def load_pickle(content: bytes, name: str) -> dict[object, object]:
    """Loads the dictionary of one CIFAR file.

    Raises:
      ValueError: if it is damaged, is not a dictionary, or needs classes other than NumPy arrays.
    """
    try:
        loaded = plain_pickle.load(content, ARRAYS, names=("numpy.ndarray",))
        if not isinstance(loaded, dict):
            raise ValueError("it is not a dictionary")
        return {
            key.encode("utf-8", "replace") if isinstance(key, str) else key: (
                value.array() if isinstance(value, Array) else value
            )
            for key, value in loaded.items()
        }
    except ValueError as error:
        raise ValueError(f"Cannot read {name} as a CIFAR file: {error}.") from error


def _folder_files(
    path: pathlib.Path, layout: _Layout, names: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of the files that exist."""
    for name in names:
        if (path / name).exists():
            yield name, read_regular(path / name, layout.limit(name))


def _archive_files(
    path: pathlib.Path, layout: _Layout, names: tuple[str, ...]
) -> Iterator[tuple[str, bytes]]:
    """Yields members by their last path component; nothing is ever written to disk."""
    left = set(names)
    with archives.opened(path, _MAX_ARCHIVE_BYTES, _MAX_MEMBERS) as opened:
        for member in opened.members():
            name = member.name.rpartition("/")[2]
            if name not in left or member.kind != archives.FILE:
                continue
            if member.size > layout.limit(name):
                raise archives.ArchiveError(
                    f"{schema.readable(member.name)} is too large ({member.size} bytes)"
                )
            yield name, opened.read(member.size)
            left.remove(name)
            if not left:
                return


def _how_to_get(archive: Archive, root: str | None) -> str:
    place = "data/" if root is None else str(root)
    return (
        f"download {archive.url} ({archive.checksum}), put it in {place}, and set data.root to the "
        f"archive, or to the folder {_LAYOUTS[archive.name].folder} unpacked from it; or leave "
        "data.root at None and set data.download=True"
    )


def _instead(archive: Archive, path: pathlib.Path) -> str:
    """Says what to do about a damaged copy."""
    if path.is_relative_to(data_folder() / archive.name):
        return f"Delete {data_folder() / archive.name}, and it is brought anew"
    checksum = archive.checksum
    return f"If its {checksum.kind} is not {checksum.digits}, {_how_to_get(archive, None)}"


def _batch(
    name: str, source: str, loaded: Mapping[object, object]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Returns the rows uint8 [N, 3072] and labels int64 [N] of one file."""
    key = _LAYOUTS[name].label_key
    rows = loaded.get(b"data")
    if (
        not isinstance(rows, np.ndarray)
        or rows.dtype != np.uint8
        or rows.ndim != 2
        or rows.shape[1] != _PIXELS
    ):
        raise ValueError(f"{source} is not {name} data: it has no uint8 array [N, {_PIXELS}].")
    if key not in loaded:
        raise ValueError(f"{source} is not {name} data: it has no '{key.decode()}'.")
    labels = loaded[key]
    if isinstance(labels, np.ndarray):
        labels = labels.tolist()
    what = f"{source} ({key.decode()})"
    labels = schema.require(labels, schema.Items(schema.Whole(NO_LABEL, 2**31 - 1)), what)
    if len(labels) != len(rows):
        raise ValueError(f"{what} has {len(labels)} labels for {len(rows)} images.")
    return rows, np.array(labels, np.int64)


def _class_names(name: str, source: str, loaded: Mapping[object, object]) -> list[str]:
    """Returns the class names as text, whatever their type."""
    key = _LAYOUTS[name].names_key
    what = f"{source} ({key.decode()})"
    names = schema.require(loaded.get(key), schema.Items(schema.Anything(), least=1), what)
    return [schema.readable(entry) for entry in names]


def _load(archive: Archive, path: pathlib.Path, split: str) -> ArraySource:
    name, layout = archive.name, _LAYOUTS[archive.name]
    files = layout.train if split == "train" else layout.test
    wanted = (*files, layout.meta)
    read = _folder_files if path.is_dir() else _archive_files
    batches, class_names = {}, None
    try:
        for key, content in read(path, layout, wanted):
            source = f"{path}/{key}"
            # Each file is parsed before the next is read, so only one is in memory.
            loaded = load_pickle(content, source)
            if key == layout.meta:
                class_names = _class_names(name, source, loaded)
            else:
                batches[key] = _batch(name, source, loaded)
    except (archives.ArchiveError, OSError) as error:
        kind = "" if path.is_dir() else "the archive "
        raise ValueError(
            f"Cannot read {kind}{path}: {str(error).rstrip('.')}. {_instead(archive, path)}."
        ) from error
    absent = [key for key in files if key not in batches]
    absent += [layout.meta] if class_names is None else []
    if class_names is None or absent:
        raise FileNotFoundError(
            f"{path} lacks {', '.join(absent)} of {name}. {_instead(archive, path)}."
        )
    rows = np.concatenate([batches[key][0] for key in files])
    labels = np.concatenate([batches[key][1] for key in files])
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return ArraySource(f"{name}/{split}", images, labels, class_names)


def open_cifar(
    archive: Archive,
    root: str | pathlib.Path,
    split: str,
    cache_mb: float,
    siblings: Sequence[str] = splits.SPLITS,
) -> ImageSource:
    """Opens CIFAR from `root`: its archive (.tar.gz, .tar), its unpacked folder, or images.

    Args:
      archive: the published archive, named 'cifar10' or 'cifar100' (fine labels).
      root: the archive, the unpacked folder, a folder that holds either, or an image folder.
      split: 'train' or 'test'; other names only for image folders.
      cache_mb: MiB of encoded images to keep in memory, for image folders.
      siblings: splits whose classes are numbered together, for image folders.

    Raises:
      FileNotFoundError: if the data is missing; the message says how to get it.
      ValueError: if the data is damaged or not CIFAR.
    """
    name, layout = archive.name, _LAYOUTS[archive.name]
    path = pathlib.Path(root).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"{name}: data.root {path} does not exist; {_how_to_get(archive, None)}."
        )
    candidates = [path]
    if path.is_dir():
        candidates = [
            path,
            path / layout.folder,
            path / archive.file,
            path / archive.file.removesuffix(".gz"),
        ]
    for candidate in candidates:
        if candidate.is_file() or (candidate / layout.meta).is_file():
            if split not in ("train", "test"):
                raise ValueError(f"{name} has the splits 'train' and 'test', not '{split}'.")
            return _load(archive, candidate, split)
    inside = [entry.name for entry in path.iterdir()] if path.is_dir() else []
    if any(splits.choose(part, inside, str(path)) for part in splits.SPLITS):
        return folder.open_root(str(path), split, cache_mb, siblings)
    raise FileNotFoundError(
        f"{name}: nothing to read in {path}; {_how_to_get(archive, str(path))}."
    )
