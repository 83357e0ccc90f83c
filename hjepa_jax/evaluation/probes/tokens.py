"""Tokens of frozen encoders, for the attentive probe: where they come from, and their size."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TypeAlias

import jax
import numpy as np

from hjepa_jax.config import Settings
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation.features import Encode
from hjepa_jax.models.base import Encoder, applied
from hjepa_jax.runtime import arithmetic, sharding
from hjepa_jax.training.encoding.batch import Parts
from hjepa_jax.training.encoding.views import normalize
from hjepa_jax.training.prepare import PreparedRun, make_encode
from hjepa_jax.training.setup import build_encoder

# Parameters and batch statistics of all modules.
Weights: TypeAlias = tuple[Parts, Parts]


def tokens_of(
    encoder: Encoder, settings: Settings, variables: Parts, images: jax.Array
) -> jax.Array:
    """Returns the tokens float32 [N, T, C] of uint8 images [N, S, S, 3].

    They are those of the encoder's method `tokens` or, if it has none, the grid of its states, each
    token with its channels of q and of p.

    Raises:
      ConfigError: the encoder has neither.
    """
    inputs = normalize(images, settings.data.mean, settings.data.std, encoder.dtype)
    own = type(encoder).tokens is not Encoder.tokens
    channels = encoder.shape(images.shape[1]).token_dim
    if not own and channels is None:
        raise ConfigError(
            f"config.evaluation.attentive_probe is True, but config.model.encoder="
            f"{settings.model.encoder!r} gives no tokens here: choose a head that does, such as "
            "config.resnet.head='tokens', or set it to False."
        )
    with arithmetic.products(settings.runtime.matmul_precision):
        if own:
            found = applied(encoder, variables, inputs, method="tokens", train=False)
            return found.astype("float32")
        states = applied(encoder, variables, inputs, train=False)
    assert channels is not None
    halves = 2 if settings.model.split_qp else 1
    parted = states.reshape(len(states), halves, -1, channels // halves)
    return parted.swapaxes(1, 2).reshape(len(states), -1, channels)


def both_encoders(
    run: PreparedRun, weights: Mapping[str, Weights]
) -> tuple[dict[str, Encode], dict[str, Encode]]:
    """Returns frozen encoders by name: of images to states, and of images to tokens.

    There are none to tokens if the attentive probe is not requested.

    Args:
      run: the prepared run, whose devices share the images of a batch.
      weights: what each encoder is made of.
    """
    states: dict[str, Encode] = {name: make_encode(run, *of) for name, of in weights.items()}
    if not run.settings.evaluation.attentive_probe:
        return states, {}
    function = jax.jit(
        functools.partial(tokens_of, run.setup.encoder, run.settings),
        out_shardings=sharding.replicated(run.mesh),
    )

    def encode(variables: Parts, images: np.ndarray) -> jax.Array:
        return function(variables, sharding.put_whole(run.mesh, "image", images))

    tokens: dict[str, Encode] = {
        name: functools.partial(
            encode,
            {"params": params["encoder"], "batch_stats": batch_stats.get("encoder", {})},
        )
        for name, (params, batch_stats) in weights.items()
    }
    return states, tokens


def trained_and_random(
    run: PreparedRun, params: Parts, batch_stats: Parts
) -> tuple[dict[str, Encode], dict[str, Encode]]:
    """Returns `both_encoders` of a checkpoint and, if it is evaluated, of the initialization."""
    weights = {"trained": (params, batch_stats)}
    if run.settings.evaluation.random_baseline:
        fresh = run.init()
        weights["random"] = (fresh.params, fresh.batch_stats)
    return both_encoders(run, weights)


def check_tokens(settings: Settings, count: int) -> None:
    """Checks that an attentive probe is possible, if it is requested.

    Args:
      settings: the configuration.
      count: number of training images whose tokens are kept.

    Raises:
      ConfigError: the encoder gives no tokens, or they take more than evaluation.attentive_gb.
    """
    evaluation, side = settings.evaluation, settings.data.image_size
    if not evaluation.attentive_probe:
        return
    encoder = build_encoder(settings)

    def encode(key: jax.Array, images: jax.Array) -> jax.Array:
        inputs = normalize(images, settings.data.mean, settings.data.std, encoder.dtype)
        variables = encoder.init(key, inputs, train=False)
        return tokens_of(encoder, settings, variables, images)

    images = jax.ShapeDtypeStruct((2, side, side, 3), np.uint8)
    _, tokens, channels = jax.eval_shape(encode, jax.random.key(0), images).shape
    gigabytes = count * tokens * channels * 4 / 1e9
    if gigabytes > evaluation.attentive_gb:
        raise ConfigError(
            f"config.evaluation.attentive_probe keeps {tokens} tokens of {channels} numbers for "
            f"each of {count} training images, {gigabytes:.1f} GB, but "
            f"config.evaluation.attentive_gb is {evaluation.attentive_gb:g}: raise it if the host "
            "has the memory, or evaluate with fewer images by config.data.max_train_images."
        )
