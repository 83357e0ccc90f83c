"""Features of checkpoints on disk, so that another protocol need not encode the images again."""

from __future__ import annotations

import logging
import pathlib
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from hjepa_jax.errors import UserError, first_line, size
from hjepa_jax.evaluation.features import Extracted, Features
from hjepa_jax.evaluation.protocol import Keep
from hjepa_jax.interop.export_features import write_whole

FOLDER = "checkpoint_features"
# Bytes of a file beside its arrays, at most.
_HEADERS = 4096
_log = logging.getLogger(__name__)


class FeatureStore:
    """Features of a run's checkpoints of certain images, in `checkpoint_features/<images>`.

    When the space is used up, those of other images go, oldest first, and then no more are kept.
    """

    def __init__(self, workdir: pathlib.Path, images: str, limit: int):
        """Keeps features of a run.

        Args:
          workdir: the run.
          images: identifies the images, and what else features depend on but the checkpoint.
          limit: most bytes of all features of the run; 0 = none are kept.
        """
        self._all, self._limit = workdir / FOLDER, limit
        self._folder = self._all / images
        self._told = limit == 0

    def of(self, step: int, checkpoint: str) -> Keep:
        """Returns what gives the features of a checkpoint, by its step and digest."""
        path = self._folder / f"step{step}.npz"

        def keep(name: str, extract: Callable[[], Extracted]) -> Extracted:
            del name  # one encoder of each checkpoint is evaluated
            found = _read(path, checkpoint)
            if found is None:
                found = extract()
                self._write(path, checkpoint, found)
            return found

        return keep

    def _write(self, path: pathlib.Path, checkpoint: str, found: Extracted) -> None:
        """Keeps features if there is room for them; that they are not kept is told once."""
        arrays: dict[str, Any] = {
            "train": found.train.features,
            "train_labels": found.train.labels,
            "test": found.test.features,
            "test_labels": found.test.labels,
            "first_views": found.views[0],
            "second_views": found.views[1],
        }
        if not self._has_room(path, sum(array.nbytes for array in arrays.values()) + _HEADERS):
            return
        about: dict[str, Any] = {
            "shared": np.asarray(found.shared),
            "checkpoint": np.asarray(checkpoint),
        }
        try:
            write_whole(path, lambda file: np.savez(file, **arrays, **about))
        except UserError as error:
            self._tell(first_line(error))

    def _has_room(self, path: pathlib.Path, wanted: int) -> bool:
        """Returns whether a file of this size fits, if need be without those of other images."""
        if wanted > self._limit:
            self._tell(f"{size(wanted)} exceed --features_gb")
            return False
        files = {file: file.stat() for file in self._all.rglob("*.npz") if file != path}
        used = sum(found.st_size for found in files.values())
        for file in sorted(files, key=lambda file: files[file].st_mtime):
            if used + wanted <= self._limit:
                break
            if file.parent != self._folder:
                used -= files[file].st_size
                file.unlink(missing_ok=True)
        if used + wanted <= self._limit:
            return True
        self._tell(f"{size(used)} of --features_gb are used")
        return False

    def _tell(self, reason: str) -> None:
        if not self._told:
            _log.warning(
                "features are not kept from here on (%s): another protocol will encode these "
                "checkpoints again.",
                reason,
            )
        self._told = True


def _read(path: pathlib.Path, checkpoint: str) -> Extracted | None:
    """Returns the features in a file; None if it has none of this checkpoint."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["checkpoint"]) != checkpoint:
                return None
            train, test = (
                Features(file[name], file[f"{name}_labels"]) for name in ("train", "test")
            )
            views = (file["first_views"], file["second_views"])
            return Extracted(train, test, views, int(file["shared"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        _log.warning("%s is damaged (%s): the images are encoded again", path, first_line(error))
        return None
