"""Integrators that do NOT preserve the symplectic form, for comparison.

| method            | order | measured order | energy and volume |
| explicit_euler    | 1     | 1.00           | grow              |
| implicit_euler    | 1     | 1.00           | shrink            |
| runge_kutta4      | 4     | 4.00           | drift slowly      |

Measured on a pendulum over time 2, from the error at dt = 1/40 and 1/80 in float64. Source: Hairer,
Lubich & Wanner, "Geometric Numerical Integration", chapters I and II.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, Scalar, join_state, split_state
from hjepa_jax.dynamics.midpoint import implicit_step


def vector_field(hamiltonian: Hamiltonian, z: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Returns dz/dt = [H_p | -H_q] of states z [..., 2d]."""
    q, p = split_state(z)
    return join_state(hamiltonian.grad_p(q, p), -hamiltonian.grad_q(q, p))


def explicit_euler_step(
    hamiltonian: Hamiltonian, z: Float[Array, "*batch n"], dt: Scalar
) -> Float[Array, "*batch n"]:
    """Returns z + dt f(z), [..., 2d]: order 1; energy and volume grow."""
    return z + dt * vector_field(hamiltonian, z)


def implicit_euler_step(
    hamiltonian: Hamiltonian,
    z: Float[Array, "*batch n"],
    dt: Scalar,
    *,
    iterations: int = 200,
    tolerance: float = 1e-13,
) -> Float[Array, "*batch n"]:
    """Returns z' = z + dt f(z'), [..., 2d]: order 1; energy and volume shrink.

    On a harmonic oscillator of frequency w, one step divides the energy by 1 + (w dt)^2, in either
    direction of time. The fixed-point iteration converges for |dt| * |J Hessian of H| < 1 in
    spectral radius, which is |w dt| < 1 for the oscillator.

    Args:
        hamiltonian: the energy and its partial derivatives.
        z: states [..., 2d].
        dt: step length; negative to run backward in time.
        iterations: most fixed-point iterations.
        tolerance: residual relative to 1 + max|z| that counts as solved, at least 8 rounding units.

    Returns:
        The states [..., 2d] after the step, NaN where the equation was not solved.
    """

    def equation(z_next: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
        return z_next - z - dt * vector_field(hamiltonian, z_next)

    return implicit_step(equation, z, iterations, tolerance)[0]


def runge_kutta4_step(
    hamiltonian: Hamiltonian, z: Float[Array, "*batch n"], dt: Scalar
) -> Float[Array, "*batch n"]:
    """Returns z [..., 2d] after a classical Runge-Kutta step: order 4; energy and volume drift."""
    k1 = vector_field(hamiltonian, z)
    k2 = vector_field(hamiltonian, z + 0.5 * dt * k1)
    k3 = vector_field(hamiltonian, z + 0.5 * dt * k2)
    k4 = vector_field(hamiltonian, z + dt * k3)
    return z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def repeat(
    step: Callable[[Float[Array, "*shape"]], Float[Array, "*shape"]],
    z: Float[Array, "*shape"],
    times: int,
) -> Float[Array, "*shape"]:
    """Applies `step` to z `times` times (static), in one `lax.scan`."""
    return jax.lax.scan(lambda x, _: (step(x), None), z, None, length=times)[0]
