"""The linear probe: against NumPy's AdamW and scikit-learn, padding, sweeps and selection."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.evaluation import probe

FAST = Evaluation(probe_epochs=3, probe_batch_size=16)


def _blobs(seed, count, dim=12, num_classes=4, spread=1.0):
    """Gaussian blobs about fixed centers."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(100).normal(size=(num_classes, dim)) * 2.0
    labels = rng.integers(num_classes, size=count)
    x = centers[labels] + spread * rng.normal(size=(count, dim))
    return x.astype(np.float32), labels.astype(np.int32)


def _layer_norm(x):
    return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)


def _numpy_training(params, x, labels, permutations, lr, batch_size, weight_decay):
    """AdamW by its formulas in float64, on gradients derived by hand."""
    weights = [np.asarray(p, np.float64) for p in params]
    first = [np.zeros_like(w) for w in weights]
    second = [np.zeros_like(w) for w in weights]
    normed = _layer_norm(x.astype(np.float64))
    total = len(permutations) * math.ceil(permutations.shape[1] / batch_size)
    step = 0
    for permutation in permutations:
        for start in range(0, len(permutation), batch_size):
            rows = permutation[start : start + batch_size]
            hidden = normed[rows] * weights[0] + weights[1]
            logits = hidden @ weights[2] + weights[3]
            error = np.exp(logits - logits.max(1, keepdims=True))
            error /= error.sum(1, keepdims=True)
            error[np.arange(len(rows)), labels[rows]] -= 1.0
            error /= len(rows)
            back = error @ weights[2].T
            grads = [(back * normed[rows]).sum(0), back.sum(0), hidden.T @ error, error.sum(0)]
            rate = lr * 0.5 * (1.0 + math.cos(math.pi * step / total))
            step += 1
            for i, grad in enumerate(grads):
                first[i] = 0.9 * first[i] + 0.1 * grad
                second[i] = 0.999 * second[i] + 0.001 * grad**2
                change = (first[i] / (1 - 0.9**step)) / (
                    np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8
                )
                weights[i] = weights[i] * (1 - rate * weight_decay) - rate * change
    return weights


@pytest.mark.parametrize(("count", "batch_size"), [(50, 16), (48, 16), (10, 64)])
def test_training_agrees_with_numpy_last_short_batch_included(count: int, batch_size: int) -> None:
    x, labels = _blobs(0, count)
    permutations = np.stack([np.random.default_rng(i).permutation(count) for i in range(3)])
    with jax.enable_x64(True):
        start = probe.init_probe(0, 12, 4)
        start = jax.tree.map(lambda p: p.astype(jnp.float64), start)
        trained, losses = probe.train_probe(
            start,
            jnp.asarray(x, jnp.float64),
            jnp.asarray(labels),
            jnp.asarray(permutations),
            jnp.asarray([3e-3]),
            batch_size=batch_size,
            weight_decay=0.1,
        )
    expected = _numpy_training(start, x, labels, permutations, 3e-3, batch_size, 0.1)
    for actual, wanted in zip(trained, expected, strict=True):
        np.testing.assert_allclose(actual[0], wanted, rtol=1e-9, atol=1e-10)
    assert losses.shape == (1, 3)


def test_rates_trained_together_equal_each_alone() -> None:
    train = _blobs(1, 60)
    start = probe.init_probe(1, 12, 4)
    permutations = jnp.stack([jnp.arange(60)] * 2)
    rates = (1e-3, 1e-2, 1e-1)
    arguments = (start, jnp.asarray(train[0]), jnp.asarray(train[1]), permutations)
    together, _ = probe.train_probe(
        *arguments, jnp.asarray(rates), batch_size=16, weight_decay=1e-6
    )
    for i, rate in enumerate(rates):
        alone, _ = probe.train_probe(
            *arguments, jnp.asarray([rate]), batch_size=16, weight_decay=1e-6
        )
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[i], b[0], atol=2e-5)


def test_long_training_reaches_logistic_regression() -> None:
    train, test = _blobs(3, 400, spread=4.0), _blobs(4, 400, spread=4.0)
    result = probe.linear_probe(
        train, test, 4, Evaluation(probe_epochs=100, probe_batch_size=32, probe_lr=1e-2)
    )
    model = LogisticRegression(max_iter=1000).fit(_layer_norm(train[0]), train[1])
    expected = model.score(_layer_norm(test[0]), test[1])
    assert 0.5 < expected < 0.95
    assert result.top1 == pytest.approx(expected, abs=0.03)
    assert result.losses[-1] < result.losses[0]


def test_the_seed_determines_the_result() -> None:
    train, test = _blobs(5, 60, spread=3.0), _blobs(6, 40, spread=3.0)
    first, again = (probe.linear_probe(train, test, 4, FAST) for _ in range(2))
    np.testing.assert_array_equal(first.params.kernel, again.params.kernel)
    other = probe.linear_probe(train, test, 4, dataclasses.replace(FAST, seed=1))
    assert np.abs(np.asarray(first.params.kernel) - np.asarray(other.params.kernel)).max() > 1e-3


def test_the_best_of_several_rates_in_cross_validation_is_reported() -> None:
    train, test = _blobs(7, 120), _blobs(8, 80)
    settings = dataclasses.replace(FAST, probe_lr=1e-6, probe_lr_sweep=(1e-2,), probe_folds=4)
    result = probe.linear_probe(train, test, 4, settings)
    assert result.lr == 1e-2
    assert result.validation[1] > result.validation[0] + 0.2
    chosen = probe.linear_probe(train, test, 4, dataclasses.replace(FAST, probe_lr=1e-2))
    assert result.top1 == chosen.top1
    assert chosen.validation == ()


def test_cross_validation_does_not_learn_from_held_out_rows() -> None:
    # Labels are noise: any top-1 well above chance would be a leak.
    rng = np.random.default_rng(9)
    x = rng.normal(size=(120, 60)).astype(np.float32)
    labels = rng.integers(4, size=120).astype(np.int32)
    settings = Evaluation(probe_epochs=20, probe_batch_size=32, probe_lr=1e-2, probe_folds=3)
    (accuracy,) = probe.cross_validate(x, labels, 4, settings)
    assert accuracy < 0.42
    assert probe.linear_probe((x, labels), (x, labels), 4, settings).top1 > 0.6


def test_initial_parameters_are_the_default_linear_ones() -> None:
    params = probe.init_probe(3, 100, 50)
    kernel = np.asarray(params.kernel)
    assert np.abs(kernel).max() <= 0.1
    assert kernel.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.05)
    assert 0.05 < np.abs(np.asarray(params.bias)).max() <= 0.1
    np.testing.assert_array_equal(params.scale, 1.0)
    np.testing.assert_array_equal(params.offset, 0.0)


def test_top5_is_over_at_most_all_classes() -> None:
    logits = jnp.asarray([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])
    labels = jnp.asarray([1, 2])
    assert float(probe.topk_accuracy(logits, labels, 1)) == 0.5
    assert float(probe.topk_accuracy(logits, labels, 2)) == 0.5
    assert float(probe.topk_accuracy(logits, labels, 5)) == 1.0


def test_invalid_settings_and_shapes_are_errors() -> None:
    train = _blobs(10, 20)
    with pytest.raises(ValueError, match=r"test \(20, 3\) and \(20,\)"):
        probe.linear_probe(train, (train[0][:, :3], train[1]), 4, FAST)
    with pytest.raises(ValueError, match="training labels go from 0 to 3"):
        probe.linear_probe(train, train, 3, FAST)
    with pytest.raises(ValueError, match="probe_folds is 21"):
        probe.cross_validate(*train, 4, dataclasses.replace(FAST, probe_folds=21))
