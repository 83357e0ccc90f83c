"""Image datasets prepared as ArrayRecord shards: few large files with random access.

A prepared folder holds `dataset.json` (classes, and per split its shards with SHA-256 checksums),
`<split>.labels.npy`, and `<split>-NNNNN.array_record`. A record is the label (int32), the length of
the name (uint16), the name, then the encoded image, all little-endian. Shards are renamed into
place when complete, so an interrupted preparation continues where it stopped.
"""

from __future__ import annotations

import bisect
import glob
import hashlib
import io
import itertools
import json
import pathlib
import re
import struct
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from hjepa_jax.data.cache import ByteCache
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.formats.array_records import MAX_SHARD_BYTES, open_array_record
from hjepa_jax.data.sources import splits
from hjepa_jax.data.sources.base import NO_LABEL, ImageSource, Record, describe, digest
from hjepa_jax.errors import first_line
from hjepa_jax.storage import schema
from hjepa_jax.storage.files import check_regular, read_regular

INDEX = "dataset.json"
_FORMAT = "hjepa_jax image shards 1"
_HEADER = struct.Struct("<iH")
_MAX_IMAGES = 1 << 31
_LABELS_BYTES = 1 << 12
# What np.save writes before the numbers of a vector of integers.
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


class _Note(Shard):
    """A shard and what it was made from."""

    content: NotRequired[str]


class Split(TypedDict):
    """A split in the index; `content` identifies what its shards were made from."""

    num_images: int
    content: str
    shards: list[Shard]


class Index(TypedDict):
    """The content of `dataset.json`."""

    format: str
    class_names: list[str]
    splits: dict[str, Split]


_SHARD: schema.Fields[_Note] = schema.Fields(
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
        "shards": schema.Items(_SHARD, least=1),
    }
)
_INDEX: schema.Fields[Index] = schema.Fields(
    {
        "class_names": schema.Items(schema.Text()),
        "splits": schema.Table(_SPLIT),
    }
)


def pack(record: Record) -> bytes:
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


def unpack(stored: bytes) -> Record:
    """Returns the record of its stored form.

    Raises:
      ValueError: if it is too short to be one.
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
            f"The labels {path} are damaged: they are no vector of {count} integers; prepare the "
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
          OSError, ValueError: if a shard or the labels are missing, damaged, or do not fit.
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
            record = unpack(self._cache.get(index, lambda: self._readers[shard][within]))
        except (RuntimeError, ValueError) as error:
            raise CorruptImageError(
                f"The shard {self._folder / self._shards[shard]['file']} is damaged at record "
                f"{within} ({first_line(error)}); delete it and prepare the data again."
            ) from error
        if record.label != self._labels[index]:
            raise CorruptImageError(
                f"Record {within} of the shard {self._folder / self._shards[shard]['file']} has "
                f"another label than {self._split}.labels.npy has for it."
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
      ValueError: if it is no index of this format; the message names the field.
      OSError: if it cannot be read.
    """
    path = folder / INDEX
    content = schema.read_json(path, schema.Anything())
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path} is not an index of {_FORMAT}; prepare the data again.")
    index = schema.require(content, _INDEX, path)
    for name, split in index["splits"].items():
        for shard in split["shards"]:
            file = shard["file"]
            if not re.fullmatch(r"[^/\0]+\.array_record", file):
                raise ValueError(f"{path} names a shard outside its folder, or none: {file}.")
        if re.search(r"[/\0]", name):
            raise ValueError(f"{path} has a split that is no name: {name!r}.")
    return index


def open_shards(folder: pathlib.Path, split: str, cache_mb: float = 0.0) -> ShardSource:
    """Opens one split of a prepared folder.

    Raises:
      FileNotFoundError: if the split or a shard is not there.
      ValueError: if the index, the labels or a shard are damaged, or do not fit together.
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


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: pathlib.Path) -> list[str]:
    """Returns the files of a prepared folder that are missing or whose checksum is wrong."""
    shards = [s for split in read_index(folder)["splits"].values() for s in split["shards"]]
    return [
        shard["file"]
        for shard in shards
        if not (folder / shard["file"]).is_file()
        or _sha256(folder / shard["file"]) != shard["sha256"]
    ]


def _write_shard(
    source: ImageSource, numbers: range, path: pathlib.Path, progress: Callable[[int], None]
) -> Shard:
    """Writes one shard and its note, which says what is in it; returns the note."""
    partial = _partial(path)
    # Groups of one record: random access decompresses nothing else.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    for number in numbers:
        writer.write(pack(source.record(number)))
        progress(1)
    writer.close()
    note: Shard = {
        "file": path.name,
        "num_images": len(numbers),
        "bytes": partial.stat().st_size,
        "sha256": _sha256(partial),
    }
    partial.replace(path)
    return note


def _finished_shard(
    path: pathlib.Path, note_path: pathlib.Path, content: str, count: int
) -> Shard | None:
    """Returns the note of a shard that is complete and made from this content, else None."""
    try:
        note = schema.read_json(note_path, _SHARD)
        made = (note.pop("content", None), note["file"], note["num_images"])
        complete = path.stat().st_size == note["bytes"]
    except (OSError, ValueError):
        return None
    return note if complete and made == (content, path.name, count) else None


def _finished_split(
    folder: pathlib.Path, split: str, index: Index, content: str, source: ImageSource
) -> bool:
    """Returns whether a split of the index is complete and made from this content."""
    entry = index["splits"].get(split)
    if entry is None or entry["content"] != content:
        return False
    try:
        return bool((open_shards(folder, split).labels() == source.labels()).all())
    except (OSError, ValueError):
        return False


def write_shards(
    source: ImageSource,
    split: str,
    folder: pathlib.Path,
    images_per_shard: int = 4096,
    progress: Callable[[int], None] = lambda images: None,
) -> None:
    """Writes one split of a source as shards, and adds it to the folder's index.

    Shards that an earlier, interrupted call completed from the same source are kept.

    Args:
      source: what to write.
      split: name of the split in the index.
      folder: prepared folder, made if need be.
      images_per_shard: images in each shard but the last.
      progress: called with the number of images done since its last call.

    Raises:
      ValueError: if the folder already holds splits with other classes.
    """
    if images_per_shard < 1:
        raise ValueError(f"A shard must hold at least one image, not {images_per_shard}.")
    folder.mkdir(parents=True, exist_ok=True)
    index: Index = {
        "format": _FORMAT,
        "class_names": list(source.class_names),
        "splits": {},
    }
    if is_prepared(folder):
        try:
            index = read_index(folder)
        except ValueError as error:
            raise ValueError(f"{error} Delete that file before you prepare the data.") from error
        if index["class_names"] != list(source.class_names):
            raise ValueError(
                f"{folder} was prepared with other classes than those of {source.description}; "
                "choose another output folder."
            )
    content = f"{source.fingerprint()} {images_per_shard}"
    if _finished_split(folder, split, index, content, source):
        progress(len(source))
        return
    notes: list[Shard] = []
    for start in range(0, len(source), images_per_shard):
        numbers = range(start, min(start + images_per_shard, len(source)))
        path = folder / f"{split}-{len(notes):05d}.array_record"
        note_path = path.with_suffix(".json")
        note = _finished_shard(path, note_path, content, len(numbers))
        if note is None:
            note = _write_shard(source, numbers, path, progress)
            _replace(note_path, json.dumps({**note, "content": content}).encode())
        else:
            progress(len(numbers))
        notes.append(note)
    labels = io.BytesIO()
    np.save(labels, source.labels())
    _replace(folder / f"{split}.labels.npy", labels.getvalue())
    index["splits"][split] = {"num_images": len(source), "content": content, "shards": notes}
    _replace(folder / INDEX, json.dumps(index, indent=1).encode())
    _remove_notes(folder, split, notes)


def _partial(path: pathlib.Path) -> pathlib.Path:
    """Returns where a file is written before it is renamed; no link that lies there is followed."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    return partial


def _replace(path: pathlib.Path, content: bytes) -> None:
    partial = _partial(path)
    partial.write_bytes(content)
    partial.replace(path)


def _remove_notes(folder: pathlib.Path, split: str, notes: Sequence[Shard]) -> None:
    """Removes what only an unfinished preparation needs, and shards of an earlier, longer one."""
    kept = {note["file"] for note in notes}
    for path in folder.glob(f"{glob.escape(split)}-?????.*"):
        if path.name not in kept:
            path.unlink()
