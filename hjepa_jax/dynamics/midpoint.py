"""Implicit steps, differentiated by the implicit function theorem, and the implicit midpoint rule.

z' = z + h J grad H((z + z')/2), order 2, symplectic and time-symmetric for every H. The equation
and its linearizations are solved by fixed-point iteration, which converges for
|h|/2 * |Hessian of H| < 1.

Source: Hairer, Lubich & Wanner, "Geometric Numerical Integration", section VI.4.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, Scalar, join_state, split_state

# A solver's iterate, its residual, and the number of iterations done.
_Carry = tuple[Float[Array, "*batch n"], Float[Array, "*batch n"], Int[Array, ""]]
_States = Callable[[Float[Array, "*batch n"]], Float[Array, "*batch n"]]


def converged_tolerance(dtype: jnp.dtype, tolerance: float) -> float:
    """Returns the tolerance, but at least 8 rounding units: below that, iterations only jitter."""
    return max(tolerance, 8 * float(jnp.finfo(dtype).eps))


def _row_max(x: Float[Array, "*batch n"]) -> Float[Array, "*batch 1"]:
    return jnp.max(jnp.abs(x), axis=-1, keepdims=True)


def _fixed_point(
    residual_of: _States,
    start: Float[Array, "*batch n"],
    scale: Float[Array, "*batch 1"],
    iterations: int,
    tolerance: float,
) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch"]]:
    """Iterates x <- x - residual_of(x) until every row has max|residual| <= tolerance * scale.

    Returns x [..., n], NaN in rows that did not get there, and max|residual| / scale [...].
    """

    def relative(residual: Float[Array, "*batch n"]) -> Float[Array, "*batch 1"]:
        return jnp.where(scale > 0, _row_max(residual) / jnp.where(scale > 0, scale, 1), 0)

    def unsolved(carry: _Carry) -> Bool[Array, ""]:
        _, residual, count = carry
        return (count < iterations) & jnp.any(relative(residual) > tolerance)

    def improve(carry: _Carry) -> _Carry:
        x, residual, count = carry
        x = x - residual
        return x, residual_of(x), count + 1

    first = (start, residual_of(start), jnp.zeros((), jnp.int32))
    x, residual, _ = jax.lax.while_loop(unsolved, improve, first)
    error = relative(residual)
    return jnp.where(error <= tolerance, x, jnp.nan), error[..., 0]


def midpoint_residual(
    hamiltonian: Hamiltonian,
    z: Float[Array, "*batch n"],
    z_next: Float[Array, "*batch n"],
    dt: Scalar,
) -> Float[Array, "*batch n"]:
    """Returns z' - z - dt J grad H((z + z')/2), [..., 2d]: zero where z_next solves the rule.

    Args:
        hamiltonian: the energy and its partial derivatives.
        z: states [..., 2d] before the step.
        z_next: candidates z' [..., 2d] for the states after it.
        dt: step length.
    """
    q, p = split_state(0.5 * (z + z_next))
    field = join_state(hamiltonian.grad_p(q, p), -hamiltonian.grad_q(q, p))
    return z_next - z - dt * field


def implicit_step(
    equation: _States, z: Float[Array, "*batch n"], iterations: int, tolerance: float
) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch"]]:
    """Solves an implicit step by the fixed-point iteration z' <- z' - equation(z').

    Args:
        equation: candidates z' [..., 2d] -> z' - F(z') [..., 2d], zero where z' solves the step.
        z: states [..., 2d] before the step, where the iteration starts.
        iterations: most fixed-point iterations.
        tolerance: residual relative to 1 + max|z| that counts as solved.

    Returns:
        (z', residual): the states [..., 2d] after the step, NaN in rows that were not solved, and
        the relative residual [...], without gradient.
    """
    limit = converged_tolerance(z.dtype, tolerance)
    scale = 1 + jax.lax.stop_gradient(_row_max(z))

    def solve(
        function: _States, start: Float[Array, "*batch n"]
    ) -> tuple[Float[Array, "*batch n"], Float[Array, "*batch"]]:
        return _fixed_point(function, start, scale, iterations, limit)

    def linear_solve(matvec: _States, right: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        # Relative to the right-hand side: a cotangent may be of any size.
        return _fixed_point(lambda x: matvec(x) - right, right, _row_max(right), iterations, limit)[
            0
        ]

    def tangent_solve(matvec: _States, right: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return jax.lax.custom_linear_solve(
            matvec, right, solve=linear_solve, transpose_solve=linear_solve
        )

    z_next, residual = jax.lax.custom_root(equation, z, solve, tangent_solve, has_aux=True)
    return z_next, jax.lax.stop_gradient(residual)


def implicit_midpoint_step(
    hamiltonian: Hamiltonian,
    q: Float[Array, "*batch d"],
    p: Float[Array, "*batch d"],
    h: Float[Array, ""],
    iterations: int,
    tolerance: float,
) -> tuple[Float[Array, "*batch d"], Float[Array, "*batch d"], Float[Array, "*batch"]]:
    """Takes one step of the implicit midpoint rule.

    Args:
        hamiltonian: the energy and its partial derivatives.
        q: positions [..., d].
        p: momenta [..., d].
        h: step length.
        iterations: most fixed-point iterations.
        tolerance: residual relative to 1 + max|z| that counts as solved.

    Returns:
        (q, p, residual): q and p [..., d] after the step, NaN in rows that were not solved, and
        the relative residual [...], without gradient.
    """
    z = join_state(q, p)

    def equation(z_next: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return midpoint_residual(hamiltonian, z, z_next, h)

    z_next, residual = implicit_step(equation, z, iterations, tolerance)
    return *split_state(z_next), residual
