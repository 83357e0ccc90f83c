"""Applies the diagnostics of `evaluation.physics` to trained predictors."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hjepa_jax.data.pipeline import eval_batches
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.physics.measure import (
    MeasurementSetup,
    PhaseMap,
    predictor_maps,
    setup_of_states,
)
from hjepa_jax.loading import LoadedRun, load_run


def encoded_states(run: LoadedRun, num: int) -> np.ndarray:
    """Returns the states [num, 2d] of the first test images of a run's own data."""
    source = open_split(run.settings, "test")
    images: list[np.ndarray] = []
    with eval_batches(run.settings.data, source, min(num, len(source))) as batches:
        for batch in batches:
            images.append(batch["image"][batch["mask"]])
            if sum(map(len, images)) >= num:
                break
    return run.encode(np.concatenate(images)[:num])


def maps_of_runs(
    workdirs: Sequence[pathlib.Path], *, num_states: int = 256, applications: int = 32
) -> tuple[dict[str, PhaseMap], MeasurementSetup]:
    """Returns the predictors of runs as maps, and a setup around the first run's encoded states.

    Args:
      workdirs: an HJEPA run, then the runs to compare it with, such as its matched MLP.
      num_states: number of test images to encode.
      applications: number of applications of the map in a rollout.

    Raises:
      UserError: if there is no run, a run has no predictor, or state dimensions differ.
    """
    runs = {path.name: load_run(path) for path in workdirs}
    if len(runs) < len(workdirs) or not runs:
        raise UserError(f"the runs need distinct names, got {[p.name for p in workdirs]}.")
    predictors: dict[str, tuple[nn.Module, Mapping[str, PyTree]]] = {}
    for name, run in runs.items():
        module, variables = run.predictor
        if module is None:
            raise UserError(f"the run {name} has no predictor: give runs of config.method='hjepa'.")
        predictors[name] = module, variables
    first = next(iter(runs.values()))
    states = encoded_states(first, num_states)
    for name, run in runs.items():
        width = run.encode(np.zeros((1, 8, 8, 3), np.uint8)).shape[1]
        if width != states.shape[1]:
            raise UserError(
                f"the states of {name} have width {width}, those of the first run "
                f"{states.shape[1]}: compare runs with the same encoder."
            )
    maps = predictor_maps(predictors, first.residual_scale)
    return maps, setup_of_states(jnp.asarray(states), applications=applications)
