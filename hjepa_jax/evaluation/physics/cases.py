"""The classical systems that `hjepa physics` shows, and the maps that it compares on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hjepa_jax.dynamics import systems
from hjepa_jax.dynamics.hamiltonian import Hamiltonian, energy_of_state
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.dynamics.non_symplectic import (
    explicit_euler_step,
    implicit_euler_step,
    repeat,
    runge_kutta4_step,
)
from hjepa_jax.evaluation.physics.measure import MeasurementSetup, PhaseMap


class Case(NamedTuple):
    """A classical system and the part of its phase space that is shown.

    Attributes:
      system: returns the system.
      dim: d of its states [2d]; the first conjugate plane is shown, at the origin of the others.
      extent: largest |q| and |p| of initial conditions.
      radius: that of a disk of initial conditions, whose orbits all stay bounded.
      start: q of an initial condition at rest, whose orbit is large but bounded.
      formula: its energy in the first plane, for titles.
    """

    system: Callable[[], Hamiltonian]
    dim: int
    extent: float
    radius: float
    start: float
    formula: str


CASES = {
    "harmonic": Case(systems.harmonic_oscillator, 1, 2.0, 1.6, 1.0, "H = p²/2 + q²/2"),
    "pendulum": Case(systems.pendulum, 1, 2.0, 1.6, 1.0, "H = p²/2 + 1 − cos q"),
    "duffing": Case(systems.duffing, 1, 2.0, 1.6, 0.8, "H = p²/2 + q²/2 + q⁴/4"),
    "double_well": Case(systems.double_well, 1, 2.0, 1.6, 0.3, "H = p²/2 + (q² − 1)²/4"),
    # Inside the triangle, below the energy of escape.
    "henon_heiles": Case(systems.henon_heiles, 2, 0.4, 0.35, 0.2, "H = p²/2 + q²/2 at y = 0"),
}


def in_first_plane(plane: jax.Array, dim: int) -> jax.Array:
    """Returns states [..., 2 dim] from (q, p) [..., 2] in the first plane, 0 in the others."""
    states = jnp.zeros((*plane.shape[:-1], 2 * dim), plane.dtype)
    return states.at[..., 0].set(plane[..., 0]).at[..., dim].set(plane[..., 1])


def showcase(
    name: str = "pendulum",
    *,
    dt: float = 0.25,
    applications: int = 100,
    grid_size: int = 48,
    ensemble: int = 256,
) -> tuple[dict[str, PhaseMap], MeasurementSetup]:
    """A classical system under leapfrog and three integrators that are not symplectic.

    One application covers a time of 4 * dt. Leapfrog, Runge-Kutta 4 and explicit Euler have equal
    cost, four force evaluations: four steps of leapfrog (the next application reuses the fifth
    force) or of explicit Euler, or one of Runge-Kutta. Four steps of implicit Euler, its
    counterpart, take several times as many.

    Args:
      name: a key of CASES.
      dt: step length of leapfrog.
      applications: number of applications of each map.
      grid_size: initial conditions per side of the grid.
      ensemble: number of states of the ensemble, in the disk of the case.
    """
    case = CASES[name]
    system = case.system()
    energy = functools.partial(energy_of_state, system)
    leapfrog = functools.partial(integrate, system, method="leapfrog", steps=4, dt=dt)

    def both(step: Callable[..., jax.Array], h: float, times: int) -> PhaseMap:
        """Returns `times` steps of length h, and of length -h, as a map."""
        return PhaseMap(
            lambda z: repeat(lambda x: step(system, x, h), z, times),
            lambda z: repeat(lambda x: step(system, x, -h), z, times),
            energy,
        )

    maps = {
        "leapfrog": PhaseMap(leapfrog, functools.partial(leapfrog, direction=-1), energy),
        "Runge-Kutta 4": both(runge_kutta4_step, 4 * dt, 1),
        "explicit Euler": both(explicit_euler_step, dt, 4),
        "implicit Euler": both(implicit_euler_step, dt, 4),
    }
    radius_key, angle_key = jax.random.split(jax.random.key(0))
    radius = case.radius * jnp.sqrt(jax.random.uniform(radius_key, (ensemble, 1)))
    angle = 2 * jnp.pi * jax.random.uniform(angle_key, (ensemble, 1))
    disk = jnp.concatenate([radius * jnp.cos(angle), radius * jnp.sin(angle)], axis=-1)
    unit = case.radius / 1.6
    setup = MeasurementSetup(
        states=in_first_plane(disk, case.dim),
        center=jnp.zeros(2 * case.dim),
        extent=case.extent,
        grid_size=grid_size,
        # Off center, where the period depends on the energy, the flow shears the loop.
        blob_offset=(unit, 0.0),
        blob_radius=0.3 * unit,
        applications=applications,
    )
    return maps, setup
