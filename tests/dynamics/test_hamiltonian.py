"""Hamiltonians against NumPy formulas and finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.dynamics import hamiltonian as hm

ERF = np.vectorize(math.erf)
NUMPY_ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + ERF(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


def numpy_mlp(params, x, activation):
    for layer in params[:-1]:
        x = NUMPY_ACTIVATIONS[activation](x @ np.asarray(layer["kernel"]) + layer["bias"])
    return x @ np.asarray(params[-1]["kernel"]) + np.asarray(params[-1]["bias"])


@pytest.mark.parametrize("activation", sorted(hm.ACTIVATIONS))
def test_energies_match_numpy(activation):
    rng = np.random.default_rng(0)
    q, p = rng.normal(size=(2, 3, 4, 5))
    with jax.enable_x64(True):
        params = hm.init_mlp(jax.random.key(0), (5, 7, 6, 1), jnp.float64)
        both = hm.init_mlp(jax.random.key(1), (10, 7, 1), jnp.float64)
        sep = hm.separable(params, base_coeff=0.3, residual_scale=0.7, activation=activation)
        joint = hm.learnable(both, base_coeff=0.4, residual_scale=0.7, activation=activation)
        q_square, p_square = 0.5 * (q**2).sum(-1), 0.5 * (p**2).sum(-1)
        potential = 0.3 * q_square + 0.7 * numpy_mlp(params, q, activation)[..., 0]
        at = jnp.asarray(q), jnp.asarray(p)
        np.testing.assert_allclose(sep.potential(at[0]), potential, rtol=1e-12)
        np.testing.assert_allclose(sep.energy(*at), potential + p_square, rtol=1e-12)
        residual = numpy_mlp(both, np.concatenate([q, p], -1), activation)[..., 0]
        expected = 0.4 * (q_square + p_square) + 0.7 * residual
        np.testing.assert_allclose(joint.energy(*at), expected, rtol=1e-12)
        np.testing.assert_allclose(hm.quadratic().energy(*at), q_square + p_square, rtol=1e-12)
        assert (sep.is_separable, joint.is_separable) == (True, False)
        assert joint.potential is None


@pytest.mark.parametrize("kind", ["separable", "learnable", "quadratic", "from_energy"])
def test_partial_derivatives_match_finite_differences(kind):
    with jax.enable_x64(True):
        sizes = (6, 8, 1) if kind == "learnable" else (3, 8, 1)
        params = hm.init_mlp(jax.random.key(2), sizes, jnp.float64)
        built = {
            "separable": hm.separable(params, base_coeff=0.2, residual_scale=1.5),
            "learnable": hm.learnable(params, residual_scale=1.5),
            "quadratic": hm.quadratic(),
            "from_energy": hm.from_energy(lambda q, p: jnp.sum(jnp.sin(q) * p**2, -1)),
        }[kind]
        q, p = jax.random.normal(jax.random.key(3), (2, 4, 3), jnp.float64)
        shifts = 1e-6 * jnp.concatenate([jnp.eye(3), -jnp.eye(3)])[:, None]

        @jax.jit
        def measure(q, p):
            by_q = built.energy(q + shifts, p + 0 * shifts)
            by_p = built.energy(q + 0 * shifts, p + shifts)
            return built.grad_q(q, p), built.grad_p(q, p), by_q, by_p

        grad_q, grad_p, by_q, by_p = measure(q, p)
        for gradient, energies in ((grad_q, by_q), (grad_p, by_p)):
            expected = (energies[:3] - energies[3:]) / 2e-6
            np.testing.assert_allclose(gradient, expected.T, atol=1e-8)


def test_flow_does_not_see_the_last_bias_but_the_energy_does():
    params = hm.init_mlp(jax.random.key(0), (3, 4, 1))
    q, p = jax.random.normal(jax.random.key(1), (2, 5, 3))

    def force(params):
        return jnp.sum(
            hm.separable(params, base_coeff=0.1, residual_scale=2.0, activation="silu").grad_q(q, p)
            ** 2
        )

    def energy(params):
        return jnp.sum(
            hm.separable(params, base_coeff=0.1, residual_scale=2.0, activation="silu").energy(q, p)
        )

    by_force, by_energy = jax.jit(lambda p: (jax.grad(force)(p), jax.grad(energy)(p)))(params)
    assert by_force[-1]["bias"] == 0
    np.testing.assert_allclose(by_energy[-1]["bias"], 10.0, rtol=1e-6)


def test_init_is_uniform_within_one_over_root_fan_in():
    params = hm.init_mlp(jax.random.key(0), (64, 256, 1))
    assert [layer["kernel"].shape for layer in params] == [(64, 256), (256, 1)]
    kernel = np.asarray(params[0]["kernel"])
    assert np.abs(kernel).max() <= 1 / 8
    np.testing.assert_allclose(kernel.std(), 1 / 8 / math.sqrt(3), rtol=0.02)
    np.testing.assert_allclose(kernel.mean(), 0, atol=2e-3)
    assert np.abs(params[0]["bias"]).max() > 1 / 16


def test_energy_of_a_low_precision_state_is_computed_in_float32():
    z = jax.random.normal(jax.random.key(0), (4, 6)).astype(jnp.bfloat16)
    energy = hm.energy_of_state(hm.quadratic(), z)
    assert energy.dtype == jnp.float32
    np.testing.assert_allclose(energy, 0.5 * np.sum(np.asarray(z, np.float64) ** 2, -1), rtol=1e-6)


def test_split_and_join_are_inverse():
    z = jnp.arange(24.0).reshape(2, 3, 4)
    q, p = hm.split_state(z)
    np.testing.assert_array_equal(q, z[..., :2])
    np.testing.assert_array_equal(hm.join_state(q, p), z)


@pytest.mark.usefixtures("unchecked")
def test_errors_say_what_is_wrong():
    params = hm.init_mlp(jax.random.key(0), (3, 4, 1))
    with pytest.raises(ValueError, match=r"even width.*5"):
        hm.split_state(jnp.zeros(5))
    with pytest.raises(ValueError, match=r"'tanh'.*gelu"):
        hm.mlp(params, jnp.zeros(3), "tanh")
    with pytest.raises(ValueError, match="two layer sizes"):
        hm.init_mlp(jax.random.key(0), (3,))


def test_derivatives_of_gelu_are_the_closed_forms_inside_shard_map() -> None:
    with jax.enable_x64(True):
        x = np.linspace(-6, 6, 41)
        mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        slope = jax.grad(hm.gelu)
        functions = (hm.gelu, jax.vmap(slope), jax.vmap(jax.grad(slope)))
        density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
        cdf = 0.5 * (1 + ERF(x / math.sqrt(2)))
        closed = (x * cdf, cdf + x * density, density * (2 - x**2))
        for function, expected in zip(functions, closed, strict=True):
            mapped = jax.shard_map(
                function, mesh=mesh, in_specs=jax.P("data"), out_specs=jax.P("data")
            )
            np.testing.assert_allclose(jax.jit(mapped)(x), expected, rtol=0, atol=1e-15)
