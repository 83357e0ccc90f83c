"""Implicit Euler on known answers, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.dynamics import geometry, systems
from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.dynamics.non_symplectic import explicit_euler_step, implicit_euler_step, repeat


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("frequency", "dt"), [(1.0, 0.3), (2.0, 0.4), (1.0, -0.3)])
def test_a_step_is_the_linear_solve_and_divides_the_energy_by_the_known_factor(frequency, dt):
    system = systems.harmonic_oscillator(frequency)
    z = jax.random.normal(jax.random.key(0), (5, 2))
    field = np.array([[0.0, 1.0], [-(frequency**2), 0.0]])
    found = implicit_euler_step(system, z, dt)
    np.testing.assert_allclose(found, np.linalg.solve(np.eye(2) - dt * field, z.T).T, rtol=1e-11)
    ratio = hm.energy_of_state(system, found) / hm.energy_of_state(system, z)
    np.testing.assert_allclose(ratio, 1 / (1 + (frequency * dt) ** 2), rtol=1e-11)


def test_a_step_back_by_explicit_euler_undoes_it():
    """Explicit Euler with -dt is its inverse, on every system."""
    system = systems.double_well()
    z = jax.random.normal(jax.random.key(1), (6, 4))
    back = explicit_euler_step(system, implicit_euler_step(system, z, 0.2), -0.2)
    np.testing.assert_allclose(back, z, atol=1e-12)


def test_the_measured_order_is_one_and_volumes_shrink():
    system, z = systems.pendulum(), jnp.array([1.0, 0.3])
    exact = repeat(lambda x: implicit_euler_step(system, x, 2 / 4096), z, 4096)
    errors = [
        np.abs(repeat(lambda x, n=n: implicit_euler_step(system, x, 2 / n), z, n) - exact).max()
        for n in (40, 80)
    ]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 1, atol=0.1)
    oscillator = systems.harmonic_oscillator()
    factor = geometry.volume_factor(lambda x: implicit_euler_step(oscillator, x, 0.3), z)
    np.testing.assert_allclose(factor, 1 / (1 + 0.3**2), rtol=1e-11)


def test_what_cannot_be_solved_is_nan_and_nothing_else():
    stiff = hm.from_energy(lambda q, p: 0.5 * jnp.sum(p**2, -1) + jnp.sum(q**4, -1))
    good, bad = implicit_euler_step(stiff, jnp.array([[0.1, 0.0], [5.0, 0.0]]), 0.3)
    assert np.isfinite(good).all()
    assert np.isnan(bad).all()
