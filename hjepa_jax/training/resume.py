"""Saving and resuming runs."""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Mapping
from typing import NamedTuple, NotRequired, SupportsFloat, TypedDict

import jax
from jaxtyping import PyTree

from hjepa_jax.config import Settings, may_change_on_resume, steps_in_epochs
from hjepa_jax.config.data import Data
from hjepa_jax.config.files import differences
from hjepa_jax.config.rules import best_direction
from hjepa_jax.config.training import Checkpoint
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.errors import CheckpointError, ConfigError
from hjepa_jax.methods.held import empty_held
from hjepa_jax.runtime import checkpoint_files, distributed
from hjepa_jax.runtime.checkpoint import Checkpointer, try_again
from hjepa_jax.storage.checkpoint_meta import LAYOUT, META, Meta
from hjepa_jax.storage.checksums import DamagedError, UnreadableError, read_meta
from hjepa_jax.training.prepare import PreparedRun
from hjepa_jax.training.saved_run import check_finite, config_in, epoch_steps, initial_state
from hjepa_jax.training.state import TrainState

# Scores of the online kNN, which exist only at some steps.
KNN = "online/knn_"


class DataIdentity(TypedDict):
    """What the numbers of batches count in, see `storage.checkpoint_meta.DataPosition`."""

    seed: int
    num_images: int
    batch_size: int
    fingerprint: str
    drop_last: NotRequired[bool]


def data_identity(data: Data, seed: int, source: ImageSource) -> DataIdentity:
    """Returns the identity of the training data; call once per run, since it reads all of it."""
    identity: DataIdentity = {
        "seed": seed,
        "num_images": len(source),
        "batch_size": data.batch_size,
        "fingerprint": source.fingerprint(),
    }
    # Checkpoints of versions that always dropped it do not say so.
    return identity if data.drop_last else {**identity, "drop_last": False}


class Restored(NamedTuple):
    """Where a run starts.

    Attributes:
      state: the newest checkpoint's, or a new one.
      skipped: numbers of the batches skipped before it.
      backend: `data.backend` of the saved run; 'auto' if there is none.
    """

    state: TrainState
    skipped: list[int]
    backend: str


def check_same_run(saved: Settings, settings: Settings, folder: pathlib.Path) -> None:
    """Rejects resuming a run with a different configuration, naming the fields that differ.

    `data.backend` may be 'auto' here, which takes the saved run's, or there, if the saved state was
    not trained by this program.

    Raises:
      CheckpointError: if a field that changes the state or the batches differs.
    """
    open_choice = "auto" in (saved.data.backend, settings.data.backend)

    def counts(name: str) -> bool:
        chosen_later = open_choice and name == "data.backend"
        return not chosen_later and not may_change_on_resume(name, settings)

    differing = differences(saved, settings, counts)
    if differing:
        raise CheckpointError(
            f"{folder} holds a run with a different configuration: {', '.join(differing)}. Use the "
            f"same values, or choose another --workdir."
        )


def restore_or_init(
    run: PreparedRun, checkpointer: Checkpointer, settings: Settings, identity: DataIdentity
) -> Restored:
    """Returns the newest checkpoint's state, or a new one.

    Raises:
      CheckpointError: if the checkpoint belongs to another configuration or other data.
    """
    here = {"the training data": dict(identity), "the checkpoints": checkpointer.steps()}
    distributed.check_same(
        here, f"give all of them the same data and a --workdir that all see ({checkpointer.folder})"
    )
    if not checkpointer.steps():
        return Restored(initial_state(settings, run), [], "auto")
    state, meta = _restore(run, checkpointer)
    if "imported" in meta["data"]:
        workdir = checkpointer.folder.parent
        raise CheckpointError(
            f"{workdir} holds weights of other software, after which no training goes on there: "
            f"choose another --workdir, and begin with them by config.train.init_from={workdir}."
        )
    check_finite(state, checkpointer.folder)
    saved = config_in(meta, checkpointer.folder)
    check_same_run(saved, settings, checkpointer.folder)
    skipped = meta["data"].get("skipped", [])
    here = {"step": int(state.step), "skipped": skipped, **identity}
    if {"skipped": [], **meta["data"]} != here:
        raise CheckpointError(
            f"the data of the run in {checkpointer.folder} was {meta['data']}, but here it is "
            f"{here}: give the same data, or choose another --workdir."
        )
    return Restored(state, list(skipped), saved.data.backend)


def _restore(run: PreparedRun, checkpointer: Checkpointer) -> tuple[TrainState, Meta]:
    """Returns the newest checkpoint's state; one of an earlier layout is completed.

    What it did not hold yet is random, and its next step draws it from its key.
    """
    whole = run.abstract_state

    def wanted(meta: Meta) -> PyTree[jax.ShapeDtypeStruct]:
        if meta.get("layout", 1) >= LAYOUT:
            return whole
        return {name: part for name, part in vars(whole).items() if name != "held"}

    state, meta = checkpointer.restore(wanted)
    if isinstance(state, dict):
        state = TrainState(**state, held=empty_held(whole.held))
    return state, meta


def kept_intervals(checkpoint: Checkpoint, epoch_steps: int) -> tuple[int, ...]:
    """Returns the numbers of steps at whose multiples checkpoints are saved and kept for good."""
    steps, epochs = checkpoint.keep_every_steps, checkpoint.keep_every_epochs
    found = () if steps is None else (steps,)
    return found if epochs is None else (*found, steps_in_epochs(epochs, epoch_steps))


def open_checkpoints(settings: Settings, workdir: pathlib.Path, epoch_steps: int) -> Checkpointer:
    """Opens the checkpoints of a workdir for saving; `epoch_steps` are the steps of an epoch."""
    folder = workdir / "checkpoints"
    return Checkpointer(
        folder,
        keep_last=settings.checkpoint.keep_last,
        keep_best=settings.checkpoint.keep_best,
        best_metric=settings.checkpoint.best_metric,
        best_mode=best_direction(settings),
        keep_every=kept_intervals(settings.checkpoint, epoch_steps),
        keep=_promised(folder),
    )


def _promised(folder: pathlib.Path) -> list[int]:
    """Returns the saved steps that the configuration of their time keeps for good.

    A run that is resumed with other intervals keeps them too.

    Raises:
      CheckpointError: if one is temporarily unreadable.
    """

    def promised(step: int) -> bool:
        try:
            meta = read_meta(folder / str(step), META)
            saved, epoch = config_in(meta, folder).checkpoint, epoch_steps(meta["data"])
        except (DamagedError, CheckpointError):
            return False  # whether it can be restored is found elsewhere
        return epoch is not None and any(
            step % interval == 0 for interval in kept_intervals(saved, epoch)
        )

    try:
        return [step for step in checkpoint_files.steps(folder) if promised(step)]
    except UnreadableError as error:
        raise CheckpointError(try_again(error)) from error


def ranking(
    settings: Checkpoint, metrics: Mapping[str, SupportsFloat], scores: Mapping[str, float]
) -> dict[str, float]:
    """Returns the metric that ranks a checkpoint; {} if there is none or it is not due.

    Raises:
      ConfigError: if config.checkpoint.best_metric is not a metric of this run.
    """
    name = settings.best_metric
    if not settings.keep_best:
        return {}
    if name.startswith(KNN):
        return {name: scores[name]} if name in scores else {}
    options = sorted(set(metrics) - {"failed_step"})
    if name not in options:
        nearest = difflib.get_close_matches(name, options, 1, 0.0)[0]
        raise ConfigError(
            f"config.checkpoint.best_metric is {name!r}, which is not one of {', '.join(options)}: "
            f"did you mean {nearest!r}?"
        )
    return {name: float(metrics[name])}


def save(
    settings: Settings,
    identity: DataIdentity,
    skipped: list[int],
    state: TrainState,
    to: Checkpointer,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Starts saving the state with its data position and configuration."""
    step = int(state.step)
    meta: Meta = {
        "config": settings.to_json(),
        "data": {"step": step, "skipped": list(skipped), **identity},
        "layout": LAYOUT,
    }
    to.save(step, state, meta, metrics)
