"""Diagnostics on maps whose answers are known, and classical systems on exact facts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.dynamics import geometry, systems
from hjepa_jax.dynamics.hamiltonian import energy_of_state, join_state
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.dynamics.non_symplectic import explicit_euler_step, repeat, runge_kutta4_step


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def matrix(seed, n):
    return jax.random.normal(jax.random.key(seed), (n, n), jnp.float64)


def test_jacobian_and_volume_of_a_linear_map():
    a = matrix(0, 6)
    z = jnp.arange(6.0)
    np.testing.assert_allclose(geometry.jacobian(lambda x: a @ x, z), a, atol=1e-14)
    volume = jax.jit(lambda z: geometry.volume_factor(lambda x: a @ x, z))(z)
    np.testing.assert_allclose(volume, np.linalg.det(a), rtol=1e-12)


def test_symplectic_defect_is_the_normalized_frobenius_norm():
    a = np.asarray(matrix(1, 4))
    form = np.block([[np.zeros((2, 2)), np.eye(2)], [-np.eye(2), np.zeros((2, 2))]])
    np.testing.assert_array_equal(geometry.symplectic_form(2, jnp.float64), form)
    expected = np.linalg.norm(a.T @ form @ a - 0.3 * form) / 2
    actual = geometry.symplectic_defect(lambda x: a @ x, jnp.ones(4), 0.3)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    # Scaling by s multiplies the form by s^2.
    doubled = geometry.symplectic_defect(lambda x: 2.0 * x, jnp.ones(6))
    np.testing.assert_allclose(doubled, 3.0, rtol=1e-14)


def test_diagnostics_tell_leapfrog_from_euler_under_jit_and_vmap():
    z = jax.random.normal(jax.random.key(0), (5, 6), jnp.float64)
    leapfrog = functools.partial(integrate, systems.pendulum(), steps=4, dt=0.2)
    backward = functools.partial(leapfrog, direction=-1)

    def euler(x, dt=0.2):
        return repeat(lambda y: explicit_euler_step(systems.pendulum(), y, dt), x, 4)

    @jax.jit
    @jax.vmap
    def measure(z):
        return (
            geometry.symplectic_defect(leapfrog, z),
            geometry.symplectic_defect(euler, z),
            geometry.volume_factor(leapfrog, z) - 1,
            geometry.volume_factor(euler, z) - 1,
            geometry.reversibility_error(leapfrog, backward, z),
            geometry.reversibility_error(euler, functools.partial(euler, dt=-0.2), z),
        )

    values = [np.abs(v) for v in measure(z)]
    assert all(v.shape == (5,) for v in values)
    assert max(v.max() for v in values[::2]) < 1e-13
    assert min(v.min() for v in values[1::2]) > 1e-4


def test_energy_drift_is_measured_from_the_start():
    path = jnp.array([[[1.0, 0.0]], [[2.0, 0.0]], [[0.0, 3.0]]])
    drift = geometry.energy_drift(lambda z: jnp.sum(z**2, -1), path)
    np.testing.assert_array_equal(drift, [[0.0], [3.0], [8.0]])


def test_covariance_transport_keeps_symplectic_eigenvalues():
    root = matrix(2, 6)
    covariance = root @ root.T + jnp.eye(6)
    mean = jnp.linspace(-1, 1, 6)
    flow = functools.partial(integrate, systems.pendulum(), steps=5, dt=0.2)
    moved_mean, moved = geometry.covariance_transport(flow, mean, covariance)
    np.testing.assert_array_equal(moved_mean, flow(mean))
    np.testing.assert_allclose(np.linalg.det(moved), np.linalg.det(covariance), rtol=1e-11)
    before, after = (geometry.symplectic_eigenvalues(c) for c in (covariance, moved))
    np.testing.assert_allclose(after, before, rtol=1e-11)
    spectrum = np.linalg.eigvals(np.asarray(geometry.symplectic_form(3)) @ np.asarray(covariance))
    np.testing.assert_allclose(before, np.sort(np.abs(spectrum.imag))[::2], rtol=1e-11)
    # First order is exact for small clouds: compare with samples pushed through the flow.
    small = 1e-8 * covariance
    sample = mean + jax.random.normal(jax.random.key(0), (4000, 6)) @ jnp.linalg.cholesky(small).T
    carried = jnp.linalg.cholesky(jnp.cov(sample.T))
    _, expected = geometry.covariance_transport(flow, mean, carried @ carried.T)
    np.testing.assert_allclose(np.cov(np.asarray(flow(sample)).T), expected, rtol=0.01, atol=1e-11)


@pytest.mark.parametrize("frequency", [1.0, 2.5])
def test_harmonic_flow_solves_the_oscillator(frequency):
    system = systems.harmonic_oscillator(frequency)
    z = jax.random.normal(jax.random.key(3), (4, 6), jnp.float64)
    exact = systems.harmonic_flow(z, 2.0, frequency)
    numeric = integrate(system, z, method="yoshida4", steps=400, dt=2.0 / 400)
    np.testing.assert_allclose(numeric, exact, atol=1e-7)
    period = 2 * np.pi / frequency
    np.testing.assert_allclose(systems.harmonic_flow(z, period, frequency), z, atol=1e-14)
    np.testing.assert_allclose(
        energy_of_state(system, exact), energy_of_state(system, z), rtol=1e-13
    )


def test_leapfrog_on_the_oscillator_conserves_its_modified_energy():
    """Exact fact: leapfrog keeps p^2 + (1 - h^2/4) q^2 (frequency 1), whatever the step count."""
    h = 0.3
    path = integrate(
        systems.harmonic_oscillator(),
        jnp.array([0.7, -0.4]),
        steps=500,
        dt=h,
        return_trajectory=True,
    )
    modified = path[:, 1] ** 2 + (1 - h**2 / 4) * path[:, 0] ** 2
    np.testing.assert_allclose(modified, modified[0], rtol=1e-12)


@pytest.mark.parametrize("amplitude", [0.1, 1.5, 3.0])
def test_pendulum_returns_after_its_exact_period(amplitude):
    period = systems.pendulum_period(amplitude)
    start = jnp.array([amplitude, 0.0])
    steps = 2000
    end = integrate(systems.pendulum(), start, method="yoshida4", steps=steps, dt=period / steps)
    np.testing.assert_allclose(end, start, atol=1e-8)
    half = integrate(
        systems.pendulum(), start, method="yoshida4", steps=steps, dt=period / 2 / steps
    )
    np.testing.assert_allclose(half, -start, atol=1e-8)


def test_pendulum_facts():
    np.testing.assert_allclose(systems.pendulum_period(1e-4), 2 * np.pi, rtol=1e-8)
    system = systems.pendulum()
    assert energy_of_state(system, jnp.zeros(2)) == 0
    assert energy_of_state(system, jnp.array([jnp.pi, 0.0])) == 2


def test_henon_heiles_saddles_symmetry_and_confinement():
    system = systems.henon_heiles()
    angles = jnp.pi / 2 + 2 * jnp.pi / 3 * jnp.arange(3)
    saddles = jnp.stack([jnp.cos(angles), jnp.sin(angles)], -1)
    rest = jnp.zeros_like(saddles)
    np.testing.assert_allclose(system.grad_q(saddles, rest), 0, atol=1e-14)
    np.testing.assert_allclose(
        system.energy(saddles, rest), systems.HENON_HEILES_ESCAPE_ENERGY, rtol=1e-14
    )
    q, p = jax.random.normal(jax.random.key(0), (2, 7, 2), jnp.float64)
    c, s = np.cos(2 * np.pi / 3), np.sin(2 * np.pi / 3)
    turn = jnp.array([[c, -s], [s, c]])
    turned = system.energy(q @ turn.T, p @ turn.T)
    np.testing.assert_allclose(turned, system.energy(q, p), rtol=1e-12)
    start = join_state(jnp.array([0.0, 0.1]), jnp.array([0.5, 0.1]))
    assert energy_of_state(system, start) < systems.HENON_HEILES_ESCAPE_ENERGY
    path = integrate(system, start, steps=5000, dt=0.05, return_trajectory=True)
    assert np.abs(path[:, :2]).max() < 1.0
    drift = geometry.energy_drift(lambda z: energy_of_state(system, z), path)
    assert np.abs(drift).max() < 2e-4


@pytest.mark.parametrize("name", ["harmonic_oscillator", "pendulum", "henon_heiles"])
def test_written_gradients_are_those_of_the_energy(name):
    system = getattr(systems, name)()
    q, p = jax.random.normal(jax.random.key(1), (2, 5, 2), jnp.float64)
    by_q, by_p = jax.grad(lambda q, p: jnp.sum(system.energy(q, p)), (0, 1))(q, p)
    np.testing.assert_allclose(system.grad_q(q, p), by_q, atol=1e-14)
    np.testing.assert_allclose(system.grad_p(q, p), by_p, atol=1e-14)
    np.testing.assert_allclose(
        system.potential(q) + 0.5 * jnp.sum(p**2, -1), system.energy(q, p), atol=1e-14
    )


@pytest.mark.parametrize(("step", "order"), [(explicit_euler_step, 1), (runge_kutta4_step, 4)])
def test_non_symplectic_steps_have_their_order(step, order):
    z = jnp.array([1.0, 0.3])
    exact = systems.harmonic_flow(z, 1.0)
    errors = [
        np.abs(repeat(lambda x, n=n: step(systems.harmonic_oscillator(), x, 1 / n), z, n) - exact)
        for n in (20, 40)
    ]
    np.testing.assert_allclose(np.log2(errors[0].max() / errors[1].max()), order, atol=0.15)
