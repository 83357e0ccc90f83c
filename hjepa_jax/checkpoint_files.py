"""The files of a checkpoint: their checksums, and what a failed or damaged save leaves behind."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from hjepa_jax.errors import TrainingError, UserError
from hjepa_jax.files import write_atomically

MANIFEST = "checksums.json"
_METADATA = "_CHECKPOINT_METADATA"
# orbax touches these between the manifest and its atomic rename.
_WRITTEN_LATER = (MANIFEST, "commit_success.txt", _METADATA)
# Fields of the step's metadata that orbax fills in at the rename.
_FILLED_LATER = ("commit_timestamp_nsecs", "performance_metrics")
_TEMPORARY = ".orbax-checkpoint-tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FULL_TEXTS = tuple(os.strerror(number).lower() for number in _FULL)


class DamagedError(Exception):
    """A file of a checkpoint is not as it was written; the message names it."""


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _metadata_digest(folder: pathlib.Path) -> str | None:
    """Returns the digest of the step's metadata without what orbax fills in later."""
    path = folder / _METADATA
    if not path.is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        kept = {name: value for name, value in content.items() if name not in _FILLED_LATER}
    except (ValueError, AttributeError) as error:
        raise DamagedError(f"{_METADATA} is no JSON object ({error})") from error
    return _json_digest(kept)


def _listed(folder: pathlib.Path) -> list[pathlib.Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if str(path.relative_to(folder)) not in _WRITTEN_LATER]


def write_manifest(folder: pathlib.Path) -> None:
    """Writes size and SHA-256 of every file below `folder` to `checksums.json`, whole or not."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in _listed(folder)
    }
    checksums = {"files": files, "metadata": _metadata_digest(folder)}
    content = {"format": 1, "checksums": checksums, "sha256": _json_digest(checksums)}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1))


def verify(folder: pathlib.Path) -> bool:
    """Checks every file of a checkpoint against its manifest.

    Returns:
      False if there is no manifest, so that nothing could be checked.

    Raises:
      DamagedError: if a file is missing, truncated or altered; the first one is named.
    """
    if not (folder / MANIFEST).is_file():
        return False
    try:
        content = json.loads((folder / MANIFEST).read_text())
        if content["sha256"] != _json_digest(content["checksums"]):
            raise DamagedError(f"{MANIFEST} is altered: its own checksum differs")
        files, metadata = content["checksums"]["files"], content["checksums"]["metadata"]
        expected = {name: (int(file["bytes"]), file["sha256"]) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read ({error})") from error
    for name, (size, digest) in expected.items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        if path.stat().st_size != size:
            raise DamagedError(f"{name} has {path.stat().st_size} bytes instead of {size}")
        if _digest(path) != digest:
            raise DamagedError(f"{name} is altered: its checksum differs")
    if _metadata_digest(folder) != metadata:
        raise DamagedError(f"{_METADATA} is altered: its checksum differs")
    return True


def temporary_folders(folder: pathlib.Path, step: int | None = None) -> list[pathlib.Path]:
    """Returns the folders of saves under way or broken off, of one step or of all."""
    return sorted(folder.glob(f"{'*' if step is None else step}{_TEMPORARY}*"))


def remove_incomplete(folder: pathlib.Path) -> list[str]:
    """Removes what saves that were broken off left behind; returns the names."""
    left = temporary_folders(folder)
    for path in left:
        shutil.rmtree(path)
    return [path.name for path in left]


def set_aside(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Renames the damaged checkpoint of `step`, so that the step can be saved again."""
    target = folder / f"{step}.damaged"
    if target.exists():
        shutil.rmtree(target)
    (folder / str(step)).rename(target)
    return target


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error, or one that caused it, says that no more bytes can be written."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        # TensorStore and some Python layers pass the system's message on as text.
        if any(text in str(error).lower() for text in _FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def disk_full_is_a_sentence(workdir: pathlib.Path) -> Iterator[None]:
    """Turns a full disk, wherever it is met within this context, into a TrainingError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # writers in threads wrap what they met
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(workdir).free
        raise TrainingError(
            f"nothing more can be written to {workdir}: the disk is full or a limit of file sizes "
            f"is reached ({free} bytes are free). Free disk space, then start the same command "
            "again."
        ) from error
