"""Metrics for Weights & Biases and MLflow, which are optional packages.

The id of the tracker's run is kept in the folder of the training run, so that a resumed training
and its evaluations continue it.
"""

from __future__ import annotations

import logging
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hjepa_jax.errors import TrainingError, first_line
from hjepa_jax.runtime.writers.records import QueuedSink
from hjepa_jax.storage.files import read_regular, write_atomically

_ID_BYTES = 1000
_PROJECT = "hjepa_jax"
_MISSING = "the package {0!r} cannot be imported: run pip install 'hjepa_jax[{0}]'."
_log = logging.getLogger(__name__)


def _known_id(path: pathlib.Path) -> str | None:
    """Returns the id of the tracker's run that a folder holds.

    Raises:
      TrainingError: if it cannot be read.
    """
    if not os.path.lexists(path):
        return None
    try:
        return read_regular(path, _ID_BYTES).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise TrainingError(f"{path} cannot be read: {first_line(error)}; remove it.") from error


class _TrackerSink(QueuedSink):
    """A tracker's run; the first value that it refuses is told."""

    _told = False
    _lost = 0

    def _report(self, error: Exception) -> None:
        self._lost += 1
        if not self._told:
            self._told = True
            _log.warning("%s refuses metrics (%s); training continues.", self._place, error)

    def dropped(self) -> int:
        """Returns how many values were refused or dropped."""
        return super().dropped() + self._lost


class WandbWriter(_TrackerSink):
    """Writes to one run of W&B, whose environment variables, such as WANDB_MODE, are obeyed.

    Scalars under `eval/` go to its summary, since an evaluation may be of an earlier step.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        """Starts or continues the run whose id is in the folder.

        Raises:
          TrainingError: if W&B is not installed or cannot start.
        """
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError as error:
            raise TrainingError(_MISSING.format("wandb")) from error
        self._wandb: Any = wandb
        path = folder / "wandb_run_id"
        known = _known_id(path)
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                id=known,
                name=os.environ.get("WANDB_NAME", folder.name),
                dir=str(folder),
                resume="allow",
                settings=wandb.Settings(silent=True),
            )
        except Exception as error:
            raise TrainingError(
                f"W&B cannot start ({first_line(error)}): run 'wandb login', set "
                "WANDB_MODE=offline, or leave 'wandb' out of config.log.writers."
            ) from error
        if known is None:
            write_atomically(path, f"{self._run.id}\n")
        super().__init__("W&B")

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """Queues scalars, by tag."""
        values = {tag: float(np.asarray(value)) for tag, value in scalars.items()}
        if all(tag.startswith("eval/") for tag in values):
            self.queue(lambda: self._run.summary.update(values))
        else:
            self.queue(lambda: self._run.log(values, step=int(step)))

    def write_images(self, step: int, images: Mapping[str, npt.ArrayLike]) -> None:
        """Queues images, by tag."""
        arrays = {tag: np.asarray(value) for tag, value in images.items()}

        def write() -> None:
            found = {tag: self._wandb.Image(array) for tag, array in arrays.items()}
            self._run.log(found, step=int(step))

        self.queue(write)

    def write_histograms(
        self,
        step: int,
        arrays: Mapping[str, npt.ArrayLike],
        num_buckets: Mapping[str, int] | None = None,
    ) -> None:
        """Queues histograms of arrays, by tag."""
        bins = num_buckets or {}
        given = {tag: np.asarray(value).ravel() for tag, value in arrays.items()}

        def write() -> None:
            found = {
                tag: self._wandb.Histogram(array, num_bins=bins.get(tag, 64))
                for tag, array in given.items()
            }
            self._run.log(found, step=int(step))

        self.queue(write)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Queues the configuration."""
        self.queue(lambda: self._run.config.update(dict(hparams), allow_val_change=True))

    def finish(self) -> None:
        """Ends the run."""
        self._run.finish()


class MLflowWriter(_TrackerSink):
    """Writes to one run of MLflow: of the server at MLFLOW_TRACKING_URI, or else in the folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Starts or continues the run whose id is in the folder.

        Raises:
          TrainingError: if MLflow is not installed or cannot start.
        """
        try:
            from mlflow.entities import Metric, Param  # type: ignore[import-not-found]
            from mlflow.tracking import MlflowClient  # type: ignore[import-not-found]
        except ImportError as error:
            raise TrainingError(_MISSING.format("mlflow")) from error
        self._metric, self._param = Metric, Param
        path = folder / "mlflow_run_id"
        known = _known_id(path)
        place = os.environ.get("MLFLOW_TRACKING_URI")
        if place is None:
            place = (folder / "mlruns").absolute().as_uri()
            # MLflow prefers databases, but these files need neither a server nor SQLAlchemy.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            self._client = MlflowClient(place)
            self._id = known or self._new_run(folder.name)
            history = self._client.get_metric_history(self._id, "loss/total") if known else []
        except Exception as error:
            raise TrainingError(
                f"MLflow cannot start ({first_line(error)}): correct MLFLOW_TRACKING_URI, or leave "
                "'mlflow' out of config.log.writers."
            ) from error
        # A resumed run repeats the steps behind its checkpoint, with the same values.
        self._last = max((metric.step for metric in history), default=-1)
        self._is_new = known is None
        if known is None:
            write_atomically(path, f"{self._id}\n")
        else:
            self._client.update_run(self._id, status="RUNNING")
        super().__init__("MLflow")

    def _new_run(self, name: str) -> str:
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(project)
        return self._client.create_run(number, run_name=name).info.run_id

    def write_scalars(self, step: int, scalars: Mapping[str, npt.ArrayLike]) -> None:
        """Queues scalars, by tag."""
        if "loss/total" in scalars and step <= self._last:
            return
        now = int(1000 * time.time())
        found = [
            self._metric(tag, float(np.asarray(value)), now, int(step))
            for tag, value in scalars.items()
        ]
        self.queue(lambda: self._client.log_batch(self._id, metrics=found))

    def write_images(self, step: int, images: Mapping[str, npt.ArrayLike]) -> None:
        """Queues images, as artifacts."""
        for tag, value in images.items():
            array, name = np.asarray(value), f"images/{tag}-{int(step)}.png"
            for number, image in enumerate(array if array.ndim == 4 else array[None]):
                place = name if array.ndim == 3 else name.replace(".png", f"-{number}.png")
                self.queue(
                    lambda image=image, place=place: self._client.log_image(self._id, image, place)
                )

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Queues the configuration, which MLflow lets no resumed run change."""
        if self._is_new:
            found = [self._param(name, str(value)[:500]) for name, value in hparams.items()]
            for first in range(0, len(found), 100):
                part = found[first : first + 100]
                self.queue(lambda part=part: self._client.log_batch(self._id, params=part))

    def finish(self) -> None:
        """Ends the run."""
        try:
            self._client.set_terminated(self._id)
        except Exception as error:
            self._report(error)
