"""The linear probe: LayerNorm and Linear on frozen features, trained in one compiled call.

All epochs, steps and learning rates run inside one jit on features that stay on the device.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax import lax
from jaxtyping import PyTree

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluation import knn
from hjepa_jax.objectives.linear_probe import (
    ProbeParams,
    cross_entropy,
    logits_of_standardized,
    probe_logits,
    standardize,
    topk_accuracy,
)


def learning_rates(settings: Evaluation) -> tuple[float, ...]:
    """Returns the learning rates to train at: `probe_lr`, then those of `probe_lr_sweep`."""
    return tuple(dict.fromkeys((settings.probe_lr, *settings.probe_lr_sweep)))


class ProbeResult(NamedTuple):
    """The result of training a probe.

    Attributes:
      top1, top5: test accuracies of the reported learning rate; top 5 is over at most C classes.
      losses: its mean training cross-entropy of each epoch, float [epochs].
      lr: the reported learning rate.
      params: its trained parameters.
      validation: mean cross-validated top-1 for each learning rate; empty if there is only one.
    """

    top1: float
    top5: float
    losses: np.ndarray
    lr: float
    params: ProbeParams
    validation: tuple[float, ...]


def init_probe(seed: int, dim: int, num_classes: int) -> ProbeParams:
    """Returns LayerNorm at the identity and Linear at uniform(+-1/sqrt(dim)), float32."""
    rng, bound = np.random.default_rng(seed), 1.0 / math.sqrt(dim)
    kernel = rng.uniform(-bound, bound, (dim, num_classes))
    bias = rng.uniform(-bound, bound, num_classes)
    layers = (np.ones(dim), np.zeros(dim), kernel, bias)
    return ProbeParams(*(jnp.asarray(layer, jnp.float32) for layer in layers))


def _batch_loss(
    params: ProbeParams, x: jax.Array, labels: jax.Array, weight: jax.Array
) -> jax.Array:
    losses = cross_entropy(logits_of_standardized(params, x), labels)
    return jnp.sum(losses * weight) / jnp.sum(weight)


def _train_one(
    params: ProbeParams,
    x: jax.Array,
    labels: jax.Array,
    permutations: jax.Array,
    lr: jax.Array,
    *,
    batch_size: int,
    weight_decay: float,
) -> tuple[ProbeParams, jax.Array]:
    """Trains at one learning rate; returns parameters and the mean loss of each epoch."""
    epochs, count = permutations.shape
    steps = -(-count // batch_size)
    batches = jnp.pad(permutations, ((0, 0), (0, steps * batch_size - count)))
    batches = batches.reshape(epochs, steps, batch_size)
    # Padding comes last, so the same weights work for every epoch.
    weights = (jnp.arange(steps * batch_size) < count).astype(x.dtype).reshape(steps, batch_size)

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        return lr * 0.5 * (1.0 + jnp.cos(jnp.pi * step / (epochs * steps)))

    optimizer = optax.adamw(schedule, weight_decay=weight_decay)

    def step(
        carry: tuple[PyTree[jax.Array], optax.OptState], batch: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[PyTree[jax.Array], optax.OptState], jax.Array]:
        params, state = carry
        rows, weight = batch
        loss, grads = jax.value_and_grad(_batch_loss)(params, x[rows], labels[rows], weight)
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss * jnp.sum(weight)

    def epoch(
        carry: tuple[PyTree[jax.Array], optax.OptState], rows: jax.Array
    ) -> tuple[tuple[PyTree[jax.Array], optax.OptState], jax.Array]:
        carry, losses = lax.scan(step, carry, (rows, weights))
        return carry, jnp.sum(losses) / count

    (params, _), losses = lax.scan(epoch, (params, optimizer.init(params)), batches)
    return params, losses


@functools.partial(jax.jit, static_argnames=("batch_size", "weight_decay"))
def train_probe(
    params: ProbeParams,
    features: jax.Array,
    labels: jax.Array,
    permutations: jax.Array,
    lrs: jax.Array,
    *,
    batch_size: int,
    weight_decay: float,
) -> tuple[ProbeParams, jax.Array]:
    """Trains one probe for each learning rate, from the same start, over the same batches.

    AdamW (b1 0.9, b2 0.999, eps 1e-8); the learning rate falls from `lrs` to 0 along a cosine
    over all steps.

    Args:
      params: initial parameters.
      features: [N, D].
      labels: int [N].
      permutations: int [epochs, P], the order of the rows in each epoch.
      lrs: [L].
      batch_size: rows per step; the last batch of an epoch may be shorter.
      weight_decay: decoupled, on all parameters.

    Returns:
      Parameters with a leading axis L, and the mean loss of each epoch [L, epochs].
    """
    train = functools.partial(_train_one, batch_size=batch_size, weight_decay=weight_decay)
    x = standardize(features)
    if len(lrs) == 1:
        # vmap over a single rate would batch all matmuls, which takes twice the time on a CPU.
        trained = train(params, x, labels, permutations, lrs[0])
        return jax.tree.map(lambda leaf: leaf[None], trained)
    return jax.vmap(train, in_axes=(None, None, None, None, 0))(
        params, x, labels, permutations, lrs
    )


@jax.jit
def probe_accuracy(
    params: ProbeParams, features: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Returns top-1 and top-5 accuracy (over at most C classes) of a probe, scalars."""
    logits = probe_logits(params, features)
    return topk_accuracy(logits, labels, 1), topk_accuracy(logits, labels, 5)


@jax.jit
def _answers(params: ProbeParams, features: jax.Array) -> jax.Array:
    return jnp.argmax(probe_logits(params, features), axis=-1)


def probe_answers(params: ProbeParams, features: npt.ArrayLike) -> np.ndarray:
    """Returns the class int [N] that a probe predicts for features [N, D]."""
    return np.asarray(_answers(params, jnp.asarray(features)))


_sweep_accuracy = jax.jit(jax.vmap(probe_accuracy, in_axes=(0, None, None)))


def shuffles(rows: npt.NDArray[np.integer], epochs: int, seed: int) -> npt.NDArray[np.int32]:
    """Returns `rows` int [P] in a new seeded order for each epoch, [epochs, P]."""
    every = np.tile(np.asarray(rows, np.int32), (epochs, 1))
    return np.random.default_rng(seed).permuted(every, axis=1)


def cross_validate(
    features: npt.ArrayLike, labels: npt.ArrayLike, num_classes: int, settings: Evaluation
) -> np.ndarray:
    """Returns the mean top-1 over held-out folds of the training set for each learning rate, [L].

    Raises:
      ConfigError: fewer than two folds, or fewer rows than folds.
    """
    x, y = jnp.asarray(features), jnp.asarray(labels)
    if not 2 <= settings.probe_folds <= len(y):
        raise ConfigError(
            f"Cross-validating the probe needs 2..{len(y)} folds for {len(y)} training images, "
            f"but config.evaluation.probe_folds is {settings.probe_folds}."
        )
    params = init_probe(settings.seed, x.shape[1], num_classes)
    order = np.random.default_rng(settings.seed).permutation(len(y))
    accuracies = []
    for fold in range(settings.probe_folds):
        held_out = order[fold :: settings.probe_folds]
        rows = np.setdiff1d(order, held_out)
        trained, _ = train_probe(
            params,
            x,
            y,
            jnp.asarray(shuffles(rows, settings.probe_epochs, settings.seed)),
            jnp.asarray(learning_rates(settings)),
            batch_size=settings.probe_batch_size,
            weight_decay=settings.probe_weight_decay,
        )
        accuracies.append(_sweep_accuracy(trained, x[held_out], y[held_out])[0])
    return np.mean(accuracies, axis=0)


def check_sets(
    train: tuple[npt.ArrayLike, npt.ArrayLike],
    test: tuple[npt.ArrayLike, npt.ArrayLike],
    num_classes: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Returns the four arrays on the device; ValueError if they do not match."""
    x, test_x = jnp.asarray(train[0]), jnp.asarray(test[0])
    y = knn.check_labels(train[1], num_classes, "training")
    test_y = knn.check_labels(test[1], num_classes, "test")
    fits = x.ndim == test_x.ndim == 2 and x.shape[1] == test_x.shape[1]
    if not fits or len(x) != len(y) or len(test_x) != len(test_y) or not len(y) or not len(test_y):
        raise ValueError(
            f"A probe needs features [N, D] with labels [N] for training and test, but training "
            f"has {x.shape} and {y.shape}, test {test_x.shape} and {test_y.shape}."
        )
    return x, jnp.asarray(y), test_x, jnp.asarray(test_y)


def linear_probe(
    train: tuple[npt.ArrayLike, npt.ArrayLike],
    test: tuple[npt.ArrayLike, npt.ArrayLike],
    num_classes: int,
    settings: Evaluation,
    *,
    params: ProbeParams | None = None,
    permutations: npt.ArrayLike | None = None,
) -> ProbeResult:
    """Trains a linear probe on frozen features and tests it.

    Args:
      train: features [N, D] and labels int [N], such as a `Features`.
      test: features [M, D] and labels int [M].
      num_classes: labels lie in 0..num_classes-1.
      settings: the section `evaluation`.
      params: initial parameters; None = drawn from the seed.
      permutations: int [epochs, N], the batch order of each epoch; None = drawn from the seed.

    Returns:
      The result at the only learning rate, or at the best one in cross-validation on `train`.

    Raises:
      ValueError: mismatched shapes or labels, or folds that do not fit.
    """
    x, y, test_x, test_y = check_sets(train, test, num_classes)
    if params is None:
        params = init_probe(settings.seed, x.shape[1], num_classes)
    if permutations is None:
        permutations = shuffles(np.arange(len(y)), settings.probe_epochs, settings.seed)
    validation: tuple[float, ...] = ()
    rates = learning_rates(settings)
    lr = rates[0]
    if len(rates) > 1:
        validation = tuple(cross_validate(x, y, num_classes, settings).tolist())
        lr = rates[int(np.argmax(validation))]
    trained, losses = train_probe(
        params,
        x,
        y,
        jnp.asarray(permutations),
        jnp.asarray([lr]),
        batch_size=settings.probe_batch_size,
        weight_decay=settings.probe_weight_decay,
    )
    best = jax.tree.map(lambda leaf: leaf[0], trained)
    top1, top5 = probe_accuracy(best, test_x, test_y)
    return ProbeResult(
        top1=float(top1),
        top5=float(top5),
        losses=np.asarray(losses[0]),
        lr=lr,
        params=best,
        validation=validation,
    )
