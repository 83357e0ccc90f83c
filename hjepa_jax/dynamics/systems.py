"""Classical systems with known facts, to test integrators and to show what structure buys.

Units are dimensionless: unit mass, and unit length of the pendulum under unit gravity. Sources:
Goldstein, "Classical Mechanics"; Hénon & Heiles, Astronomical Journal 69 (1964) 73.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from hjepa_jax.dynamics.hamiltonian import Hamiltonian, Scalar, join_state, split_state

# Below this energy Hénon-Heiles orbits that start in the well never leave it.
HENON_HEILES_ESCAPE_ENERGY = 1.0 / 6.0


def harmonic_oscillator(frequency: Scalar = 1.0) -> Hamiltonian:
    """H = |p|^2/2 + frequency^2 |q|^2/2 for q, p [..., d]: d equal, uncoupled oscillators.

    Args:
        frequency: angular frequency, in radians per unit of time.
    """
    square = frequency**2
    return Hamiltonian(
        energy=lambda q, p: 0.5 * jnp.sum(p * p + square * q * q, axis=-1),
        grad_q=lambda q, p: square * q,
        grad_p=lambda q, p: p,
        potential=lambda q: 0.5 * square * jnp.sum(q * q, axis=-1),
        is_separable=True,
    )


def harmonic_flow(
    z: Float[Array, "*batch n"], time: Scalar, frequency: Scalar = 1.0
) -> Float[Array, "*batch n"]:
    """Returns the exact flow of `harmonic_oscillator`, a rotation in scaled phase space.

    Args:
        z: initial states [..., 2d].
        time: duration of the flow; may be negative.
        frequency: angular frequency.

    Returns:
        The states [..., 2d] at `time`.
    """
    q, p = split_state(z)
    angle = jnp.asarray(frequency * time)
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return join_state(cosine * q + sine / frequency * p, cosine * p - frequency * sine * q)


def pendulum() -> Hamiltonian:
    """H = sum p^2/2 + (1 - cos q) for q, p [..., d]: unit pendulums, at rest at zero energy.

    The separatrix between libration and rotation has energy 2.
    """
    return Hamiltonian(
        energy=lambda q, p: jnp.sum(0.5 * p * p + 1 - jnp.cos(q), axis=-1),
        grad_q=lambda q, p: jnp.sin(q),
        grad_p=lambda q, p: p,
        potential=lambda q: jnp.sum(1 - jnp.cos(q), axis=-1),
        is_separable=True,
    )


def pendulum_period(amplitude: Scalar) -> Float[Array, ""]:
    """Returns the exact period of a pendulum swing, 4 K(sin^2(amplitude/2)).

    The complete elliptic integral K comes from the arithmetic-geometric mean:
    period = 2 pi / agm(1, cos(amplitude/2)).

    Args:
        amplitude: largest angle, in radians, below pi.
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

    def potential(q: Float[Array, "*batch 2"]) -> Float[Array, "*batch"]:
        x, y = q[..., 0], q[..., 1]
        return 0.5 * (x * x + y * y) + x * x * y - y**3 / 3

    def grad_q(
        q: Float[Array, "*batch 2"], p: Float[Array, "*batch 2"]
    ) -> Float[Array, "*batch 2"]:
        x, y = q[..., 0], q[..., 1]
        return jnp.stack([x + 2 * x * y, y + x * x - y * y], axis=-1)

    return Hamiltonian(
        energy=lambda q, p: 0.5 * jnp.sum(p * p, axis=-1) + potential(q),
        grad_q=grad_q,
        grad_p=lambda q, p: p,
        potential=potential,
        is_separable=True,
    )
