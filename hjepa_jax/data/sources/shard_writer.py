"""Prepares the shards that `shards` reads.

Shards are renamed into place when complete, so an interrupted preparation continues where it
stopped.
"""

from __future__ import annotations

import glob
import io
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter

from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.data.sources.shards import (
    FORMAT,
    INDEX,
    SHARD,
    Index,
    Shard,
    encode_record,
    is_prepared,
    open_shards,
    read_index,
)
from hjepa_jax.storage import schema
from hjepa_jax.storage.files import sha256


def _write_shard(
    source: ImageSource, numbers: range, path: pathlib.Path, progress: Callable[[int], None]
) -> Shard:
    """Writes one shard and its note, which describes its content; returns the note."""
    partial = _partial(path)
    # Groups of one record, so random access decompresses nothing else.
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    for number in numbers:
        writer.write(encode_record(source.record(number)))
        progress(1)
    writer.close()
    note: Shard = {
        "file": path.name,
        "num_images": len(numbers),
        "bytes": partial.stat().st_size,
        "sha256": sha256(partial),
    }
    partial.replace(path)
    return note


def _finished_shard(
    path: pathlib.Path, note_path: pathlib.Path, content: str, count: int
) -> Shard | None:
    """Returns the note of a shard that is complete and has this content, else None."""
    try:
        note = schema.read_json(note_path, SHARD)
        made = (note.pop("content", None), note["file"], note["num_images"])
        complete = path.stat().st_size == note["bytes"]
    except (OSError, ValueError):
        return None
    return note if complete and made == (content, path.name, count) else None


def _finished_split(
    folder: pathlib.Path, split: str, index: Index, content: str, source: ImageSource
) -> bool:
    """Returns whether a split of the index is complete and has this content."""
    entry = index["splits"].get(split)
    if entry is None or entry["content"] != content:
        return False
    try:
        return bool((open_shards(folder, split).labels() == source.labels()).all())
    except (OSError, ValueError):
        return False


def _index_to_extend(folder: pathlib.Path, source: ImageSource) -> Index:
    """Returns the folder's index, or an empty one, to which a split of the source can be added.

    Raises:
      ValueError: if it is damaged, or has other classes than the source.
    """
    empty: Index = {
        "format": FORMAT,
        "class_names": list(source.class_names),
        "splits": {},
    }
    if not is_prepared(folder):
        return empty
    try:
        index = read_index(folder)
    except ValueError as error:
        raise ValueError(f"{error} Delete that file before you prepare the data.") from error
    if index["class_names"] != empty["class_names"]:
        raise ValueError(
            f"{folder} was prepared with other classes than those of {source.description}; "
            "choose another output folder."
        )
    return index


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
      source: images to write.
      split: name of the split in the index.
      folder: prepared folder, created if necessary.
      images_per_shard: images in each shard but the last.
      progress: called with the number of images done since its last call.

    Raises:
      ValueError: if the folder's index is damaged or has other classes than the source.
    """
    if images_per_shard < 1:
        raise ValueError(f"A shard must hold at least one image, not {images_per_shard}.")
    folder.mkdir(parents=True, exist_ok=True)
    index = _index_to_extend(folder, source)
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
    """Returns the temporary path of a file before its rename; removes any link there."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    return partial


def _replace(path: pathlib.Path, content: bytes) -> None:
    partial = _partial(path)
    partial.write_bytes(content)
    partial.replace(path)


def _remove_notes(folder: pathlib.Path, split: str, notes: Sequence[Shard]) -> None:
    """Removes files for resuming a preparation, and extra shards of an earlier, longer one."""
    kept = {note["file"] for note in notes}
    for path in folder.glob(f"{glob.escape(split)}-?????.*"):
        if path.name not in kept:
            path.unlink()
