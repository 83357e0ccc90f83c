"""Integrators: structure preservation, order, cost, gradients and damping, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.dynamics.integrators import INTEGRATORS, integrate, integrate_with_residual
from hjepa_jax.dynamics.midpoint import midpoint_residual
from hjepa_jax.dynamics.reversible import integrate_reversible

TIME_SYMMETRIC = ("leapfrog", "yoshida4", "implicit_midpoint")
EXACT = {"midpoint_tolerance": 1e-14, "midpoint_iterations": 100}


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def random_potential(seed=0, d=3, hidden=8, scale=1.0):
    # silu compiles faster than gelu's erf, which test_hamiltonian and the golden vectors cover.
    params = hm.init_mlp(jax.random.key(seed), (d, hidden, 1), jnp.float64)
    return params, hm.separable(params, base_coeff=0.5, residual_scale=scale, activation="silu")


def random_joint(seed=0, d=2):
    params = hm.init_mlp(jax.random.key(seed), (2 * d, 8, 1), jnp.float64)
    return hm.learnable(params, residual_scale=0.5, activation="silu")


def states(shape, seed=9):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def omega(d):
    zero, one = np.zeros((d, d)), np.eye(d)
    return np.block([[zero, one], [-one, zero]])


def symplectic_error(flow, z, factor=1.0):
    jacobian = np.asarray(jax.jit(jax.jacfwd(flow))(z))
    form = omega(z.size // 2)
    return np.abs(jacobian.T @ form @ jacobian - factor * form).max()


@settings(max_examples=6, derandomize=True, deadline=None)
@given(
    method=st.sampled_from(INTEGRATORS),
    seed=st.integers(0, 1000),
    d=st.integers(1, 5),
    steps=st.integers(1, 6),
    dt=st.floats(0.01, 0.3),
    direction=st.sampled_from([1, -1]),
)
def test_symplectic_for_random_potentials(method, seed, d, steps, dt, direction):
    with jax.enable_x64(True):
        _, system = random_potential(seed, d)
        flow = functools.partial(
            integrate, system, method=method, steps=steps, dt=dt, direction=direction, **EXACT
        )
        assert symplectic_error(flow, states((2 * d,), seed)) < 1e-10


def test_only_implicit_midpoint_is_symplectic_on_a_non_separable_hamiltonian(x64):
    system, z = random_joint(), states((4,))
    flow = functools.partial(integrate, system, steps=4, dt=0.2, **EXACT)
    assert symplectic_error(functools.partial(flow, method="implicit_midpoint"), z) < 1e-10
    for method in ("leapfrog", "symplectic_euler"):
        with pytest.warns(UserWarning, match="not symplectic.*implicit_midpoint"):
            error = symplectic_error(functools.partial(flow, method=method), z)
        assert error > 1e-5
    with pytest.raises(ValueError, match=r"yoshida4.*separable"):
        flow(z, method="yoshida4")


@pytest.mark.parametrize("method", TIME_SYMMETRIC)
@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_backward_inverts_forward(x64, method, damping):
    _, system = random_potential()
    z = states((2, 4, 6))
    flow = jax.jit(
        lambda x, direction: integrate(
            system, x, method=method, steps=7, dt=0.1, direction=direction, damping=damping, **EXACT
        )
    )
    there = flow(z, 1)
    assert np.abs(there - z).max() > 0.1
    np.testing.assert_allclose(flow(there, -1), z, atol=1e-11)


@pytest.mark.parametrize(
    ("method", "order"),
    [("leapfrog", 2), ("symplectic_euler", 1), ("yoshida4", 4), ("implicit_midpoint", 2)],
)
def test_measured_order_and_energy_error(x64, method, order):
    """Halving dt divides the error of state and energy by 2^order (a pendulum, time 2)."""
    pendulum = hm.from_energy(
        lambda q, p: 0.5 * jnp.sum(p**2, -1) - jnp.sum(jnp.cos(q), -1), is_separable=True
    )
    z = jnp.array([1.0, 0.4])
    run = functools.partial(integrate, pendulum, z, **EXACT)
    exact = run(method="yoshida4", steps=800, dt=2 / 800)
    counts = np.array([20, 40, 80])
    ends = [run(method=method, steps=int(n), dt=2.0 / n) for n in counts]
    errors = np.array([np.abs(end - exact).max() for end in ends])
    drifts = [hm.energy_of_state(pendulum, e) - hm.energy_of_state(pendulum, z) for e in ends]
    np.testing.assert_allclose(np.log2(errors[:-1] / errors[1:]), order, atol=0.15)
    ratios = np.log2(np.abs(np.array(drifts[:-1]) / np.array(drifts[1:])))
    np.testing.assert_allclose(ratios, order, atol=0.25)


def test_force_evaluations_are_not_repeated(x64):
    """One per step plus one (three per step for yoshida4); two per step if H is not separable."""
    calls = []
    plain = hm.quadratic()

    def counted(q, p):
        calls.append(1)
        return plain.grad_q(q, p)

    def evaluations(method, steps, is_separable=True):
        calls.clear()
        system = plain._replace(grad_q=counted, is_separable=is_separable)
        with jax.disable_jit():  # lax.scan then runs its body once per step in Python
            integrate(system, states((2,)), method=method, steps=steps, dt=0.1)
        return len(calls)

    for steps in (1, 2, 5):
        assert evaluations("leapfrog", steps) == steps + 1
        assert evaluations("yoshida4", steps) == 3 * steps + 1
        assert evaluations("symplectic_euler", steps) == steps
        with pytest.warns(UserWarning, match="not symplectic"):
            assert evaluations("leapfrog", steps, is_separable=False) == 2 * steps


def test_explicit_methods_match_plain_loops(x64):
    _, system = random_potential()
    z, h = states((3, 6)), -0.13
    euler_q, euler_p = hm.split_state(z)
    leap_q, leap_p = hm.split_state(z)
    for _ in range(3):
        euler_p = euler_p - h * system.grad_q(euler_q, euler_p)
        euler_q = euler_q + h * euler_p
        leap_p = leap_p - h / 2 * system.grad_q(leap_q, leap_p)
        leap_q = leap_q + h * leap_p
        leap_p = leap_p - h / 2 * system.grad_q(leap_q, leap_p)
    run = functools.partial(integrate, system, z, steps=3, dt=0.13, direction=-1)
    np.testing.assert_allclose(run(method="leapfrog"), hm.join_state(leap_q, leap_p), atol=1e-14)
    expected = hm.join_state(euler_q, euler_p)
    np.testing.assert_allclose(run(method="symplectic_euler"), expected, atol=1e-14)


@pytest.mark.parametrize("method", INTEGRATORS)
def test_gradients_match_finite_differences(x64, method):
    """In the state, the parameters and dt; through the implicit solve as well."""
    params, _ = random_potential()
    z, weight = states((2, 6)), states((2, 6), 1)

    @jax.jit
    def loss(arguments):
        params, x, dt = arguments
        system = hm.separable(params, base_coeff=0.5, residual_scale=1.0, activation="silu")
        return jnp.sum(weight * integrate(system, x, method=method, steps=3, dt=dt, **EXACT))

    arguments = (params, z, jnp.float64(0.2))
    gradient = jax.grad(loss)(arguments)
    leaves, tree = jax.tree.flatten(arguments)
    rng = np.random.default_rng(0)
    for index, leaf in enumerate(leaves):
        direction = rng.normal(size=leaf.shape)
        moved = [
            loss(tree.unflatten([*leaves[:index], leaf + s * direction, *leaves[index + 1 :]]))
            for s in (1e-5, -1e-5)
        ]
        analytic = np.sum(np.asarray(jax.tree.leaves(gradient)[index]) * direction)
        np.testing.assert_allclose(analytic, (moved[0] - moved[1]) / 2e-5, rtol=1e-6, atol=1e-8)


def test_midpoint_gradient_of_a_non_separable_hamiltonian_is_that_of_the_unrolled_solve(x64):
    params = hm.init_mlp(jax.random.key(0), (4, 8, 1), jnp.float64)
    z = states((3, 4))

    def unrolled(params, x):
        system = hm.learnable(params, residual_scale=0.5, activation="silu")
        for _ in range(2):
            start = x

            def improve(guess, _, start=start):
                return guess - midpoint_residual(system, start, guess, 0.2), None

            x, _ = jax.lax.scan(improve, start, None, length=40)
        return jnp.sum(jnp.sin(x))

    def implicit(params, x):
        system = hm.learnable(params, residual_scale=0.5, activation="silu")
        flow = integrate(system, x, method="implicit_midpoint", steps=2, dt=0.2, **EXACT)
        return jnp.sum(jnp.sin(flow))

    expected = jax.jit(jax.grad(unrolled, (0, 1)))(params, z)
    actual = jax.jit(jax.grad(implicit, (0, 1)))(params, z)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-11), actual, expected)


def test_midpoint_gradients_of_tiny_cotangents_are_relatively_accurate(x64):
    _, pullback = jax.vjp(
        lambda x: integrate(random_joint(), x, method="implicit_midpoint", steps=1, dt=0.2),
        states((3, 4)),
    )
    (tiny,), (unit,) = pullback(jnp.full((3, 4), 1e-12)), pullback(jnp.ones((3, 4)))
    np.testing.assert_allclose(tiny * 1e12, unit, rtol=1e-9)


def test_midpoint_reports_what_it_could_not_solve():
    """Rows that converge are right, others are NaN under jit and an error outside it."""
    stiff = hm.from_energy(lambda q, p: 0.5 * jnp.sum(p**2, -1) + jnp.sum(q**4, -1))
    z = jnp.array([[0.1, 0.0], [5.0, 0.0]])
    run = functools.partial(integrate, stiff, method="implicit_midpoint", steps=1, dt=0.3)
    good, bad = jax.jit(run)(z)
    assert np.isfinite(good).all()
    assert np.isnan(bad).all()
    with pytest.raises(FloatingPointError, match=r"did not converge: residual .*smaller dt"):
        run(z)
    out, residual = integrate_with_residual(
        stiff, z, method="implicit_midpoint", steps=1, dt=0.3, midpoint_tolerance=1e-6
    )
    assert residual[0] <= 1e-6
    assert not residual[1] <= 1e-6
    assert np.abs(midpoint_residual(stiff, z, out, 0.3)[0]).max() < 2e-6


@pytest.mark.parametrize("method", INTEGRATORS)
def test_damping_is_conformally_symplectic(x64, method):
    """J^T Omega J = exp(-damping T) Omega, and volumes shrink by exp(-damping T d)."""
    _, system = random_potential()
    flow = functools.partial(
        integrate, system, method=method, steps=5, dt=0.1, damping=0.8, **EXACT
    )
    assert symplectic_error(flow, states((6,)), np.exp(-0.8 * 0.5)) < 1e-10


def test_zero_damping_is_bit_exact_leapfrog():
    params = hm.init_mlp(jax.random.key(0), (3, 8, 1))
    system = hm.separable(params, base_coeff=0.5, residual_scale=1.0, activation="silu")
    z = jax.random.normal(jax.random.key(1), (4, 6))
    plain = jax.jit(lambda x: integrate(system, x, steps=4, dt=0.1))(z)
    zero = jax.jit(lambda x: integrate(system, x, steps=4, dt=0.1, damping=0.0))(z)
    some = jax.jit(lambda x: integrate(system, x, steps=4, dt=0.1, damping=1e-3))(z)
    np.testing.assert_array_equal(plain, zero)
    assert np.any(np.asarray(plain) != np.asarray(some))


@pytest.mark.parametrize("method", INTEGRATORS)
def test_trajectory_holds_every_state(x64, method):
    _, system = random_potential()
    z = states((2, 6))
    path = integrate(system, z, method=method, steps=3, dt=0.1, return_trajectory=True, **EXACT)
    assert path.shape == (4, 2, 6)
    np.testing.assert_array_equal(path[0], z)
    for steps in (1, 3):
        end = integrate(system, z, method=method, steps=steps, dt=0.1, **EXACT)
        np.testing.assert_allclose(path[steps], end, atol=1e-14)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.float64, 1e-10)])
def test_reversible_gradients_equal_the_stored_ones(x64, dtype, tolerance):
    params = hm.init_mlp(jax.random.key(0), (3, 8, 1), dtype)
    z = states((4, 6)).astype(dtype)

    def build(arguments):
        layers, scale = arguments
        return hm.separable(layers, base_coeff=0.3, residual_scale=scale, activation="silu")

    def plain(arguments, x, dt):
        end = integrate(build(arguments), x, steps=6, dt=dt, damping=0.2, direction=-1)
        return jnp.sum(jnp.sin(end))

    def reversible(arguments, x, dt):
        end = integrate_reversible(build, arguments, x, steps=6, dt=dt, damping=0.2, direction=-1)
        return jnp.sum(jnp.sin(end))

    arguments = ((params, jnp.asarray(0.9, dtype)), z, jnp.asarray(0.1, dtype))
    value, expected = jax.jit(jax.value_and_grad(plain, (0, 1, 2)))(*arguments)
    same_value, actual = jax.jit(jax.value_and_grad(reversible, (0, 1, 2)))(*arguments)
    np.testing.assert_allclose(same_value, value, rtol=tolerance / 10)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance),
        actual,
        expected,
    )


def test_reversible_memory_does_not_grow_with_steps():
    params = hm.init_mlp(jax.random.key(0), (32, 64, 1))
    z = jax.random.normal(jax.random.key(1), (64, 64))

    def build(layers):
        return hm.separable(layers, base_coeff=0.3, residual_scale=1.0, activation="silu")

    def memory(flow, steps):
        loss = jax.jit(jax.grad(lambda p: jnp.sum(flow(p, steps))))
        return loss.lower(params).compile().memory_analysis().temp_size_in_bytes

    def stored(p, n):
        return integrate(build(p), z, steps=n, dt=0.01)

    def recomputed(p, n):
        return integrate_reversible(build, p, z, steps=n, dt=0.01)

    constant = memory(recomputed, 200)
    assert constant < 1.1 * memory(recomputed, 20)
    assert constant < memory(stored, 200) / 5


@pytest.mark.usefixtures("unchecked")
def test_errors_say_what_is_wrong():
    z = jnp.zeros((2, 4))
    with pytest.raises(ValueError, match=r"'euler'.*leapfrog"):
        integrate(hm.quadratic(), z, method="euler", steps=1, dt=0.1)
    with pytest.raises(ValueError, match="at least 1 step, not 0"):
        integrate(hm.quadratic(), z, steps=0, dt=0.1)
    with pytest.raises(ValueError, match="reference_leapfrog"):
        integrate(hm.quadratic(), z, steps=1, dt=0.1, damping=0.1, reference_leapfrog=True)
    joint = hm.init_mlp(jax.random.key(0), (4, 3, 1))
    with pytest.raises(ValueError, match="separable"):
        integrate_reversible(
            lambda p: hm.learnable(p, residual_scale=1.0), joint, z, steps=1, dt=0.1
        )
