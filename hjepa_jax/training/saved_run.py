"""Reading another run from its workdir: its configuration and its encoder's parameters."""

from __future__ import annotations

import logging
import os
import pathlib
import re
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from hjepa_jax.config import Settings, may_change_on_resume, steps_per_epoch
from hjepa_jax.config.checks import typed
from hjepa_jax.config.files import differences, from_json, read
from hjepa_jax.config.parts import ENCODERS, section_prefixes
from hjepa_jax.config.rules import best_direction
from hjepa_jax.errors import CheckpointError, first_line
from hjepa_jax.runtime import distributed
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.runtime.checkpoint_arrays import mismatches, not_finite
from hjepa_jax.storage.checkpoint_meta import DataPosition, Meta
from hjepa_jax.storage.files import local_path
from hjepa_jax.training.prepare import PreparedRun, prepare
from hjepa_jax.training.state import TrainState

_log = logging.getLogger(__name__)

# Fields that define the encoder, in addition to its sections. They must match the checkpoint; all
# others may differ in an evaluation.
_ENCODER_FIELDS = ("model.", "data.image_size", "data.mean", "data.std")
# Parts of a TrainState needed for inference; the optimizer's copies of the parameters stay on disk.
PARTS = ("step", "params", "batch_stats")


def saved_config(workdir: pathlib.Path) -> Settings:
    """Reads the settings that a run saved.

    Raises:
      CheckpointError: if there is none or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return typed(read(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: is {workdir} a run's workdir?") from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error


def check_replaceable(workdir: pathlib.Path) -> None:
    """Checks that no folder is in the place of a file of the run.

    Raises:
      CheckpointError: if there is one.
    """
    for name in ("config.json", "failure.json"):
        path = workdir / name
        if os.path.isdir(path) and not os.path.islink(path):
            raise CheckpointError(
                f"{path} is a folder where a file is written: remove or rename it, or choose "
                "another --workdir."
            )


def config_in(meta: Meta, folder: pathlib.Path) -> Settings:
    """Returns the configuration in the `meta` of a checkpoint.

    Raises:
      CheckpointError: if it has none or it cannot be read.
    """
    if "config" not in meta:
        raise CheckpointError(
            f"the checkpoint in {folder} does not record its configuration: "
            "choose another --workdir."
        )
    try:
        return typed(from_json(meta["config"], folder, field="config"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"the configuration in the checkpoint of {folder} cannot be read: {first_line(error)}"
        ) from error


def epoch_steps(data: DataPosition) -> int | None:
    """Returns the steps of an epoch of a run, from what its checkpoint says of its data."""
    if "num_images" in data and "batch_size" in data:
        drop_last = data.get("drop_last", True)
        return steps_per_epoch(data["num_images"], data["batch_size"], drop_last)
    return None


def check_encoder(
    settings: Settings, saved: Settings, workdir: pathlib.Path, more: tuple[str, ...] = ()
) -> None:
    """Rejects a configuration whose encoder differs from the checkpoint's, naming the fields.

    Args:
      settings: the settings in use.
      saved: the run's settings.
      workdir: the run's workdir, for the message.
      more: prefixes of further fields that must match.

    Raises:
      CheckpointError: if a field of the encoder, or one of `more`, differs.
    """
    fields = (*_ENCODER_FIELDS, *section_prefixes(ENCODERS, settings.model.encoder), *more)
    differing = differences(saved, settings, lambda name: name.startswith(fields))
    if differing:
        raise CheckpointError(
            f"the run in {workdir} has different settings: {', '.join(differing)}. Use the values "
            f"that it was trained with."
        )


def check_has_checkpoints(workdir: pathlib.Path) -> None:
    """Raises CheckpointError if a workdir has no folder of checkpoints."""
    if not os.path.isdir(workdir / "checkpoints"):
        raise CheckpointError(f"{workdir} holds no checkpoints: train first, with --mode=train.")


def open_saved(settings: Settings, workdir: pathlib.Path) -> Checkpointer:
    """Opens the checkpoints of a finished or running run, for reading.

    Raises:
      CheckpointError: if the folder does not exist.
    """
    check_has_checkpoints(workdir)
    return Checkpointer(
        workdir / "checkpoints",
        best_metric=settings.checkpoint.best_metric,
        best_mode=best_direction(settings),
        read_only=True,
    )


def check_choice(which: str) -> None:
    """Raises CheckpointError unless `which` is 'latest', 'best' or a step's number."""
    if which not in ("latest", "best") and not re.fullmatch("[0-9]{1,18}", which):
        raise CheckpointError(f"--checkpoint={which}: give 'latest', 'best' or a step's number.")


def chosen_step(checkpointer: Checkpointer, which: str) -> int | None:
    """Returns the step for 'latest' (None: the newest readable one), 'best' or a step's number.

    Raises:
      CheckpointError: if `which` is invalid, or the step does not exist.
    """
    steps = checkpointer.steps()
    if which == "latest":
        return None
    if which == "best":
        return checkpointer.best_step()
    check_choice(which)
    if int(which) not in steps:
        raise CheckpointError(
            f"--checkpoint={which}: {checkpointer.folder} holds no checkpoint of this step; it has "
            f"{steps}."
        )
    return int(which)


def restore_parts(
    checkpointer: Checkpointer,
    run: PreparedRun | Callable[[Meta], PreparedRun],
    step: int | None,
    parts: tuple[str, ...] = PARTS,
) -> tuple[dict[str, PyTree[jax.Array]], Meta]:
    """Restores parts of a checkpoint and its `meta`.

    Args:
      checkpointer: result of `open_saved`.
      run: the prepared run, or a function that prepares it from a checkpoint's `meta`.
      step: the step; None = the newest readable one.
      parts: fields of the TrainState.

    Raises:
      CheckpointError: if it cannot be read, or `config.json` belongs to another run.
    """

    def wanted(meta: Meta) -> dict[str, PyTree[jax.ShapeDtypeStruct]]:
        prepared = run(meta) if callable(run) else run
        return {name: getattr(prepared.abstract_state, name) for name in parts}

    state, meta = checkpointer.restore(wanted, step)
    if "config" in meta:
        _check_agrees(meta, checkpointer.folder.parent)
    return state, meta


def _check_agrees(meta: Meta, workdir: pathlib.Path) -> None:
    """Rejects a `config.json` that contradicts the configuration in the checkpoint."""
    here = saved_config(workdir)
    differing = differences(
        config_in(meta, workdir), here, lambda name: not may_change_on_resume(name, here)
    )
    if differing:
        raise CheckpointError(
            f"{workdir}/config.json does not belong to the run that saved the checkpoints next to "
            f"it: "
            f"{', '.join(differing)}, 'there' in the checkpoint. Put the file of that run there."
        )


def check_finite(state: PyTree[jax.Array], folder: pathlib.Path) -> None:
    """Rejects a state from `folder` that contains NaN or infinity.

    Raises:
      CheckpointError: naming one of the arrays.
    """
    names = not_finite(state)
    if distributed.sum_over_processes(len(names)):
        raise CheckpointError(
            f"the checkpoint in {folder} holds numbers that are NaN or infinite "
            f"({', '.join(names[:3])}): remove its step folder to continue from an earlier one, or "
            f"choose another run."
        )


def initial_state(settings: Settings, run: PreparedRun) -> TrainState:
    """Returns a new state; with `train.init_from`, parameters and statistics come from that run.

    A projector or predictor of a different shape stays random; the encoder must match.

    Raises:
      CheckpointError: if that run has no readable checkpoint or a different encoder.
    """
    if settings.train.init_from is None:
        return run.init()
    workdir = local_path(settings.train.init_from, "config.train.init_from")
    saved = saved_config(workdir)
    check_encoder(settings, saved, workdir)
    # Neither affects parameters, but both may not fit this run's devices and data.
    saved = saved.replace({"data.batch_size": settings.data.batch_size})
    there = prepare(saved, settings.data.batch_size, run.mesh)
    checkpointer = open_saved(saved, workdir)
    found, _ = restore_parts(checkpointer, there, None)
    checkpointer.close()
    check_finite(found, checkpointer.folder)
    state = run.init()
    params, stats = dict(state.params), dict(state.batch_stats)
    for part, fresh in state.params.items():
        taken = found["params"].get(part, {})
        if mismatches(taken, fresh, str(workdir), dtypes=True):
            _log.warning("%s has a different %s, which is initialized randomly", workdir, part)
            continue
        params[part] = _placed(taken, fresh)
        if part in stats:
            stats[part] = _placed(found["batch_stats"][part], stats[part])
    _log.info("parameters of step %d of %s", int(found["step"]), workdir)
    return state.replace(params=params, batch_stats=stats)


def _placed(values: PyTree[jax.Array], like: PyTree[jax.Array]) -> PyTree[jax.Array]:
    return jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), values, like)
