"""Integrators that do NOT preserve the symplectic form, for comparison."""

from __future__ import annotations

from collections.abc import Callable

import jax

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, Scalar, join_state, split_state


def vector_field(hamiltonian: Hamiltonian, z: jax.Array) -> jax.Array:
    """Returns dz/dt = [H_p | -H_q] of z [..., 2d]."""
    q, p = split_state(z)
    return join_state(hamiltonian.grad_p(q, p), -hamiltonian.grad_q(q, p))


def explicit_euler_step(hamiltonian: Hamiltonian, z: jax.Array, dt: Scalar) -> jax.Array:
    """Returns z + dt f(z): order 1; energy and volume grow."""
    return z + dt * vector_field(hamiltonian, z)


def runge_kutta4_step(hamiltonian: Hamiltonian, z: jax.Array, dt: Scalar) -> jax.Array:
    """Takes a step of the classical Runge-Kutta method, of order 4; energy and volume drift."""
    k1 = vector_field(hamiltonian, z)
    k2 = vector_field(hamiltonian, z + 0.5 * dt * k1)
    k3 = vector_field(hamiltonian, z + 0.5 * dt * k2)
    k4 = vector_field(hamiltonian, z + dt * k3)
    return z + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def repeat(step: Callable[[jax.Array], jax.Array], z: jax.Array, times: int) -> jax.Array:
    """Applies `step` to z `times` times."""
    return jax.lax.scan(lambda x, _: (step(x), None), z, None, length=times)[0]
