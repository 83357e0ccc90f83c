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
    model = Projector("mlp", 10, 4)
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
    model = Projector("mlp", 10, 4, jnp.bfloat16)
    variables = model.init(jax.random.key(1), z, train=True)
    out, _ = model.apply(variables, z, train=True, mutable=["batch_stats"])
    assert out.dtype == jnp.float32
    full, _ = Projector("mlp", 10, 4).apply(variables, z, train=True, mutable=["batch_stats"])
    assert 0 < np.abs(out - full).max() < 0.05


def test_unknown_kind_is_named():
    with pytest.raises(ValueError, match=r"'linear'.*identity"):
        Projector("linear").init(jax.random.key(0), jnp.zeros((2, 3)), train=False)
