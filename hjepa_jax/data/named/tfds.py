"""TensorFlow Datasets that were prepared as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.formats.array_records import open_array_record
from hjepa_jax.data.sources.base import NO_LABEL, DataSet, Record, describe, digest
from hjepa_jax.data.sources.splits import warn_once
from hjepa_jax.errors import first_line
from hjepa_jax.storage import schema
from hjepa_jax.storage.files import check_regular

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

_MAX_CLASSES = 10_000_000
_CONNECTORS = "tensorflow_datasets."
_SPLIT = schema.Fields(
    {"name": schema.Text(), "shardLengths": schema.Items(schema.Text(most=20), least=1)},
    {"filepathTemplate": schema.Text(most=1000), "numBytes": schema.Text(most=20)},
)
_INFO = schema.Fields(
    {"name": schema.Text(), "splits": schema.Items(_SPLIT, least=1)},
    {"version": schema.Text(), "fileFormat": schema.Text()},
)


class Tfds(DataSet):
    """The prepared dataset named after 'tfds:' in `config.data.name`."""

    takes_argument = True

    def open(self, split: str, siblings: Sequence[str]) -> TfdsSource:
        """Opens a split; the metadata define the class numbers for all splits."""
        del siblings
        return open_tfds(self.argument, self.root, split)


class TfdsSource:
    """One split of a prepared dataset with features 'image' and, if labeled, 'label'."""

    def __init__(self, folder: str, split: str):
        """Opens the split of the prepared version in `folder`."""
        self._folder = folder
        self._split = split
        self._data, info = _open(folder, split)
        self._labels: npt.NDArray[np.int32] | None = None
        self._name = schema.readable(info.full_name)
        self._labeled = "label" in info.features
        self.class_names = _class_names(folder, info.features["label"]) if self._labeled else ()
        self._fingerprint = digest(
            info.full_name,
            split,
            self.class_names,
            [f"{length}" for length in info.splits[split].shard_lengths],
            str(info.splits[split].num_bytes),
        )

    def __reduce__(self) -> tuple[type[TfdsSource], tuple[str, str]]:
        return TfdsSource, (self._folder, self._split)

    @property
    def description(self) -> str:
        return describe(f"tfds {self._name} ({self._split})", self)

    def __len__(self) -> int:
        return len(self._data)

    def record(self, index: int) -> Record:
        """Returns an example.

        Raises:
          CorruptImageError: if it is damaged.
        """
        name = f"{self._name} ({self._split}) example {index}"
        # tfds and array_record raise almost anything on damaged bytes.
        try:
            example = self._data[index]
            encoded = example["image"]
            label = int(example["label"]) if self._labeled else NO_LABEL
        except Exception as error:
            raise CorruptImageError(f"Cannot read {name}: {first_line(error)}.") from error
        if not isinstance(encoded, bytes) or not NO_LABEL <= label < len(self.class_names):
            raise CorruptImageError(
                f"Cannot read {name}: it has no encoded image, or a label that is not a class."
            )
        return Record(bytes(encoded), None, label, name)

    def labels(self) -> npt.NDArray[np.int32]:
        if self._labels is None and not self._labeled:
            self._labels = np.full(len(self), NO_LABEL, np.int32)
        if self._labels is None:
            self._labels = np.array([self._label(i) for i in range(len(self))], np.int32)
        return self._labels

    def _label(self, index: int) -> int:
        """Returns the label of an example; none if it is damaged, which is reported later."""
        try:
            return self.record(index).label
        except CorruptImageError:
            return NO_LABEL

    def fingerprint(self) -> str:
        return self._fingerprint


def _check_metadata(folder: pathlib.Path) -> None:
    """Checks the metadata that tfds will read: it would import any module that the features name.

    Raises:
      ValueError: naming the file and the field.
      OSError: if a file is missing, not a regular file, or too large.
    """
    schema.read_json(folder / "dataset_info.json", _INFO)
    path = folder / "features.json"
    level = [schema.read_json(path, schema.Fields())]
    while level:
        for entry in level:
            for key in ("pythonClassName", "type"):
                connector = entry.get(key) if isinstance(entry, dict) else None
                if isinstance(connector, str) and not connector.startswith(_CONNECTORS):
                    raise ValueError(
                        f"{path} names the feature {schema.described(connector)}; only those of "
                        "tensorflow_datasets are read."
                    )
        inner = [e.values() if isinstance(e, dict) else e for e in level]
        level = [v for values in inner for v in values if isinstance(v, (dict, list))]
    for labels in folder.glob("*.labels.txt"):
        check_regular(labels, schema.MAX_JSON_BYTES)


def _class_names(folder: str, label: Any) -> tuple[str, ...]:
    """Returns the names of a ClassLabel."""
    count = getattr(label, "num_classes", None)
    if not isinstance(count, int) or not 0 < count <= _MAX_CLASSES:
        raise ValueError(f"The feature 'label' of {folder} is not a ClassLabel with names.")
    return tuple(schema.readable(name) for name in label.names)


def _open(folder: str, split: str) -> tuple[Sequence[Mapping[str, Any]], Any]:
    """Returns the data source with encoded images, and its information."""
    import tensorflow_datasets as tfds

    _check_metadata(pathlib.Path(folder))
    try:
        builder: Any = tfds.builder_from_directory(folder)
        info = builder.info
        present, splits = set(info.features), list(info.splits)
    # tfds raises almost anything on invalid metadata.
    except Exception as error:
        raise ValueError(
            f"The metadata in {folder} is damaged ({first_line(error)}); prepare the data again."
        ) from error
    if "image" not in present:
        raise ValueError(
            f"{folder} has the features {', '.join(sorted(present))}; 'image' is needed."
        )
    if "label" not in present:
        warn_once(
            f"{folder} has no feature 'label', so its images have no labels; its features are: "
            f"{', '.join(sorted(present))}."
        )
    if not isinstance(info.features["image"], tfds.features.Image):
        raise ValueError(f"The feature 'image' of {folder} is not an Image.")
    if split not in splits:
        raise FileNotFoundError(f"{folder} has no split '{split}'; it has: {', '.join(splits)}.")
    _check_shards(info.splits[split])
    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=decoders), info


def _check_shards(split: tfds.core.SplitInfo) -> None:
    """Checks that every shard exists and has the number of records in the metadata."""
    paths = [pathlib.Path(path) for path in split.filepaths]
    if len(paths) != len(split.shard_lengths):
        raise ValueError(
            f"{paths[0].parent} has {len(paths)} shards, but its metadata lists a "
            f"different number of lengths."
        )
    if sum(split.shard_lengths) < 1:
        raise ValueError(f"The split '{split.name}' of {paths[0].parent} has no examples.")
    for path, length in zip(paths, split.shard_lengths, strict=True):
        open_array_record(path, length)


def open_tfds(name: str, root: str | None, split: str) -> TfdsSource:
    """Opens the newest prepared version of a TensorFlow dataset.

    Nothing is downloaded: missing files are an error.

    Args:
      name: name of the dataset, optionally `name/config` and `name:version`.
      root: the data directory given to `tfds` when it was prepared; None = ~/tensorflow_datasets.
      split: name of the split.

    Raises:
      FileNotFoundError: if it is not prepared there as ArrayRecord, or has no such split.
      ValueError: if it has no feature 'image', or is damaged.
    """
    path, _, version = name.partition(":")
    data_dir = pathlib.Path(root or "~/tensorflow_datasets").expanduser()
    infos = sorted((data_dir / path).glob(f"{version or '*'}/dataset_info.json"), key=_version)
    if not infos:
        raise FileNotFoundError(
            f"tfds:{name}: no prepared data in {data_dir / path}. Prepare it on a machine with "
            f"TensorFlow: tfds build {name} --file_format=array_record --data_dir={data_dir}"
        )
    folder = infos[-1].parent
    if not any(folder.glob("*.array_record*")):
        raise FileNotFoundError(
            f"tfds:{name}: {folder} is not stored as ArrayRecord, which reading without TensorFlow "
            f"needs. Prepare it with: tfds build {name} --file_format=array_record"
        )
    return TfdsSource(str(folder), split)


def _version(info: pathlib.Path) -> list[int]:
    return [int(part) if part.isdigit() else -1 for part in info.parent.name.split(".")]
