"""Trajectories of encoded images under a learned Hamiltonian flow, seen in planes of q and p."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hjepa_jax.config.sections.projection import evaluates_projection
from hjepa_jax.evaluation.report.maps import principal_axes
from hjepa_jax.methods.base import HasFlow, Method
from hjepa_jax.models.base import applied
from hjepa_jax.training.prepare import make_project
from hjepa_jax.training.setup import StepSetup

APPLICATIONS = 32


class Flow(NamedTuple):
    """A learned flow.

    Attributes:
      project: evaluated states [..., D] -> those of the flow, which the projector makes of them.
      step: (states [..., 2d], direction +1 or -1) -> states after one application.
      energy: states [..., 2d] -> [...].
      duration: time of one application.
    """

    project: Callable[[np.ndarray], jax.Array]
    step: Callable[[jax.Array | np.ndarray, float], jax.Array]
    energy: Callable[[jax.Array | np.ndarray], jax.Array]
    duration: float


def flow_of(
    method: Method, setup: StepSetup, state: Mapping[str, PyTree[jax.Array]]
) -> Flow | None:
    """Returns the Hamiltonian flow of a checkpoint; None for a method without one.

    Args:
      method: the method, with the length of the training's epochs.
      setup: gives the projector.
      state: 'step', 'params' and 'batch_stats' of the checkpoint.
    """
    if not isinstance(method, HasFlow) or method.flow_time is None:
        return None
    predictor, time = method.predictor, method.flow_time
    # On the host, since only one of several processes draws.
    variables = {"params": jax.device_get(state["params"].get("predictor", {}))}
    scale = method.residual_scale(jnp.asarray(max(int(state["step"]) - 1, 0)))
    project = jnp.asarray
    if not evaluates_projection(setup.settings):
        project = make_project(setup, state["params"], state["batch_stats"])

    @jax.jit
    def flow(states: jax.Array | np.ndarray, direction: float) -> jax.Array:
        return applied(predictor, variables, states, direction, scale)

    @jax.jit
    def energy(states: jax.Array | np.ndarray) -> jax.Array:
        return applied(predictor, variables, states, scale, method="energy")

    return Flow(project, flow, energy, time)


@dataclasses.dataclass(frozen=True)
class HalfPicture:
    """One half of the states (q or p) on the first two principal axes of many images' states.

    Attributes:
      trajectories: [T, Q, 2].
      cloud: [M, 2], the states that define the axes.
      shares: [2], the shares of variance of the axes.
    """

    trajectories: np.ndarray
    cloud: np.ndarray
    shares: np.ndarray


@dataclasses.dataclass(frozen=True)
class FlowPicture:
    """Trajectories of Q states, backward and forward in time from the encoded images at time 0.

    Attributes:
      times: [T].
      energies: [T, Q].
      q, p: the halves of the states.
    """

    times: np.ndarray
    energies: np.ndarray
    q: HalfPicture
    p: HalfPicture


def trajectories(flow: Flow, states: np.ndarray, applications: int) -> np.ndarray:
    """Returns states [2 * applications + 1, Q, 2d] in order of time; the middle ones are given."""
    halves: list[list[np.ndarray]] = []
    for direction in (-1.0, 1.0):
        half = [np.asarray(states)]
        for _ in range(applications):
            half.append(np.asarray(flow.step(half[-1], direction)))
        halves.append(half)
    return np.stack([*halves[0][:0:-1], *halves[1]])


def _half(paths: np.ndarray, cloud: np.ndarray) -> HalfPicture:
    plane = principal_axes(cloud, 2)
    return HalfPicture(plane.project(paths), plane.project(cloud), plane.shares)


def flow_picture(
    flow: Flow, samples: np.ndarray, cloud: np.ndarray, applications: int = APPLICATIONS
) -> FlowPicture:
    """Follows states backward and forward in time.

    Args:
      flow: the learned flow.
      samples: evaluated states [Q, D] to follow.
      cloud: evaluated states [M, D] of many images, which define the principal axes.
      applications: number of applications of the flow in each direction.
    """
    samples, cloud = (np.asarray(flow.project(states)) for states in (samples, cloud))
    paths = trajectories(flow, samples, applications)
    half = samples.shape[1] // 2
    return FlowPicture(
        times=flow.duration * np.arange(-applications, applications + 1),
        energies=np.stack([np.asarray(flow.energy(states)) for states in paths]),
        q=_half(paths[..., :half], cloud[:, :half]),
        p=_half(paths[..., half:], cloud[:, half:]),
    )
