"""Leapfrog with constant-memory gradients: the backward pass runs the flow backward.

Leapfrog is time-symmetric, so every intermediate state can be recomputed from the final one
instead of being stored.

Source: the idea of reversible networks (Gomez et al., arXiv 1707.04585).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, Scalar, join_state, split_state
from hjepa_jax.dynamics.integrators import (
    cast_gradients,
    damped,
    flow_dtype,
    separable_scheme,
)

Params = PyTree[Float[Array | np.ndarray, "..."]]
Build = Callable[[Params], Hamiltonian]
# A state, then the cotangents of state, params and h.
_Carry = tuple[Float[Array, "*batch n"], Float[Array, "*batch n"], Params, Float[Array, ""]]


def integrate_reversible(
    build: Build,
    params: Params,
    z: Float[Array, "*batch n"],
    *,
    steps: int,
    dt: Scalar,
    direction: Scalar = 1,
    damping: float = 0.0,
) -> Float[Array, "*batch n"]:
    """Same values as `integrate(build(params), z, method='leapfrog', ...)`, O(1) memory in `steps`.

    Args:
        build: makes a SEPARABLE Hamiltonian from `params`; it must not close over traced values:
            pass all of them (a traced residual_scale too) inside `params`, or get no gradient.
        params: any pytree of floating-point arrays.
        z: states [..., 2d]; dtypes as in `integrate`.
        steps: number of steps, static.
        dt: step length; may be traced, its gradient is exact.
        direction: +1 or -1; may be traced.
        damping: decay rate of the momenta, static. Running backward amplifies rounding by
            exp(damping * steps * dt).

    Returns:
        The final states [..., 2d] in the dtype of z. Reverse-mode differentiation only.

    Raises:
        ValueError: a Hamiltonian that is not separable, or steps < 1.
    """
    if steps < 1:
        raise ValueError(f"An integrator needs at least 1 step, not {steps}.")
    if not build(params).is_separable:
        raise ValueError("integrate_reversible needs a separable Hamiltonian: use integrate.")
    dtype = flow_dtype(z)
    h = jnp.asarray(dt, dtype) * jnp.asarray(direction, dtype)
    final: jax.Array = _flow(build, steps, damping, params, z.astype(dtype), h)
    return final.astype(z.dtype)


def _run(
    build: Build,
    steps: int,
    damping: float,
    params: Params,
    z: Float[Array, "*batch n"],
    h: Float[Array, ""],
) -> Float[Array, "*batch n"]:
    hamiltonian = cast_gradients(build(params), z.dtype)
    scheme = damped(separable_scheme(hamiltonian, h, (1.0,)), h, damping)
    q, p = split_state(z)
    first = (q, p, scheme.start(q, p))
    (q, p, _), _ = jax.lax.scan(lambda s, _: (scheme.step(s), None), first, None, length=steps)
    return join_state(q, p)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _flow(
    build: Build,
    steps: int,
    damping: float,
    params: Params,
    z: Float[Array, "*batch n"],
    h: Float[Array, ""],
) -> Float[Array, "*batch n"]:
    return _run(build, steps, damping, params, z, h)


def _flow_forward(
    build: Build,
    steps: int,
    damping: float,
    params: Params,
    z: Float[Array, "*batch n"],
    h: Float[Array, ""],
) -> tuple[Float[Array, "*batch n"], tuple[Params, Float[Array, "*batch n"], Float[Array, ""]]]:
    final = _run(build, steps, damping, params, z, h)
    return final, (params, final, h)


def _flow_backward(
    build: Build,
    steps: int,
    damping: float,
    residuals: tuple[Params, Float[Array, "*batch n"], Float[Array, ""]],
    cotangent: Float[Array, "*batch n"],
) -> tuple[Params, Float[Array, "*batch n"], Float[Array, ""]]:
    params, final, h = residuals
    one_step = functools.partial(_run, build, 1, damping)

    def back(carry: _Carry, unused: None) -> tuple[_Carry, None]:
        z_next, bar_z, bar_params, bar_h = carry
        z = one_step(params, z_next, -h)
        _, pullback = jax.vjp(one_step, params, z, h)
        step_params, bar_z, step_h = pullback(bar_z)
        bar_params = jax.tree.map(jnp.add, bar_params, step_params)
        return (z, bar_z, bar_params, bar_h + step_h), None

    first = (final, cotangent, jax.tree.map(jnp.zeros_like, params), jnp.zeros_like(h))
    (_, bar_z, bar_params, bar_h), _ = jax.lax.scan(back, first, None, length=steps)
    return bar_params, bar_z, bar_h


_flow.defvjp(_flow_forward, _flow_backward)
