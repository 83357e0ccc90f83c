"""LeJEPA: its loss is prediction and SIGReg by their weights, of the rows that it drew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit

from hjepa_jax.config import resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.errors import ConfigError
from hjepa_jax.methods.lejepa import LeJEPA
from hjepa_jax.methods.regularizers.sigreg import SIGRegSection
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.lejepa import lejepa_prediction
from hjepa_jax.objectives.sigreg import random_slices, sigreg
from hjepa_jax.recipes import cifar100, lejepa

DIM = 6


def method(**fields: Any) -> LeJEPA:
    """Returns the method with fields of config.sigreg."""
    config = cifar100.get_config("sigreg-smoke")
    config.sigreg.update({"num_slices": 4, "n_points": 5, **fields})
    return LeJEPA(typed(config), StateShape(DIM), 4)


def views(count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 10, DIM))


def loss(
    z: jax.Array, transform: Callable[[jax.Array], jax.Array] | None = None, **fields: Any
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Returns the method's loss of states with slices that are always the same."""
    drawn = {"slices": random_slices(jax.random.key(0), DIM, 4)}
    return method(**fields).regularized(z, drawn, jnp.int32(0), transform)


quick_loss = quick_jit(loss, static_argnames=("transform", "weight", "loss_form"))


@quick_jit
def plain_sigreg(z: jax.Array) -> jax.Array:
    slices = random_slices(jax.random.key(0), DIM, 4)
    return sigreg(z, slices, t_max=3.0, n_points=5, weight_type="gaussian")


predict = quick_jit(lejepa_prediction, static_argnums=1)


@pytest.mark.parametrize("loss_form", ["additive", "convex"])
def test_loss_is_the_weighted_sum(loss_form: str) -> None:
    z = jnp.asarray(views(), jnp.float32)
    total, metrics = quick_loss(z, weight=0.3, loss_form=loss_form)
    prediction, regularizer = predict(z, 2), plain_sigreg(z)
    expected = (1.0 if loss_form == "additive" else 0.7) * prediction + 0.3 * regularizer
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["total"], total)
    np.testing.assert_allclose(metrics["pred"], prediction)
    np.testing.assert_allclose(metrics["sigreg"], regularizer, rtol=1e-6)
    flat = views().reshape(-1, DIM)
    np.testing.assert_allclose(metrics["z2"], (flat**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["z_mean2"], (flat.mean(0) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["z_std_min"], flat.std(0).min(), rtol=1e-5)


def statistic(z: np.ndarray, slices: np.ndarray, knots: int) -> float:
    """The mean over views and slices of the integral over [-3, 3], without the factor N."""
    t = np.linspace(-3, 3, knots)
    weight = np.exp(-(t**2) / 2)
    phase = (z @ slices)[..., None] * t
    gap = np.abs(np.exp(1j * phase).mean(axis=1) - weight) ** 2 * weight
    return float(np.trapezoid(gap, t, axis=-1).mean())


@pytest.mark.parametrize("variant", ["cifar10", "cifar100", "imagenette"])
def test_the_recipe_s_loss_is_that_of_its_description(variant: str) -> None:
    settings = typed(lejepa.get_config(variant))
    dim, views, images = settings.model.projector_widths[-1], settings.data.num_global_views, 256
    assert settings.data.batch_size == images
    found = LeJEPA(settings, StateShape(dim), 4)
    z = np.random.default_rng(3).normal(0.2, 1.3, size=(views, images, dim))
    slices = np.asarray(random_slices(jax.random.key(1), dim, 256), np.float64)
    assert settings.section(SIGRegSection).num_slices == 256
    total, _ = found.regularized(
        jnp.asarray(z, jnp.float32), {"slices": jnp.asarray(slices, jnp.float32)}, jnp.int32(0)
    )
    if variant == "imagenette":
        apart = np.mean((z.mean(0) - z) ** 2)
        expected = 0.98 * apart + 0.02 * images * statistic(z, slices, 33)
    else:
        expected = np.mean((z[0] - z[1]) ** 2) + 10 * statistic(z, slices, 17)
    assert float(total) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_the_prediction_has_a_weight_of_its_own(weight: float) -> None:
    z = jnp.asarray(views(), jnp.float32)
    total, _ = loss(z, weight=weight, prediction_weight=8.0)
    expected = 8 * float(predict(z, 2)) + (weight * float(plain_sigreg(z)) if weight else 0)
    assert float(total) == pytest.approx(expected, rel=1e-6)
    assert method(weight=weight, prediction_weight=8.0).weights()["pred"] == 8.0
    with pytest.raises(ConfigError, match=r"prediction_weight is set to 8\.0 but has no effect"):
        resolve(changed(loss_form="convex", prediction_weight=8.0))


def changed(**fields: Any):
    config = cifar100.get_config("sigreg-smoke")
    config.sigreg.update(fields)
    return config


def test_transform_reaches_sigreg_only() -> None:
    z = jnp.asarray(views(), jnp.float32)
    _, metrics = quick_loss(z, transform=lambda z: 2 * z)
    np.testing.assert_allclose(metrics["sigreg"], plain_sigreg(2 * z), rtol=1e-6)
    np.testing.assert_allclose(metrics["pred"], predict(z, 2), rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"t_max": 2.0},
        {"n_points": 9},
        {"weight_type": "uniform"},
        {"statistics": "flattened"},
        {"reduction": "sum"},
        {"clip_value": 0.5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_field_of_sigreg_reaches_it(change: dict[str, Any]) -> None:
    z, slices = jnp.asarray(views(), jnp.float32), random_slices(jax.random.key(0), DIM, 4)
    options: dict[str, Any] = {"t_max": 3.0, "n_points": 5, "weight_type": "gaussian", **change}
    found = method(**change).regularizer.statistic(z, slices, {})
    np.testing.assert_allclose(found, sigreg(z, slices, **options), rtol=1e-5)
    assert abs(found - plain_sigreg(z)) > 1e-3


def test_the_two_sided_statistic_is_the_trapezoid_rule_on_the_rows_that_were_drawn() -> None:
    z, t = views(), np.linspace(-2.0, 3.0, 8)
    with jax.enable_x64(True):
        slices = random_slices(jax.random.key(0), DIM, 4, jnp.float64)
        angle = (z[:, [7, 2, 5]] @ np.asarray(slices))[..., None] * t
        gaussian = np.exp(-(t**2) / 2)
        error = (np.cos(angle).mean(1) - gaussian) ** 2 + np.sin(angle).mean(1) ** 2
        expected = 3 * np.trapezoid(error * gaussian, t, axis=-1).mean()
        both = method(t_min=-2.0, num_t=8, subsample=3)
        drawn = {"slices": slices, "subsample": jnp.asarray([7, 2, 5])}
        found = both.regularizer.statistic(jnp.asarray(z), slices, drawn)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert_gradient(lambda z: both.regularizer.statistic(z, slices, drawn), z)


def test_the_two_sided_statistic_takes_the_kernel_of_the_other() -> None:
    z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 300, DIM)), jnp.float32)
    slices = random_slices(jax.random.key(0), DIM, 16)
    fast = method(t_min=-3.0, num_t=9).regularizer.statistic(z, slices, {})
    options: dict[str, Any] = {"t_min": -3.0, "t_max": 3.0, "n_points": 9}
    np.testing.assert_allclose(
        fast, sigreg(z, slices, weight_type="gaussian", **options), rtol=1e-5
    )
    # The integrand is even, and the one-sided rule doubles what lies above 0.
    one_sided = method(n_points=5).regularizer.statistic(z, slices, {})
    np.testing.assert_allclose(fast, one_sided, rtol=1e-5)


def test_a_weight_of_0_computes_no_sigreg() -> None:
    z = jnp.asarray(views(), jnp.float32)
    drawn = {"slices": random_slices(jax.random.key(0), DIM, 4)}
    for form in ("additive", "convex"):
        none, some = (method(weight=weight, loss_form=form) for weight in (0.0, 1e-9))
        total, metrics = none.regularized(z, drawn, jnp.int32(0))
        assert total == metrics["total"] == metrics["pred"] == predict(z, 2)
        assert "sigreg" not in metrics
        assert (none.targets(), some.targets()) == ({}, {"z": 1.0})
        texts = [
            str(jax.make_jaxpr(lambda z, m=m: m.regularized(z, drawn, jnp.int32(0)))(z))
            for m in (none, some)
        ]
        assert ["characteristic" in text for text in texts] == [False, True]


@pytest.mark.parametrize("epochwise", [False, True])
def test_the_weight_warms_up_by_step_or_by_epoch(epochwise: bool) -> None:
    # 4 steps an epoch, 2.5 epochs.
    warm = method(weight=0.4, weight_warmup_epochs=2.5, epochwise_weight_warmup=epochwise)
    found = [float(warm.regularizer.weight(jnp.int32(step))) for step in range(14)]
    steps = np.arange(14)
    progress = (steps // 4 + 1) / 2.5 if epochwise else (steps + 1) / 10
    np.testing.assert_allclose(found, 0.4 * np.minimum(1, progress), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"t_min": 3.0, "t_max": 3.0}, "sigreg.t_min is 3.0, but it must be below"),
        ({"t_min": -3.0, "n_points": 7}, "sigreg.n_points is set to 7 but has no effect"),
        ({"t_min": -3.0, "weight_type": "uniform"}, "weight_type is set to 'uniform' but has no"),
        (
            {"num_t": 7},
            "sigreg.num_t is set to 7 but has no effect here: .* set config.sigreg.t_min",
        ),
        ({"epochwise_weight_warmup": True}, "has no effect here: .*weight_warmup_epochs above 0"),
    ],
)
def test_fields_of_the_other_statistic_are_refused(fields: dict[str, Any], words: str) -> None:
    config = cifar100.get_config("sigreg-smoke")
    config.sigreg.update(fields)
    with pytest.raises(ConfigError, match=words):
        resolve(config)


def test_sigreg_is_of_the_rows_that_were_drawn() -> None:
    z, slices = jnp.asarray(views(), jnp.float32), random_slices(jax.random.key(0), DIM, 4)
    rows = jnp.asarray([7, 2, 5])
    found = method(subsample=3).regularizer.statistic(z, slices, {"subsample": rows})
    np.testing.assert_allclose(found, plain_sigreg(z[:, rows]), rtol=1e-5)


def test_gradient_matches_differences() -> None:
    with jax.enable_x64(True):
        drawn = {"slices": random_slices(jax.random.key(1), DIM, 4, jnp.float64)}
        half = method(weight=0.5)
        assert_gradient(lambda z: half.regularized(z, drawn, jnp.int32(0))[0], views(3))


def test_metrics_carry_no_gradient_and_bfloat16_becomes_float32() -> None:
    z = jnp.asarray(views(), jnp.bfloat16)
    total, metrics = quick_loss(z)
    assert {total.dtype, *(value.dtype for value in metrics.values())} == {jnp.dtype("float32")}
    gradient = quick_jit(jax.grad(lambda z: loss(z)[1]["z_std_min"]))(z)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("fields", "rows"),
    [
        ({}, None),
        ({"subsample": 6}, 20),
        ({"subsample": 6, "statistics": "flattened"}, 40),
    ],
    ids=["all", "images", "rows"],
)
def test_a_subsample_is_drawn_of_the_rows_of_a_statistic(
    fields: dict[str, Any], rows: int | None
) -> None:
    def draw(step: int) -> dict[str, jax.Array]:
        options: dict[str, Any] = {"num_rows": 40, "num_images": 20, "dtype": jnp.float32}
        return method(**fields).draw(jax.random.key(0), jnp.int32(step), **options)

    if rows is None:
        assert draw(0).keys() == {"slices"}
        return
    drawn = np.stack([draw(step)["subsample"] for step in range(8)])
    assert drawn.shape == (8, 6)
    assert all(len(np.unique(row)) == 6 for row in drawn)
    assert rows / 2 < drawn.max() < rows
