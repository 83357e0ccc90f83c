"""Duffing oscillator and double well on exact facts, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from hjepa_jax.dynamics import systems
from hjepa_jax.dynamics.hamiltonian import energy_of_state
from hjepa_jax.dynamics.integrators import integrate


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize(("linear", "cubic"), [(1.0, 1.0), (2.0, 0.3), (0.7, 0.0)])
def test_duffing_follows_its_elliptic_solution(linear, cubic):
    """q = A cn(w t | m), from SciPy, over a period from A to A."""
    amplitude = 1.4
    rate = np.sqrt(linear + cubic * amplitude**2)
    m = cubic * amplitude**2 / (2 * rate**2)
    period = systems.duffing_period(amplitude, linear, cubic)
    np.testing.assert_allclose(period, 4 * special.ellipk(m) / rate, rtol=1e-14)
    steps = 1000
    path = integrate(
        systems.duffing(linear, cubic),
        jnp.array([amplitude, 0.0]),
        method="yoshida4",
        steps=steps,
        dt=period / steps,
        return_trajectory=True,
    )
    sn, cn, dn, _ = special.ellipj(rate * np.linspace(0, period, steps + 1), m)
    exact = np.stack([amplitude * cn, -amplitude * rate * sn * dn], axis=-1)
    np.testing.assert_allclose(path, exact, atol=1e-8)


def test_small_oscillations_have_the_frequency_of_the_minimum():
    np.testing.assert_allclose(systems.duffing_period(1e-5, 2.0), 2 * np.pi / np.sqrt(2), rtol=1e-9)
    barrier, offset = 0.4, 1e-5
    period = 2 * np.pi / np.sqrt(8 * barrier)
    start = jnp.array([1 + offset, 0.0])
    well = systems.double_well(barrier)
    end = integrate(well, start, method="yoshida4", steps=400, dt=period / 400)
    np.testing.assert_allclose(end, start, atol=1e-4 * offset)
    half = integrate(well, start, method="yoshida4", steps=400, dt=period / 800)
    np.testing.assert_allclose(half[0], 1 - offset, atol=1e-4 * offset)


@pytest.mark.parametrize("barrier", [0.25, 0.6])
def test_double_well_rests_at_its_minima_and_keeps_to_its_separatrix(barrier):
    well = systems.double_well(barrier)
    rest = jnp.array([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    np.testing.assert_array_equal(energy_of_state(well, rest), [0.0, barrier, 0.0])
    np.testing.assert_array_equal(integrate(well, rest, steps=7, dt=0.3), rest)
    times = np.linspace(-2.0, 2.0, 401)
    orbit = systems.double_well_separatrix(jnp.asarray(times), barrier)
    np.testing.assert_allclose(energy_of_state(well, orbit), barrier, rtol=1e-13)
    path = integrate(well, orbit[0], method="yoshida4", steps=400, dt=0.01, return_trajectory=True)
    np.testing.assert_allclose(path, orbit, atol=1e-6)


@pytest.mark.parametrize("name", ["duffing", "double_well"])
def test_written_gradients_are_those_of_the_energy(name):
    system = getattr(systems, name)(0.7)
    q, p = jax.random.normal(jax.random.key(1), (2, 5, 3), jnp.float64)
    by_q, by_p = jax.grad(lambda q, p: jnp.sum(system.energy(q, p)), (0, 1))(q, p)
    np.testing.assert_allclose(system.grad_q(q, p), by_q, atol=1e-13)
    np.testing.assert_allclose(system.grad_p(q, p), by_p, atol=1e-14)
    potential = system.potential(q) + 0.5 * jnp.sum(p**2, -1)
    np.testing.assert_allclose(potential, system.energy(q, p), rtol=1e-13)


@pytest.mark.parametrize("name", ["duffing", "double_well"])
@pytest.mark.parametrize(("method", "order"), [("leapfrog", 2), ("yoshida4", 4)])
def test_energy_error_has_the_order_of_the_method(name, method, order):
    system, start = getattr(systems, name)(), jnp.array([1.5, 0.2])
    errors = []
    for steps in (80, 160):
        path = integrate(
            system, start, method=method, steps=steps, dt=8 / steps, return_trajectory=True
        )
        energy = energy_of_state(system, path)
        errors.append(np.abs(energy - energy[0]).max())
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.3)
