"""One step of the implicit midpoint rule, differentiated by the implicit function theorem.

z' = z + h J grad H((z + z')/2), order 2, symplectic and time-symmetric for every H (Hairer, Lubich
& Wanner, "Geometric Numerical Integration", section VI.4). The equation and its linearisations are
solved by fixed-point iteration, which converges for |h|/2 * |Hessian of H| < 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, Scalar, join_state, split_state


def converged_tolerance(dtype: jnp.dtype, tolerance: float) -> float:
    """Returns the tolerance, but no less than 8 rounding units: below, iterations only jitter."""
    return max(tolerance, 8 * float(jnp.finfo(dtype).eps))


def _row_max(x: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(x), axis=-1, keepdims=True)


def _fixed_point(
    residual_of: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    scale: jax.Array,
    iterations: int,
    tolerance: float,
) -> tuple[jax.Array, jax.Array]:
    """Iterates x <- x - residual_of(x) until every row has max|residual| <= tolerance * scale.

    Returns x [..., n], NaN in rows that did not get there, and max|residual| / scale [...].
    """

    def relative(residual: jax.Array) -> jax.Array:
        return jnp.where(scale > 0, _row_max(residual) / jnp.where(scale > 0, scale, 1), 0)

    def unsolved(carry: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        _, residual, count = carry
        return (count < iterations) & jnp.any(relative(residual) > tolerance)

    def improve(
        carry: tuple[jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, residual, count = carry
        x = x - residual
        return x, residual_of(x), count + 1

    first = (start, residual_of(start), jnp.zeros((), jnp.int32))
    x, residual, _ = jax.lax.while_loop(unsolved, improve, first)
    error = relative(residual)
    return jnp.where(error <= tolerance, x, jnp.nan), error[..., 0]


def midpoint_residual(
    hamiltonian: Hamiltonian, z: jax.Array, z_next: jax.Array, dt: Scalar
) -> jax.Array:
    """Returns z' - z - dt J grad H((z + z')/2), [..., 2d]: zero where z_next solves the rule."""
    q, p = split_state(0.5 * (z + z_next))
    field = join_state(hamiltonian.grad_p(q, p), -hamiltonian.grad_q(q, p))
    return z_next - z - dt * field


def implicit_midpoint_step(
    hamiltonian: Hamiltonian,
    q: jax.Array,
    p: jax.Array,
    h: jax.Array,
    iterations: int,
    tolerance: float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns q, p [..., d] after one step of length h, and the relative residual [...].

    Rows whose residual stays above `tolerance` * (1 + max|z|) come back as NaN.
    """
    z = join_state(q, p)
    limit = converged_tolerance(z.dtype, tolerance)
    scale = 1 + jax.lax.stop_gradient(_row_max(z))

    def equation(z_next: jax.Array) -> jax.Array:
        return midpoint_residual(hamiltonian, z, z_next, h)

    def solve(
        function: Callable[[jax.Array], jax.Array], start: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return _fixed_point(function, start, scale, iterations, limit)

    def linear_solve(matvec: Callable[[jax.Array], jax.Array], right: jax.Array) -> jax.Array:
        # Relative to the right-hand side: a cotangent may be of any size.
        return _fixed_point(lambda x: matvec(x) - right, right, _row_max(right), iterations, limit)[
            0
        ]

    def tangent_solve(matvec: Callable[[jax.Array], jax.Array], right: jax.Array) -> jax.Array:
        return jax.lax.custom_linear_solve(
            matvec, right, solve=linear_solve, transpose_solve=linear_solve
        )

    z_next, residual = jax.lax.custom_root(equation, z, solve, tangent_solve, has_aux=True)
    return *split_state(z_next), jax.lax.stop_gradient(residual)
