"""Predictors: values, parameter trees, matched counts, learned dt and differentiability."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from predictors import predictor

from hjepa_jax.dynamics import hamiltonian as hm
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.models.parameter_matching import (
    MLPShape,
    count_parameters,
    hamiltonian_sizes,
    linear_parameters,
    match_mlp,
)
from hjepa_jax.models.predictor import IdentityPredictor

SMALL = {"hidden_dim": 16, "depth": 2, "activation": "silu"}


def start(model, shape=(4, 12), seed=0):
    """A predictor, its initial variables and a batch of states."""
    z = jax.random.normal(jax.random.key(seed), shape)
    return model, jax.jit(model.init)(jax.random.key(seed + 1), z, 1.0, 1.0), z


@pytest.mark.parametrize(
    ("hamiltonian", "integrator"),
    [("separable", "leapfrog"), ("separable", "yoshida4"), ("learnable", "implicit_midpoint")],
)
def test_hamiltonian_predictor_is_the_flow_of_its_energy(hamiltonian, integrator):
    model = predictor(hamiltonian=hamiltonian, integrator=integrator, steps=3, damping=0.2, **SMALL)
    _, variables, z = start(model)
    layers = variables["params"]["potential"]
    assert list(layers) == ["layer0", "layer1", "layer2"]
    layers = tuple(layers.values())
    make = hm.separable if hamiltonian == "separable" else hm.learnable
    system = make(layers, base_coeff=0.1, residual_scale=0.7, activation="silu")

    @jax.jit
    def both(direction):
        expected = integrate(
            system, z, method=integrator, steps=3, dt=0.05, direction=direction, damping=0.2
        )
        return model.apply(variables, z, direction, 0.7), expected

    for direction in (1, -1):
        actual, expected = both(direction)
        np.testing.assert_allclose(actual, expected, atol=1e-6)
        assert np.abs(actual - z).max() > 1e-3
    energy = model.apply(variables, z, 0.7, method="energy")
    np.testing.assert_allclose(energy, hm.energy_of_state(system, z), rtol=1e-6)
    q, p = hm.split_state(z)
    potential = model.apply(variables, q, 0.7, method="potential")
    np.testing.assert_allclose(potential, system.energy(q, jnp.zeros_like(p)), rtol=1e-6)


def test_quadratic_predictor_has_no_parameters():
    model, variables, z = start(predictor(hamiltonian="quadratic"))
    assert count_parameters(variables) == 0
    expected = integrate(hm.quadratic(), z, steps=2, dt=0.05)
    np.testing.assert_array_equal(model.apply(variables, z, 1, 1.0), expected)


def test_reversible_predictor_has_the_same_values_and_gradients():
    outputs = []
    for reversible in (False, True):
        model = predictor(steps=4, learn_dt=True, reversible=reversible, **SMALL)
        _, variables, z = start(model)

        def loss(variables, scale, model=model, z=z):
            return jnp.sum(jnp.sin(model.apply(variables, z, -1, scale)))

        outputs.append(jax.jit(jax.value_and_grad(loss, (0, 1)))(variables, 0.7))
    plain, recomputed = outputs
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), plain, recomputed)


def test_learned_dt_starts_at_dt_and_has_a_gradient():
    model, variables, z = start(predictor(learn_dt=True, dt=0.3, **SMALL))
    np.testing.assert_allclose(jax.nn.softplus(variables["params"]["raw_dt"]), 0.3, rtol=1e-6)
    fixed = predictor(dt=0.3, **SMALL)
    same = {"params": {"potential": variables["params"]["potential"]}}
    actual = jax.jit(model.apply)(variables, z, 1, 1.0)
    np.testing.assert_allclose(actual, jax.jit(fixed.apply)(same, z, 1, 1.0), atol=1e-6)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, z, 1, 1.0) ** 2)))(variables)
    assert np.abs(gradient["params"]["raw_dt"]) > 1e-3


def test_published_leapfrog_is_reproduced_on_request_only():
    model = predictor(hamiltonian="quadratic", reference_leapfrog=True)
    _, variables, z = start(model)
    faulty = integrate(hm.quadratic(), z, steps=2, dt=0.05, reference_leapfrog=True)
    np.testing.assert_allclose(model.apply(variables, z, 1, 1.0), faulty, atol=1e-7)
    assert np.any(np.asarray(faulty) != np.asarray(integrate(hm.quadratic(), z, steps=2, dt=0.05)))


def test_matched_counts_over_many_sizes():
    """Every published size and all but tiny ones have an MLP within 1%."""
    kinds = ("separable", "learnable")
    for kind, half, hidden, depth in itertools.product(
        kinds, (8, 31, 128, 512, 1024), (16, 64, 255, 256), (1, 2, 3, 4)
    ):
        sizes = hamiltonian_sizes(kind, half, hidden, depth)
        shape = match_mlp(2 * half, depth, sizes)
        count = linear_parameters((2 * half + 1, *shape.hidden, 2 * half)) + shape.elementwise
        assert abs(count / linear_parameters(sizes) - 1) <= 0.01, (kind, half, hidden, depth)
    assert match_mlp(2048, 2, hamiltonian_sizes("separable", 1024, 256, 2)) == MLPShape((78, 78))


@pytest.mark.parametrize("hidden_dim", [16, 64])
@pytest.mark.parametrize("learn_dt", [False, True])
def test_matched_counts_are_those_of_the_modules(hidden_dim, learn_dt):
    fields = {"hidden_dim": hidden_dim, "learn_dt": learn_dt}
    counts = [
        count_parameters(
            jax.eval_shape(
                predictor(kind, **fields).init,
                jax.random.key(0),
                jnp.zeros((2, 64)),
                1.0,
                1.0,
            )
        )
        for kind in ("hamiltonian", "mlp")
    ]
    assert abs(counts[1] / counts[0] - 1) <= 0.01


def test_mlp_predictor_matches_numpy():
    model, variables, z = start(predictor("mlp", **{**SMALL, "hidden_dim": 6}), (3, 64))
    params = jax.tree.map(np.asarray, variables["params"])
    elementwise = np.linspace(-1, 1, params["elementwise"].size, dtype=np.float32)
    variables = {"params": {**params, "elementwise": elementwise}}
    for direction in (1, -1):
        x = np.concatenate([z, np.full((3, 1), direction)], -1)
        for i in range(3):
            layer = params["residual"][f"layer{i}"]
            x = x @ layer["kernel"] + layer["bias"]
            x = x / (1 + np.exp(-x)) if i < 2 else x
        swapped = np.roll(z, 32, axis=-1)
        features = direction * np.concatenate([z, swapped], -1)[:, : elementwise.size]
        linear = np.zeros((3, 128))
        linear[:, : elementwise.size] = features * elementwise
        expected = np.asarray(z) + 0.1 * (x + linear[:, :64] + linear[:, 64:])
        actual = jax.jit(model.apply)(variables, z, direction, 0.3)
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_mlp_predictor_has_a_gradient_everywhere():
    model, variables, z = start(predictor("mlp", **SMALL), (3, 64))
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, z, 1, 1.0) ** 2)))(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


def test_identity_and_mlp_have_no_energy():
    model, variables, z = start(predictor("identity"))
    assert isinstance(model, IdentityPredictor)
    assert variables == {}
    np.testing.assert_array_equal(model.apply({"params": {}}, z, -1, 1.0), z)
    for other in (model, predictor("mlp")):
        assert not hasattr(other, "energy")
        assert not hasattr(other, "potential")


@pytest.mark.parametrize("kind", ["hamiltonian", "mlp", "identity"])
def test_low_precision_states_keep_their_dtype(kind):
    model, variables, z = start(predictor(kind, **SMALL), (2, 3, 64))
    apply = jax.jit(lambda x: model.apply(variables, x, 1, 1.0))
    low = apply(z.astype(jnp.bfloat16))
    assert (low.shape, low.dtype) == (z.shape, jnp.bfloat16)
    wide = apply(z.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(low, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("kind", ["hamiltonian", "mlp"])
def test_direction_may_be_traced(kind):
    model, variables, z = start(predictor(kind, **SMALL), (2, 64))
    flow = jax.jit(lambda direction: model.apply(variables, z, direction, 1.0))
    assert np.abs(flow(1) - flow(-1)).max() > 1e-4
    np.testing.assert_allclose(flow(-1), model.apply(variables, z, -1, 1.0), atol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match=r"'euler'.*leapfrog"):
        start(predictor(integrator="euler"))
    with pytest.raises(ValueError, match=r"reversible.*separable"):
        start(predictor(reversible=True, hamiltonian="learnable"))
    with pytest.raises(ValueError, match=r"within 1%.*hidden_dim"):
        start(predictor("mlp", hidden_dim=1), (2, 64))
    with pytest.raises(ValueError, match="no parameters to match"):
        start(predictor("mlp", hamiltonian="quadratic"))
