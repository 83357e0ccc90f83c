"""Conservation by maps of phase space: energy, reversibility, volume, and the symplectic form.

A map is a pair of functions, such as a numerical integrator or a trained predictor. `figures.py`
plots the measurements.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from hjepa_jax.dynamics import geometry
from hjepa_jax.dynamics.hamiltonian import split_state
from hjepa_jax.models.base import applied
from hjepa_jax.models.predictor import HamiltonianPredictor, Scalar

Flow = Callable[[jax.Array], jax.Array]


class PhaseMap(NamedTuple):
    """A map of states and its intended inverse.

    Attributes:
      forward, backward: [..., 2d] -> [..., 2d], differentiable in forward mode.
      energy: [..., 2d] -> [...], the energy that should be conserved; None = not measured.
    """

    forward: Flow
    backward: Flow
    energy: Flow | None = None


@dataclasses.dataclass(frozen=True)
class MeasurementSetup:
    """Initial conditions and duration of the measurements.

    Attributes:
      states: an ensemble [B, 2d]; energies, covariances and reversal are measured on it.
      center: a state [2d]; the grid and the blob lie around it, in one conjugate plane.
      plane: index i of that plane (q_i, p_i).
      extent: half the side of the grid of initial conditions.
      grid_size: grid points per side.
      blob_offset: position in the plane, relative to the center, of a loop of initial conditions.
      blob_radius: radius of the loop.
      blob_points: number of points on the loop.
      applications: number of times that a map is applied.
      jacobian_states: number of states of the ensemble whose Jacobian is computed.
    """

    states: jax.Array
    center: jax.Array
    plane: int = 0
    extent: float = 2.0
    grid_size: int = 48
    blob_offset: tuple[float, float] = (0.0, 0.0)
    blob_radius: float = 0.3
    blob_points: int = 1024
    applications: int = 100
    jacobian_states: int = 256

    def _in_plane(self, q: jax.Array, p: jax.Array) -> jax.Array:
        """States [N, 2d] at the center, displaced by q [N] and p [N] in the plane."""
        half = self.center.shape[-1] // 2
        out = jnp.broadcast_to(self.center, (q.size, 2 * half))
        return out.at[:, self.plane].add(q).at[:, half + self.plane].add(p)

    def grid(self) -> jax.Array:
        """Returns initial conditions [grid_size^2, 2d], p varying slowest."""
        axis = jnp.linspace(-self.extent, self.extent, self.grid_size)
        p, q = jnp.meshgrid(axis, axis, indexing="ij")
        return self._in_plane(q.ravel(), p.ravel())

    def loop(self) -> jax.Array:
        """Returns a closed loop of initial conditions [blob_points, 2d]."""
        angle = 2 * jnp.pi * jnp.arange(self.blob_points) / self.blob_points
        q, p = self.blob_offset
        radius = self.blob_radius
        return self._in_plane(q + radius * jnp.cos(angle), p + radius * jnp.sin(angle))

    def project(self, z: jax.Array) -> jax.Array:
        """Returns (q_i, p_i) [..., 2] of states [..., 2d]."""
        half = self.center.shape[-1] // 2
        return z[..., jnp.array([self.plane, half + self.plane])]


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One map on one setup, T = applications; energies are None for a map without one.

    Attributes:
      energy: energies of the ensemble [T+1, B].
      grid_drift: largest |H_t - H_0| over the run for every grid point [grid_size, grid_size].
      path: the ensemble in the plane [T+1, B, 2].
      reversal_times: numbers of applications [R].
      reversal_error: |b(f(z)) - z| / (1 + |z|) after as many applications forward and back [R, B].
      defect: symplectic defect of one application at some states [J].
      log_volume: log |det J| of one application at the same states [J].
      blob: the loop in the plane [T+1, P, 2].
      action: its Poincare invariant, the sum over conjugate planes of the area [T+1].
      variance: trace of the ensemble's covariance [T+1].
      participation: participation ratio tr(C)^2 / tr(C^2) of it [T+1].
    """

    energy: np.ndarray | None
    grid_drift: np.ndarray | None
    path: np.ndarray
    reversal_times: np.ndarray
    reversal_error: np.ndarray
    defect: np.ndarray
    log_volume: np.ndarray
    blob: np.ndarray
    action: np.ndarray
    variance: np.ndarray
    participation: np.ndarray


def rollout(
    step: Flow, z: jax.Array, observe: Callable[[jax.Array], PyTree[jax.Array]], times: int
) -> PyTree[np.ndarray]:
    """Returns observe(z_t) for t = 0 .. times, stacked, compiled as one scan."""

    @jax.jit
    def run(start: jax.Array) -> PyTree[jax.Array]:
        def body(x: jax.Array, _: None) -> tuple[jax.Array, PyTree[jax.Array]]:
            return step(x), observe(x)

        last, seen = jax.lax.scan(body, start, None, length=times)
        return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), seen, observe(last))

    return jax.tree.map(np.asarray, run(z))


def _spread(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Trace and participation ratio of the covariance of z [B, 2d], through its Gram matrix."""
    centered = z - jnp.mean(z, axis=0)
    gram = centered @ centered.T / (z.shape[0] - 1)
    trace = jnp.trace(gram)
    return trace, trace**2 / jnp.sum(gram**2)


def _action(loop: jax.Array) -> jax.Array:
    """Sum over conjugate planes of the area inside the closed polygon loop [P, 2d]."""
    q, p = split_state(loop)
    return 0.5 * jnp.sum(q * jnp.roll(p, -1, axis=0) - jnp.roll(q, -1, axis=0) * p)


def _reversal(phase: PhaseMap, states: jax.Array, times: np.ndarray) -> np.ndarray:
    @jax.jit
    def error(count: jax.Array) -> jax.Array:
        there = jax.lax.fori_loop(0, count, lambda _, z: phase.forward(z), states)
        back = jax.lax.fori_loop(0, count, lambda _, z: phase.backward(z), there)
        size = jnp.linalg.norm(states, axis=-1)
        return jnp.linalg.norm(back - states, axis=-1) / (1 + size)

    return np.stack([np.asarray(error(jnp.asarray(n))) for n in times])


def _jacobians(flow: Flow, states: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    @jax.jit
    def measure(states: jax.Array) -> tuple[jax.Array, jax.Array]:
        def one(z: jax.Array) -> tuple[jax.Array, jax.Array]:
            matrix = geometry.jacobian(flow, z)
            return geometry.defect_of_jacobian(matrix), jnp.linalg.slogdet(matrix)[1]

        return jax.lax.map(one, states)

    defect, log_volume = measure(states)
    return np.asarray(defect), np.asarray(log_volume)


def measure(phase: PhaseMap, setup: MeasurementSetup) -> Measurement:
    """Measures one map; the precision is that of setup.states (float64 resolves 1e-16)."""
    times = setup.applications
    doublings = [2**k for k in range(times.bit_length()) if 2**k < times]
    reversal_times = np.array([*doublings, times])

    def observe(
        z: jax.Array,
    ) -> tuple[jax.Array | None, jax.Array, tuple[jax.Array, jax.Array]]:
        energy = None if phase.energy is None else phase.energy(z)
        return energy, setup.project(z), _spread(z)

    energy, path, (variance, participation) = rollout(phase.forward, setup.states, observe, times)
    grid_drift = None
    if phase.energy is not None:
        levels = rollout(phase.forward, setup.grid(), phase.energy, times)
        grid_drift = np.max(np.abs(levels - levels[0]), axis=0)
        grid_drift = grid_drift.reshape(setup.grid_size, setup.grid_size)
    blob, action = rollout(
        phase.forward, setup.loop(), lambda z: (setup.project(z), _action(z)), times
    )
    defect, log_volume = _jacobians(phase.forward, setup.states[: setup.jacobian_states])
    reversal_error = _reversal(phase, setup.states, reversal_times)
    return Measurement(
        energy=energy,
        grid_drift=grid_drift,
        path=path,
        reversal_times=reversal_times,
        reversal_error=reversal_error,
        defect=defect,
        log_volume=log_volume,
        blob=blob,
        action=action,
        variance=variance,
        participation=participation,
    )


def compare_maps(maps: Mapping[str, PhaseMap], setup: MeasurementSetup) -> dict[str, Measurement]:
    """Measures every map on the same setup.

    Raises:
      ValueError: no maps, states and center of different or odd width, or a plane out of range.
    """
    width = setup.center.shape[-1]
    if not maps or width % 2 or setup.states.shape[-1] != width:
        raise ValueError(
            f"compare_maps needs at least one map and states of one even width, not "
            f"{len(maps)} maps, states of width {setup.states.shape[-1]}, a center of {width}."
        )
    if not 0 <= setup.plane < width // 2 or setup.applications < 1:
        raise ValueError(
            f"compare_maps needs a plane below {width // 2} and at least one application, not "
            f"plane {setup.plane} and {setup.applications} applications."
        )
    return {name: measure(phase, setup) for name, phase in maps.items()}


def _number(value: np.floating) -> float | None:
    """A JSON number; None if it is not finite."""
    return float(value) if np.isfinite(value) else None


def summarize(measurements: Mapping[str, Measurement]) -> dict[str, dict[str, float | None]]:
    """Returns summary numbers of every map for JSON (None = not finite or unknown)."""
    out: dict[str, dict[str, float | None]] = {}
    for name, m in measurements.items():
        figures = {
            "symplectic_defect_median": np.median(m.defect),
            "symplectic_defect_max": np.max(m.defect),
            "log_volume_mean": np.mean(m.log_volume),
            "log_volume_max_abs": np.max(np.abs(m.log_volume)),
            "reversal_error_once_median": np.median(m.reversal_error[0]),
            "reversal_error_final_median": np.median(m.reversal_error[-1]),
            "action_ratio_final": m.action[-1] / m.action[0],
            "variance_ratio_final": m.variance[-1] / m.variance[0],
            "participation_ratio_start": m.participation[0],
            "participation_ratio_final": m.participation[-1],
        }
        if m.energy is not None and m.grid_drift is not None:
            drift = np.abs(m.energy - m.energy[0])  # infinite if the map diverged
            figures |= {
                "energy_start_mean": np.mean(m.energy[0]),
                "energy_drift_final_median": np.median(drift[-1]),
                "energy_drift_max_median": np.median(drift.max(axis=0)),
                "energy_drift_grid_median": np.median(m.grid_drift),
                "energy_drift_grid_max": np.max(m.grid_drift),
            }
        out[name] = {key: _number(value) for key, value in figures.items()}
        out[name]["applications"] = len(m.action) - 1
    return out


def predictor_maps(
    predictors: Mapping[str, tuple[nn.Module, Mapping[str, PyTree]]], residual_scale: Scalar
) -> dict[str, PhaseMap]:
    """Trained predictors as maps: direction +1 forward, -1 backward.

    Args:
      predictors: name -> (module, {'params': ...}).
      residual_scale: the scale that training ended with.

    Returns:
      The maps in the same order. All have the energy of the first predictor with a Hamiltonian: a
      matched MLP is measured by the Hamiltonian that it is compared with.
    """

    def energy_of(module: nn.Module, variables: Mapping[str, PyTree]) -> Flow:
        return lambda z: applied(module, variables, z, residual_scale, method="energy")

    def flow(module: nn.Module, variables: Mapping[str, PyTree], direction: int) -> Flow:
        if isinstance(module, HamiltonianPredictor):
            # The same values; Jacobians take forward mode, which the recomputing flow lacks.
            module = module.clone(reversible=False)
        return lambda z: applied(module, variables, z, direction, residual_scale)

    energies = (energy_of(*pair) for pair in predictors.values() if hasattr(pair[0], "energy"))
    energy = next(energies, None)
    return {
        name: PhaseMap(flow(*pair, 1), flow(*pair, -1), energy) for name, pair in predictors.items()
    }


def setup_of_states(
    states: jax.Array, *, applications: int = 32, jacobian_states: int = 4, grid_size: int = 32
) -> MeasurementSetup:
    """A setup around the mean of encoded states [B, 2d], in their plane of largest variance.

    A Jacobian at 2d = 2048 takes 2048 tangents: keep jacobian_states small.
    """
    spread = jnp.sum(jnp.square(jnp.stack(split_state(jnp.std(states, axis=0)))), axis=0)
    plane = int(jnp.argmax(spread))
    radius = float(jnp.sqrt(spread[plane]))
    return MeasurementSetup(
        states=states,
        center=jnp.mean(states, axis=0),
        plane=plane,
        extent=2 * radius,
        grid_size=grid_size,
        blob_radius=0.5 * radius,
        blob_points=256,
        applications=applications,
        jacobian_states=jacobian_states,
    )
