"""Energy surfaces over a plane, and orbits on them.

Of a classical system, the surface is H over a plane of phase space, and an orbit's height is its
energy: it stays level exactly if the integrator conserves the energy. Of a trained potential, the
surface is V over a plane of positions, on which the states roll.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, energy_of_state, split_state
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.dynamics.non_symplectic import explicit_euler_step, implicit_euler_step
from hjepa_jax.evaluation.physics.cases import Case, in_first_plane
from hjepa_jax.evaluation.physics.measure import Flow, rollout
from hjepa_jax.evaluation.report.maps import principal_axes

_GRID = 61
# Four turns of a unit oscillator.
_TIME = 25.0


@dataclasses.dataclass(frozen=True)
class Surface:
    """A height over a plane, and orbits on it.

    Attributes:
      x: [G], coordinates of the grid.
      y: [G].
      height: [G, G], y varying slowest.
      ceiling: largest height that is shown.
      orbits: positions (x, y, height) [T + 1, 3] by name.
      times: [T + 1].
      labels: of x, y and the height.
      title: says what one sees.
      note: what else one must know; '' = nothing.
    """

    x: np.ndarray
    y: np.ndarray
    height: np.ndarray
    ceiling: float
    orbits: dict[str, np.ndarray]
    times: np.ndarray
    labels: tuple[str, str, str]
    title: str
    note: str = ""


def phase_surface(name: str, case: Case, *, dt: float) -> Surface:
    """The energy of a classical system over its first conjugate plane.

    The orbits of leapfrog, explicit and implicit Euler start at one state. The surface ends at the
    largest energy whose level set is whole.

    Args:
      name: names the system in the title.
      case: the system.
      dt: step length of all three.
    """
    system, steps = case.system(), max(1, round(_TIME / dt))
    start = in_first_plane(jnp.array([case.start, 0.0]), case.dim)
    leapfrog = functools.partial(integrate, system, steps=1, dt=dt)
    methods: Mapping[str, Flow] = {
        "leapfrog": leapfrog,
        "explicit Euler": lambda z: explicit_euler_step(system, z, dt),
        "implicit Euler": lambda z: implicit_euler_step(system, z, dt),
    }
    orbits = {}
    for method, step in methods.items():
        path = jnp.asarray(rollout(step, start, lambda z: z, steps))
        plane = [path[:, 0], path[:, case.dim], energy_of_state(system, path)]
        orbit = np.stack([np.asarray(part) for part in plane], axis=-1)
        first, last = orbit[[0, -1], 2]
        end = f"to {last:.2g}" if np.isfinite(last) else "without bound"
        orbits[f"{method}: H from {first:.2g} {end}"] = orbit
    axis = np.linspace(-case.extent, case.extent, _GRID)
    q, p = np.meshgrid(axis, axis)
    states = in_first_plane(jnp.stack([jnp.asarray(q), jnp.asarray(p)], axis=-1), case.dim)
    height = np.asarray(energy_of_state(system, states))
    edges = np.concatenate([height[[0, -1]], height[:, [0, -1]].T])
    return Surface(
        axis,
        axis,
        height,
        float(edges.min()),
        orbits,
        dt * np.arange(steps + 1),
        ("position q", "momentum p", "energy H(q, p)"),
        f"{name}: three integrators on the energy surface {case.formula}, step {dt:g}",
    )


def potential_surface(
    name: str, hamiltonian: Hamiltonian, states: np.ndarray, *, dt: float, orbits: int = 6
) -> Surface:
    """A trained potential over the plane of the encoded positions' two principal directions.

    All other coordinates of q are at the mean of the states. Orbits are those of the first states
    in all dimensions, drawn where they are in the plane, at the height of the surface there.

    Args:
      name: names the run in the title.
      hamiltonian: its energy; of one that is not separable, H(q, 0) is shown.
      states: encoded states [B, 2d].
      dt: step length of the flow.
      orbits: number of orbits.
    """
    half = states.shape[1] // 2
    plane = principal_axes(states[:, :half].astype(np.float64), 2)
    axes = jnp.asarray(plane.axes, jnp.float32)
    mean = jnp.asarray(plane.mean, jnp.float32)
    method = "leapfrog" if hamiltonian.is_separable else "implicit_midpoint"
    steps = max(1, round(_TIME / dt))
    flow = jax.jit(
        lambda z: integrate(
            hamiltonian, z, method=method, steps=steps, dt=dt, return_trajectory=True
        )
    )
    inside = (split_state(flow(jnp.asarray(states[:orbits], jnp.float32)))[0] - mean) @ axes

    def height(place: jax.Array) -> jax.Array:
        there = mean + place @ axes.T
        return hamiltonian.energy(there, jnp.zeros_like(there))

    paths = np.concatenate([inside, height(inside)[..., None]], axis=-1)
    reach = float(jnp.abs(inside).max())
    x = np.linspace(-1.15 * reach, 1.15 * reach, _GRID)
    grid = jnp.stack(jnp.meshgrid(jnp.asarray(x), jnp.asarray(x)), axis=-1).astype(jnp.float32)
    shares = [f"{share:.0%}" for share in plane.shares]
    heights = np.asarray(height(grid))
    return Surface(
        x,
        x,
        heights,
        float(heights.max()),
        {f"image {i + 1}": paths[:, i] for i in range(paths.shape[1])},
        dt * np.arange(steps + 1),
        (
            f"q, 1st principal direction ({shares[0]})",
            f"q, 2nd ({shares[1]})",
            "V(q)" if hamiltonian.is_separable else "H(q, 0)",
        ),
        f"{name}: orbits of {paths.shape[1]} test images over the trained potential",
        "Surface: all other coordinates of q at the mean of the states (in brackets: share of the "
        "variance). Orbits: flow in all dimensions, drawn at their place in this plane.",
    )
