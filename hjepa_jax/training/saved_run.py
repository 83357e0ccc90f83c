"""What another run left in its workdir: its configuration, and its encoder's parameters."""

from __future__ import annotations

import logging
import os
import pathlib
import re
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from hjepa_jax.config import Settings, may_change_on_resume
from hjepa_jax.config.checks import typed
from hjepa_jax.config.files import differences, from_json, read
from hjepa_jax.config.parts import ENCODERS, section_prefixes
from hjepa_jax.config.rules import best_direction
from hjepa_jax.errors import CheckpointError, first_line
from hjepa_jax.runtime import distributed
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.runtime.checkpoint_arrays import mismatches, not_finite
from hjepa_jax.runtime.checkpoint_meta import Meta
from hjepa_jax.storage.files import local_path
from hjepa_jax.training.prepare import PreparedRun, prepare
from hjepa_jax.training.state import TrainState

_log = logging.getLogger(__name__)

# What the encoder is, beside its own sections. It must agree with the checkpoint; all else may
# differ in an evaluation.
_ENCODER_FIELDS = ("model.", "data.image_size", "data.mean", "data.std")
# What inference needs of a TrainState; the optimizer's two copies of the parameters stay on disk.
PARTS = ("step", "params", "batch_stats")


def saved_config(workdir: pathlib.Path) -> Settings:
    """Reads the settings that a run saved.

    Raises:
      CheckpointError: if the workdir has none or it cannot be read.
    """
    path = workdir / "config.json"
    try:
        return typed(read(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: is {workdir} a run's workdir?") from None
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {first_line(error)}") from error


def check_replaceable(workdir: pathlib.Path) -> None:
    """Checks that nothing stands where a run writes its files: these replace files and links only.

    Raises:
      CheckpointError: if a folder does.
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
            f"the checkpoint in {folder} does not say which configuration it was trained with: "
            "choose another --workdir."
        )
    try:
        return typed(from_json(meta["config"], folder, field="config"))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"the configuration in the checkpoint of {folder} cannot be read: {first_line(error)}"
        ) from error


def check_encoder(
    settings: Settings, saved: Settings, workdir: pathlib.Path, more: tuple[str, ...] = ()
) -> None:
    """Refuses a configuration whose encoder is not the checkpoint's, naming the fields.

    Args:
      settings: those in use.
      saved: the run's.
      workdir: the run's, for the message.
      more: beginnings of further fields that must agree.

    Raises:
      CheckpointError: if a field of the encoder, or one of `more`, differs.
    """
    fields = (*_ENCODER_FIELDS, *section_prefixes(ENCODERS, settings.model.encoder), *more)
    differing = differences(saved, settings, lambda name: name.startswith(fields))
    if differing:
        raise CheckpointError(
            f"the run in {workdir} is another one: {', '.join(differing)}. Give the values that it "
            "was trained with."
        )


def check_has_checkpoints(workdir: pathlib.Path) -> None:
    """Raises CheckpointError if a workdir has no folder of checkpoints."""
    if not os.path.isdir(workdir / "checkpoints"):
        raise CheckpointError(f"{workdir} holds no checkpoints: train first, with --mode=train.")


def open_saved(settings: Settings, workdir: pathlib.Path) -> Checkpointer:
    """Opens the checkpoints of a finished or running run, for reading.

    Raises:
      CheckpointError: if there is no such folder.
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
    """Returns the step that 'latest' (None: the newest readable one), 'best' or a number names.

    Raises:
      CheckpointError: if it is none of these, or there is no such step.
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
      checkpointer: of `open_saved`.
      run: made ready, or a function that makes it from a checkpoint's `meta`.
      step: the step wanted; None = the newest readable one.
      parts: fields of the TrainState.

    Raises:
      CheckpointError: if it cannot be read, or `config.json` is not of the run that saved it.
    """

    def wanted(meta: Meta) -> dict[str, PyTree[jax.ShapeDtypeStruct]]:
        prepared = run(meta) if callable(run) else run
        return {name: getattr(prepared.abstract_state, name) for name in parts}

    state, meta = checkpointer.restore(wanted, step)
    if "config" in meta:
        _check_agrees(meta, checkpointer.folder.parent)
    return state, meta


def _check_agrees(meta: Meta, workdir: pathlib.Path) -> None:
    """Refuses a `config.json` that says of the training what its checkpoint, checked, does not."""
    here = saved_config(workdir)
    differing = differences(
        config_in(meta, workdir), here, lambda name: not may_change_on_resume(name, here)
    )
    if differing:
        raise CheckpointError(
            f"{workdir}/config.json is not of the run that saved the checkpoints beside it: "
            f"{', '.join(differing)}, 'there' in the checkpoint. Put the file of that run there."
        )


def check_finite(state: PyTree[jax.Array], folder: pathlib.Path) -> None:
    """Refuses to go on from a state in which a number is NaN or infinite; `folder` has it.

    Raises:
      CheckpointError: naming one of the arrays.
    """
    names = not_finite(state)
    if distributed.sum_over_processes(len(names)):
        raise CheckpointError(
            f"the checkpoint in {folder} holds numbers that are NaN or infinite "
            f"({', '.join(names[:3])}): remove its step folder to go on from an earlier one, or "
            "choose another run."
        )


def initial_state(settings: Settings, run: PreparedRun) -> TrainState:
    """Returns a new state; with `train.init_from`, parameters and statistics are another run's.

    Those of a projector or predictor of another shape stay random; the encoder must fit.

    Raises:
      CheckpointError: if that run has no readable checkpoint, or another encoder.
    """
    if settings.train.init_from is None:
        return run.init()
    workdir = local_path(settings.train.init_from, "config.train.init_from")
    saved = saved_config(workdir)
    check_encoder(settings, saved, workdir)
    # Neither changes a parameter, but both may not fit this run's devices and data.
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
            _log.warning("%s has another %s: it starts at random", workdir, part)
            continue
        params[part] = _placed(taken, fresh)
        if part in stats:
            stats[part] = _placed(found["batch_stats"][part], stats[part])
    _log.info("parameters of step %d of %s", int(found["step"]), workdir)
    return state.replace(params=params, batch_stats=stats)


def _placed(values: PyTree[jax.Array], like: PyTree[jax.Array]) -> PyTree[jax.Array]:
    return jax.tree.map(lambda value, leaf: jax.device_put(value, leaf.sharding), values, like)
