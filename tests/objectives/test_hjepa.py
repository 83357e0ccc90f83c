"""HJEPA's prediction loss: pairings, matches, gradients, and refused options."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.objectives.hjepa import prediction_loss, view_pairs

IMAGES, HALF = 9, 3
OPTIONS: dict[str, Any] = {
    "num_global_views": 2,
    "pairing": "first_two",
    "match": "q",
    "p_weight": 0.2,
    "energy_weight": 0.0,
    "bidirectional": True,
    "detach_target": True,
    "reverse_direction_sign": -1,
}
MATRIX = np.random.default_rng(5).standard_normal((2 * HALF, 2 * HALF)) * 0.3


def views(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, IMAGES, 2 * HALF))


def flow(z: Any, direction: int) -> Any:
    """A nonlinear flow that depends on the direction, for NumPy and JAX arrays alike."""
    return z + direction * 0.1 * (z @ MATRIX.astype(z.dtype)) ** 2


def energy(z: Any) -> Any:
    return 0.5 * (z**2).sum(-1) + 0.1 * (z**3).sum(-1)


def numpy_prediction(
    z: np.ndarray, options: dict[str, Any], directed_pairs: list[tuple[int, int, int]]
) -> float:
    """The mean over (source, target, direction) by a plain loop."""
    losses = []
    for source, target, direction in directed_pairs:
        z_hat = flow(z[source], direction)
        square = (z_hat - z[target]) ** 2
        q_error, p_error = square[:, :HALF].mean(), square[:, HALF:].mean()
        loss = {
            "q": q_error + options["p_weight"] * p_error,
            "p": p_error,
            "qp": square.mean(),
        }[options["match"]]
        drift = ((energy(z_hat) - energy(z[source])) ** 2).mean()
        losses.append(loss + options["energy_weight"] * drift)
    return float(np.mean(losses))


def both_ways(pairs: list[tuple[int, int]], sign: int = -1) -> list[tuple[int, int, int]]:
    return [(i, j, 1) for i, j in pairs] + [(j, i, sign) for i, j in pairs]


predict = quick_jit(
    lambda z, **options: prediction_loss(flow, energy, z, **options), static_argnames=tuple(OPTIONS)
)


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
    options = {**OPTIONS, "num_global_views": 3, "pairing": pairing, **change}
    z = views(5)
    pairs = both_ways(PAIRS[pairing], options["reverse_direction_sign"])
    if not options["bidirectional"]:
        pairs = pairs[: len(pairs) // 2]
    with jax.enable_x64(True):
        value = predict(jnp.asarray(z), **options)
        np.testing.assert_allclose(value, numpy_prediction(z, options, pairs), rtol=1e-12)


def test_match_p_has_no_extra_term() -> None:
    z = jnp.asarray(views(2), jnp.float32)
    of_p = {**OPTIONS, "match": "p"}
    losses = [predict(z, **{**of_p, "p_weight": weight}) for weight in (0.0, 5.0)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("pairing", PAIRS)
def test_each_direction_is_one_flow_call_of_distinct_sources(pairing: str) -> None:
    calls = []

    def counted(z: jax.Array, direction: int) -> jax.Array:
        calls.append((direction, z.shape[0]))
        return flow(z, direction)

    z = jnp.asarray(views(5), jnp.float32)
    options = {**OPTIONS, "num_global_views": 3, "pairing": pairing}
    jax.eval_shape(lambda z: prediction_loss(counted, None, z, **options), z)
    sources = [len({i for i, _ in PAIRS[pairing]}), len({j for _, j in PAIRS[pairing]})]
    assert calls == [(1, sources[0]), (-1, sources[1])]
    calls.clear()
    options["reverse_direction_sign"] = 1
    jax.eval_shape(lambda z: prediction_loss(counted, None, z, **options), z)
    assert len(calls) == 1


@pytest.mark.parametrize("pairing", ["first_two", "local_to_global"])
def test_gradient_without_detached_targets_matches_differences(pairing: str) -> None:
    # A constant energy at the start point needs no stop: only the end point's is differentiated.
    options = {**OPTIONS, "pairing": pairing, "detach_target": False}
    with jax.enable_x64(True):
        assert_gradient(lambda z: prediction_loss(flow, None, z, **options), views(3))


def test_detached_targets_get_no_gradient() -> None:
    options = {**OPTIONS, "bidirectional": False, "match": "qp", "energy_weight": 0.5}
    with jax.enable_x64(True):
        z = views(3)

        def loss(source: jax.Array, target: jax.Array) -> jax.Array:
            stacked = jnp.stack([source, target, jnp.asarray(z[2])])
            return prediction_loss(flow, energy, stacked, **options)

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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairing": "local_to_global"}, r"set data\.num_local_views"),
        ({"num_global_views": 1}, "at least 2 global views"),
        ({"num_global_views": 3}, r"must lie in 1\.\.2"),
        ({"energy_weight": 1.0}, "needs a predictor with an energy"),
        ({"match": "pq"}, r"loss\.match must be one of q, p, qp"),
        ({"pairing": "all"}, r"loss\.pairing must be one of first_two, all_global"),
        ({"reverse_direction_sign": 0}, "must be -1 or 1"),
    ],
)
def test_errors_name_the_cause(change: dict[str, Any], message: str) -> None:
    z = jnp.asarray(views(2), jnp.float32)
    with pytest.raises(ValueError, match=message):
        prediction_loss(flow, None, z, **{**OPTIONS, **change})


@pytest.mark.usefixtures("unchecked")
def test_a_state_that_has_no_halves_is_refused() -> None:
    with pytest.raises(ValueError, match="even last axis"):
        prediction_loss(flow, None, jnp.zeros((2, IMAGES, 5)), **OPTIONS)
