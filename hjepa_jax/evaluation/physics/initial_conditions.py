"""Reversal error and energy drift of every integrator, over a plane of initial conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, energy_of_state
from hjepa_jax.dynamics.integrators import INTEGRATORS, Integrator, integrate
from hjepa_jax.dynamics.non_symplectic import (
    explicit_euler_step,
    implicit_euler_step,
    repeat,
    runge_kutta4_step,
)

# The tightest tolerance: above it, the solver's error would look like the method's.
_SOLVED = {"midpoint_tolerance": 0.0, "midpoint_iterations": 200}
# Share of the steps, the last ones, whose mean energy the drift compares with that of the start: a
# symplectic integrator's energy oscillates, and its value at one time would show the phase.
_LATE = 0.5


@dataclasses.dataclass(frozen=True)
class Window:
    """A conjugate plane of initial conditions: states center + q q_axis + p p_axis.

    Attributes:
      center: [2d].
      q_axis: direction of the first coordinate, [2d].
      p_axis: that of the second, [2d].
      q_extent: largest |q|.
      p_extent: largest |p|.
      q_label: what q is.
      p_label: what p is.
    """

    center: jax.Array
    q_axis: jax.Array
    p_axis: jax.Array
    q_extent: float
    p_extent: float
    q_label: str = "initial position q"
    p_label: str = "initial momentum p"

    def states(self, size: int) -> jax.Array:
        """Returns a grid of initial conditions [size^2, 2d], p varying slowest."""
        axis = jnp.linspace(-1.0, 1.0, size)
        p, q = jnp.meshgrid(self.p_extent * axis, self.q_extent * axis, indexing="ij")
        return (
            self.center + q.reshape(-1, 1) * self.q_axis + p.reshape(-1, 1) * self.p_axis
        ).astype(self.center.dtype)


class ConditionMap(NamedTuple):
    """One integrator on a grid of initial conditions [G, G], p varying slowest.

    Attributes:
      reversal: |back - start| / (1 + |start|) after all steps forward and as many backward.
      drift: mean of H over the last half of the steps, minus H at the start.

    Both are not finite where the integrator diverged.
    """

    reversal: np.ndarray
    drift: np.ndarray


class ConditionMaps(NamedTuple):
    """All integrators on one window.

    Attributes:
      window: the plane.
      energy: energies [G, G] of the initial conditions.
      maps: by the name of the integrator.
      dt: step length.
      steps: number of steps.
    """

    window: Window
    energy: np.ndarray
    maps: dict[str, ConditionMap]
    dt: float
    steps: int


# (states [..., 2d], step length) -> states after a step.
Step = Callable[[jax.Array, jax.Array], jax.Array]


def steps_of(hamiltonian: Hamiltonian) -> dict[str, Step]:
    """Returns one step of every integrator, symplectic ones first.

    Those that are symplectic on separable Hamiltonians alone are left out for others.
    """

    def symplectic(method: Integrator) -> Step:
        return lambda z, h: integrate(hamiltonian, z, method=method, steps=1, dt=h, **_SOLVED)

    found = {
        method: symplectic(method)
        for method in INTEGRATORS
        if hamiltonian.is_separable or method == "implicit_midpoint"
    }
    return found | {
        "runge_kutta4": lambda z, h: runge_kutta4_step(hamiltonian, z, h),
        "explicit_euler": lambda z, h: explicit_euler_step(hamiltonian, z, h),
        "implicit_euler": lambda z, h: implicit_euler_step(hamiltonian, z, h),
    }


def _there_and_back(
    step: Step, hamiltonian: Hamiltonian, z: jax.Array, dt: float, steps: int
) -> ConditionMap:
    """Returns the reversal errors [B] and drifts [B] of states [B, 2d]."""
    late = max(1, round(_LATE * steps))

    @jax.jit
    def measure(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = jnp.asarray(dt, start.dtype)

        def observed(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            x = step(x, h)
            return x, energy_of_state(hamiltonian, x)

        there = repeat(lambda x: step(x, h), start, steps - late)
        there, energies = jax.lax.scan(observed, there, None, length=late)
        back = repeat(lambda x: step(x, -h), there, steps)
        error = jnp.linalg.norm(back - start, axis=-1) / (1 + jnp.linalg.norm(start, axis=-1))
        return error, jnp.mean(energies, axis=0) - energy_of_state(hamiltonian, start)

    return ConditionMap(*map(np.asarray, measure(z)))


def condition_maps(
    hamiltonian: Hamiltonian, window: Window, *, dt: float, steps: int, size: int
) -> ConditionMaps:
    """Runs every integrator from a grid of initial conditions forward and back.

    Args:
      hamiltonian: the system.
      window: the plane of initial conditions; its dtype is that of the arithmetic.
      dt: step length, the same for all.
      steps: number of steps.
      size: G, initial conditions per side.
    """
    states = window.states(size)
    square = (size, size)
    found = {}
    for name, step in steps_of(hamiltonian).items():
        one = _there_and_back(step, hamiltonian, states, dt, steps)
        found[name] = ConditionMap(one.reversal.reshape(square), one.drift.reshape(square))
    energy = np.asarray(energy_of_state(hamiltonian, states)).reshape(square)
    return ConditionMaps(window, energy, found, dt, steps)
