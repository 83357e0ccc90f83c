"""Tokens for the attentive probe: of a ViT, of a grid of states, and refused in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation.probes import tokens
from hjepa_jax.models.base import Encoder, applied
from hjepa_jax.models.resnet import ResNet
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.training.encoding.views import normalize
from hjepa_jax.training.prepare import make_encode, prepare


def _config(**changes):
    config = quickstart.get_config("smoke")
    config.evaluation.attentive_probe = True
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def _images(config, count=4):
    side = config.data.image_size
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def _encoders(config):
    run = prepare(typed(config), config.data.batch_size, sharding.data_mesh())
    state = run.init()
    both = tokens.trained_and_random(run, state.params, state.batch_stats)
    return run, state, both


class Plain(ResNet):
    """An encoder whose states are a grid, without a method `tokens`."""

    tokens = Encoder.tokens


def _plain(settings):
    return Plain.build(settings, jnp.float32, 1)


def test_without_a_method_they_are_the_grid_of_the_states_with_q_and_p_of_each() -> None:
    config = _config()
    run, state, _ = _encoders(config)
    images = _images(config)
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats["encoder"]}
    given = tokens.tokens_of(_plain(run.settings), run.settings, variables, jnp.asarray(images))
    shape = run.setup.encoder.shape(config.data.image_size)
    assert shape.token_grid is not None
    count = shape.token_grid**2
    assert given.shape == (4, count, shape.token_dim)
    z = np.asarray(make_encode(run, state.params, state.batch_stats)(images))
    q, p = (half.reshape(4, count, -1) for half in np.split(z, 2, axis=1))
    np.testing.assert_allclose(given, np.concatenate([q, p], axis=2), atol=1e-5)


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
def test_an_encoders_own_tokens_come_before_its_head(encoder: str) -> None:
    config = quickstart.get_config("smoke")
    config.model.encoder = encoder
    config.evaluation.attentive_probe = True
    run, state, (states, found) = _encoders(config)
    assert states.keys() == found.keys() == {"trained", "random"}
    images = _images(config)
    data, module = run.settings.data, run.setup.encoder
    variables = {"params": state.params["encoder"], "batch_stats": state.batch_stats["encoder"]}
    inputs = normalize(jnp.asarray(images), data.mean, data.std, module.dtype)
    expected = applied(module, variables, inputs, method="tokens", train=False)
    assert expected.ndim == 3
    np.testing.assert_allclose(found["trained"](images), expected, atol=1e-5)


def test_nothing_is_made_unless_it_is_requested() -> None:
    config = _config(evaluation__attentive_probe=False, evaluation__random_baseline=False)
    _, _, (states, found) = _encoders(config)
    assert (states.keys(), found) == ({"trained"}, {})
    tokens.check_tokens(typed(config), 10**12)


def test_tokens_that_memory_does_not_hold_are_refused_with_their_size() -> None:
    settings = typed(_config(evaluation__attentive_gb=0.001))
    encoder = tokens.build_encoder(settings)
    images = jnp.zeros((2, settings.data.image_size, settings.data.image_size, 3))
    made, _ = encoder.init_with_output(jax.random.key(0), images, method="tokens")
    each = made[0].size * 4
    tokens.check_tokens(settings, int(1e6 / each))
    with pytest.raises(
        ConfigError, match=r"0\.0 GB, but .*attentive_gb is 0\.001.*max_train_image"
    ):
        tokens.check_tokens(settings, int(1e6 / each) + 1)


def test_an_encoder_without_tokens_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(tokens, "build_encoder", _plain)
    config = _config(resnet__head="global")
    config.model.split_qp = False
    config.evaluation.state_part = "qp"
    with pytest.raises(ConfigError, match="gives no tokens here"):
        tokens.check_tokens(typed(config), 1)
