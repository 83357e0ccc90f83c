"""The folders of checkpoints: their steps and metrics, and cleaning up after failed saves."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterable, Iterator

from hjepa_jax.errors import CheckpointError, TrainingError, UserError
from hjepa_jax.storage.checksums import (
    METADATA,
    DamagedError,
    UnreadableError,
    check_metadata,
    read_manifest,
    read_metrics,
    read_patiently,
)
from hjepa_jax.storage.files import is_disk_full, printable

_log = logging.getLogger(__name__)

_TEMPORARY = ".orbax-checkpoint-tmp"


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


def metric_by_step(folder: pathlib.Path, steps: Iterable[int], metric: str) -> dict[int, float]:
    """Returns a metric's value at each of these steps that was saved with it.

    Raises:
      CheckpointError: if there is none.
      UnreadableError: if metrics are temporarily unreadable.
    """
    values, damaged = {}, []
    for step in steps:
        try:
            metrics = read_metrics(folder / str(step)) or {}
        except DamagedError as error:
            damaged.append(f"step {step} ({error})")
            _log.warning("%s: the metrics of %s are damaged", folder, damaged[-1])
            continue
        if metric in metrics:
            values[step] = metrics[metric]
    if not values and damaged:
        raise CheckpointError(
            f"the best checkpoint in {folder} is unknown because metrics are damaged: "
            f"{'; '.join(damaged)}. Choose a step, or the latest."
        )
    if not values:
        raise CheckpointError(
            f"no checkpoint in {folder} was saved with the metric {metric!r}: "
            "set config.checkpoint.best_metric to the one that the run was trained with, or "
            "train with config.checkpoint.keep_best=1."
        )
    return values


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


def make_ready(folder: pathlib.Path) -> None:
    """Creates the folder of checkpoints, or tidies it; logs what changed.

    Raises:
      CheckpointError: if it cannot be used.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for sentence in _tidy(folder):
            _log.warning("%s", sentence)
    except FileExistsError as error:
        raise CheckpointError(
            f"{folder} is not a folder: remove or rename it, or choose another --workdir."
        ) from error
    except (OSError, UnreadableError) as error:
        raise CheckpointError(
            f"{folder} cannot be prepared for checkpoints ({error}): fix it, or choose "
            "another --workdir."
        ) from error


def _tidy(folder: pathlib.Path) -> list[str]:
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
        f"removed {folder}/{name}: its save was interrupted" for name in remove_incomplete(folder)
    ]
    for name in _names(folder):
        # Orbax takes any Unicode digits for a step, even before a line break.
        if re.search(r"^(0|[1-9]\d*)$", name) and not _is_step(folder / name):
            target = set_aside(folder, folder / name)
            told.append(f"{folder}/{printable(name)} is not a checkpoint: it is now {target.name}")
    for step in steps(folder):
        told += _tidy_step(folder, step)
    return told


def _tidy_step(folder: pathlib.Path, step: int) -> list[str]:
    """Sets aside damaged metrics and metadata of a step, which orbax reads unchecked."""
    place, told = folder / str(step), []
    reason = None
    try:
        if read_metrics(place) is None:
            reason = "it was saved without metrics"
    except DamagedError as error:
        reason = str(error)
    if reason and os.path.lexists(place / "metrics"):
        set_aside(folder, place / "metrics", f"{step}.metrics")
        told.append(f"the metrics of checkpoint {place} are damaged ({reason}): it ranks last")
    try:
        check_metadata(place, read_manifest(place))
    except DamagedError as error:
        if os.path.lexists(place / METADATA):
            set_aside(folder, place / METADATA, f"{step}.metadata")
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


@contextlib.contextmanager
def report_disk_full(workdir: pathlib.Path) -> Iterator[None]:
    """A context in which an error about a full disk becomes a TrainingError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # threads wrap the original error
        if not is_disk_full(error):
            raise
        free = shutil.disk_usage(workdir).free
        raise TrainingError(
            f"nothing more can be written to {workdir}: the disk is full or the file size limit is "
            f"reached ({free} bytes are free). Free disk space, then start the same command "
            "again."
        ) from error
