"""Multinomial logistic regression on frozen features: L-BFGS along a path of L2 penalties.

The loss is mean cross-entropy + l2 / 2 |kernel|^2, with a free bias; scikit-learn's C is
1 / (N l2). For l2 > 0 it is strictly convex, so the classifier depends on neither an initialization
nor a learning rate.

Source: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization", 1989. The
change of variables is the bound of the Hessian in Boehning, "Multinomial logistic regression
algorithm", 1992, at equal class probabilities.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax import lax
from jax.scipy.linalg import solve_triangular
from jax.typing import ArrayLike
from jaxtyping import PyTree

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.evaluation.probe import check_sets
from hjepa_jax.objectives.linear_probe import cross_entropy, topk_accuracy

# Rows whose logits are computed at a time: their features stay in the cache for the gradient.
_BLOCK = 512
# Rows per feature that the estimate of the covariance takes; more do not speed up convergence.
_ROWS_PER_FEATURE = 4
# The covariance is factored with at least this share of its trace on the diagonal, in units of the
# dtype's rounding: rounding makes a singular one indefinite.
_RIDGE = 30.0
# Deviations below this share of the largest are rounding: such a feature is constant.
_CONSTANT = 1e-6
# `gradient_norm` at which a fit ends: the loss is then less than 1e-6 nats above its minimum.
_TOLERANCE = 2e-4
# The tolerance of the fits that choose the penalty, over that of the last one: their accuracy is
# that of the solution long before.
_CHOOSING = 10.0

_product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class LogisticParams(NamedTuple):
    """A linear classifier: kernel [D, C] and bias [C], float32."""

    kernel: jax.Array
    bias: jax.Array


class Fit(NamedTuple):
    """A solution of `fit_logistic`, with scalars that describe it.

    Attributes:
      params: the classifier.
      loss: mean cross-entropy plus penalty, in nats.
      gradient_norm: of the loss in the variables of the search, where its square over 2 is about
        the distance to the minimum.
      iterations: of L-BFGS.
    """

    params: LogisticParams
    loss: jax.Array
    gradient_norm: jax.Array
    iterations: jax.Array


# Point, state of the search, loss before the last step, and number of steps.
_Carry: TypeAlias = tuple[PyTree[jax.Array], optax.OptState, ArrayLike, jax.Array]


class Logistic(NamedTuple):
    """The result of `logistic_probe`.

    Attributes:
      answers: the predicted class int [M] of each test row.
      top1, top5: test accuracies; top 5 is over at most C classes.
      l2: the chosen penalty.
      validation: top-1 on the held-out training rows for each penalty of `evaluation.logistic_l2`,
        in its order; empty if there is only one.
      fit: the solution for standardized features.
    """

    answers: np.ndarray
    top1: float
    top5: float
    l2: float
    validation: tuple[float, ...]
    fit: Fit


class Rows(NamedTuple):
    """Features [N, D], of mean 0, and labels int [N]; N is a multiple of the block."""

    features: jax.Array
    labels: jax.Array


def _losses(
    params: LogisticParams, rows: Rows, count: jax.Array
) -> tuple[jax.Array, LogisticParams]:
    """Returns the mean cross-entropy over the first `count` rows and its gradient."""

    def add(
        block: jax.Array, total: tuple[jax.Array, LogisticParams]
    ) -> tuple[jax.Array, LogisticParams]:
        start = block * _BLOCK
        x = lax.dynamic_slice_in_dim(rows.features, start, _BLOCK)
        y = lax.dynamic_slice_in_dim(rows.labels, start, _BLOCK)
        weight = (start + jnp.arange(_BLOCK) < count).astype(x.dtype) / count
        logits = _product(x, params.kernel) + params.bias
        error = jax.nn.softmax(logits) - jax.nn.one_hot(y, logits.shape[1], dtype=x.dtype)
        error = error * weight[:, None]
        loss = jnp.sum(weight * cross_entropy(logits, y))
        own = loss, LogisticParams(_product(x.T, error), error.sum(axis=0))
        return jax.tree.map(jnp.add, total, own)

    zero = jnp.zeros((), rows.features.dtype), jax.tree.map(jnp.zeros_like, params)
    return lax.fori_loop(0, -(-count // _BLOCK), add, zero)


@jax.custom_vjp
def mean_loss(params: LogisticParams, rows: Rows, count: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy over the first `count` rows, a scalar in nats.

    Its gradient is to `params` alone and comes with the value, in the same pass over the rows.
    """
    return _losses(params, rows, count)[0]


def _forward(
    params: LogisticParams, rows: Rows, count: jax.Array
) -> tuple[jax.Array, LogisticParams]:
    return _losses(params, rows, count)


def _backward(gradient: LogisticParams, cotangent: jax.Array) -> tuple[LogisticParams, None, None]:
    return jax.tree.map(lambda leaf: cotangent * leaf, gradient), None, None


mean_loss.defvjp(_forward, _backward)


def _factor(rows: Rows, count: jax.Array, l2: jax.Array, classes: int) -> jax.Array:
    """Returns L [D, D] with L L^T about covariance / C + l2, from at most a few thousand rows.

    That is the Hessian in the kernel of one class where all classes are equally likely.
    """
    dim = rows.features.shape[1]
    x = rows.features[: _ROWS_PER_FEATURE * dim]
    x = jnp.where((jnp.arange(len(x)) < count)[:, None], x, 0)
    hessian = _product(x.T, x) / (jnp.minimum(count, len(x)) * classes)
    ridge = jnp.maximum(l2, _RIDGE * jnp.finfo(x.dtype).eps * jnp.trace(hessian))
    return jnp.linalg.cholesky(hessian + ridge * jnp.eye(dim, dtype=x.dtype))


@functools.partial(jax.jit, static_argnames=("steps",))
def fit_logistic(
    rows: Rows,
    count: jax.Array,
    l2: jax.Array,
    start: LogisticParams,
    *,
    tolerance: jax.Array,
    steps: int,
) -> Fit:
    """Minimizes mean cross-entropy + l2 / 2 |kernel|^2 over the first `count` rows.

    Args:
      rows: features and labels.
      count: int scalar, at most the number of rows.
      l2: scalar > 0.
      start: where to start, such as at the solution for another l2.
      tolerance: `gradient_norm` to reach. The search also ends where the line search finds no
        smaller loss, at the precision of the dtype.
      steps: maximum number of iterations.
    """
    classes = start.kernel.shape[1]
    factor = _factor(rows, count, l2, classes)
    inverse = solve_triangular(factor.T, jnp.eye(len(factor), dtype=factor.dtype), lower=False)
    unit = jnp.sqrt(jnp.asarray(classes, factor.dtype))

    def params_of(point: LogisticParams) -> LogisticParams:
        return LogisticParams(_product(inverse, point.kernel), unit * point.bias)

    def objective(point: LogisticParams) -> jax.Array:
        params = params_of(point)
        return mean_loss(params, rows, count) + 0.5 * l2 * jnp.sum(jnp.square(params.kernel))

    search = optax.lbfgs(memory_size=10)
    evaluate = optax.value_and_grad_from_state(objective)

    def step(carry: _Carry) -> _Carry:
        point, state, _, number = carry
        value, gradient = evaluate(point, state=state)
        updates, state = search.update(
            gradient, state, point, value=value, grad=gradient, value_fn=objective
        )
        return optax.apply_updates(point, updates), state, value, number + 1

    def goes_on(carry: _Carry) -> jax.Array:
        _, state, before, number = carry
        value, gradient = (optax.tree.get(state, name) for name in ("value", "grad"))
        unfinished = (optax.tree.norm(gradient) > tolerance) & (value < before)
        return (number < steps) & ((number == 0) | unfinished)

    point = LogisticParams(_product(factor.T, start.kernel), start.bias / unit)
    first = (point, search.init(point), jnp.asarray(jnp.inf, factor.dtype), jnp.zeros((), int))
    point, state, _, number = lax.while_loop(goes_on, step, first)
    value, gradient = (optax.tree.get(state, name) for name in ("value", "grad"))
    return Fit(params_of(point), value, optax.tree.norm(gradient), number)


@functools.partial(jax.jit, static_argnames=("scaled",))
def _standardization(x: jax.Array, *, scaled: bool) -> tuple[jax.Array, jax.Array]:
    """Returns the mean [D] and what to divide by [D]: deviations, or 1 if not `scaled`."""
    mean = x.mean(axis=0)
    deviation = jnp.sqrt(jnp.mean(jnp.square(x - mean), axis=0))
    varies = deviation > _CONSTANT * deviation.max()
    return mean, jnp.where(varies & scaled, deviation, 1.0)


@jax.jit
def _padded(
    x: jax.Array, y: jax.Array, mean: jax.Array, scale: jax.Array, order: jax.Array
) -> Rows:
    """Returns the standardized rows in an order, and padding up to whole blocks."""
    pad = -len(y) % _BLOCK
    features = ((x - mean) / scale)[order]
    return Rows(jnp.pad(features, ((0, pad), (0, 0))), jnp.pad(y[order], (0, pad)))


@jax.jit
def _accuracy(
    params: LogisticParams, x: jax.Array, y: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    logits = _product(x, params.kernel) + params.bias
    return topk_accuracy(logits, y, 1), topk_accuracy(logits, y, 5), jnp.argmax(logits, axis=1)


def holdout_last(
    labels: npt.NDArray[np.integer], share: float, seed: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Returns a seeded order of the rows [N] and how many come before those to hold out.

    The rows at the end are `share` of all, at least one but not all, and about that share of every
    class.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, first, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    within = np.arange(len(labels)) - np.repeat(first, counts)
    place = (within + 0.5) / np.repeat(counts, counts)
    held_out = min(max(1, round(share * len(labels))), len(labels) - 1)
    return by_class[np.argsort(place, kind="stable")], len(labels) - held_out


def logistic_probe(
    train: tuple[npt.ArrayLike, npt.ArrayLike],
    test: tuple[npt.ArrayLike, npt.ArrayLike],
    num_classes: int,
    settings: Evaluation,
) -> Logistic:
    """Fits multinomial logistic regression to frozen features and tests it.

    Every feature is centered, which changes nothing but the bias, and divided by its deviation over
    the training rows unless `evaluation.logistic_standardize` is off. Of several penalties, from
    the largest down and each from the solution before, the one with the best top-1 on the held-out
    training rows (the larger of equals) is fitted again to all of them.

    Args:
      train: features [N, D] and labels int [N], such as a `Features`.
      test: features [M, D] and labels int [M].
      num_classes: labels lie in 0..num_classes-1.
      settings: the section `evaluation`.

    Raises:
      ValueError: mismatched shapes or labels.
    """
    x, y, test_x, test_y = check_sets(train, test, num_classes)
    mean, scale = _standardization(x, scaled=settings.logistic_standardize)
    penalties = tuple(dict.fromkeys(settings.logistic_l2))
    order, used = holdout_last(np.asarray(y), settings.logistic_holdout, settings.seed)
    rows = _padded(x, y, mean, scale, jnp.asarray(order))
    zero = jnp.zeros((x.shape[1], num_classes), x.dtype)
    chosen, start = penalties[0], LogisticParams(zero, zero[0])
    fit = functools.partial(fit_logistic, steps=settings.logistic_steps)
    validation: dict[float, float] = {}
    if len(penalties) > 1:
        point, found, loose = start, dict[float, LogisticParams](), _CHOOSING * _TOLERANCE
        held_out = Rows(*(part[used : len(order)] for part in rows))
        for l2 in sorted(penalties, reverse=True):
            found[l2] = point = fit(rows, used, l2, point, tolerance=loose).params
            validation[l2] = float(_accuracy(point, *held_out)[0])
        chosen = max(validation, key=lambda l2: validation[l2])
        start = found[chosen]
    best = fit(rows, len(order), chosen, start, tolerance=_TOLERANCE)
    top1, top5, answers = _accuracy(best.params, (test_x - mean) / scale, test_y)
    return Logistic(
        answers=np.asarray(answers),
        top1=float(top1),
        top5=float(top5),
        l2=chosen,
        validation=tuple(validation[l2] for l2 in settings.logistic_l2) if validation else (),
        fit=best,
    )
