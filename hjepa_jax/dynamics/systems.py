"""Classical systems with known facts, to test integrators and to show what structure buys.

Sources: Goldstein, "Classical Mechanics"; Henon & Heiles, Astronomical Journal 69 (1964) 73.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, Scalar, join_state, split_state

# Below this energy Henon-Heiles orbits that start in the well never leave it.
HENON_HEILES_ESCAPE_ENERGY = 1.0 / 6.0


def harmonic_oscillator(frequency: Scalar = 1.0) -> Hamiltonian:
    """H = |p|^2/2 + frequency^2 |q|^2/2 for q, p [..., d]: d equal, uncoupled oscillators."""
    square = frequency**2
    return Hamiltonian(
        energy=lambda q, p: 0.5 * jnp.sum(p * p + square * q * q, axis=-1),
        grad_q=lambda q, p: square * q,
        grad_p=lambda q, p: p,
        potential=lambda q: 0.5 * square * jnp.sum(q * q, axis=-1),
        is_separable=True,
    )


def harmonic_flow(z: jax.Array, time: Scalar, frequency: Scalar = 1.0) -> jax.Array:
    """Returns the exact flow of `harmonic_oscillator` from z [..., 2d] over `time`: a rotation."""
    q, p = split_state(z)
    angle = jnp.asarray(frequency * time)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return join_state(cosine * q + sine / frequency * p, cosine * p - frequency * sine * q)


def pendulum() -> Hamiltonian:
    """H = sum p^2/2 + (1 - cos q) for q, p [..., d]: unit pendulums, at rest at zero energy.

    The separatrix between swinging and turning over has energy 2.
    """
    return Hamiltonian(
        energy=lambda q, p: jnp.sum(0.5 * p * p + 1 - jnp.cos(q), axis=-1),
        grad_q=lambda q, p: jnp.sin(q),
        grad_p=lambda q, p: p,
        potential=lambda q: jnp.sum(1 - jnp.cos(q), axis=-1),
        is_separable=True,
    )


def pendulum_period(amplitude: Scalar) -> jax.Array:
    """Returns the exact period of a swing of `amplitude` < pi: 4 K(sin^2(amplitude/2)).

    The complete elliptic integral K comes from the arithmetic-geometric mean:
    period = 2 pi / agm(1, cos(amplitude/2)).
    """
    larger = jnp.ones_like(jnp.asarray(amplitude, jnp.result_type(float)))
    smaller = jnp.cos(jnp.asarray(amplitude) / 2)
    for _ in range(8):  # converges quadratically
        larger, smaller = (larger + smaller) / 2, jnp.sqrt(larger * smaller)
    return 2 * jnp.pi / larger


def henon_heiles() -> Hamiltonian:
    """H = (p_x^2 + p_y^2 + x^2 + y^2)/2 + x^2 y - y^3/3 for q = (x, y), q and p [..., 2].

    Symmetric under rotations by 120 degrees; chaotic in part above energies of about 1/12.
    """

    def potential(q: jax.Array) -> jax.Array:
        x, y = q[..., 0], q[..., 1]
        return 0.5 * (x * x + y * y) + x * x * y - y**3 / 3

    def grad_q(q: jax.Array, p: jax.Array) -> jax.Array:
        x, y = q[..., 0], q[..., 1]
        return jnp.stack([x + 2 * x * y, y + x * x - y * y], axis=-1)

    return Hamiltonian(
        energy=lambda q, p: 0.5 * jnp.sum(p * p, axis=-1) + potential(q),
        grad_q=grad_q,
        grad_p=lambda q, p: p,
        potential=potential,
        is_separable=True,
    )
