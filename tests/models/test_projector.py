"""Projector against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.models.parameter_matching import count_parameters
from hjepa_jax.models.projector import Projector


def test_identity_has_no_parameters_and_changes_nothing():
    z = jax.random.normal(jax.random.key(0), (4, 6))
    model = Projector("identity")
    variables = model.init(jax.random.key(1), z, train=True)
    assert count_parameters(variables) == 0
    assert model.apply(variables, z, train=True) is z


@pytest.mark.parametrize("train", [True, False])
def test_mlp_is_linear_norm_relu_linear(train):
    z = np.asarray(jax.random.normal(jax.random.key(0), (16, 6)))
    model = Projector("mlp", (10, 4))
    variables = model.init(jax.random.key(1), z, train=True)
    params = jax.tree.map(np.asarray, variables["params"])
    assert count_parameters(params) == 7 * 10 + 20 + 11 * 4
    x = z @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    mean, var = (x.mean(0), x.var(0)) if train else (0.0, 1.0)
    hidden = np.maximum((x - mean) / np.sqrt(var + 1e-5), 0)
    expected = hidden @ params["output"]["kernel"] + params["output"]["bias"]
    actual, new = model.apply(variables, z, train=train, mutable=["batch_stats"])
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    momentum = 0.1 if train else 0.0
    np.testing.assert_allclose(new["batch_stats"]["norm"]["mean"], momentum * mean, atol=1e-6)


def test_low_precision_projector_returns_float32():
    z = jax.random.normal(jax.random.key(0), (16, 6))
    model = Projector("mlp", (10, 4), jnp.bfloat16)
    variables = model.init(jax.random.key(1), z, train=True)
    out, _ = model.apply(variables, z, train=True, mutable=["batch_stats"])
    assert out.dtype == jnp.float32
    full, _ = Projector("mlp", (10, 4)).apply(variables, z, train=True, mutable=["batch_stats"])
    assert 0 < np.abs(out - full).max() < 0.05


def mlp(z: np.ndarray, params, stats, *, train: bool) -> np.ndarray:
    """The layers in float64: Linear, then BatchNorm and ReLU before each further Linear."""
    x = np.asarray(z, np.float64)
    names = [name for name in ("hidden", "hidden2", "hidden3") if name in params]
    for name in names:
        norm = name.replace("hidden", "norm")
        x = x @ params[name]["kernel"] + params[name]["bias"]
        moments = (x.mean(0), x.var(0)) if train else (stats[norm]["mean"], stats[norm]["var"])
        x = (x - moments[0]) / np.sqrt(moments[1] + 1e-5)
        x = np.maximum(x * params[norm]["scale"] + params[norm]["bias"], 0)
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def perturbed(variables):
    """The variables with scales, biases and statistics that are neither zero nor one."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    noisy = [x + 0.3 * jax.random.uniform(k, x.shape) for k, x in zip(keys, leaves)]
    return jax.tree.unflatten(structure, noisy)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("widths", [(4,), (10, 4), (10, 8, 4), (10, 8, 6, 4)])
def test_one_to_four_layers_are_those_of_numpy(widths, train):
    z = np.asarray(jax.random.normal(jax.random.key(0), (16, 6)))
    model = Projector("mlp", widths)
    variables = perturbed(model.init(jax.random.key(1), z, train=True))
    assert len(variables["params"]) == 2 * len(widths) - 1
    actual, _ = model.apply(variables, z, train=train, mutable=["batch_stats"])
    numbers = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    expected = mlp(z, numbers["params"], numbers.get("batch_stats", {}), train=train)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


@pytest.mark.parametrize("train", [True, False])
def test_halves_project_q_and_p_each_by_its_own_layers(train):
    z = np.asarray(jax.random.normal(jax.random.key(0), (16, 6)))
    model = Projector("halves", (10, 8, 4))
    variables = perturbed(model.init(jax.random.key(1), z, train=True))
    actual, _ = model.apply(variables, z, train=train, mutable=["batch_stats"])
    numbers = jax.tree.map(lambda x: np.asarray(x, np.float64), variables)
    for name, half, found in zip("qp", np.split(z, 2, 1), np.split(np.asarray(actual), 2, 1)):
        assert numbers["params"][name]["hidden"]["kernel"].shape == (3, 5)
        expected = mlp(half, numbers["params"][name], numbers["batch_stats"][name], train=train)
        np.testing.assert_allclose(found, expected, atol=2e-5)
    first, second = (numbers["params"][name]["hidden"]["kernel"] for name in "qp")
    assert np.abs(first - second).max() > 0.1


def test_halves_of_odd_widths_are_refused():
    with pytest.raises(ValueError, match=r"even widths, not 6 -> \(8, 3\)"):
        Projector("halves", (8, 3)).init(jax.random.key(0), jnp.zeros((2, 6)), train=False)


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"'linear'.*identity"):
        Projector("linear").init(jax.random.key(0), jnp.zeros((2, 3)), train=False)
