"""HJEPA's loss: the sum of its parts, its gradient, and what it observes."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.config.checks import typed
from hjepa_jax.methods import hjepa
from hjepa_jax.methods.hjepa import HJEPA
from hjepa_jax.methods.hjepa_settings import Loss
from hjepa_jax.methods.regularizers.floors import floor_terms
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives import regularizers
from hjepa_jax.objectives.hjepa import prediction_loss
from hjepa_jax.recipes import cifar100

IMAGES, HALF = 9, 3
MATRIX = np.random.default_rng(5).standard_normal((2 * HALF, 2 * HALF)) * 0.3


def views(count: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, IMAGES, 2 * HALF))


def flow(z: jax.Array, direction: int) -> jax.Array:
    """A nonlinear flow that depends on the direction."""
    return z + direction * 0.1 * (z @ MATRIX.astype(z.dtype)) ** 2


def projections(rank_p: int = 2) -> dict[str, jax.Array]:
    root = np.linalg.qr(np.random.default_rng(7).standard_normal((2, HALF, HALF)))[0]
    return {
        "q": jnp.asarray(root[0, :, :2], jnp.float32),
        "p": jnp.asarray(root[1, :, :rank_p], jnp.float32),
    }


ACTIVE = Loss(
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


WEIGHTS = ("budget", "var", "logdet", "mean")
NO_TARGET = dataclasses.replace(ACTIVE, detach_target=False, logdet_eps=0.01, p_logdet_eps=0.4)


def hjepa_loss(
    z: jax.Array,
    flow: Any,
    energy: Any,
    drawn: dict[str, jax.Array],
    options: Loss,
    num_global_views: int,
    floor_p_variance: bool = True,
) -> Any:
    """The loss with floors."""
    weights = {name: getattr(options, f"{name}_weight") for name in WEIGHTS}

    def regularize(z: jax.Array) -> tuple[list[jax.Array], dict[str, jax.Array]]:
        metrics = floor_terms(z, drawn, options, floor_p_variance)
        return [weight * metrics[name] for name, weight in weights.items()], metrics

    return hjepa.hjepa_loss(z, flow, energy, regularize, options, num_global_views)


@functools.partial(quick_jit, static_argnames="floor_p_variance")
def compiled_loss(z: jax.Array, **flags: bool) -> Any:
    return hjepa_loss(z, flow, None, projections(), ACTIVE, 2, **flags)


@pytest.mark.parametrize("rank_p", [2, 3], ids=["batched", "unequal_ranks"])
def test_loss_is_the_weighted_sum_of_its_parts(rank_p: int) -> None:
    z = jnp.asarray(views(3) * np.linspace(0.5, 1.5, 2 * HALF), jnp.float32)
    drawn = projections(rank_p)
    total, metrics = quick_jit(lambda z: hjepa_loss(z, flow, None, drawn, ACTIVE, 2))(z)

    def separately(z: jax.Array) -> tuple[dict[str, jax.Array], regularizers.LogdetStatistics]:
        q, p = z[..., :HALF], z[..., HALF:]
        parts = {
            "pred": prediction_loss(
                flow,
                None,
                z,
                num_global_views=2,
                pairing="first_two",
                match="q",
                p_weight=0.2,
                energy_weight=0.0,
                bidirectional=True,
                detach_target=True,
                reverse_direction_sign=-1,
            ),
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


def numpy_logdet_term(
    x: np.ndarray, projection: Any, eps: float, floor: float, pr: float | None, top: float
) -> float:
    """The log-det, participation-ratio and largest-eigenvalue floors of rows x, from eigenvalues.

    Without pr the second is left out.
    """
    rows = x.reshape(-1, x.shape[-1]) @ np.asarray(projection, np.float64)
    values = np.linalg.eigvalsh(np.cov(rows.T) + eps * np.eye(rows.shape[1]))
    terms = [floor - np.log(values).mean(), values.max() / values.sum() - top]
    if pr is not None:
        terms.append(pr - values.sum() ** 2 / (values**2).sum() / len(values))
    return float(sum(max(term, 0.0) ** 2 for term in terms))


@pytest.mark.parametrize("rank_p", [2, 3], ids=["batched", "unequal_ranks"])
def test_each_half_has_its_own_ridge(rank_p: int) -> None:
    options = dataclasses.replace(ACTIVE, logdet_eps=0.01, p_logdet_eps=0.4)
    with jax.enable_x64(True):
        z, drawn = views(3), jax.tree.map(lambda r: r.astype(jnp.float64), projections(rank_p))
        _, metrics = quick_jit(lambda z: hjepa_loss(z, flow, None, drawn, options, 2))(z)
        q = numpy_logdet_term(z[..., :HALF], drawn["q"], 0.01, 1.0, 1.0, 0.2)
        p = numpy_logdet_term(z[..., HALF:], drawn["p"], 0.4, 0.5, None, 0.1)
        np.testing.assert_allclose(metrics["logdet_q"], q, rtol=1e-10)
        np.testing.assert_allclose(metrics["logdet_p"], p, rtol=1e-10)
        assert_gradient(lambda z: hjepa_loss(z, flow, None, drawn, NO_TARGET, 2)[0], z)


def test_each_half_has_its_own_rank_and_too_large_ones_are_named() -> None:
    config = cifar100.get_config("smoke")
    config.loss.update(logdet_dim=4, p_logdet_dim=6, p_logdet_refresh_interval=5)
    method = HJEPA(typed(config), StateShape(24, None, None), 4)
    drawn = method.draw(jax.random.key(0), jnp.int32(0), num_rows=16, num_images=8, dtype="float32")
    assert {half: leaf.shape for half, leaf in drawn.items()} == {"q": (12, 4), "p": (12, 6)}
    for leaf in drawn.values():
        np.testing.assert_allclose(leaf.T @ leaf, np.eye(leaf.shape[1]), atol=1e-5)
    assert method.redraw() == {"q": config.loss.logdet_refresh_interval, "p": 5}
    config.loss.p_logdet_dim = 1000
    (warning,) = HJEPA(typed(config), StateShape(24, None, None), 4).warnings()
    assert warning.startswith("config.loss.p_logdet_dim is 1000 but a step has only")
    assert method.suspects()["logdet"].fields[:2] == ("loss.logdet_eps", "loss.p_logdet_eps")


def test_loss_gradient_matches_differences() -> None:
    options = dataclasses.replace(ACTIVE, detach_target=False, match="qp")
    with jax.enable_x64(True):
        drawn = jax.tree.map(lambda r: r.astype(jnp.float64), projections())
        assert_gradient(lambda z: hjepa_loss(z, flow, None, drawn, options, 2)[0], views(2))


def test_the_recomputed_flow_changes_neither_loss_nor_gradient() -> None:
    """In float64, with damping and the energy's drift, of the states and of the potential."""
    config = cifar100.get_config("hjepa-smoke")
    config.update_from_flattened_dict(
        {
            "dynamics.steps": 6,
            "dynamics.damping": 0.4,
            "loss.energy_weight": 0.3,
            "loss.match": "qp",
            "loss.detach_target": False,
        }
    )
    found = []
    with jax.enable_x64(True):
        z = jnp.asarray(views(2), jnp.float64)
        for config.dynamics.reversible in (False, True):
            method = HJEPA(typed(config), StateShape(2 * HALF), 4)
            params = jax.jit(method.init)(jax.random.key(0), z)
            params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
            drawn = jax.tree.map(lambda r: r.astype(jnp.float64), projections())

            def loss(params, z, method=method, drawn=drawn):
                return method.loss(params, None, z, drawn, jnp.asarray(7))[0]

            found.append(quick_jit(jax.value_and_grad(loss, (0, 1)))(params, z))
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(found[0][1][0])) > 1e-4
    for plain, recomputed in zip(*map(jax.tree.leaves, found), strict=True):
        assert plain.dtype == np.float64
        np.testing.assert_allclose(recomputed, plain, rtol=1e-11, atol=1e-13)


def test_p_variance_floor_can_be_dropped() -> None:
    z = jnp.asarray(views(2), jnp.float32)
    both = compiled_loss(z)[1]
    only_q = compiled_loss(z, floor_p_variance=False)[1]
    assert only_q["var_p"] == 0
    assert both["var_p"] > 0
    np.testing.assert_allclose(only_q["var"], both["var_q"])


def test_collapsed_states_have_finite_gradients() -> None:
    z = jnp.full((2, IMAGES, 2 * HALF), 0.5, jnp.float32)
    gradient = quick_jit(
        jax.grad(lambda z: hjepa_loss(z, flow, None, projections(), ACTIVE, 2)[0])
    )(z)
    assert np.all(np.isfinite(gradient))
    assert np.any(np.asarray(gradient) != 0)


def test_bfloat16_is_computed_in_float32() -> None:
    z = jnp.asarray(views(2), jnp.bfloat16)
    total, _ = compiled_loss(z)
    wide, _ = compiled_loss(z.astype(jnp.float32))
    assert total.dtype == jnp.float32
    assert total == wide
