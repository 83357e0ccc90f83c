"""The files of a checkpoint: checksums, and cleaning up after failed or damaged saves."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypedDict, TypeVar

from hjepa_jax.errors import CheckpointError, TrainingError, UserError
from hjepa_jax.storage import schema
from hjepa_jax.storage.files import UnfitFileError, check_regular, printable, write_atomically
from hjepa_jax.storage.schema import Fields, Kind, Maybe, Number, Table, Text, Whole

_log = logging.getLogger(__name__)
_Read = TypeVar("_Read")

MANIFEST = "checksums.json"
_DIGEST = Text(most=64)
_MANIFEST_SCHEMA = Fields(
    {
        "format": Whole(1, 1),
        "sha256": _DIGEST,
        "checksums": Fields(
            {
                "files": Table(Fields({"bytes": Whole(0), "sha256": _DIGEST})),
                "metadata": Maybe(_DIGEST),
            }
        ),
    }
)
_METRICS = "metrics/"
_TIME = Maybe(Whole(0, 2**62))
_METADATA_SCHEMA = Fields(
    {},
    {
        "commit_timestamp_nsecs": _TIME,
        "init_timestamp_nsecs": _TIME,
        "performance_metrics": Maybe(Table(Number())),
    },
)
# What orbax adds to the metadata when the arrays are written.
_WRITTEN_LAST = "item_handlers"
_METADATA_SECONDS, _POLL_SECONDS = 10.0, 0.005
_RETRY_SECONDS = (0.1, 0.5, 2.0)
_METADATA = "_CHECKPOINT_METADATA"
# orbax touches these between the manifest and its atomic rename.
_WRITTEN_LATER = (MANIFEST, "commit_success.txt", _METADATA)
# Fields of the step's metadata that orbax fills in at the rename.
_FILLED_LATER = ("commit_timestamp_nsecs", "performance_metrics")
_TEMPORARY = ".orbax-checkpoint-tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FAILED = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)


class FileChecksum(TypedDict):
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str


class Checksums(TypedDict):
    """Checksums of files by name, and of the metadata; None if orbax never finished them."""

    files: dict[str, FileChecksum]
    metadata: str | None


class DamagedError(Exception):
    """A file of a checkpoint differs from what was written; the message names it."""


class UnreadableError(Exception):
    """A file is temporarily unreadable, whatever its content; the message names it."""


def read_patiently(
    path: pathlib.Path, read: Callable[[pathlib.Path], _Read], name: str | None = None
) -> _Read:
    """Returns `read(path)`, retrying a few times if a device or network may recover.

    Args:
      path: the file.
      read: the reader; raises OSError if the file cannot be read.
      name: the file's name in messages; None = its last path component.

    Returns:
      The result of `read`.

    Raises:
      DamagedError: if the file is missing or not a regular file.
      UnreadableError: if it is still unreadable after the last attempt.
    """
    for delay in (*_RETRY_SECONDS, None):
        try:
            return read(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise DamagedError(f"{name or path.name} is missing") from error
        except UnfitFileError as error:
            raise DamagedError(str(error)) from error
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise DamagedError(f"{name or path.name} is a link to itself") from error
            if delay is None:
                reason = f"{path}: {error.strerror or error}"
                raise UnreadableError(reason) from error
            _log.warning("%s could not be read (%s): trying again", path, error)
            time.sleep(delay)
    raise AssertionError("the last attempt returns or raises")


def _json(path: pathlib.Path, kind: Kind[_Read]) -> _Read:
    """Reads a JSON file, allowing Infinity and NaN, which orbax writes."""
    try:
        return read_patiently(path, lambda p: schema.read_json(p, kind, constants=True))
    except ValueError as error:
        raise DamagedError(str(error)) from error


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _metadata_digest(folder: pathlib.Path) -> str:
    """Returns the digest of the step's metadata, excluding fields that orbax fills in later."""
    content = _json(folder / _METADATA, _METADATA_SCHEMA)
    kept = {name: value for name, value in content.items() if name not in _FILLED_LATER}
    return _json_digest(kept)


def _metadata_when_written(folder: pathlib.Path) -> str | None:
    """Returns the digest of the metadata once orbax is done with it; None if that never comes.

    Orbax writes it in a thread that nothing waits for before the rename: a digest taken too early
    would make a good checkpoint look damaged.
    """
    for _ in range(round(_METADATA_SECONDS / _POLL_SECONDS)):
        with contextlib.suppress(DamagedError):  # half written, or not there yet
            if _json(folder / _METADATA, Fields()).get(_WRITTEN_LAST):
                return _metadata_digest(folder)
        time.sleep(_POLL_SECONDS)
    _log.warning("%s of %s was never finished: it is not checked later", _METADATA, folder)
    return None


def _listed(folder: pathlib.Path) -> list[pathlib.Path]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if str(path.relative_to(folder)) not in _WRITTEN_LATER]


def write_manifest(folder: pathlib.Path) -> None:
    """Atomically writes size and SHA-256 of every file below `folder` to `checksums.json`."""
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": _digest(path)}
        for path in _listed(folder)
    }
    metadata = _metadata_when_written(folder)
    checksums = {"files": files, "metadata": metadata}
    content = {"format": 1, "checksums": checksums, "sha256": _json_digest(checksums)}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1))


def read_manifest(folder: pathlib.Path) -> Checksums:
    """Returns the checksums of a checkpoint.

    Raises:
      DamagedError: if `checksums.json` is missing, altered or malformed.
      UnreadableError: if it is temporarily unreadable.
    """
    content = _json(folder / MANIFEST, _MANIFEST_SCHEMA)
    if content["sha256"] != _json_digest(content["checksums"]):
        raise DamagedError(f"{MANIFEST} is altered: its own checksum differs")
    return content["checksums"]


def _check_files(folder: pathlib.Path, files: Mapping[str, FileChecksum]) -> None:
    for name, expected in files.items():
        size, path = expected["bytes"], folder / name
        try:
            found = read_patiently(path, lambda p: check_regular(p, 2**63), name).st_size
            if found != size:
                raise DamagedError(f"{name} has {found} bytes instead of {size}")
            if read_patiently(path, _digest, name) != expected["sha256"]:
                raise DamagedError(f"{name} is altered: its checksum differs")
        except ValueError as error:  # a name that no file can have
            raise DamagedError(f"{MANIFEST} names {name!r:.80}: {error}") from error


def verify(folder: pathlib.Path) -> None:
    """Checks every file of a checkpoint, except those of `metrics`, against its manifest.

    A checkpoint without a manifest counts as damaged, since every version has written one.

    Raises:
      DamagedError: naming the first file that is missing, truncated or altered.
      UnreadableError: if a file is temporarily unreadable.
    """
    manifest = read_manifest(folder)
    state = {n: file for n, file in manifest["files"].items() if not n.startswith(_METRICS)}
    _check_files(folder, state)
    _check_metadata(folder, manifest)


def _check_metadata(folder: pathlib.Path, manifest: Checksums) -> None:
    if manifest["metadata"] not in (None, _metadata_digest(folder)):
        raise DamagedError(f"{_METADATA} is altered: its checksum differs")


def read_meta(folder: pathlib.Path, kind: Kind[_Read]) -> _Read:
    """Returns the JSON saved beside the arrays, checked to have the structure `kind`.

    Raises:
      DamagedError: if it is missing or has another structure.
      UnreadableError: if it is temporarily unreadable.
    """
    return _json(folder / "meta" / "metadata", kind)


def read_metrics(folder: pathlib.Path) -> dict[str, float] | None:
    """Returns the metrics a checkpoint is ranked by; None if it was saved without metrics.

    Raises:
      DamagedError: if they are missing, altered or not numbers.
      UnreadableError: if they are temporarily unreadable.
    """
    files = read_manifest(folder)["files"]
    ours = {name: file for name, file in files.items() if name.startswith(_METRICS)}
    if not ours:
        return None
    _check_files(folder, ours)
    return _json(folder / "metrics" / "metrics", Table(Number()))


def steps(folder: pathlib.Path) -> list[int]:
    """Returns the steps with complete folders, oldest first, ignoring everything else.

    Raises:
      CheckpointError: if the folder cannot be listed.
      UnreadableError: if an entry is temporarily inaccessible.
    """
    return sorted(int(name) for name in _names(folder) if _is_step(folder / name))


def _names(folder: pathlib.Path) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be listed: {error.strerror}.") from error


def _is_step(path: pathlib.Path) -> bool:
    if re.fullmatch(r"0|[1-9][0-9]{0,17}", path.name) is None:
        return False
    try:
        return read_patiently(path, lambda p: stat.S_ISDIR(os.stat(p).st_mode))
    except DamagedError:
        return False


def temporary_folders(folder: pathlib.Path, step: int | None = None) -> list[pathlib.Path]:
    """Returns the folders of unfinished saves, of one step or (None) of all."""
    return sorted(folder.glob(f"{'*' if step is None else step}{_TEMPORARY}*"))


def remove_incomplete(folder: pathlib.Path) -> list[str]:
    """Removes the folders of interrupted saves and returns their names."""
    left = temporary_folders(folder)
    for path in left:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            shutil.rmtree(path)
    return [path.name for path in left]


def tidy(folder: pathlib.Path) -> list[str]:
    """Prepares a folder of checkpoints for orbax, which fails on stray entries.

    Removes interrupted saves. Renames entries that are named like a step but are not a folder, and
    damaged metrics of a step, whose state stays usable and ranks last.

    Returns:
      One sentence per change.

    Raises:
      OSError: if an entry cannot be removed or renamed.
      UnreadableError: if metrics are temporarily unreadable.
    """
    told = [
        f"removed {folder}/{name}: its save was broken off" for name in remove_incomplete(folder)
    ]
    for name in _names(folder):
        # What orbax takes for a step: any digits of Unicode, also before a line break.
        if re.search(r"^(0|[1-9]\d*)$", name) and not _is_step(folder / name):
            target = set_aside(folder, folder / name)
            told.append(f"{folder}/{printable(name)} is no checkpoint: it is now {target.name}")
    for step in steps(folder):
        told += _tidy_step(folder, step)
    return told


def _tidy_step(folder: pathlib.Path, step: int) -> list[str]:
    """Sets aside damaged metrics and metadata of a step, which orbax reads unchecked."""
    place, told = folder / str(step), []
    reason = None
    try:
        if read_metrics(place) is None:
            reason = "it was saved without any"
    except DamagedError as error:
        reason = str(error)
    if reason and os.path.lexists(place / "metrics"):
        set_aside(folder, place / "metrics", f"{step}.metrics")
        told.append(f"the metrics of checkpoint {place} are damaged ({reason}): it ranks last")
    try:
        _check_metadata(place, read_manifest(place))
    except DamagedError as error:
        if os.path.lexists(place / _METADATA):
            set_aside(folder, place / _METADATA, f"{step}.metadata")
            told.append(f"checkpoint {place} is damaged ({error})")
    return told


def set_aside(folder: pathlib.Path, path: pathlib.Path, name: str | None = None) -> pathlib.Path:
    """Renames an entry to the first free `<name>.damaged[-N]` in `folder`; returns the new path."""
    stem = printable(path.name if name is None else name)[:100]
    numbers = itertools.count(2)
    target = folder / f"{stem}.damaged"
    while os.path.lexists(target):
        target = folder / f"{stem}.damaged-{next(numbers)}"
    path.rename(target)
    return target


def is_disk_full(error: BaseException | None) -> bool:
    """Returns whether an error or one of its causes says that the disk or a quota is full."""
    return _says(error, _FULL)


def is_unreadable(error: BaseException | None) -> bool:
    """Returns whether an error or one of its causes says that a device or network failed."""
    return _says(error, _FAILED)


def _says(error: BaseException | None, numbers: tuple[int, ...]) -> bool:
    texts = [os.strerror(number).lower() for number in numbers]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in numbers:
            return True
        # TensorStore and some Python layers pass the system's message on as text.
        if any(text in str(error).lower() for text in texts):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def report_disk_full(workdir: pathlib.Path) -> Iterator[None]:
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


def silence_orbax() -> None:
    """Drops what orbax prints about a failing save; the error itself is still raised.

    On a full disk orbax prints a traceback per array, and Python one per abandoned coroutine.
    """
    logging.getLogger("absl").addFilter(
        lambda record: record.exc_info is None or "orbax" not in record.pathname
    )
    # Exceptions of further arrays, which nobody waits for once the first has failed.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    previous = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous(unraisable)

    sys.unraisablehook = hook
