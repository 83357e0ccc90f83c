"""Checkpoints: state, data position and configuration, saved and restored with orbax."""

from __future__ import annotations

import logging
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from orbax.checkpoint.checkpoint_managers import LatestN

from hjepa_jax.errors import CheckpointError

_log = logging.getLogger(__name__)


class Checkpointer:
    """Asynchronous, atomic checkpoints of one run, newest kept.

    Each step holds `state` (the TrainState as arrays) and `meta` (JSON: data position, config).
    """

    def __init__(self, folder: pathlib.Path, *, keep_last: int = 2, read_only: bool = False):
        """Opens (and creates unless `read_only`) the checkpoint folder."""
        # orbax accepts a relative path here and fails only when it saves.
        self.folder = folder.absolute()
        verbosity = absl_logging.get_verbosity()
        if read_only:
            # orbax warns that read-only is read-only.
            absl_logging.set_verbosity(absl_logging.ERROR)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=LatestN(keep_last), read_only=read_only, create=not read_only
        )
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=options,
            item_names=("state", "meta"),
            item_handlers={
                "state": ocp.StandardCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )
        absl_logging.set_verbosity(verbosity)

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, meta: dict[str, Any]) -> None:
        """Starts saving; the arrays are copied before this returns.

        Raises:
          CheckpointError: if the previous save failed or this one cannot start.
        """
        self.wait()
        try:
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
            )
        except (OSError, ValueError) as error:
            raise self._save_error(step, error) from error
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
            raise self._save_error(None, error) from error

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Restores (state, meta) of `step`, or of the newest step that can be read.

        Args:
          abstract_state: the state as ShapeDtypeStructs with shardings.
          step: the step wanted; None for the newest readable one.

        Raises:
          CheckpointError: if there is none, none can be read, or shapes differ from
            `abstract_state` (the parameter is named).
        """
        steps = self.steps() if step is None else [step]
        if not steps:
            raise CheckpointError(f"{self.folder} holds no complete checkpoint: train first.")
        failures = []
        for candidate in reversed(steps):
            try:
                self._check_shapes(candidate, abstract_state)
                restored = self._manager.restore(
                    candidate,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardRestore(abstract_state), meta=ocp.args.JsonRestore()
                    ),
                )
                return restored["state"], restored["meta"]
            except CheckpointError:
                raise
            except Exception as error:  # a damaged file can fail in any layer below
                reason = str(error).strip().split("\n")[0][:200]
                failures.append(f"step {candidate} ({type(error).__name__}: {reason})")
                _log.warning("checkpoint %s of %s is unreadable", failures[-1], self.folder)
        raise CheckpointError(
            f"no checkpoint in {self.folder} can be read: {'; '.join(failures)}. Remove the "
            "damaged step folders, or start again in another --workdir."
        )

    def close(self) -> None:
        """Waits for the save under way and releases the folder."""
        self.wait()
        self._manager.close()

    def _check_shapes(self, step: int, abstract_state: Any) -> None:
        """Names the first parameter whose shape differs, which orbax itself does not."""
        saved = self._manager.item_metadata(step)["state"]
        if saved is None:
            return  # unreadable metadata: the restore itself will say so
        tree = getattr(saved, "tree", saved)
        shapes = {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_state):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name not in shapes:
                continue
            if shapes[name] != tuple(leaf.shape):
                raise CheckpointError(
                    f"{name} has shape {shapes[name]} in checkpoint {self.folder}/{step} but "
                    f"{tuple(leaf.shape)} in this configuration: use the configuration of that "
                    "run, or another --workdir."
                )

    def _save_error(self, step: int | None, error: BaseException) -> CheckpointError:
        what = "the last checkpoint" if step is None else f"the checkpoint of step {step}"
        reason = str(error).strip().split("\n")[0][:200]
        return CheckpointError(
            f"{what} could not be saved in {self.folder} ({type(error).__name__}: {reason}); "
            f"earlier checkpoints are intact: {self.steps()}. Free disk space or mend the folder, "
            "then start the same command again."
        )
