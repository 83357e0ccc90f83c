"""Checkpoints of state, data position and configuration, saved and restored with orbax."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import math
import pathlib
import shutil
from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    CustomSteps,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
)

from hjepa_jax.errors import CheckpointError, ConfigError, UserError, first_line
from hjepa_jax.runtime import checkpoint_files, distributed
from hjepa_jax.runtime.checkpoint_arrays import (
    LiteralPath,
    check_contents,
    equal,
    read_arrays,
    smallest,
)
from hjepa_jax.storage import checksums
from hjepa_jax.storage.checkpoint_meta import META, Meta
from hjepa_jax.storage.checksums import DamagedError, UnreadableError
from hjepa_jax.storage.files import check_holds_checkpoints, is_disk_full
from hjepa_jax.storage.schema import Fields

_log = logging.getLogger(__name__)


def _metric(name: str, worst: float, metrics: Mapping[str, float]) -> float:
    """Returns the metric that ranks a checkpoint; one without it ranks last."""
    return metrics.get(name, worst)


class _Saving(NamedTuple):
    """A save in progress: its step, its `meta`, and its smallest array within nested dicts."""

    step: int
    meta: Mapping[str, object]
    sample: PyTree[np.ndarray]


class Checkpointer:
    """Asynchronous, atomic, checksummed checkpoints of one run, of which it keeps some.

    Those are the newest, the best, and those at regular intervals. Each step holds `state` (the
    TrainState as arrays), `meta` (JSON: data position, config), `checksums.json`, and with
    `keep_best` also `metrics` (JSON).
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        keep_last: int = 2,
        keep_best: int = 0,
        best_metric: str = "total",
        best_mode: Literal["min", "max"] | None = "min",
        keep_every: Collection[int] = (),
        keep: Collection[int] = (),
        read_only: bool = False,
    ):
        """Opens the checkpoint folder; unless `read_only`, creates and tidies it.

        Args:
          folder: folder of the checkpoints.
          keep_last: number of newest checkpoints to keep.
          keep_best: number of best checkpoints by `best_metric` to keep in addition.
          best_metric: name of one of the metrics passed to `save`.
          best_mode: whether 'min' or 'max' is best; None = unknown, so there is no best checkpoint.
          keep_every: numbers of steps at whose multiples all checkpoints are kept in addition.
          keep: further steps to keep.
          read_only: allow restoring only.

        Raises:
          ValueError: if `keep_best` is set and `best_mode` is None.
          CheckpointError: if the folder cannot be used.
        """
        # orbax accepts a relative path here and fails only when it saves.
        self.folder = folder.absolute()
        self._best_metric = best_metric
        self._direction = best_mode
        self._saving: _Saving | None = None
        self._read_back = False
        self._failed = False
        self._manager: ocp.CheckpointManager | None = None
        check_holds_checkpoints(self.folder, "the folder of checkpoints")
        if read_only:
            return
        if distributed.is_primary():
            checkpoint_files.make_ready(self.folder)
        distributed.wait_for_all("the checkpoints are tidied")
        if keep_best and best_mode is None:
            raise ValueError("keep_best needs best_mode, the better direction of best_metric")
        self._manager = self._open(
            keep_best,
            [LatestN(keep_last), *map(EveryNSteps, keep_every), CustomSteps(tuple(keep))],
        )

    def _open(self, keep_best: int, policies: list[PreservationPolicy]) -> ocp.CheckpointManager:
        """Opens orbax's manager, which saves checkpoints and removes those not to be kept.

        Raises:
          CheckpointError: if it fails on the content of the folder.
        """
        worst = math.inf if self._direction == "min" else -math.inf
        metric = functools.partial(_metric, self._best_metric, worst)
        if keep_best:
            policies.append(
                BestN(
                    get_metric_fn=metric,
                    reverse=self._direction == "min",
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy(policies),
            # Without it orbax does not store the metrics.
            best_fn=metric if keep_best else None,
            best_mode=self._direction or "max",
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        try:
            return ocp.CheckpointManager(
                LiteralPath(self.folder),
                options=options,
                item_names=("state", "meta"),
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )
        except Exception as error:  # it reads files of each step, which can fail in any layer
            raise CheckpointError(
                f"{self.folder} cannot be opened for checkpoints ({type(error).__name__}: "
                f"{first_line(error)}): remove damaged steps, or choose another --workdir."
            ) from error

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints and of the one being saved, oldest first.

        Raises:
          CheckpointError: if the folder cannot be read.
        """
        if self._manager is not None:
            return sorted(self._manager.all_steps())
        try:
            return checkpoint_files.steps(self.folder)
        except UnreadableError as error:
            raise CheckpointError(try_again(error)) from error

    def best_step(self) -> int:
        """Returns the kept step with the best `best_metric`.

        Raises:
          CheckpointError: if no checkpoint was saved with this metric, or it cannot be read.
          ConfigError: if the metric's direction is unknown.
        """
        try:
            values = checkpoint_files.metric_by_step(self.folder, self.steps(), self._best_metric)
        except UnreadableError as error:
            raise CheckpointError(try_again(error)) from error
        if self._direction is None:
            raise ConfigError(
                f"config.checkpoint.best_metric is {self._best_metric!r}, but whether lower or "
                f"higher is better is unknown: set config.checkpoint.best_mode to 'min' or 'max'."
            )
        return (min if self._direction == "min" else max)(values, key=lambda step: values[step])

    def save(
        self,
        step: int,
        state: PyTree[jax.Array],
        meta: Mapping[str, object],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Starts saving in the background; the arrays are copied before this returns.

        Args:
          step: number of the checkpoint.
          state: pytree of arrays.
          meta: JSON stored beside the state.
          metrics: metrics for `keep_best`; a NaN or missing metric ranks last.

        Raises:
          CheckpointError: if the previous save failed or this one cannot start.
        """
        self.wait()
        if self._manager is None:
            raise CheckpointError(f"{self.folder} was opened for reading, not for saving.")
        self._failed = False
        self._saving = _Saving(step, meta, None if self._read_back else smallest(state))
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

        if not self._read_back:
            self.wait()  # an unusable folder must fail at once

    def wait(self) -> None:
        """Waits for the save in progress.

        Raises:
          CheckpointError: if it failed or left no checkpoint or, for the first save, if that cannot
            be read back.
        """
        if self._manager is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:  # orbax passes on errors of any class from its threads
            raise self._save_error(error) from error
        if self._saving is not None:
            saving, self._saving = self._saving, None
            if distributed.is_primary():
                self._confirm(saving)

    def _confirm(self, saving: _Saving) -> None:
        """Checks that a save left a checkpoint, and reads back the first one.

        Raises:
          CheckpointError: if it did not, or cannot be read back.
        """
        folder = self.folder / str(saving.step)
        try:
            if self._read_back:
                checksums.read_manifest(folder)
                return
            checksums.verify(folder)
            if checksums.read_meta(folder, Fields()) != json.loads(json.dumps(saving.meta)):
                raise DamagedError("meta differs from what was saved")
            found = read_arrays(folder, saving.sample)
            if not jax.tree.all(jax.tree.map(equal, found, saving.sample)):
                raise DamagedError("an array differs from what was saved")
        except Exception as error:  # a missing file can fail in any layer below
            raise CheckpointError(
                f"the checkpoint of step {saving.step} was saved in {self.folder} but cannot be "
                f"read back ({first_line(error) or type(error).__name__}): the run ends here, "
                "before more work is lost. Choose another --workdir."
            ) from error
        self._read_back = True

    def _intact(self) -> list[int] | str:
        """Returns the steps on disk, or the reason why they are unknown."""
        try:
            return checkpoint_files.steps(self.folder)
        except (CheckpointError, UnreadableError) as error:
            return f"unknown ({error})"

    def restore(
        self,
        abstract_state: PyTree[jax.ShapeDtypeStruct] | Callable[[Meta], PyTree],
        step: int | None = None,
    ) -> tuple[PyTree[jax.Array], Meta]:
        """Restores a step, or the newest intact one.

        Args:
          abstract_state: the state as ShapeDtypeStructs with shardings; or a dict of the fields to
            read; or a function that returns either from a step's `meta`.
          step: the step; None = the newest intact one. Damaged newer ones are renamed to
            `<step>.damaged` unless the folder was opened read-only.

        Returns:
          The restored state, or dict of its fields, and `meta`.

        Raises:
          CheckpointError: if there is no checkpoint, all are damaged, the newest is temporarily
            unreadable, or its content differs from `abstract_state` (names the parameter).
        """
        steps = self.steps() if step is None else [step]
        if not steps:
            raise CheckpointError(f"{self.folder} holds no complete checkpoint: train first.")
        failures: dict[int, str] = {}
        for candidate in reversed(steps):
            folder = self.folder / str(candidate)
            try:
                checksums.verify(folder)
                meta = checksums.read_meta(folder, META)
                if (saved := meta["data"].get("step", candidate)) != candidate:
                    raise DamagedError(f"it is the checkpoint of step {saved} under another name")
                wanted = abstract_state(meta) if callable(abstract_state) else abstract_state
                check_contents(folder, wanted)
                restored = read_arrays(folder, wanted)
            except UserError:
                raise
            except UnreadableError as error:
                raise CheckpointError(try_again(error)) from error
            except Exception as error:  # a damaged file can fail in any layer below
                reason = first_line(error)
                cause = "" if isinstance(error, DamagedError) else f"{type(error).__name__}: "
                failures[candidate] = f"step {candidate} ({cause}{reason})"
                _log.warning("checkpoint %s of %s is unreadable", failures[candidate], self.folder)
                continue
            self._set_aside(list(failures))
            return restored, meta
        raise CheckpointError(
            f"no checkpoint in {self.folder} can be read: {'; '.join(failures.values())}. Remove "
            "the damaged step folders, or start again in another --workdir."
        )

    def close(self) -> None:
        """Waits for the save in progress and releases the folder.

        Raises:
          CheckpointError: if that save failed and this was not raised before.
        """
        try:
            if not self._failed:
                self.wait()
        finally:
            if self._manager is not None:
                # Orbax raises its threads' errors repeatedly.
                with contextlib.suppress(*((Exception,) if self._failed else ())):
                    self._manager.close()

    def _set_aside(self, steps: list[int]) -> None:
        """Renames these damaged steps so that they can be saved again."""
        if not steps or self._manager is None:
            return
        for step in steps:
            if distributed.is_primary():
                target = checkpoint_files.set_aside(self.folder, self.folder / str(step))
                _log.warning("the damaged checkpoint is now %s: delete it when you like", target)
        distributed.wait_for_all("damaged checkpoints are set aside")
        self._manager.reload()

    def _write_manifest(self) -> None:
        """Adds the checksums to the save in progress; orbax calls this just before its rename."""
        assert self._saving is not None
        (folder,) = checkpoint_files.temporary_folders(self.folder, self._saving.step)
        checksums.write_manifest(folder)

    def _save_error(self, error: BaseException) -> CheckpointError:
        """Removes the remains of a failed save and returns an error that names the intact steps."""
        reason = first_line(error)
        what = f"{type(error).__name__}: {reason}"
        if is_disk_full(error):
            free = shutil.disk_usage(self.folder).free
            what = f"the disk is full or the file size limit is reached: {free} bytes are free"
        left = "its partial files were removed"
        if distributed.is_primary():
            try:
                checkpoint_files.remove_incomplete(self.folder)
            except OSError:
                left = "its partial files will be removed at the next start"
        step = self._saving.step if self._saving is not None else "?"
        self._saving, self._failed = None, True
        earlier = self._intact()
        return CheckpointError(
            f"the checkpoint of step {step} could not be saved in {self.folder} ({what}); "
            f"{left} and earlier checkpoints are intact: {earlier}. Free disk space or fix the "
            f"folder, then run the same command again."
        )


def try_again(error: UnreadableError) -> str:
    """Returns the sentence about a checkpoint that is temporarily unreadable."""
    return (
        f"{error}. The checkpoint may be intact: check the device or network that holds it, then "
        f"run the same command again."
    )
