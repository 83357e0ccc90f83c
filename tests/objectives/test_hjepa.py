"""The HJEPA objective: pairings, matches, gradients, and the sum of its parts."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives import regularizers
from hjepa_jax.objectives.hjepa import HJEPASettings, hjepa_objective, prediction_loss, view_pairs

IMAGES, HALF = 9, 3
MATRIX = np.random.default_rng(5).standard_normal((2 * HALF, 2 * HALF)) * 0.3


def views(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, IMAGES, 2 * HALF))


def flow(z: Any, direction: int) -> Any:
    """A nonlinear flow that depends on the direction, for NumPy and JAX arrays alike."""
    return z + direction * 0.1 * (z @ MATRIX.astype(z.dtype)) ** 2


def energy(z: Any) -> Any:
    return 0.5 * (z**2).sum(-1) + 0.1 * (z**3).sum(-1)


def numpy_prediction(
    z: np.ndarray, settings: HJEPASettings, directed_pairs: list[tuple[int, int, int]]
) -> float:
    """The mean over (source, target, direction) by a plain loop."""
    losses = []
    for source, target, direction in directed_pairs:
        z_hat = flow(z[source], direction)
        square = (z_hat - z[target]) ** 2
        q_error, p_error = square[:, :HALF].mean(), square[:, HALF:].mean()
        loss = {
            "q": q_error + settings.p_weight * p_error,
            "p": p_error,
            "qp": square.mean(),
        }[settings.match]
        drift = ((energy(z_hat) - energy(z[source])) ** 2).mean()
        losses.append(loss + settings.energy_weight * drift)
    return float(np.mean(losses))


def both_ways(pairs: list[tuple[int, int]], sign: int = -1) -> list[tuple[int, int, int]]:
    return [(i, j, 1) for i, j in pairs] + [(j, i, sign) for i, j in pairs]


@functools.partial(quick_jit, static_argnums=(1, 2))
def predict(z: jax.Array, settings: HJEPASettings, num_global_views: int) -> jax.Array:
    return prediction_loss(flow, energy, z, settings, num_global_views=num_global_views)


PAIRS = {
    "first_two": [(0, 1)],
    "all_global": [(0, 1), (0, 2), (1, 2)],
    "local_to_global": [(3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2)],
}


@pytest.mark.parametrize("pairing", PAIRS)
def test_pairs(pairing: str) -> None:
    assert view_pairs(pairing, 5, 3) == PAIRS[pairing]


@pytest.mark.parametrize("pairing", PAIRS)
@pytest.mark.parametrize(
    "change",
    [
        {"match": "q", "energy_weight": 0.7},
        {"match": "p", "bidirectional": False},
        {"match": "qp", "reverse_direction_sign": 1, "energy_weight": 0.3},
    ],
    ids=["q", "p", "qp"],
)
def test_prediction_matches_a_plain_loop(pairing: str, change: dict[str, Any]) -> None:
    settings = HJEPASettings(pairing=pairing, **change)
    z = views(5)
    pairs = both_ways(PAIRS[pairing], settings.reverse_direction_sign)
    if not settings.bidirectional:
        pairs = pairs[: len(pairs) // 2]
    with jax.enable_x64(True):
        value = predict(jnp.asarray(z), settings, 3)
        np.testing.assert_allclose(value, numpy_prediction(z, settings, pairs), rtol=1e-12)


def test_match_p_has_no_extra_term() -> None:
    z = jnp.asarray(views(2), jnp.float32)
    losses = [predict(z, HJEPASettings(match="p", p_weight=weight), 2) for weight in (0.0, 5.0)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("pairing", PAIRS)
def test_each_direction_is_one_flow_call_of_distinct_sources(pairing: str) -> None:
    calls = []

    def counted(z: jax.Array, direction: int) -> jax.Array:
        calls.append((direction, z.shape[0]))
        return flow(z, direction)

    z = jnp.asarray(views(5), jnp.float32)
    settings = HJEPASettings(pairing=pairing)
    jax.eval_shape(lambda z: prediction_loss(counted, None, z, settings, num_global_views=3), z)
    sources = [len({i for i, _ in PAIRS[pairing]}), len({j for _, j in PAIRS[pairing]})]
    assert calls == [(1, sources[0]), (-1, sources[1])]
    calls.clear()
    same = dataclasses.replace(settings, reverse_direction_sign=1)
    jax.eval_shape(lambda z: prediction_loss(counted, None, z, same, num_global_views=3), z)
    assert len(calls) == 1


@pytest.mark.parametrize("pairing", ["first_two", "local_to_global"])
def test_gradient_without_detached_targets_matches_differences(pairing: str) -> None:
    # A constant energy at the start point needs no stop: only the end point's is differentiated.
    settings = HJEPASettings(match="q", pairing=pairing, detach_target=False)
    with jax.enable_x64(True):
        assert_gradient(
            lambda z: prediction_loss(flow, None, z, settings, num_global_views=2), views(3)
        )


def test_detached_targets_get_no_gradient() -> None:
    settings = HJEPASettings(bidirectional=False, match="qp", energy_weight=0.5)
    with jax.enable_x64(True):
        z = views(3)

        def loss(source: jax.Array, target: jax.Array) -> jax.Array:
            stacked = jnp.stack([source, target, jnp.asarray(z[2])])
            return prediction_loss(flow, energy, stacked, settings, num_global_views=2)

        grads = quick_jit(jax.grad(loss, (0, 1)))(jnp.asarray(z[0]), jnp.asarray(z[1]))
        np.testing.assert_array_equal(grads[1], 0)
        # The start point's energy is stopped: differences with it frozen give the gradient.
        start = energy(z[0])

        def frozen(source: jax.Array) -> jax.Array:
            z_hat = flow(source, 1)
            drift = jnp.mean((energy(z_hat) - start) ** 2)
            return jnp.mean((z_hat - z[1]) ** 2) + 0.5 * drift

        gradient = assert_gradient(frozen, z[0])
        np.testing.assert_allclose(grads[0], gradient, rtol=1e-9, atol=1e-12)


def projections(rank_p: int = 2) -> dict[str, jax.Array]:
    root = np.linalg.qr(np.random.default_rng(7).standard_normal((2, HALF, HALF)))[0]
    return {
        "q": jnp.asarray(root[0, :, :2], jnp.float32),
        "p": jnp.asarray(root[1, :, :rank_p], jnp.float32),
    }


ACTIVE = HJEPASettings(
    q_std_floor=2.0,
    p_std_floor=1.5,
    q_logdet_floor=1.0,
    p_logdet_floor=0.5,
    q_pr_floor=1.0,
    p_pr_floor=None,
    q_eigmax_ceiling=0.2,
    p_eigmax_ceiling=0.1,
    q_target=0.5,
    p_target=2.0,
)


@functools.partial(quick_jit, static_argnums=1)
def compiled_objective(z: jax.Array, settings: HJEPASettings) -> Any:
    return hjepa_objective(z, flow, None, projections(), settings, 2)


@pytest.mark.parametrize("rank_p", [2, 3], ids=["batched", "unequal_ranks"])
def test_objective_is_the_weighted_sum_of_its_parts(rank_p: int) -> None:
    z = jnp.asarray(views(3) * np.linspace(0.5, 1.5, 2 * HALF), jnp.float32)
    drawn = projections(rank_p)
    total, metrics = quick_jit(lambda z: hjepa_objective(z, flow, None, drawn, ACTIVE, 2))(z)

    def separately(z: jax.Array) -> tuple[dict[str, jax.Array], regularizers.LogdetStatistics]:
        q, p = z[..., :HALF], z[..., HALF:]
        parts = {
            "pred": prediction_loss(flow, None, z, ACTIVE, num_global_views=2),
            "budget": regularizers.budget(z, 0.5, 2.0),
            "var_q": regularizers.variance_floor(q, 2.0, 1e-4),
            "var_p": regularizers.variance_floor(p, 1.5, 1e-4),
            "mean": regularizers.mean_penalty(z),
        }
        parts["logdet_q"], statistics = regularizers.logdet_floor(
            q, drawn["q"], logdet_floor=1.0, eps=1e-4, pr_floor=1.0, eigmax_ceiling=0.2
        )
        parts["logdet_p"], _ = regularizers.logdet_floor(
            p, drawn["p"], logdet_floor=0.5, eps=1e-4, eigmax_ceiling=0.1
        )
        return parts, statistics

    parts, statistics = quick_jit(separately)(z)
    parts["var"] = parts["var_q"] + parts["var_p"]
    parts["logdet"] = parts["logdet_q"] + parts["logdet_p"]
    for name, value in parts.items():
        assert value > 0, name
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    weights = {"pred": 1, "budget": 0.2, "var": 0.5, "logdet": 0.5, "mean": 0.05}
    expected = sum(weight * parts[name] for name, weight in weights.items())
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["total"], total)
    np.testing.assert_allclose(metrics["q_pr"], statistics.pr_norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["q_logdet"], statistics.logdet_per_dim, rtol=1e-5)
    np.testing.assert_allclose(metrics["q_eigmax"], statistics.eigmax_frac, rtol=1e-5)
    flat = np.asarray(z)[..., HALF:].reshape(-1, HALF)
    np.testing.assert_allclose(metrics["p_std_min"], flat.std(0).min(), rtol=1e-5)
    np.testing.assert_allclose(metrics["p2"], (flat**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["z_mean2"], metrics["mean"])
    assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())


def test_objective_gradient_matches_differences() -> None:
    settings = dataclasses.replace(ACTIVE, detach_target=False, match="qp")
    with jax.enable_x64(True):
        drawn = jax.tree.map(lambda r: r.astype(jnp.float64), projections())
        assert_gradient(lambda z: hjepa_objective(z, flow, None, drawn, settings, 2)[0], views(2))


def test_p_variance_floor_can_be_dropped() -> None:
    z = jnp.asarray(views(2), jnp.float32)
    both = compiled_objective(z, ACTIVE)[1]
    only_q = compiled_objective(z, dataclasses.replace(ACTIVE, floor_p_variance=False))[1]
    assert only_q["var_p"] == 0
    assert both["var_p"] > 0
    np.testing.assert_allclose(only_q["var"], both["var_q"])


def test_collapsed_states_have_finite_gradients() -> None:
    z = jnp.full((2, IMAGES, 2 * HALF), 0.5, jnp.float32)
    gradient = quick_jit(
        jax.grad(lambda z: hjepa_objective(z, flow, None, projections(), ACTIVE, 2)[0])
    )(z)
    assert np.all(np.isfinite(gradient))
    assert np.any(np.asarray(gradient) != 0)


def test_bfloat16_is_computed_in_float32() -> None:
    z = jnp.asarray(views(2), jnp.bfloat16)
    total, _ = compiled_objective(z, ACTIVE)
    wide, _ = compiled_objective(z.astype(jnp.float32), ACTIVE)
    assert total.dtype == jnp.float32
    assert total == wide


@pytest.mark.usefixtures("unchecked")
def test_errors_name_the_cause() -> None:
    z = jnp.asarray(views(2), jnp.float32)
    settings = HJEPASettings(pairing="local_to_global")
    with pytest.raises(ValueError, match=r"set data\.num_local_views"):
        prediction_loss(flow, None, z, settings, num_global_views=2)
    with pytest.raises(ValueError, match="at least 2 global views"):
        prediction_loss(flow, None, z, HJEPASettings(), num_global_views=1)
    settings = HJEPASettings(energy_weight=1.0)
    with pytest.raises(ValueError, match="needs a predictor with an energy"):
        prediction_loss(flow, None, z, settings, num_global_views=2)
    with pytest.raises(ValueError, match=r"loss\.match must be one of q, p, qp"):
        HJEPASettings(match="pq")
    with pytest.raises(ValueError, match="must be -1 or 1"):
        HJEPASettings(reverse_direction_sign=0)
    with pytest.raises(ValueError, match="even last axis"):
        prediction_loss(flow, None, z[..., :5], HJEPASettings(), num_global_views=2)
