"""Logistic regression: SciPy's minimum in float64, gradients, invariances, and the chosen L2."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression

from hjepa_jax.config.sections.evaluation import Evaluation
from hjepa_jax.evaluation.probes import logistic

CLASSES = 4
ONE = Evaluation(logistic_l2=(1e-2,))


def _blobs(seed, count, dim=12, spread=3.0):
    """Overlapping classes; the features have means and very different scales."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(100).normal(size=(CLASSES, dim)) * 2.0
    labels = rng.integers(CLASSES, size=count)
    x = centers[labels] + spread * rng.normal(size=(count, dim))
    return (x * 10.0 ** np.linspace(-2, 2, dim) + 3.0).astype(np.float32), labels.astype(np.int32)


def _standardized(x, of):
    x, of = np.asarray(x, np.float64), np.asarray(of, np.float64)
    return (x - of.mean(0)) / of.std(0)


def _objective(flat, x, labels, l2):
    """The loss and its gradient by their formulas."""
    kernel, bias = np.split(flat.reshape(-1, CLASSES), [x.shape[1]])
    logits = x @ kernel + bias
    rows = np.arange(len(labels))
    error = softmax(logits, axis=1)
    error[rows, labels] -= 1.0
    gradient = np.concatenate([x.T @ error / len(x) + l2 * kernel, error.mean(0, keepdims=True)])
    loss = -log_softmax(logits, axis=1)[rows, labels].mean() + l2 / 2 * np.sum(kernel**2)
    return loss, gradient.ravel()


def _minimum(x, labels, l2):
    start = np.zeros((x.shape[1] + 1) * CLASSES)
    options = {"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-10}
    found = scipy.optimize.minimize(
        _objective, start, (x, labels, l2), "L-BFGS-B", jac=True, options=options
    )
    return found.x, found.fun


def _flat(params):
    return np.concatenate([params.kernel, params.bias[None]]).astype(np.float64).ravel()


def _rows(x, labels, padding=0.0):
    """Rows for `fit_logistic`: whole blocks, padded by rows that must not matter."""
    pad = -len(labels) % 512
    return logistic.Rows(
        jnp.pad(jnp.asarray(x), ((0, pad), (0, 0)), constant_values=padding),
        jnp.pad(jnp.asarray(labels), (0, pad)),
    )


def _zero(dim, dtype=jnp.float32):
    return logistic.LogisticParams(jnp.zeros((dim, CLASSES), dtype), jnp.zeros(CLASSES, dtype))


@pytest.mark.parametrize("l2", [1e-5, 1e-3, 1e-1, 10.0])
def test_the_solution_is_the_minimum_that_scipy_finds_in_float64(l2: float) -> None:
    train, test = _blobs(0, 700), _blobs(1, 300)
    found = logistic.logistic_probe(
        train, test, CLASSES, dataclasses.replace(ONE, logistic_l2=(l2,))
    )
    x = _standardized(train[0], train[0])
    best, lowest = _minimum(x, train[1], l2)
    loss, gradient = _objective(_flat(found.fit.params), x, train[1], l2)
    assert -1e-12 < loss - lowest < 1e-6
    assert float(found.fit.loss) == pytest.approx(lowest, abs=1e-6)
    assert np.abs(gradient).max() < 2e-4
    kernel, bias = np.split(best.reshape(-1, CLASSES), [x.shape[1]])
    logits = _standardized(test[0], train[0]) @ kernel + bias
    assert found.top1 == pytest.approx(np.mean(logits.argmax(1) == test[1]), abs=1 / 300 + 1e-6)
    assert np.mean(found.answers == logits.argmax(1)) > 0.99
    assert (found.l2, found.validation) == (l2, ())


def test_in_float64_the_gradient_vanishes() -> None:
    x, labels = _blobs(2, 600)
    x = _standardized(x, x)
    with jax.enable_x64(True):
        rows, start = _rows(x, labels), _zero(12, jnp.float64)
        found = logistic.fit_logistic(rows, 600, 1e-3, start, tolerance=1e-9, steps=500)
    loss, gradient = _objective(_flat(found.params), x, labels, 1e-3)
    assert np.abs(gradient).max() < 1e-9
    assert loss == pytest.approx(_minimum(x, labels, 1e-3)[1], abs=1e-12)
    assert 5 < int(found.iterations) < 100


def test_gradient_of_the_mean_loss_and_rows_beyond_the_count() -> None:
    x, labels = _blobs(3, 1100, dim=5)
    x = _standardized(x, x)
    point = np.random.default_rng(4).normal(size=(6, CLASSES))
    with jax.enable_x64(True):
        params = logistic.LogisticParams(jnp.asarray(point[:5]), jnp.asarray(point[5]))
        value, gradient = jax.value_and_grad(logistic.mean_loss)(
            params, _rows(x, labels, padding=1e6), jnp.asarray(700)
        )
    expected, expected_gradient = _objective(point.ravel(), x[:700], labels[:700], 0.0)
    assert float(value) == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(_flat(gradient), expected_gradient, rtol=1e-9, atol=1e-12)


def test_any_start_leads_to_the_same_classifier() -> None:
    x, labels = _blobs(5, 400)
    rows = _rows(_standardized(x, x).astype(np.float32), labels)
    far = jax.random.normal(jax.random.key(0), (13, CLASSES))
    starts = (_zero(12), logistic.LogisticParams(far[:12], far[12] - far[12].mean()))
    first, second = (
        logistic.fit_logistic(rows, 400, 1e-2, start, tolerance=1e-4, steps=500).params
        for start in starts
    )
    np.testing.assert_allclose(_flat(first), _flat(second), atol=2e-3)
    assert np.abs(np.asarray(first.kernel)).max() > 0.1


def test_features_that_are_only_centered_give_scikit_learns_classifier() -> None:
    (x, labels), test = _blobs(6, 500, dim=6), _blobs(7, 200, dim=6)
    x, test_x = (rows / np.float32(50) for rows in (x, test[0]))
    settings = dataclasses.replace(ONE, logistic_standardize=False)
    found = logistic.logistic_probe((x, labels), (test_x, test[1]), CLASSES, settings)
    model = LogisticRegression(C=1 / (500 * 1e-2), tol=1e-8, max_iter=5000)
    model.fit(x.astype(np.float64), labels)
    np.testing.assert_allclose(found.fit.params.kernel, model.coef_.T, atol=1e-3)
    assert found.top1 == pytest.approx(model.score(test_x.astype(np.float64), test[1]), abs=0.006)
    scaled = logistic.logistic_probe((x, labels), (test_x, test[1]), CLASSES, ONE)
    assert float(scaled.fit.loss) < float(found.fit.loss) - 0.01


def test_scales_shifts_and_class_numbers_do_not_matter() -> None:
    train, test = _blobs(8, 300), _blobs(9, 200)
    found = logistic.logistic_probe(train, test, CLASSES, ONE)
    rng = np.random.default_rng(10)
    scale, shift = 10.0 ** rng.uniform(-1, 1, 12), rng.normal(size=12)
    moved = [((x * scale + shift).astype(np.float32), y) for x, y in (train, test)]
    again = logistic.logistic_probe(moved[0], moved[1], CLASSES, ONE)
    assert float(again.fit.loss) == pytest.approx(float(found.fit.loss), abs=2e-6)
    assert np.mean(again.answers == found.answers) > 0.99
    renamed = np.array([2, 0, 3, 1], np.int32)
    other = logistic.logistic_probe(
        (train[0], renamed[train[1]]), (test[0], renamed[test[1]]), CLASSES, ONE
    )
    assert np.mean(other.answers == renamed[found.answers]) > 0.99


def test_constant_features_and_absent_classes_are_harmless() -> None:
    train, test = _blobs(11, 200), _blobs(12, 100)
    plain = logistic.logistic_probe(train, test, CLASSES, ONE)
    with_constant = [
        (np.pad(x, ((0, 0), (0, 1)), constant_values=0.3), y) for x, y in (train, test)
    ]
    found = logistic.logistic_probe(with_constant[0], with_constant[1], CLASSES + 2, ONE)
    assert np.isfinite(_flat(found.fit.params)).all()
    np.testing.assert_allclose(found.fit.params.kernel[-1], 0.0, atol=1e-6)
    assert found.answers.max() < CLASSES
    assert abs(found.top1 - plain.top1) < 0.03


def test_the_penalty_with_the_best_held_out_accuracy_is_fitted_to_all_rows() -> None:
    # More features than rows of the fit, and mostly noise: a small penalty overfits.
    train, test = _blobs(13, 150, dim=200, spread=12.0), _blobs(14, 600, dim=200, spread=12.0)
    penalties = (1e-6, 3.0, 1e-2)
    settings = dataclasses.replace(ONE, logistic_l2=penalties)
    found = logistic.logistic_probe(train, test, CLASSES, settings)
    order, used = logistic.holdout_last(train[1], 0.2, 0)
    x = _standardized(train[0], train[0])[order]
    scores = []
    for l2 in penalties:
        model = LogisticRegression(C=1 / (used * l2), tol=1e-6, max_iter=5000)
        model.fit(x[:used], train[1][order[:used]])
        scores.append(model.score(x[used:], train[1][order[used:]]))
    np.testing.assert_allclose(found.validation, scores, atol=1 / 30 + 1e-6)
    assert max(found.validation) > min(found.validation) + 0.05
    chosen = max(zip(found.validation, penalties, strict=True))[1]
    assert found.l2 == chosen != penalties[0]
    alone = logistic.logistic_probe(
        train, test, CLASSES, dataclasses.replace(ONE, logistic_l2=(chosen,))
    )
    assert found.top1 == pytest.approx(alone.top1, abs=0.005)
    assert float(found.fit.loss) == pytest.approx(float(alone.fit.loss), abs=2e-6)


def test_of_equal_penalties_the_larger_is_taken_and_the_result_repeats() -> None:
    train, test = _blobs(15, 120, spread=0.1), _blobs(16, 60, spread=0.1)
    settings = dataclasses.replace(ONE, logistic_l2=(1e-4, 1e-2, 1e-3))
    first, again = (logistic.logistic_probe(train, test, CLASSES, settings) for _ in range(2))
    assert first.validation == (1.0, 1.0, 1.0)
    assert first.l2 == 1e-2
    np.testing.assert_array_equal(first.fit.params.kernel, again.fit.params.kernel)


def test_a_limit_on_iterations_ends_the_search() -> None:
    train, test = _blobs(17, 300), _blobs(18, 60)
    settings = dataclasses.replace(ONE, logistic_l2=(1e-5,), logistic_steps=2)
    found = logistic.logistic_probe(train, test, CLASSES, settings)
    assert int(found.fit.iterations) == 2
    assert float(found.fit.gradient_norm) > 1e-3


@pytest.mark.parametrize(("count", "share"), [(2, 0.2), (103, 0.2), (100, 0.9), (7, 0.01)])
def test_held_out_rows_are_a_share_of_every_class(count: int, share: float) -> None:
    labels = np.random.default_rng(19).integers(3, size=count)
    order, used = logistic.holdout_last(labels, share, seed=1)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    assert 1 <= used < count
    assert abs(count - used - share * count) <= 1
    for kind in range(3):
        of_class = np.count_nonzero(labels == kind)
        assert abs(np.count_nonzero(labels[order[used:]] == kind) - share * of_class) <= 1
    assert not np.array_equal(order, logistic.holdout_last(labels, share, seed=2)[0]) or count < 5


def test_sets_that_do_not_match_are_refused() -> None:
    train, test = _blobs(20, 30), _blobs(21, 30, dim=11)
    with pytest.raises(ValueError, match="needs features"):
        logistic.logistic_probe(train, test, CLASSES, ONE)
