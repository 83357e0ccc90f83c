"""Converts a checkpoint of the published PyTorch code to a checkpoint and configuration."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hjepa_jax.config import Settings
from hjepa_jax.config.checks import typed
from hjepa_jax.errors import CheckpointError
from hjepa_jax.interop.imported_run import fresh_run, write_run
from hjepa_jax.interop.published.translate import config_from_torch
from hjepa_jax.interop.torch_file import load_torch_file
from hjepa_jax.interop.torch_names import (
    encoder_from_torch,
    listed,
    predictor_from_torch,
    projector_from_torch,
    unwrapped,
)
from hjepa_jax.methods.hamsigreg_settings import HamSIGRegSection
from hjepa_jax.models.resnet import ResNetSection
from hjepa_jax.runtime.checkpoint_arrays import mismatches, named, summary
from hjepa_jax.storage.schema import Anything, Maybe, Table, Whole, described, readable, require
from hjepa_jax.training.state import TrainState

_PARTS = ("encoder", "projector", "predictor", "regularizer")
# Constants and counters that the published regularizers save with the spectrum's parameters.
_BUFFERS = frozenset(
    [
        "sqrt_diag",
        "lam_rfft_base",
        "lam_grid_base",
        "sqrt_lam_rfft",
        "bin_idx_2d",
        "loglam0_2d",
        "alpha",
        "beta",
        "global_step",
        "t",
        "phi",
        "weights",
    ]
)
_KEYS = {"config", "epoch", "global_step", *_PARTS, "optimizer", "scheduler"}


class Imported(NamedTuple):
    """A converted checkpoint.

    Attributes:
      settings: the settings, with the parity flags of its script.
      params, batch_stats: trees as in TrainState.
      spectral: parameters of a learnable spectrum, {} if there is none.
      step: the global step (0 if the checkpoint has none).
      ignored: names of entries that do not affect the result.
    """

    settings: Settings
    params: dict[str, PyTree[np.ndarray]]
    batch_stats: dict[str, PyTree[np.ndarray]]
    spectral: dict[str, np.ndarray]
    step: int
    ignored: list[str]


def load_torch(path: pathlib.Path) -> dict[str, object]:
    """Reads a torch file without torch, and without executing anything in it.

    Raises:
      CheckpointError: if the file is missing, damaged or not a checkpoint of the published code.
    """
    try:
        loaded = load_torch_file(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a PyTorch checkpoint: {error}") from error
    if not isinstance(loaded, Mapping) or not {"config", "encoder"} <= set(loaded):
        raise CheckpointError(
            f"{path} is not a checkpoint of the published code: it needs 'config' and 'encoder'."
        )
    return dict(loaded)


def translate(checkpoint: Mapping[str, object]) -> Imported:
    """Translates a loaded checkpoint.

    Raises:
      CheckpointError: naming entries that are missing, unknown, not tensors or not finite.
    """
    unknown = sorted(readable(key) for key in set(checkpoint) - _KEYS)
    if unknown:
        raise CheckpointError(f"the checkpoint has unknown entries: {listed(unknown)}.")
    try:
        step = _step(checkpoint.get("global_step"))
        state = {part: _state(checkpoint, part) for part in _PARTS}
        config = require(checkpoint["config"], Table(Anything()), "the checkpoint", "config")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    settings = typed(config_from_torch(config))
    resnet = settings.section(ResNetSection)
    try:
        encoder, encoder_stats, ignored = encoder_from_torch(
            state["encoder"], head=resnet.head, token_layer=resnet.token_layer
        )
        projector, projector_stats, more = projector_from_torch(state["projector"])
        predictor, last = predictor_from_torch(state["predictor"])
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    spectral, rest = _spectrum(
        state["regularizer"], settings.section(HamSIGRegSection).kind == "learnable"
    )
    params = {"encoder": encoder, "projector": projector, "predictor": predictor}
    stats = {"encoder": encoder_stats, "projector": projector_stats}
    _check_finite({**params, "running statistics": stats, "spectrum": spectral})
    return Imported(
        settings,
        {part: tree for part, tree in params.items() if tree},
        {part: tree for part, tree in stats.items() if tree},
        spectral,
        step,
        [*ignored, *more, *last, *rest],
    )


def _check_finite(trees: PyTree[np.ndarray]) -> None:
    """Raises a CheckpointError that names the first weights not finite in float32."""
    for name, leaf in named(trees).items():
        with np.errstate(over="ignore"):
            finite = np.isfinite(np.asarray(leaf, np.float32)).all()
        if not finite:
            raise CheckpointError(f"the checkpoint holds numbers that are not finite ({name}).")


def _step(value: object) -> int:
    """Returns the global step, 0 if there is none."""
    if isinstance(value, np.ndarray) and value.shape == () and value.dtype.kind in "iu":
        value = int(value)
    return require(
        0 if value is None else value, Whole(0, 2**31 - 1), "the checkpoint", "global_step"
    )


def _state(checkpoint: Mapping[str, object], part: str) -> dict[str, np.ndarray]:
    """Returns the state of a part as arrays by name, empty if there is none.

    Raises:
      ValueError: naming an entry that is not a tensor.
    """
    found = require(checkpoint.get(part), Maybe(Table(Anything())), "the checkpoint", part) or {}
    state: dict[str, np.ndarray] = {}
    for name, value in found.items():
        if not isinstance(value, (np.ndarray, np.generic)):
            raise ValueError(
                f"the entry '{name}' of the {part} is not a tensor but {described(value)}."
            )
        state[name] = np.asarray(value)
    return dict(unwrapped(state))


def _spectrum(
    state: Mapping[str, np.ndarray], learnable: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Splits a regularizer's state into the spectrum's parameters and ignored names."""
    wanted = {"learnable_h.raw_span", "learnable_h.raw_shape"} if learnable else set()
    faults = {
        "missing": sorted(wanted - set(state)),
        "unknown": sorted(
            name for name in state if name not in wanted and name.split(".")[-1] not in _BUFFERS
        ),
    }
    if any(faults.values()):
        told = "; ".join(f"{kind}: {listed(names)}" for kind, names in faults.items() if names)
        raise CheckpointError(f"the torch state of the regularizer does not match; {told}.")
    spectrum = {name.split(".")[-1]: state[name] for name in sorted(wanted)}
    return spectrum, sorted(set(state) - wanted)


def save_imported(imported: Imported, workdir: pathlib.Path) -> TrainState:
    """Writes `config.json` and a checkpoint that evaluation and analysis can open.

    The optimizer state is new, since published checkpoints do not contain one.

    Returns:
      The saved state.

    Raises:
      CheckpointError: if the workdir already has checkpoints, or shapes differ.
    """
    settings = imported.settings
    fresh = fresh_run(settings, workdir)
    found = {"params": imported.params, "batch_stats": imported.batch_stats}
    wanted = {"params": fresh.params, "batch_stats": fresh.batch_stats}
    if imported.spectral:
        found["spectral"], wanted["spectral"] = imported.spectral, fresh.method_state["params"]
    clauses = mismatches(found, wanted, "the checkpoint")
    if clauses:
        raise CheckpointError(
            f"{summary(clauses)}: the weights do not match the 'config' saved with them."
        )

    def cast(tree: PyTree[np.ndarray]) -> PyTree[jax.Array]:
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)

    method_state = fresh.method_state
    if imported.spectral:
        method_state = {**method_state, "params": cast(imported.spectral)}
    state = fresh.replace(
        step=jnp.asarray(imported.step, jnp.int32),
        params=cast(imported.params),
        batch_stats=cast(imported.batch_stats),
        method_state=method_state,
    )
    write_run(state, settings, workdir)
    return state
