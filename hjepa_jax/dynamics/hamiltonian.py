"""Hamiltonians on the state z = [q | p] and the scalar MLP that makes them learnable.

Source: "Beyond Isotropy in JEPAs" (arXiv 2605.20107), section on Hamiltonian predictors. Everything
here is a pure function; a `Hamiltonian` is a bundle of closures over its parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

Scalar = jax.Array | float
MLPParams = tuple[dict[str, jax.Array], ...]

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    # The exact erf form, not the tanh approximation.
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Hamiltonian(NamedTuple):
    """Energy H(q, p) and its partial derivatives; q and p are [..., d] arrays of one dtype.

    Attributes:
      energy: (q, p) -> [...], the energy of every state.
      grad_q: (q, p) -> [..., d], the partial derivative with respect to q.
      grad_p: (q, p) -> [..., d], the partial derivative with respect to p.
      potential: q -> [...], the potential V where H = T(p) + V(q) names one, else None.
      is_separable: whether H = T(p) + V(q), so that grad_q ignores p and grad_p ignores q.
    """

    energy: Callable[[jax.Array, jax.Array], jax.Array]
    grad_q: Callable[[jax.Array, jax.Array], jax.Array]
    grad_p: Callable[[jax.Array, jax.Array], jax.Array]
    potential: Callable[[jax.Array], jax.Array] | None
    is_separable: bool


def split_state(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits z [..., 2d] into q [..., d] and p [..., d]; ValueError when the width is odd."""
    width = z.shape[-1]
    if width % 2:
        raise ValueError(f"A state [q | p] needs an even width, but its last axis has {width}.")
    return z[..., : width // 2], z[..., width // 2 :]


def join_state(q: jax.Array, p: jax.Array) -> jax.Array:
    """Joins q [..., d] and p [..., d] into z [..., 2d]."""
    return jnp.concatenate([q, p], axis=-1)


def energy_of_state(hamiltonian: Hamiltonian, z: jax.Array) -> jax.Array:
    """Returns the energy [...] of z [..., 2d], in float32 or wider."""
    wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return hamiltonian.energy(*split_state(wide))


def init_mlp(key: jax.Array, sizes: Sequence[int], dtype: jnp.dtype = jnp.float32) -> MLPParams:
    """Draws the Linear layers between consecutive `sizes`, e.g. (d, 256, 256, 1).

    Kernels [in, out] and biases [out] are uniform in +-1/sqrt(in), the init of `torch.nn.Linear`.

    Raises:
      ValueError: fewer than two sizes, or a size below 1.
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(
            f"An MLP needs at least two layer sizes, all positive, not {tuple(sizes)}."
        )
    layers = []
    for layer_key, fan_in, fan_out in zip(
        jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:]
    ):
        kernel_key, bias_key = jax.random.split(layer_key)
        bound = fan_in**-0.5
        layers.append(
            {
                "kernel": jax.random.uniform(kernel_key, (fan_in, fan_out), dtype, -bound, bound),
                "bias": jax.random.uniform(bias_key, (fan_out,), dtype, -bound, bound),
            }
        )
    return tuple(layers)


def mlp(params: MLPParams, x: jax.Array, activation: str) -> jax.Array:
    """Applies Linear layers to x [..., in] with `activation` between them; returns [..., out].

    Raises:
      ValueError: an activation that is not in ACTIVATIONS.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"Unknown activation '{activation}': use one of {', '.join(ACTIVATIONS)}.")
    # HIGHEST: on GPUs the default precision of a float32 product is TF32, too coarse for a flow.
    product = functools.partial(jnp.dot, precision=jax.lax.Precision.HIGHEST)
    for layer in params[:-1]:
        x = ACTIVATIONS[activation](product(x, layer["kernel"]) + layer["bias"])
    return product(x, params[-1]["kernel"]) + params[-1]["bias"]


def _half_square(x: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(x * x, axis=-1)


def _gradient(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """Returns the per-state gradient of a function [..., d] -> [...] that treats states apart."""
    return jax.grad(lambda x: jnp.sum(function(x)))


def separable(
    params: MLPParams,
    *,
    base_coeff: Scalar,
    residual_scale: Scalar,
    activation: str = "gelu",
) -> Hamiltonian:
    """H = |p|^2/2 + V(q) with V(q) = base_coeff/2 |q|^2 + residual_scale * f(q).

    Args:
      params: MLP f from [..., d] to [..., 1].
      base_coeff: stiffness of the quadratic well, a scalar.
      residual_scale: weight of f, a scalar that may be traced (warm-up).
      activation: 'gelu', 'relu' or 'silu'.
    """

    def residual(q: jax.Array) -> jax.Array:
        return mlp(params, q, activation)[..., 0]

    def potential(q: jax.Array) -> jax.Array:
        return base_coeff * _half_square(q) + residual_scale * residual(q)

    return Hamiltonian(
        energy=lambda q, p: _half_square(p) + potential(q),
        grad_q=lambda q, p: base_coeff * q + residual_scale * _gradient(residual)(q),
        grad_p=lambda q, p: p,
        potential=potential,
        is_separable=True,
    )


def learnable(
    params: MLPParams,
    *,
    base_coeff: Scalar = 1.0,
    residual_scale: Scalar,
    activation: str = "gelu",
) -> Hamiltonian:
    """H = base_coeff/2 (|q|^2 + |p|^2) + residual_scale * f([q, p]), not separable.

    Args:
      params: MLP f from [..., 2d] to [..., 1].
      base_coeff: stiffness of the quadratic part (1 is what the published code always has).
      residual_scale: weight of f, a scalar that may be traced (warm-up).
      activation: 'gelu', 'relu' or 'silu'.
    """

    def energy(q: jax.Array, p: jax.Array) -> jax.Array:
        residual = mlp(params, join_state(q, p), activation)[..., 0]
        return base_coeff * (_half_square(q) + _half_square(p)) + residual_scale * residual

    return from_energy(energy)


def quadratic() -> Hamiltonian:
    """H = (|q|^2 + |p|^2)/2, the isotropic harmonic oscillator with unit frequency."""
    return Hamiltonian(
        energy=lambda q, p: _half_square(q) + _half_square(p),
        grad_q=lambda q, p: q,
        grad_p=lambda q, p: p,
        potential=_half_square,
        is_separable=True,
    )


def from_energy(
    energy: Callable[[jax.Array, jax.Array], jax.Array], is_separable: bool = False
) -> Hamiltonian:
    """Builds a Hamiltonian from any differentiable energy(q, p) -> [...], by autodiff.

    `is_separable` is the caller's promise that energy = T(p) + V(q): integrators then evaluate each
    force once.
    """
    return Hamiltonian(
        energy=energy,
        grad_q=lambda q, p: _gradient(lambda x: energy(x, p))(q),
        grad_p=lambda q, p: _gradient(lambda x: energy(q, x))(p),
        potential=None,
        is_separable=is_separable,
    )
