"""Predictors from one view's state to another's: a Hamiltonian flow, a matched MLP, the identity.

Their signature is (z [..., 2d], direction, residual_scale) -> z_hat [..., 2d], with direction +1 or
-1. They compute in float32 (float64 for float64 states) and return the dtype of z.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.dynamics.integrators import Integrator, flow_dtype, integrate
from hjepa_jax.dynamics.reversible import integrate_reversible
from hjepa_jax.models.parameter_matching import MLPShape, hamiltonian_sizes, match_mlp

Scalar = jax.Array | float


def _init_layers(
    sizes: tuple[int, ...], dtype: DTypeLike
) -> Callable[[jax.Array], dict[str, dict[str, jax.Array]]]:
    """Initializer of {'layer0': {'kernel', 'bias'}, ...} for Linear layers between `sizes`."""

    def init(key: jax.Array) -> dict[str, dict[str, jax.Array]]:
        return {f"layer{i}": p for i, p in enumerate(hm.init_mlp(key, sizes, dtype))}

    return init


def _as_layers(tree: Mapping[str, Mapping[str, jax.Array]]) -> hm.MLPParams:
    return tuple(dict(tree[f"layer{i}"]) for i in range(len(tree)))


class _SizedPredictor(nn.Module):
    """A predictor whose parameter count is determined by a Hamiltonian.

    Attributes:
      hamiltonian: 'separable', 'learnable' or 'quadratic'.
      steps: steps of the flow.
      dt: step size.
      learn_dt: whether dt is learned.
      hidden_dim: width of the hidden layers of the residual f.
      depth: number of its hidden layers.
      activation: a key of `hamiltonian.ACTIVATIONS`.
    """

    hamiltonian: str
    steps: int
    dt: float
    learn_dt: bool
    hidden_dim: int
    depth: int
    activation: hm.Activation


class HamiltonianPredictor(_SizedPredictor):
    """Flows the state along the field of a learned Hamiltonian.

    Parameters: {'potential': {'layer0': {'kernel', 'bias'}, ...}} (absent for a quadratic H) and,
    if dt is learned, `raw_dt` with dt = softplus(raw_dt). The last layer's bias shifts the energy
    and has no effect on trajectories.

    Attributes:
      integrator: one of `integrators.INTEGRATORS`.
      damping: rate of the conformal damping of p; 0 = none.
      base_coeff: stiffness of the potential's quadratic well.
      midpoint_iterations: maximum number of iterations of 'implicit_midpoint'.
      midpoint_tolerance: residual at which 'implicit_midpoint' has converged.
      reversible: whether to recompute the flow in the backward pass, with memory constant in
        `steps`; only for leapfrog on a separable Hamiltonian.
      reference_leapfrog: whether to reproduce the published generic leapfrog, on learnable and
        quadratic Hamiltonians; its learnable Hamiltonian ignores base_coeff.
    """

    integrator: Integrator
    damping: float
    base_coeff: float
    midpoint_iterations: int
    midpoint_tolerance: float
    reversible: bool = False
    reference_leapfrog: bool = False

    @nn.compact
    def _parts(self, half: int, dtype: DTypeLike) -> tuple[hm.MLPParams, jax.Array]:
        """Returns the layers of f and the step length for states [..., 2 * half]."""
        layers: hm.MLPParams = ()
        if self.hamiltonian != "quadratic":
            sizes = hamiltonian_sizes(self.hamiltonian, half, self.hidden_dim, self.depth)
            layers = _as_layers(self.param("potential", _init_layers(sizes, dtype)))
        if not self.learn_dt:
            return layers, jnp.asarray(self.dt, dtype)
        start = math.log(math.expm1(self.dt))
        raw = self.param("raw_dt", lambda _: jnp.asarray(start, dtype))
        return layers, jax.nn.softplus(raw)

    def _build(self, layers: hm.MLPParams, residual_scale: Scalar) -> hm.Hamiltonian:
        if self.hamiltonian == "quadratic":
            return hm.quadratic()
        make = hm.separable if self.hamiltonian == "separable" else hm.learnable
        base = (
            1.0 if self.hamiltonian == "learnable" and self.reference_leapfrog else self.base_coeff
        )
        return make(
            layers, base_coeff=base, residual_scale=residual_scale, activation=self.activation
        )

    def __call__(self, z: jax.Array, direction: Scalar, residual_scale: Scalar) -> jax.Array:
        """Flows states for `steps` steps of direction * dt.

        Args:
          z: states [q | p], [..., 2d].
          direction: +1 or -1.
          residual_scale: weight of the residual f in the potential.

        Returns:
          Like z.

        Raises:
          ValueError: if `reversible` does not fit the integrator and the Hamiltonian.
        """
        layers, dt = self._parts(hm.split_state(z)[0].shape[-1], flow_dtype(z))
        if self.reversible:
            if (self.integrator, self.hamiltonian) != ("leapfrog", "separable"):
                raise ValueError("reversible needs 'leapfrog' and a 'separable' Hamiltonian.")
            traced = (layers, jnp.asarray(residual_scale, flow_dtype(z)))
            return integrate_reversible(
                lambda parts: self._build(*parts),
                traced,
                z,
                steps=self.steps,
                dt=dt,
                direction=direction,
                damping=self.damping,
            )
        generic = self.integrator == "leapfrog" and self.hamiltonian != "separable"
        return integrate(
            self._build(layers, residual_scale),
            z,
            method=self.integrator,
            steps=self.steps,
            dt=dt,
            direction=direction,
            damping=self.damping,
            midpoint_iterations=self.midpoint_iterations,
            midpoint_tolerance=self.midpoint_tolerance,
            reference_leapfrog=self.reference_leapfrog and generic,
        )

    def energy(self, z: jax.Array, residual_scale: Scalar) -> jax.Array:
        """Returns H(z) of states [..., 2d] as [...], float32 or wider."""
        layers, _ = self._parts(hm.split_state(z)[0].shape[-1], flow_dtype(z))
        return hm.energy_of_state(self._build(layers, residual_scale), z)

    def potential(self, q: jax.Array, residual_scale: Scalar) -> jax.Array:
        """Returns H(q, 0) of positions [..., d] as [...]: V(q) where H = T(p) + V(q)."""
        return self.energy(hm.join_state(q, jnp.zeros_like(q)), residual_scale)


class MLPPredictor(_SizedPredictor):
    """z + T * g(z, direction), a residual MLP with the Hamiltonian predictor's parameter count.

    With T = steps * dt, the displacement has the scale of a flow over the same time. g has `depth`
    hidden layers with widths from `match_mlp`, and takes direction as an extra input.

    Parameters: {'residual': {'layer0': {'kernel', 'bias'}, ...}} and, if no widths are within 1%
    of the count, `elementwise`: weights of direction * z_i, then of direction times the conjugate
    coordinate, on the first coordinates.
    """

    def shape(self, width: int) -> MLPShape:
        """Returns the shape of g for states of dimension `width` = 2d.

        Raises:
          ValueError: if the Hamiltonian is quadratic, or no MLP matches the parameter count.
        """
        if self.hamiltonian == "quadratic":
            raise ValueError(
                "A quadratic Hamiltonian leaves an MLP predictor no parameters to match."
            )
        sizes = hamiltonian_sizes(self.hamiltonian, width // 2, self.hidden_dim, self.depth)
        return match_mlp(width, self.depth, sizes, extra=int(self.learn_dt))

    @nn.compact
    def __call__(self, z: jax.Array, direction: Scalar, residual_scale: Scalar) -> jax.Array:
        """Predicts states.

        Args:
          z: states [q | p], [..., 2d].
          direction: +1 or -1.
          residual_scale: unused; the Hamiltonian predictor needs it.

        Returns:
          Like z.

        Raises:
          ValueError: if the width is odd, the Hamiltonian quadratic, or no MLP matches the
            parameter count.
        """
        del residual_scale
        q, p = hm.split_state(z)
        width, dtype = z.shape[-1], flow_dtype(z)
        shape = self.shape(width)
        sizes = (width + 1, *shape.hidden, width)
        layers = _as_layers(self.param("residual", _init_layers(sizes, dtype)))
        x = z.astype(dtype)
        sign = jnp.asarray(direction, dtype)
        inputs = jnp.concatenate([x, jnp.broadcast_to(sign, (*z.shape[:-1], 1))], axis=-1)
        change = hm.mlp(layers, inputs, self.activation)
        if shape.elementwise:
            weights = self.param("elementwise", nn.initializers.zeros, (shape.elementwise,), dtype)
            direct, conjugate = jnp.split(jnp.pad(weights, (0, 2 * width - weights.size)), 2)
            change += sign * (direct * x + conjugate * hm.join_state(p, q).astype(dtype))
        return (x + self.steps * self.dt * change).astype(z.dtype)


class IdentityPredictor(nn.Module):
    """Returns z itself; no parameters."""

    def __call__(self, z: jax.Array, direction: Scalar, residual_scale: Scalar) -> jax.Array:
        """Returns z [..., 2d] unchanged."""
        del direction, residual_scale
        return z


PREDICTORS: dict[str, type[nn.Module]] = {
    "hamiltonian": HamiltonianPredictor,
    "mlp": MLPPredictor,
    "identity": IdentityPredictor,
}


def build_predictor(kind: str, fields: Mapping[str, object]) -> nn.Module:
    """Returns a predictor.

    Only `HamiltonianPredictor` has an energy and a potential.

    Args:
      kind: a key of PREDICTORS.
      fields: values by attribute name; those that the predictor does not have are ignored.
    """
    module = PREDICTORS[kind]
    own = {field.name for field in dataclasses.fields(module)}
    return module(**{name: value for name, value in fields.items() if name in own})
