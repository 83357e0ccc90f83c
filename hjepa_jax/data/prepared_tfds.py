"""TensorFlow Datasets that were prepared as ArrayRecord, read without TensorFlow."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt

from hjepa_jax.data.sources import Record, digest


class TfdsSource:
    """One split of a prepared data set with features 'image' and 'label'."""

    def __init__(self, folder: str, split: str):
        """Opens the split of the prepared version in `folder`."""
        self._folder = folder
        self._split = split
        self._data, info = _open(folder, split)
        self._labels: npt.NDArray[np.int32] | None = None
        self._name = info.full_name
        self.class_names = tuple(str(name) for name in info.features["label"].names)
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
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def description(self) -> str:
        return f"tfds {self._name} ({self._split}): {len(self)} images, {self.num_classes} classes"

    def __len__(self) -> int:
        return len(self._data)

    def record(self, index: int) -> Record:
        example = self._data[index]
        name = f"{self._name} ({self._split}) example {index}"
        return Record(bytes(example["image"]), None, int(example["label"]), name)

    def labels(self) -> npt.NDArray[np.int32]:
        if self._labels is None:
            self._labels = np.array(
                [int(self._data[i]["label"]) for i in range(len(self))], np.int32
            )
        return self._labels

    def fingerprint(self) -> str:
        return self._fingerprint


def _open(folder: str, split: str) -> tuple[Any, Any]:
    """Returns the data source with encoded images, and its information."""
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(folder)
    info = builder.info
    if not {"image", "label"} <= set(info.features):
        raise ValueError(
            f"{folder} has the features {', '.join(info.features)}; 'image' and 'label' are needed."
        )
    if split not in info.splits:
        raise FileNotFoundError(
            f"{folder} has no split '{split}'; it has: {', '.join(info.splits)}."
        )
    decoders = {"image": tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=decoders), info


def open_tfds(name: str, root: str | None, split: str) -> TfdsSource:
    """Opens the newest prepared version of a TensorFlow data set.

    Nothing is downloaded: without the files the answer is an error, at once.

    Args:
      name: Name of the data set, optionally `name/config` and `name:version`.
      root: The data directory given to `tfds` when it was prepared; None = ~/tensorflow_datasets.
      split: Name of the split.

    Raises:
      FileNotFoundError: If it is not prepared there as ArrayRecord, or has no such split.
      ValueError: If it has no features 'image' and 'label'.
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
