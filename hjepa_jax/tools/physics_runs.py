"""Trained runs for the pictures of `hjepa physics`: their states, energies, and checkpoints."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hjepa_jax.data.pipeline import eval_batches
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.dynamics.hamiltonian import Hamiltonian, from_energy, join_state
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.distribution.figures import VolumeCurve
from hjepa_jax.evaluation.distribution.norms import parts_of
from hjepa_jax.evaluation.distribution.volume import volume
from hjepa_jax.evaluation.physics.measure import (
    MeasurementSetup,
    PhaseMap,
    predictor_maps,
    setup_of_states,
)
from hjepa_jax.loading import LoadedRun, load_run
from hjepa_jax.methods.base import HasFlow
from hjepa_jax.methods.hjepa import HJEPA
from hjepa_jax.methods.hjepa_settings import Loss
from hjepa_jax.methods.regularizers.floors import Floors
from hjepa_jax.models.base import applied
from hjepa_jax.models.predictor import HamiltonianPredictor
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.training.saved_run import open_saved

# Test images whose states are shown, and at each of a run's checkpoints.
_STATES = 1500
_STATES_PER_CHECKPOINT = 512


def encoded_states(run: LoadedRun, num: int) -> np.ndarray:
    """Returns the states [num, 2d] of the first test images of a run's own data.

    Those of a run with a flow are what the flow acts on: the projector's output, if there is one.
    """
    source = open_split(run.settings, "test")
    images: list[np.ndarray] = []
    with eval_batches(run.settings.data, source, min(num, len(source))) as batches:
        for batch in batches:
            images.append(batch["image"][batch["mask"]])
            if sum(map(len, images)) >= num:
                break
    states = run.encode(np.concatenate(images)[:num])
    return run.project(states) if isinstance(run.run.method, HasFlow) else states


@dataclasses.dataclass(frozen=True)
class ShownRun:
    """A run that pictures show: its name, its folder, and the loaded run."""

    name: str
    workdir: pathlib.Path
    run: LoadedRun

    @functools.cached_property
    def states(self) -> np.ndarray:
        """States of at most 1500 test images, [B, D]."""
        return encoded_states(self.run, _STATES)

    @property
    def split_qp(self) -> bool:
        """Whether the states have halves q and p."""
        return self.run.settings.model.split_qp

    @property
    def hamiltonian(self) -> Hamiltonian | None:
        """The trained energy; None for a run without one."""
        module, variables = self.run.predictor
        if not isinstance(module, HamiltonianPredictor):
            return None
        scale = self.run.residual_scale

        def energy(q: jax.Array, p: jax.Array) -> jax.Array:
            return applied(module, variables, join_state(q, p), scale, method="energy")

        return from_energy(energy, is_separable=module.hamiltonian != "learnable")


def shown_runs(workdirs: Sequence[pathlib.Path]) -> list[ShownRun]:
    """Loads runs.

    Raises:
      UserError: if there is no run, or names are not distinct.
    """
    names = [path.name for path in workdirs]
    if len(set(names)) < len(names) or not names:
        raise UserError(f"the runs need distinct names, got {names}.")
    return [ShownRun(path.name, path, load_run(path)) for path in workdirs]


def maps_of_runs(
    runs: Sequence[ShownRun], *, num_states: int = 256, applications: int = 32
) -> tuple[dict[str, PhaseMap], MeasurementSetup]:
    """Returns the predictors of runs as maps, and a setup around the first run's encoded states.

    Args:
      runs: an HJEPA run, then the runs to compare it with, such as its matched MLP.
      num_states: number of test images to encode.
      applications: number of applications of the map in a rollout.

    Raises:
      UserError: if a run has no predictor, or state dimensions differ.
    """
    first = runs[0].run
    predictors: dict[str, tuple[nn.Module, Mapping[str, PyTree]]] = {}
    for one in runs:
        module, variables = one.run.predictor
        if module is None:
            raise UserError(
                f"the run {one.name} has no predictor: give runs of config.method='hjepa'."
            )
        width, expected = (loaded.run.method.shape.dim for loaded in (one.run, first))
        if width != expected:
            raise UserError(
                f"the states of {one.name} have width {width}, those of the first "
                f"run {expected}: compare runs with the same encoder."
            )
        predictors[one.name] = module, variables
    maps = predictor_maps(predictors, first.residual_scale)
    states = encoded_states(first, num_states)
    return maps, setup_of_states(jnp.asarray(states), applications=applications)


def volume_curves(shown: ShownRun) -> list[VolumeCurve]:
    """Returns the volume of each part of a run's states at all of its checkpoints."""
    method = shown.run.run.method
    options = method.options if isinstance(method, HJEPA) else Loss()
    floored = isinstance(method, HJEPA) and isinstance(method.regularizer, Floors)
    floors = {"q": options.q_logdet_floor, "p": options.p_logdet_floor} if floored else {}
    checkpointer = open_saved(shown.run.settings, shown.workdir)
    steps = checkpointer.steps()
    checkpointer.close()
    logged = read_metrics(shown.workdir)
    found: dict[str, list] = {}
    for step in steps:
        states = encoded_states(load_run(shown.workdir, step=step), _STATES_PER_CHECKPOINT)
        for name, part in parts_of(states, shown.split_qp).items():
            if name != "z" or not shown.split_qp:
                one = volume(part, options.logdet_dim, options.logdet_eps)
                found.setdefault(name, []).append(one)
    return [
        VolumeCurve(
            part,
            logged.get(f"state/{part}_logdet"),
            steps,
            volumes,
            floors.get(part),
            options.logdet_eps,
        )
        for part, volumes in found.items()
    ]
