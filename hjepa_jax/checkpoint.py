"""Checkpoints: state, data position and configuration, saved and restored with orbax."""

from __future__ import annotations

import functools
import logging
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from hjepa_jax import checkpoint_files, distributed
from hjepa_jax.checkpoint_files import DamagedError
from hjepa_jax.errors import CheckpointError, first_line

_log = logging.getLogger(__name__)


def _metric(name: str, worst: float, metrics: Mapping[str, float]) -> float:
    """Returns the metric that ranks a checkpoint; one without it ranks last."""
    return metrics.get(name, worst)


class Checkpointer:
    """Asynchronous, atomic, checksummed checkpoints of one run; the newest and the best are kept.

    Each step holds `state` (the TrainState as arrays), `meta` (JSON: data position, config),
    `checksums.json`, and with `keep_best` also `metrics` (JSON).
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        best_metric: str = "total",
        best_mode: str = "min",
        read_only: bool = False,
    ):
        """Opens the checkpoint folder; unless `read_only`, creates and tidies it.

        Args:
          folder: where the checkpoints are.
          keep_last: the newest so many are kept.
          keep_best: beside them the best so many are kept, by `best_metric`.
          best_metric: name in the metrics given to `save`.
          best_mode: 'min' or 'max', what is best.
          read_only: only restore.
        """
        # orbax accepts a relative path here and fails only when it saves.
        self.folder = folder.absolute()
        self._best_metric, self._best_mode = best_metric, best_mode
        self._read_only = read_only
        self._saving: int | None = None
        verbosity = absl_logging.get_verbosity()
        if read_only:
            # orbax warns that read-only is read-only.
            absl_logging.set_verbosity(absl_logging.ERROR)
        elif distributed.is_primary():
            for name in checkpoint_files.remove_incomplete(self.folder):
                _log.info("removed %s/%s: its save was broken off", self.folder, name)
        metric = functools.partial(_metric, best_metric, self._worst)
        policies: list[Any] = [LatestN(keep_last)]
        if keep_best:
            policies.append(
                BestN(
                    get_metric_fn=metric,
                    reverse=best_mode == "min",
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            # Without it orbax does not store the metrics.
            best_fn=metric if keep_best else None,
            best_mode=best_mode,
            read_only=read_only,
            create=not read_only,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_names=("state", "meta"),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )
        absl_logging.set_verbosity(verbosity)

    @property
    def _worst(self) -> float:
        return math.inf if self._best_mode == "min" else -math.inf

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int:
        """Returns the step whose `best_metric` is best, of those that are kept.

        Raises:
          CheckpointError: if no checkpoint was saved with this metric.
        """
        values = {}
        for step in self.steps():
            metrics = self._manager.metrics(step) or {}
            if self._best_metric in metrics:
                values[step] = metrics[self._best_metric]
        if not values:
            raise CheckpointError(
                f"no checkpoint in {self.folder} was saved with the metric {self._best_metric!r}: "
                "set config.checkpoint.best_metric to the one that the run was trained with, or "
                "train with config.checkpoint.keep_best=1."
            )
        return (min if self._best_mode == "min" else max)(values, key=lambda step: values[step])

    def save(
        self,
        step: int,
        state: Any,
        meta: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving; the arrays are copied before this returns.

        Args:
          step: number of the checkpoint.
          state: pytree of arrays.
          meta: JSON beside it.
          metrics: what `keep_best` ranks by; a NaN ranks last, as does a checkpoint without.

        Raises:
          CheckpointError: if the previous save failed or this one cannot start.
        """
        self.wait()
        self._saving = step
        kept = {n: float(v) for n, v in (metrics or {}).items() if n == self._best_metric}
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(state), meta=ocp.args.JsonSave(meta)
                ),
                metrics={n: v for n, v in kept.items() if math.isfinite(v)},
            )
        except (OSError, ValueError) as error:
            raise self._save_error(error) from error
        if not saved:
            raise CheckpointError(
                f"orbax did not save step {step} in {self.folder}: a checkpoint of this or a later "
                "step is already there; choose another --workdir."
            )

    def wait(self) -> None:
        """Waits for the save under way and raises CheckpointError if it failed."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # orbax raises what its threads met, of any class
            raise self._save_error(error) from error

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Restores (state, meta) of `step`, or of the newest step that can be read.

        Args:
          abstract_state: the state as ShapeDtypeStructs with shardings; or a dict of some of its
            fields, which alone are read.
          step: the step wanted; None for the newest readable one. Newer ones, which are damaged,
            are renamed to `<step>.damaged` unless the folder was opened read-only.

        Raises:
          CheckpointError: if there is none, none can be read, or what is in it differs from
            `abstract_state` (the parameter is named).
        """
        steps = self.steps() if step is None else [step]
        if not steps:
            raise CheckpointError(f"{self.folder} holds no complete checkpoint: train first.")
        failures: dict[int, str] = {}
        for candidate in reversed(steps):
            try:
                self._verify(candidate)
                self._check_contents(candidate, abstract_state)
                arguments: Any = ocp.args.PyTreeRestore(
                    item=abstract_state,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract_state),
                    # A field that was empty or not there yet has no arrays to read.
                    partial_restore=True,
                )
                restored = self._manager.restore(
                    candidate,
                    args=ocp.args.Composite(state=arguments, meta=ocp.args.JsonRestore()),
                )
                self._set_aside(list(failures))
                return restored["state"], restored["meta"]
            except CheckpointError:
                raise
            except Exception as error:  # a damaged file can fail in any layer below
                reason = first_line(error)
                cause = "" if isinstance(error, DamagedError) else f"{type(error).__name__}: "
                failures[candidate] = f"step {candidate} ({cause}{reason})"
                _log.warning("checkpoint %s of %s is unreadable", failures[candidate], self.folder)
        raise CheckpointError(
            f"no checkpoint in {self.folder} can be read: {'; '.join(failures.values())}. Remove "
            "the damaged step folders, or start again in another --workdir."
        )

    def close(self) -> None:
        """Waits for the save under way and releases the folder."""
        self.wait()
        self._manager.close()

    def _check_contents(self, step: int, abstract_state: Any) -> None:
        """Names the first array that is missing, left over or of another shape."""
        saved = self._manager.item_metadata(step)["state"]
        if saved is None:
            return  # unreadable metadata: the restore itself will say so
        tree = getattr(saved, "tree", saved)
        shapes = {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        wanted = {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state)
        }
        only_parts = isinstance(abstract_state, dict)
        place = f"checkpoint {self.folder}/{step}"
        for name in wanted if only_parts else sorted(wanted.keys() | shapes.keys()):
            there, here = shapes.get(name), wanted.get(name)
            if there == here:
                continue
            problem = f"has shape {there} in {place} but {here} in this configuration"
            if there is None:
                problem = f"is missing in {place}, which another configuration wrote"
            elif here is None:
                problem = f"is in {place} but is no part of this configuration's state"
            raise CheckpointError(
                f"{name} {problem}: use the configuration of that run, or another --workdir."
            )

    def _verify(self, step: int) -> None:
        """Raises DamagedError if a file of the step is not as it was written."""
        if not checkpoint_files.verify(self.folder / str(step)):
            _log.info(
                "checkpoint %s/%d has no %s, so its files are used unchecked",
                self.folder,
                step,
                checkpoint_files.MANIFEST,
            )

    def _set_aside(self, steps: list[int]) -> None:
        """Makes way for these damaged steps to be saved again."""
        if not steps or self._read_only:
            return
        for step in steps:
            if distributed.is_primary():
                target = checkpoint_files.set_aside(self.folder, step)
                _log.warning("the damaged checkpoint is now %s: delete it when you like", target)
        distributed.wait_for_all("damaged checkpoints are set aside")
        self._manager.reload()

    def _write_manifest(self) -> None:
        """Adds the checksums to the save under way; orbax calls it just before its rename."""
        (folder,) = checkpoint_files.temporary_folders(self.folder, self._saving)
        checkpoint_files.write_manifest(folder)

    def _save_error(self, error: BaseException) -> CheckpointError:
        """Removes what the failed save left, and says what is still there."""
        reason = first_line(error)
        what = f"{type(error).__name__}: {reason}"
        if checkpoint_files.is_disk_full(error):
            free = shutil.disk_usage(self.folder).free
            what = f"the disk is full or a limit of file sizes is reached: {free} bytes are free"
        if distributed.is_primary():
            checkpoint_files.remove_incomplete(self.folder)
        earlier = sorted(ocp.utils.checkpoint_steps(self.folder))
        return CheckpointError(
            f"the checkpoint of step {self._saving} could not be saved in {self.folder} ({what}); "
            f"what it left was removed and earlier checkpoints are intact: {earlier}. Free disk "
            "space or mend the folder, then start the same command again."
        )
