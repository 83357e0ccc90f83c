"""The attentive probe: explicit attention in NumPy, gradients, and a task that needs attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.evaluation.probes import attentive

SETTINGS = Evaluation(
    attentive_epochs=40, attentive_lr=2e-2, attentive_heads=2, probe_batch_size=64
)


def _explicit(tokens, query, key, value, kernel, bias):
    """Multi-head cross-attention of one query, token by token and head by head, in float64."""
    x = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-5)
    heads, width = query.shape
    logits = []
    for image in x:
        read = []
        for head in range(heads):
            keys = image @ key[head]
            values = image @ value[head]
            scores = keys @ query[head] / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            read.append((weights / weights.sum()) @ values)
        logits.append(np.concatenate(read) @ kernel + bias)
    return np.array(logits)


def _random(seed, images=5, tokens=7, channels=8, heads=2, width=4, classes=3):
    rng = np.random.default_rng(seed)
    shapes = ((heads, width), (heads, channels, width), (heads, channels, width))
    query, key, value = (rng.normal(size=shape) for shape in shapes)
    kernel, bias = rng.normal(size=(heads * width, classes)), rng.normal(size=classes)
    return rng.normal(size=(images, tokens, channels)) + 2.0, query, key, value, kernel, bias


def _folded(query, key, value, kernel, bias):
    """The parameters of the probe for explicit queries, keys and values."""
    folded = np.einsum("hcw,hw->ch", key, query) / np.sqrt(query.shape[1])
    return attentive.AttentiveParams(*map(jnp.asarray, (folded, value, kernel, bias)))


def test_logits_are_those_of_explicit_cross_attention() -> None:
    tokens, *parts = _random(0)
    with jax.enable_x64(True):
        found = attentive.attentive_logits(_folded(*parts), jnp.asarray(tokens))
    np.testing.assert_allclose(found, _explicit(tokens, *parts), rtol=1e-10, atol=1e-10)


def test_gradients_agree_with_finite_differences() -> None:
    tokens, *parts = _random(1, images=3, tokens=4)
    with jax.enable_x64(True):
        x = jnp.asarray(tokens)
        check_grads(lambda p: attentive.attentive_logits(p, x), (_folded(*parts),), order=1)


def test_order_scale_and_offset_of_tokens_do_not_matter() -> None:
    tokens, *parts = _random(2)
    with jax.enable_x64(True):
        params = _folded(*parts)
        logits = attentive.attentive_logits(params, jnp.asarray(tokens))
        order = np.random.default_rng(3).permutation(tokens.shape[1])
        other = attentive.attentive_logits(params, jnp.asarray(tokens[:, order]))
        scaled = attentive.attentive_logits(params, jnp.asarray(tokens * 3.0 - 7.0))
    np.testing.assert_allclose(other, logits, rtol=1e-10)
    np.testing.assert_allclose(scaled, logits, rtol=1e-3)


def _needles(seed, count, tokens=12, channels=16, classes=4):
    """One token of each image, at a random place, is marked and tells the class; all others lie."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count).astype(np.int32)
    shown = rng.integers(classes, size=(count, tokens))
    place = rng.integers(tokens, size=count)
    shown[np.arange(count), place] = labels
    x = 0.1 * rng.normal(size=(count, tokens, channels)).astype(np.float32)
    x += 2.0 * np.eye(channels, dtype=np.float32)[shown]
    x[np.arange(count), place, channels - 1] += 2.0
    return x, labels


def _batches(tokens, labels, size=50):
    """Batches with padding and an image without a label in each."""

    def stream():
        for start in range(0, len(labels), size):
            part, known = tokens[start : start + size], labels[start : start + size]
            yield {
                "image": np.concatenate([part, part[:2] + 9.0]),
                "label": np.concatenate([known, [-1, 0]]),
                "mask": np.arange(len(known) + 2) <= len(known),
            }

    return stream


def _probed(train, test, settings=SETTINGS):
    return attentive.attentive_probe(
        lambda images: images, _batches(*train), _batches(*test), len(train[1]), 4, settings
    )


def test_it_finds_the_token_that_tells_the_class() -> None:
    train, test = _needles(4, 630), _needles(5, 200)
    found = _probed(train, test)
    assert found.top1 > 0.95
    assert (found.tested, found.tokens, found.channels) == (200, 12, 16)
    assert found.losses.shape == (40,)
    assert found.losses[-1] < 0.3 < found.losses[0]
    logits = np.asarray(attentive.attentive_logits(found.params, jnp.asarray(test[0])))
    assert found.top1 == pytest.approx(np.mean(logits.argmax(1) == test[1]), abs=1e-9)
    assert found.top5 == 1.0
    # The mean over tokens says little of it.
    mean = [(x.mean(axis=1, keepdims=True), y) for x, y in (train, test)]
    assert _probed(mean[0], mean[1]).top1 < 0.75


def test_the_seed_alone_determines_the_result() -> None:
    train, test = _needles(6, 100), _needles(7, 50)
    few = dataclasses.replace(SETTINGS, attentive_epochs=2)
    first, again = _probed(train, test, few), _probed(train, test, few)
    np.testing.assert_array_equal(first.params.key, again.params.key)
    other = _probed(train, test, dataclasses.replace(few, seed=1))
    assert np.abs(np.asarray(first.params.key) - np.asarray(other.params.key)).max() > 1e-3


def test_a_short_last_batch_counts_as_its_images() -> None:
    # One epoch of two batches, the last with 6 rows: its loss is of these alone.
    x, labels = _needles(8, 70)
    frozen = dataclasses.replace(SETTINGS, attentive_epochs=1, attentive_lr=1e-12)
    params, losses = attentive.train_attentive(x, labels, 4, frozen)
    logits = np.asarray(attentive.attentive_logits(params, jnp.asarray(x)), np.float64)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(70), labels]
    assert losses[0] == pytest.approx(expected.mean(), rel=1e-5)


def test_heads_that_do_not_divide_the_channels_read_fewer() -> None:
    params = attentive.init_attentive(0, channels=10, heads=4, classes=3)
    assert [p.shape for p in params] == [(10, 4), (4, 10, 2), (8, 3), (3,)]
    assert attentive.init_attentive(0, channels=3, heads=8, classes=3).value.shape == (8, 3, 1)
