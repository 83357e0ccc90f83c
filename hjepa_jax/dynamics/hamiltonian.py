"""Hamiltonians on the state z = [q | p] and the scalar MLP that makes them learnable.

Everything here is a pure function; a `Hamiltonian` is a bundle of closures over its parameters.

Source: "Beyond Isotropy in JEPAs" (arXiv 2605.20107), section on Hamiltonian predictors.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Real

Scalar = Real[Array, ""] | float
Activation = Literal["gelu", "relu", "silu"]
# NumPy arrays are those of a restored checkpoint.
MLPParams = tuple[Mapping[str, Float[Array | np.ndarray, "..."]], ...]

Energy = Callable[[Float[Array, "*batch d"], Float[Array, "*batch d"]], Float[Array, "*batch"]]
Gradient = Callable[[Float[Array, "*batch d"], Float[Array, "*batch d"]], Float[Array, "*batch d"]]
Potential = Callable[[Float[Array, "*batch d"]], Float[Array, "*batch"]]


# jax 0.12 refuses its own derivative of erfc inside `jax.shard_map`.
@jax.custom_jvp
def _normal_cdf(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    return 0.5 * jax.lax.erfc(-math.sqrt(0.5) * x)


@_normal_cdf.defjvp
def _normal_cdf_jvp(
    primals: tuple[Float[Array, "*shape"]], tangents: tuple[Float[Array, "*shape"]]
) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    (x,), (dx,) = primals, tangents
    return _normal_cdf(x), jnp.exp(-0.5 * x * x) * (dx / math.sqrt(2 * math.pi))


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x Phi(x), the exact form by the error function, not the approximation by tanh."""
    return x * _normal_cdf(x)


ACTIVATIONS: dict[Activation, Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]]] = {
    "gelu": gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


class Hamiltonian(NamedTuple):
    """Energy H(q, p) and its partial derivatives, for q and p [..., d] of one dtype.

    Attributes:
        energy: (q, p) -> [...], the energy of every state.
        grad_q: (q, p) -> [..., d], the partial derivative with respect to q.
        grad_p: (q, p) -> [..., d], the partial derivative with respect to p.
        potential: q -> [...], the potential V where H = T(p) + V(q) names one, else None.
        is_separable: whether H = T(p) + V(q), so that grad_q ignores p and grad_p ignores q.
    """

    energy: Energy
    grad_q: Gradient
    grad_p: Gradient
    potential: Potential | None
    is_separable: bool


def split_state(
    z: Float[Array, "*batch n"],
) -> tuple[Float[Array, "*batch n//2"], Float[Array, "*batch n//2"]]:
    """Splits states into positions and momenta.

    Args:
        z: states [..., 2d].

    Returns:
        (q, p), each [..., d].

    Raises:
        ValueError: the width is odd.
    """
    width = z.shape[-1]
    if width % 2:
        raise ValueError(f"A state [q | p] needs an even width, but its last axis has {width}.")
    return z[..., : width // 2], z[..., width // 2 :]


def join_state(
    q: Float[Array, "*batch d"], p: Float[Array, "*batch d"]
) -> Float[Array, "*batch 2*d"]:
    """Joins positions and momenta [..., d] into states z [..., 2d]."""
    return jnp.concatenate([q, p], axis=-1)


def energy_of_state(
    hamiltonian: Hamiltonian, z: Float[Array, "*batch n"]
) -> Float[Array, "*batch"]:
    """Returns the energy [...] of states z [..., 2d], in float32 (float64 for float64 states)."""
    wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return hamiltonian.energy(*split_state(wide))


def init_mlp(
    key: PRNGKeyArray, sizes: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
) -> tuple[dict[str, Float[Array, "..."]], ...]:
    """Draws the Linear layers between consecutive `sizes`, e.g. (d, 256, 256, 1).

    Kernels [in, out] and biases [out] are uniform in +-1/sqrt(in), the default initialization of
    `torch.nn.Linear`.

    Args:
        key: PRNG key.
        sizes: widths of the input, of the hidden layers and of the output.
        dtype: dtype of the parameters.

    Returns:
        One {'kernel', 'bias'} per layer.

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


def mlp(
    params: MLPParams, x: Float[Array, "*batch n_in"], activation: Activation
) -> Float[Array, "*batch n_out"]:
    """Applies Linear layers with `activation` between them.

    Args:
        params: from `init_mlp`.
        x: inputs [..., n_in].
        activation: 'gelu' (exact), 'relu' or 'silu'.

    Returns:
        Outputs [..., n_out], of the wider dtype of x and params.

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


def _half_square(x: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
    return 0.5 * jnp.sum(x * x, axis=-1)


def _gradient(
    function: Potential,
) -> Callable[[Float[Array, "*batch d"]], Float[Array, "*batch d"]]:
    """Returns the per-state gradient of a function [..., d] -> [...] that treats states apart."""
    return jax.grad(lambda x: jnp.sum(function(x)))


def separable(
    params: MLPParams,
    *,
    base_coeff: Scalar,
    residual_scale: Scalar,
    activation: Activation = "gelu",
) -> Hamiltonian:
    """H = |p|^2/2 + V(q) with V(q) = base_coeff/2 |q|^2 + residual_scale * f(q).

    Args:
        params: MLP f from [..., d] to [..., 1].
        base_coeff: stiffness of the quadratic well.
        residual_scale: weight of f; may be traced (warm-up).
        activation: see `mlp`.

    Returns:
        A separable Hamiltonian with a potential.
    """

    def residual(q: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
        return mlp(params, q, activation)[..., 0]

    def potential(q: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
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
    activation: Activation = "gelu",
) -> Hamiltonian:
    """H = base_coeff/2 (|q|^2 + |p|^2) + residual_scale * f([q, p]), not separable.

    Args:
        params: MLP f from [..., 2d] to [..., 1].
        base_coeff: stiffness of the quadratic part (the published code always has 1).
        residual_scale: weight of f; may be traced (warm-up).
        activation: see `mlp`.

    Returns:
        A Hamiltonian without a potential.
    """

    def energy(q: Float[Array, "*batch d"], p: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
        residual = mlp(params, join_state(q, p), activation)[..., 0]
        return base_coeff * (_half_square(q) + _half_square(p)) + residual_scale * residual

    return from_energy(energy)


def quadratic() -> Hamiltonian:
    """H = (|q|^2 + |p|^2)/2, the isotropic harmonic oscillator of unit frequency."""
    return Hamiltonian(
        energy=lambda q, p: _half_square(q) + _half_square(p),
        grad_q=lambda q, p: q,
        grad_p=lambda q, p: p,
        potential=_half_square,
        is_separable=True,
    )


def from_energy(energy: Energy, is_separable: bool = False) -> Hamiltonian:
    """Builds a Hamiltonian from any differentiable energy, by automatic differentiation.

    Args:
        energy: (q, p) [..., d] -> [...].
        is_separable: the caller's promise that energy = T(p) + V(q): integrators then evaluate
            each force once.

    Returns:
        A Hamiltonian without a potential.
    """
    return Hamiltonian(
        energy=energy,
        grad_q=lambda q, p: _gradient(lambda x: energy(x, p))(q),
        grad_p=lambda q, p: _gradient(lambda x: energy(q, x))(p),
        potential=None,
        is_separable=is_separable,
    )
