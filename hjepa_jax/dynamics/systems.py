"""Classical systems with known facts, to test integrators and to show what structure buys.

Units are dimensionless: unit mass, and unit length of the pendulum under unit gravity. Sources:
Goldstein, "Classical Mechanics"; Hénon & Heiles, Astronomical Journal 69 (1964) 73; Guckenheimer &
Holmes, "Nonlinear Oscillations, Dynamical Systems, and Bifurcations", sections 2.2 and 4.5, for
Duffing's equation and its homoclinic orbit. All conserve their energy: friction is the argument
`damping` of `integrators.integrate`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from hjepa_jax.dynamics.hamiltonian import (
    Gradient,
    Hamiltonian,
    Potential,
    Scalar,
    join_state,
    split_state,
)

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
    return 2 * jnp.pi / _mean_with_one(jnp.cos(jnp.asarray(amplitude, jnp.result_type(float)) / 2))


def _mean_with_one(smaller: Float[Array, ""]) -> Float[Array, ""]:
    """Returns agm(1, smaller), which is pi/2 over the elliptic integral K(1 - smaller^2)."""
    larger = jnp.ones_like(smaller)
    for _ in range(8):  # converges quadratically
        larger, smaller = (larger + smaller) / 2, jnp.sqrt(larger * smaller)
    return larger


def duffing(linear: Scalar = 1.0, cubic: Scalar = 1.0) -> Hamiltonian:
    """H = sum p^2/2 + linear q^2/2 + cubic q^4/4 for q, p [..., d]: uncoupled Duffing oscillators.

    Both positive, the spring hardens: larger oscillations are faster. The equation's forcing is
    left out, since H would depend on time.

    Args:
        linear: stiffness at q = 0, the squared frequency of small oscillations.
        cubic: stiffness that grows with q^2.
    """

    def potential(q: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
        return jnp.sum(0.5 * linear * q * q + 0.25 * cubic * q**4, axis=-1)

    return _with_unit_mass(potential, lambda q, p: linear * q + cubic * q**3)


def duffing_period(
    amplitude: Scalar, linear: Scalar = 1.0, cubic: Scalar = 1.0
) -> Float[Array, ""]:
    """Returns the exact period of a hardening `duffing` oscillator, 4 K(m)/w.

    The orbit is amplitude * cn(w t | m) with w^2 = linear + cubic amplitude^2 and
    m = cubic amplitude^2/(2 w^2).

    Args:
        amplitude: largest |q|.
        linear: see `duffing`; positive.
        cubic: see `duffing`; not negative.
    """
    square = jnp.asarray(cubic * amplitude**2, jnp.result_type(float))
    rate = linear + square
    return 2 * jnp.pi / (jnp.sqrt(rate) * _mean_with_one(jnp.sqrt(1 - square / (2 * rate))))


def double_well(barrier: Scalar = 0.25) -> Hamiltonian:
    """H = sum p^2/2 + barrier (q^2 - 1)^2 for q, p [..., d]: minima of energy 0 at -1, 1.

    Small oscillations about a minimum have frequency sqrt(8 barrier). The separatrix, of energy
    `barrier`, is the orbit of `double_well_separatrix`.

    Args:
        barrier: height of the potential between the wells.
    """

    def potential(q: Float[Array, "*batch d"]) -> Float[Array, "*batch"]:
        return barrier * jnp.sum((q * q - 1) ** 2, axis=-1)

    return _with_unit_mass(potential, lambda q, p: 4 * barrier * q * (q * q - 1))


def double_well_separatrix(
    time: Float[Array, "*times"], barrier: Scalar = 0.25
) -> Float[Array, "*times 2"]:
    """Returns the states (q, p) [..., 2] on the right half of the separatrix, at q = sqrt(2) at 0.

    The orbit leaves the barrier and returns to it in infinite time: q = sqrt(2) / cosh(rate t) with
    rate = 2 sqrt(barrier).

    Args:
        time: times [...].
        barrier: see `double_well`.
    """
    rate = 2 * jnp.sqrt(jnp.asarray(barrier))
    q = jnp.sqrt(2.0) / jnp.cosh(rate * time)
    return jnp.stack([q, -rate * q * jnp.tanh(rate * time)], axis=-1)


def _with_unit_mass(potential: Potential, grad_q: Gradient) -> Hamiltonian:
    """Returns H = |p|^2/2 + V(q)."""
    return Hamiltonian(
        energy=lambda q, p: 0.5 * jnp.sum(p * p, axis=-1) + potential(q),
        grad_q=grad_q,
        grad_p=lambda q, p: p,
        potential=potential,
        is_separable=True,
    )


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

    return _with_unit_mass(potential, grad_q)
