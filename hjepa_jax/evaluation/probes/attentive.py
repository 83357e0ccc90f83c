"""The attentive probe: one learned query pools frozen tokens by attention, and a linear layer.

Per head h, the weights of an image's tokens x_t are softmax_t(x_t . key_h), and the pooled values
are sum_t weight_t x_t value_h. A query and a key projection act as their product key_h alone, and
values are projected after pooling, which is the same: no token is projected. Tokens have mean 0 and
variance 1, each on its own; a scale or an offset of them would add nothing to key, value and bias.

Source: the attentive probes of V-JEPA (Bardes et al., arXiv 2404.08471) and AIM (El-Nouby et al.,
arXiv 2401.08541), here without a block of MLPs after the attention.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax import lax
from jaxtyping import PyTree

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.data.sources.base import has_label
from hjepa_jax.evaluation.features import Batch, Encode
from hjepa_jax.evaluation.probe import shuffles
from hjepa_jax.objectives.linear_probe import cross_entropy, standardize, topk_accuracy

_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


class AttentiveParams(NamedTuple):
    """Parameters for tokens of C channels, H heads of width W, and K classes, float32.

    Attributes:
      key: what each head attends to, [C, H].
      value: what it reads, [H, C, W].
      kernel: [H * W, K].
      bias: [K].
    """

    key: jax.Array
    value: jax.Array
    kernel: jax.Array
    bias: jax.Array


class Attentive(NamedTuple):
    """The result of `attentive_probe`.

    Attributes:
      top1, top5: test accuracies; top 5 is over at most the number of classes.
      tested: number of test images with a label.
      losses: mean training cross-entropy of each epoch, [epochs].
      tokens, channels: shape of an image's tokens.
      params: trained parameters.
    """

    top1: float
    top5: float
    tested: int
    losses: np.ndarray
    tokens: int
    channels: int
    params: AttentiveParams


def init_attentive(seed: int, channels: int, heads: int, classes: int) -> AttentiveParams:
    """Returns every layer at uniform(+-1/sqrt(inputs)), float32."""
    rng, width = np.random.default_rng(seed), max(1, channels // heads)
    shapes = ((channels, heads), (heads, channels, width), (heads * width, classes), (classes,))
    bounds = (channels, channels, heads * width, heads * width)
    layers = (
        rng.uniform(-1 / math.sqrt(bound), 1 / math.sqrt(bound), shape)
        for shape, bound in zip(shapes, bounds, strict=True)
    )
    return AttentiveParams(*(jnp.asarray(layer, jnp.float32) for layer in layers))


def attentive_logits(params: AttentiveParams, tokens: jax.Array) -> jax.Array:
    """Returns the logits [N, K] of tokens [N, T, C]."""
    x = standardize(tokens)
    weights = jax.nn.softmax(_einsum("ntc,ch->nth", x, params.key), axis=1)
    pooled = _einsum("nth,ntc->nhc", weights, x)
    read = _einsum("nhc,hcw->nhw", pooled, params.value)
    return _einsum("nd,dk->nk", read.reshape(len(read), -1), params.kernel) + params.bias


def _loss(
    params: AttentiveParams, tokens: jax.Array, labels: jax.Array, weight: jax.Array
) -> jax.Array:
    losses = cross_entropy(attentive_logits(params, tokens), labels)
    return jnp.sum(losses * weight) / jnp.sum(weight)


def train_attentive(
    tokens: npt.NDArray[np.float32],
    labels: npt.NDArray[np.integer],
    num_classes: int,
    settings: Evaluation,
) -> tuple[AttentiveParams, np.ndarray]:
    """Trains by AdamW and a cosine schedule; a batch of tokens is on the device at a time.

    Args:
      tokens: [N, T, C], on the host.
      labels: int [N] in 0..num_classes-1.
      num_classes: number of classes.
      settings: the section `evaluation`; batch size and weight decay are the linear probe's.

    Returns:
      Parameters, and the mean training cross-entropy of each epoch, [epochs].
    """
    count, size = len(labels), settings.probe_batch_size
    epochs, steps = settings.attentive_epochs, -(-count // size)
    schedule = optax.cosine_decay_schedule(settings.attentive_lr, epochs * steps)
    optimizer = optax.adamw(schedule, weight_decay=settings.probe_weight_decay)
    params = init_attentive(settings.seed, tokens.shape[2], settings.attentive_heads, num_classes)
    state = optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(
        params: PyTree[jax.Array],
        state: optax.OptState,
        x: jax.Array,
        y: jax.Array,
        weight: jax.Array,
    ) -> tuple[PyTree[jax.Array], optax.OptState, jax.Array]:
        loss, gradient = jax.value_and_grad(_loss)(params, x, y, weight)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss * jnp.sum(weight)

    means = []
    for order in shuffles(np.arange(count), epochs, settings.seed):
        losses = []
        for start in range(0, count, size):
            rows = order[start : start + size]
            weight = (np.arange(size) < len(rows)).astype(np.float32)
            rows = np.pad(rows, (0, size - len(rows)))
            params, state, loss = step(params, state, tokens[rows], labels[rows], weight)
            losses.append(loss)
        means.append(float(jnp.sum(jnp.stack(losses))) / count)
    return params, np.asarray(means)


def _labeled(encode: Encode, batches: Iterable[Batch]) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yields tokens [n, T, C] and labels [n] of the images with a label, batch by batch."""
    for batch in batches:
        labels = np.asarray(batch["label"], np.int32)
        real = np.asarray(batch["mask"], bool) if "mask" in batch else np.ones(len(labels), bool)
        keep = real & has_label(labels)
        if keep.any():
            tokens = np.asarray(encode(batch["image"]), np.float32)
            yield tokens[keep], labels[keep]


def attentive_probe(
    encode: Encode,
    train_batches: Callable[[], Iterable[Batch]],
    test_batches: Callable[[], Iterable[Batch]],
    count: int,
    num_classes: int,
    settings: Evaluation,
) -> Attentive:
    """Encodes the training images to tokens, trains the probe, and tests it batch by batch.

    Args:
      encode: images uint8 [N, S, S, 3] -> tokens [N, T, C].
      train_batches: see `Sources`.
      test_batches: see `Sources`.
      count: number of training images with a label, at least 1; their tokens are kept on the host.
      num_classes: labels lie in 0..num_classes-1.
      settings: the section `evaluation`.
    """
    kept: npt.NDArray[np.float32] = np.zeros((0, 0, 0), np.float32)
    labels, filled = np.zeros(count, np.int32), 0
    for tokens, found in _labeled(encode, train_batches()):
        if not filled:
            kept = np.empty((count, *tokens.shape[1:]), np.float32)
        rows = slice(filled, filled + len(found))
        kept[rows], labels[rows], filled = tokens, found, filled + len(found)
    params, losses = train_attentive(kept, labels, num_classes, settings)

    @jax.jit
    def accuracies(x: jax.Array, y: jax.Array) -> jax.Array:
        logits = attentive_logits(params, x)
        return jnp.stack([topk_accuracy(logits, y, k) for k in (1, 5)])

    hits, tested = np.zeros(2), 0
    for tokens, found in _labeled(encode, test_batches()):
        hits += np.rint(np.asarray(accuracies(tokens, found)) * len(found))
        tested += len(found)
    top1, top5 = (hits / tested).tolist()
    _, *sizes = kept.shape
    return Attentive(top1, top5, tested, losses, sizes[0], sizes[1], params)
