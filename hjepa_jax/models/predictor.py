"""Predictors of one view's state from another's: a Hamiltonian flow, a matched MLP, the identity.

All have the signature (z [..., 2d], direction, residual_scale) -> z_hat [..., 2d], where direction
is +1 or -1. They compute in float32 (float64 for float64 states) and return the dtype of z.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.dynamics.integrators import INTEGRATORS, flow_dtype, integrate
from hjepa_jax.dynamics.reversible import integrate_reversible
from hjepa_jax.models.parameter_matching import MLPShape, hamiltonian_sizes, match_mlp

PREDICTORS = ("hamiltonian", "mlp", "identity")
HAMILTONIANS = ("separable", "learnable", "quadratic")
Scalar = jax.Array | float


@dataclasses.dataclass(frozen=True)
class PredictorSettings:
    """What a predictor is made of; names and meanings are those of `config.dynamics`.

    `reversible` recomputes the flow in the backward pass (constant memory in `steps`; leapfrog on
    a separable Hamiltonian only). `reference_leapfrog` reproduces the published code where it uses
    its generic leapfrog, on learnable and quadratic Hamiltonians, and then ignores base_coeff as
    its learnable Hamiltonian does.

    Raises:
      ValueError: naming the field that is wrong and what it may be.
    """

    predictor: str = "hamiltonian"
    hamiltonian: str = "separable"
    integrator: str = "leapfrog"
    steps: int = 2
    dt: float = 0.05
    learn_dt: bool = False
    damping: float = 0.0
    hidden_dim: int = 256
    depth: int = 2
    activation: str = "gelu"
    base_coeff: float = 0.1
    midpoint_iterations: int = 50
    midpoint_tolerance: float = 1e-6
    reversible: bool = False
    reference_leapfrog: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (
            ("predictor", PREDICTORS),
            ("hamiltonian", HAMILTONIANS),
            ("integrator", INTEGRATORS),
            ("activation", hm.ACTIVATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"dynamics.{name} is '{getattr(self, name)}': use one of {', '.join(allowed)}."
                )
        for name in ("steps", "hidden_dim", "depth", "dt"):
            if not getattr(self, name) > 0:
                raise ValueError(f"dynamics.{name} is {getattr(self, name)}: it must be positive.")
        if self.reversible and (self.integrator, self.hamiltonian) != ("leapfrog", "separable"):
            raise ValueError(
                "dynamics.reversible needs integrator 'leapfrog' and hamiltonian 'separable'."
            )


def _init_layers(sizes: tuple[int, ...], dtype: Any) -> Any:
    """Initializer of {'layer0': {'kernel', 'bias'}, ...} for Linear layers between `sizes`."""

    def init(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
        return {f"layer{i}": p for i, p in enumerate(hm.init_mlp(key, sizes, dtype))}

    return init


def _as_layers(tree: Any) -> hm.MLPParams:
    return tuple(dict(tree[f"layer{i}"]) for i in range(len(tree)))


class HamiltonianPredictor(nn.Module):
    """Flows the state along the field of a learned Hamiltonian.

    Parameters: {'potential': {'layer0': {'kernel', 'bias'}, ...}} (absent for a quadratic H) and
    `raw_dt` where dt is learned, dt = softplus(raw_dt). The last layer's bias shifts the energy
    and moves no trajectory.
    """

    settings: PredictorSettings

    @nn.compact
    def _parts(self, half: int, dtype: Any) -> tuple[hm.MLPParams, jax.Array]:
        """Returns the layers of f and the step length for states [..., 2 * half]."""
        s = self.settings
        layers: hm.MLPParams = ()
        if s.hamiltonian != "quadratic":
            sizes = hamiltonian_sizes(s.hamiltonian, half, s.hidden_dim, s.depth)
            layers = _as_layers(self.param("potential", _init_layers(sizes, dtype)))
        if not s.learn_dt:
            return layers, jnp.asarray(s.dt, dtype)
        start = math.log(math.expm1(s.dt))
        raw = self.param("raw_dt", lambda _: jnp.asarray(start, dtype))
        return layers, jax.nn.softplus(raw)

    def _build(self, layers: hm.MLPParams, residual_scale: Scalar) -> hm.Hamiltonian:
        s = self.settings
        if s.hamiltonian == "quadratic":
            return hm.quadratic()
        make = hm.separable if s.hamiltonian == "separable" else hm.learnable
        base = 1.0 if s.hamiltonian == "learnable" and s.reference_leapfrog else s.base_coeff
        return make(layers, base_coeff=base, residual_scale=residual_scale, activation=s.activation)

    def __call__(self, z: jax.Array, direction: Scalar, residual_scale: Scalar) -> jax.Array:
        """Returns the state z [..., 2d] after `steps` steps of direction * dt."""
        s = self.settings
        layers, dt = self._parts(hm.split_state(z)[0].shape[-1], flow_dtype(z))
        if s.reversible:
            traced = (layers, jnp.asarray(residual_scale, flow_dtype(z)))
            return integrate_reversible(
                lambda parts: self._build(*parts),
                traced,
                z,
                steps=s.steps,
                dt=dt,
                direction=direction,
                damping=s.damping,
            )
        generic = s.integrator == "leapfrog" and s.hamiltonian != "separable"
        return integrate(
            self._build(layers, residual_scale),
            z,
            method=s.integrator,
            steps=s.steps,
            dt=dt,
            direction=direction,
            damping=s.damping,
            midpoint_iterations=s.midpoint_iterations,
            midpoint_tolerance=s.midpoint_tolerance,
            reference_leapfrog=s.reference_leapfrog and generic,
        )

    def energy(self, z: jax.Array, residual_scale: Scalar) -> jax.Array:
        """Returns H(z) of states [..., 2d] as [...], float32 or wider."""
        layers, _ = self._parts(hm.split_state(z)[0].shape[-1], flow_dtype(z))
        return hm.energy_of_state(self._build(layers, residual_scale), z)

    def potential(self, q: jax.Array, residual_scale: Scalar) -> jax.Array:
        """Returns H(q, 0) of positions [..., d] as [...]: V(q) where H = T(p) + V(q)."""
        return self.energy(hm.join_state(q, jnp.zeros_like(q)), residual_scale)


class MLPPredictor(nn.Module):
    """z + T * g(z, direction), a residual MLP with the Hamiltonian predictor's parameter count.

    T = steps * dt gives the displacement the size of a flow's over the same time. g has `depth`
    hidden layers, their widths chosen by `match_mlp`, and reads direction as one more input.
    Parameters: {'residual': {'layer0': {'kernel', 'bias'}, ...}} and, where no widths come within
    1 % of the count, `elementwise`: weights of direction * z_i, then of direction times the
    conjugate coordinate, on the first coordinates. residual_scale belongs to the Hamiltonian's
    warm-up and is not used.
    """

    settings: PredictorSettings

    def shape(self, width: int) -> MLPShape:
        """Returns hidden widths and elementwise terms for states of `width` = 2d numbers."""
        s = self.settings
        if s.hamiltonian == "quadratic":
            raise ValueError(
                "A quadratic Hamiltonian leaves an MLP predictor no parameters to match."
            )
        sizes = hamiltonian_sizes(s.hamiltonian, width // 2, s.hidden_dim, s.depth)
        return match_mlp(width, s.depth, sizes, extra=int(s.learn_dt))

    @nn.compact
    def __call__(self, z: jax.Array, direction: Scalar, residual_scale: Scalar) -> jax.Array:
        """Returns the prediction [..., 2d] for z [..., 2d].

        Raises:
          ValueError: odd width, a quadratic Hamiltonian, or no MLP of matching parameter count.
        """
        del residual_scale
        q, p = hm.split_state(z)
        s, width, dtype = self.settings, z.shape[-1], flow_dtype(z)
        shape = self.shape(width)
        sizes = (width + 1, *shape.hidden, width)
        layers = _as_layers(self.param("residual", _init_layers(sizes, dtype)))
        x = z.astype(dtype)
        sign = jnp.asarray(direction, dtype)
        inputs = jnp.concatenate([x, jnp.broadcast_to(sign, (*z.shape[:-1], 1))], axis=-1)
        change = hm.mlp(layers, inputs, s.activation)
        if shape.elementwise:
            weights = self.param("elementwise", nn.initializers.zeros, (shape.elementwise,), dtype)
            direct, conjugate = jnp.split(jnp.pad(weights, (0, 2 * width - weights.size)), 2)
            change += sign * (direct * x + conjugate * hm.join_state(p, q).astype(dtype))
        return (x + s.steps * s.dt * change).astype(z.dtype)


class IdentityPredictor(nn.Module):
    """Returns z itself; no parameters."""

    settings: PredictorSettings = PredictorSettings()

    def __call__(self, z: jax.Array, direction: Scalar, residual_scale: Scalar) -> jax.Array:
        """Returns z [..., 2d] unchanged."""
        del direction, residual_scale
        return z


def build_predictor(settings: PredictorSettings) -> nn.Module:
    """Returns the module that `settings.predictor` names.

    Only HamiltonianPredictor has `energy(z, residual_scale)` and `potential(q, residual_scale)`.
    """
    kinds = {
        "hamiltonian": HamiltonianPredictor,
        "mlp": MLPPredictor,
        "identity": IdentityPredictor,
    }
    return kinds[settings.predictor](settings)
