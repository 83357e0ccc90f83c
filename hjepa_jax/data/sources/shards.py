"""Image datasets prepared as ArrayRecord shards: few large files with random access.

A prepared folder holds `dataset.json` (classes, and per split its shards with SHA-256 checksums),
`<split>.labels.npy`, and `<split>-NNNNN.array_record`. A record is the label (int32), the length of
the name (uint16), the name, then the encoded image, all little-endian.
"""

from __future__ import annotations

import bisect
import io
import itertools
import pathlib
import re
import struct
from concurrent import futures
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
from PIL import Image

from hjepa_jax.data.cache import ByteCache
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.formats.array_records import MAX_SHARD_BYTES, open_array_record
from hjepa_jax.data.sources import splits
from hjepa_jax.data.sources.base import NO_LABEL, Record, describe, digest
from hjepa_jax.errors import first_line
from hjepa_jax.storage import schema
from hjepa_jax.storage.files import check_regular, read_regular, sha256

INDEX = "dataset.json"
FORMAT = "hjepa_jax image shards 1"
_HEADER = struct.Struct("<iH")
_MAX_IMAGES = 1 << 31
_LABELS_BYTES = 1 << 12
# Header that np.save writes before the numbers of an integer vector.
_LABELS_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(..)\{'descr': '([<>|][iu][1248])', 'fortran_order': (?:False|True), "
    rb"'shape': \((\d{1,10}),\), \} *\n",
    re.DOTALL,
)


class Shard(TypedDict):
    """A shard in the index: its file, its images, and the size and SHA-256 of the file."""

    file: str
    num_images: int
    bytes: int
    sha256: str


class Note(Shard):
    """A shard and the identity of its source."""

    content: NotRequired[str]


class Split(TypedDict):
    """A split in the index; `content` identifies the source of its shards."""

    num_images: int
    content: str
    shards: list[Shard]


class Index(TypedDict):
    """The content of `dataset.json`."""

    format: str
    class_names: list[str]
    splits: dict[str, Split]


SHARD: schema.Fields[Note] = schema.Fields(
    {
        "file": schema.Text(most=255),
        "num_images": schema.Whole(1, _MAX_IMAGES),
        "bytes": schema.Whole(0, MAX_SHARD_BYTES),
        "sha256": schema.Text(most=64),
    }
)
_SPLIT = schema.Fields(
    {
        "num_images": schema.Whole(1, _MAX_IMAGES),
        "content": schema.Text(most=1000),
        "shards": schema.Items(SHARD, least=1),
    }
)
_INDEX: schema.Fields[Index] = schema.Fields(
    {
        "class_names": schema.Items(schema.Text()),
        "splits": schema.Table(_SPLIT),
    }
)


def encode_record(record: Record) -> bytes:
    """Returns the stored form of a record; decoded pixels are encoded as PNG, without loss."""
    encoded = record.encoded
    if encoded is None:
        if record.image is None:
            raise ValueError(f"The record {record.name} has neither bytes nor pixels.")
        buffer = io.BytesIO()
        Image.fromarray(record.image).save(buffer, "PNG")
        encoded = buffer.getvalue()
    name = record.name.encode()[-65535:]
    return _HEADER.pack(record.label, len(name)) + name + encoded


def decode_record(stored: bytes) -> Record:
    """Returns the record of its stored form.

    Raises:
      ValueError: if it is too short.
    """
    if len(stored) < _HEADER.size:
        raise ValueError(f"A stored record of {len(stored)} bytes has no header.")
    label, length = _HEADER.unpack_from(stored)
    end = _HEADER.size + length
    return Record(stored[end:], None, label, stored[_HEADER.size : end].decode(errors="replace"))


def _read_labels(path: pathlib.Path, count: int) -> npt.NDArray[np.int32]:
    """Returns the labels of a split, without trusting the shape that the file claims."""
    if not path.exists():
        raise FileNotFoundError(f"The labels {path} are missing; prepare the data again.")
    content = read_regular(path, _LABELS_BYTES + 8 * count)
    header = _LABELS_HEADER.match(content)
    if header is None or int(header[3]) != count:
        raise ValueError(
            f"The labels {path} are damaged: they are not a vector of {count} integers; prepare "
            f"the "
            "data again."
        )
    dtype, values = np.dtype(header[2].decode()), content[header.end() :]
    if len(values) != count * dtype.itemsize:
        raise ValueError(
            f"The labels {path} are damaged: {count} labels have {len(values)} bytes; prepare the "
            "data again."
        )
    return np.frombuffer(values, dtype)


class ShardSource:
    """One split of a prepared folder."""

    def __init__(self, folder: pathlib.Path, split: str, index: Index, cache_mb: float):
        """Opens a split; `index` is what `read_index` returned.

        Raises:
          OSError, ValueError: if a shard or the labels are missing, damaged, or inconsistent.
        """
        self._folder = folder
        self._split = split
        entry = index["splits"][split]
        self._shards = entry["shards"]
        self.class_names = tuple(index["class_names"])
        counts = [shard["num_images"] for shard in self._shards]
        self._ends = list(itertools.accumulate(counts))
        if self._ends[-1] != entry["num_images"]:
            raise ValueError(
                f"{folder / INDEX} is damaged: the shards of '{split}' have {self._ends[-1]} "
                f"images, the split {entry['num_images']}; prepare the data again."
            )
        paths = [folder / shard["file"] for shard in self._shards]
        with futures.ThreadPoolExecutor(min(16, len(paths))) as threads:
            self._readers = list(threads.map(open_array_record, paths, counts))
        labels = _read_labels(folder / f"{split}.labels.npy", entry["num_images"])
        if labels.min() < NO_LABEL or labels.max() >= len(self.class_names):
            raise ValueError(
                f"A label in {folder} ({split}) is outside 0 .. {len(self.class_names) - 1}; "
                "prepare the data again."
            )
        self._labels = labels.astype(np.int32)
        self._cache = ByteCache(cache_mb)

    @property
    def description(self) -> str:
        return describe(f"shards {self._folder} ({self._split})", self)

    def __len__(self) -> int:
        return len(self._labels)

    def record(self, index: int) -> Record:
        """Returns a record.

        Raises:
          CorruptImageError: if its shard is damaged there.
        """
        shard = bisect.bisect_right(self._ends, index)
        within = index - (self._ends[shard - 1] if shard else 0)
        try:
            record = decode_record(self._cache.get(index, lambda: self._readers[shard][within]))
        except (RuntimeError, ValueError) as error:
            raise CorruptImageError(
                f"The shard {self._folder / self._shards[shard]['file']} is damaged at record "
                f"{within} ({first_line(error)}); delete it and prepare the data again."
            ) from error
        if record.label != self._labels[index]:
            raise CorruptImageError(
                f"Record {within} of the shard {self._folder / self._shards[shard]['file']} has a "
                f"different label than in {self._split}.labels.npy."
            )
        return record

    def labels(self) -> npt.NDArray[np.int32]:
        return self._labels

    def fingerprint(self) -> str:
        return digest(self.class_names, [shard["sha256"] for shard in self._shards])


def is_prepared(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds prepared shards."""
    return (folder / INDEX).is_file()


def read_index(folder: pathlib.Path) -> Index:
    """Returns the content of `dataset.json`.

    Raises:
      ValueError: if it is not an index of this format; the message names the field.
      OSError: if it cannot be read.
    """
    path = folder / INDEX
    content = schema.read_json(path, schema.Anything())
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not an index of {FORMAT}; prepare the data again.")
    index = schema.require(content, _INDEX, path)
    for name, split in index["splits"].items():
        for shard in split["shards"]:
            file = shard["file"]
            if not re.fullmatch(r"[^/\0]+\.array_record", file):
                raise ValueError(f"{path} names a shard outside its folder, or none: {file}.")
        if re.search(r"[/\0]", name):
            raise ValueError(f"{path} has an invalid split name: {name!r}.")
    return index


def open_shards(folder: pathlib.Path, split: str, cache_mb: float = 0.0) -> ShardSource:
    """Opens one split of a prepared folder.

    Raises:
      FileNotFoundError: if the split or a shard is missing.
      ValueError: if the index, the labels or a shard are damaged or inconsistent.
    """
    index = read_index(folder)
    found = next(iter(splits.choose(split, index["splits"], str(folder))), None)
    if found is None:
        raise FileNotFoundError(
            f"The prepared data {folder} has no split '{split}'; it has: "
            f"{', '.join(index['splits']) or 'none'}."
        )
    for shard in index["splits"][found]["shards"]:
        path = folder / shard["file"]
        if not path.exists():
            raise FileNotFoundError(f"The shard {path} is missing; prepare the data again.")
        size = check_regular(path, MAX_SHARD_BYTES).st_size
        if size != shard["bytes"]:
            raise ValueError(
                f"The shard {path} has {size} bytes instead of {shard['bytes']}; "
                "delete it and prepare the data again."
            )
    return ShardSource(folder, found, index, cache_mb)


def verify(folder: pathlib.Path) -> list[str]:
    """Returns the files of a prepared folder that are missing or whose checksum is wrong."""
    shards = [s for split in read_index(folder)["splits"].values() for s in split["shards"]]
    return [
        shard["file"]
        for shard in shards
        if not (folder / shard["file"]).is_file()
        or sha256(folder / shard["file"]) != shard["sha256"]
    ]
