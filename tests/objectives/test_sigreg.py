"""SIGReg against the direct form: values, gradients, memory, invariance, devices."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit
from jax.extend.core import ClosedJaxpr, Jaxpr

from hjepa_jax.objectives import characteristic_function as module
from hjepa_jax.objectives.sigreg import (
    epps_pulley,
    epps_pulley_two_sided,
    expected_epps_pulley,
    random_slices,
    random_subsample,
    sigreg,
)

QUADRATURE: dict[str, Any] = {"t_max": 3.0, "n_points": 9, "weight_type": "gaussian"}
STATIC = (*QUADRATURE, "statistics", "reduction", "clip_value")
quick_sigreg = quick_jit(sigreg, static_argnames=STATIC)
quick_slices = quick_jit(random_slices, static_argnums=(1, 2))
quick_epps_pulley = quick_jit(epps_pulley, static_argnames=("t_max", "n_points", "weight_type"))
ROOT = pathlib.Path(__file__).resolve().parents[2]


def numpy_epps_pulley(
    y: np.ndarray, t_max: float, n_points: int, weight_type: str = "gaussian"
) -> np.ndarray:
    """The direct form in float64, [..., N, K] -> [..., K]."""
    y = np.asarray(y, np.float64)
    t = np.linspace(0, t_max, n_points)
    weights = np.full(n_points, 2 * t[1])
    weights[[0, -1]] = t[1]
    if weight_type == "gaussian":
        weights = weights * np.exp(-(t**2) / 2)
    angle = y[..., None] * t
    error = (np.cos(angle).mean(-3) - np.exp(-(t**2) / 2)) ** 2 + np.sin(angle).mean(-3) ** 2
    return y.shape[-2] * (error * weights).sum(-1)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("weight_type", ["gaussian", "uniform"])
def test_the_expectation_is_the_mean_over_gaussian_samples(weight_type: Any) -> None:
    quadrature: dict[str, Any] = {"t_max": 3.0, "n_points": 9, "weight_type": weight_type}
    y = normal(400, 4000)
    for centered in (False, True):
        found = numpy_epps_pulley(y - y.mean(0) * centered, *quadrature.values())
        error = found.std() / np.sqrt(len(found))
        expected = expected_epps_pulley(**quadrature, centered=centered)
        assert abs(found.mean() - expected) < 4 * error
        assert error < 0.02 * expected
    with pytest.raises(ValueError, match="n_points must be odd"):
        expected_epps_pulley(t_max=3.0, n_points=8, weight_type="gaussian")


@pytest.mark.parametrize("weight_type", ["gaussian", "uniform"])
@pytest.mark.parametrize("n_points", [3, 17])
def test_statistic_matches_the_direct_form_and_differences(n_points: int, weight_type: str) -> None:
    y = normal(2, 20, 3) * 1.3 + 0.2
    options: dict[str, Any] = {"t_max": 4.0, "n_points": n_points, "weight_type": weight_type}
    with jax.enable_x64(True):
        expected = numpy_epps_pulley(y, **options)
        value = quick_epps_pulley(jnp.asarray(y), **options)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        weights = jnp.asarray(normal(2, 3, seed=1))
        assert_gradient(lambda y: jnp.sum(weights * epps_pulley(y, **options)), y)


def test_two_sided_statistic_matches_the_trapezoid_rule_and_differences() -> None:
    y, t = normal(16, 3), np.linspace(-3.0, 2.0, 11)
    angle = y[..., None] * t
    error = (np.cos(angle).mean(0) - np.exp(-(t**2) / 2)) ** 2 + np.sin(angle).mean(0) ** 2
    expected = 16 * np.trapezoid(error * np.exp(-(t**2) / 2), t, axis=-1)
    function = functools.partial(epps_pulley_two_sided, t_min=-3.0, t_max=2.0, num_t=11)
    with jax.enable_x64(True):
        np.testing.assert_allclose(quick_jit(function)(jnp.asarray(y)), expected, rtol=1e-12)
        assert_gradient(lambda y: jnp.sum(function(y)), y)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_float32_rotation_is_as_accurate_as_direct_evaluation(scale: float) -> None:
    y = (normal(256, 8) * scale).astype(np.float32)
    count, step = 16, 3.0 / 16
    t = step * np.arange(1, count + 1)
    means = quick_jit(lambda y: module.characteristic_function(y, step, step, count))(y)
    angle = y.astype(np.float64)[None] * t[:, None, None]
    # The argument t y is itself rounded to float32 by any form.
    tolerance = 1e-6 * max(1.0, scale)
    np.testing.assert_allclose(means[0], np.cos(angle).mean(1), atol=tolerance)
    np.testing.assert_allclose(means[1], np.sin(angle).mean(1), atol=tolerance)
    direct = np.abs(
        np.cos(t.astype(np.float32)[:, None, None] * y).mean(1) - np.cos(angle).mean(1)
    ).max()
    rotated = np.abs(np.asarray(means[0]) - np.cos(angle).mean(1)).max()
    assert rotated < max(1e-6, 4 * direct)


@pytest.mark.parametrize("slices", [8, 19, 64, 131])
def test_blocked_and_unrolled_means_agree(slices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 24 * 10)
    y = jnp.asarray(normal(2, 12, slices), jnp.float32)
    arguments = (0.3, 0.2, 6)
    blocked = quick_jit(lambda y: module._means_blocked(y, *arguments))(y)
    unrolled = quick_jit(lambda y: module._means_unrolled(y, *arguments))(y)
    for one, other in zip(blocked, unrolled):
        assert one.shape == (6, 2, slices)
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("statistics", ["per_view", "flattened"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sigreg_matches_numpy(statistics: str, reduction: str) -> None:
    z, slices = normal(3, 14, 5) * 1.2, normal(5, 7, seed=1)
    options = {**QUADRATURE, "statistics": statistics, "reduction": reduction}
    rows = z if statistics == "per_view" else z.reshape(-1, 5)
    expected = getattr(np, reduction)(numpy_epps_pulley(rows @ slices, 3.0, 9))
    with jax.enable_x64(True):
        value = quick_sigreg(jnp.asarray(z), jnp.asarray(slices), **options)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        assert_gradient(lambda z: sigreg(z, jnp.asarray(slices), **options), z)


def test_clipped_statistics_count_zero_and_have_no_gradient() -> None:
    z, slices = normal(24, 6), np.eye(6)
    values = numpy_epps_pulley(z, 3.0, 9)
    clip = float(np.median(values))
    options = {**QUADRATURE, "clip_value": clip, "reduction": "none"}
    with jax.enable_x64(True):
        kept = quick_sigreg(jnp.asarray(z), jnp.asarray(slices), **options)
        np.testing.assert_allclose(kept, np.where(values < clip, 0, values))
        total = quick_jit(jax.grad(lambda z: sigreg(z, jnp.asarray(slices), **options).sum()))
        gradient = total(jnp.asarray(z))
        moved = np.any(np.asarray(gradient) != 0, axis=0)
        np.testing.assert_array_equal(moved, values >= clip)


def test_subsample_uses_the_same_rows_of_every_view() -> None:
    z, slices = normal(2, 20, 4), normal(4, 5, seed=1)
    index = random_subsample(jax.random.key(0), 20, 6)
    assert len(np.unique(index)) == 6
    value = quick_sigreg(
        jnp.asarray(z),
        jnp.asarray(slices),
        **QUADRATURE,
        reduction="none",
        subsample_index=index,
    )
    expected = numpy_epps_pulley(z[:, np.asarray(index)] @ slices, 3.0, 9)
    np.testing.assert_allclose(value, expected, rtol=1e-4)


def test_slices_are_uniform_unit_columns() -> None:
    slices = np.asarray(quick_slices(jax.random.key(0), 3, 20000), np.float64)
    np.testing.assert_allclose(np.linalg.norm(slices, axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(slices @ slices.T / 20000, np.eye(3) / 3, atol=0.01)
    # On the sphere in three dimensions every coordinate is uniform in [-1, 1] (Archimedes).
    quantiles = np.quantile(slices[0], [0.1, 0.5, 0.9])
    np.testing.assert_allclose(quantiles, [-0.8, 0.0, 0.8], atol=0.03)


def test_expected_value_for_exact_gaussian_samples() -> None:
    # E = sum_j w_j (1 - exp(-t_j^2)): N times the variance of the empirical function.
    t = np.linspace(0, 3.0, 17)
    weights = np.full(17, 2 * t[1]) * np.exp(-(t**2) / 2)
    weights[[0, -1]] /= 2
    expected = (weights * (1 - np.exp(-(t**2)))).sum()
    options = {**QUADRATURE, "n_points": 17}
    z = jnp.asarray(normal(64, 2000), jnp.float32)
    value = jax.jit(sigreg, static_argnames=STATIC)(z, jnp.eye(2000), **options)
    assert value == pytest.approx(expected, rel=0.05)


def test_gaussian_is_preferred_and_descent_reaches_it() -> None:
    slices = quick_slices(jax.random.key(0), 8, 16)
    good = jnp.asarray(normal(128, 8), jnp.float32)
    loss = jax.jit(functools.partial(sigreg, slices=slices, **QUADRATURE))
    assert loss(good) < loss(0.5 * good)
    assert loss(good) < loss(2.0 * good)
    assert loss(good) < loss(good + 0.5)

    @jax.jit
    def step(z: jax.Array) -> jax.Array:
        return z - 0.5 * jax.grad(loss)(z)

    z = 0.3 * good + 0.5
    for _ in range(200):
        z = step(z)
    assert loss(z) < loss(good)


def test_invariance_under_rotation_in_expectation() -> None:
    random = np.random.default_rng(0)
    z = random.exponential(size=(64, 6)) * np.linspace(0.3, 2, 6)
    rotation = np.linalg.qr(random.standard_normal((6, 6)))[0]
    every = functools.partial(quick_sigreg, **QUADRATURE, reduction="none")
    samples = [
        np.asarray(every(jnp.asarray(x, jnp.float32), quick_slices(key, 6, 4000)))
        for x, key in zip((z, z @ rotation), jax.random.split(jax.random.key(0)))
    ]
    means = [sample.mean() for sample in samples]
    errors = [sample.std() / np.sqrt(sample.size) for sample in samples]
    assert abs(means[0] - means[1]) < 4 * np.hypot(*errors)
    assert max(errors) < 0.05 * means[0]
    # With the directions rotated along it holds exactly.
    slices = np.asarray(quick_slices(jax.random.key(2), 6, 50))
    exact = [
        float(quick_sigreg(jnp.asarray(x, jnp.float32), jnp.asarray(s, jnp.float32), **QUADRATURE))
        for x, s in ((z, slices), (z @ rotation, rotation.T @ slices))
    ]
    assert exact[0] == pytest.approx(exact[1], rel=1e-4)


def test_bfloat16_is_computed_in_float32() -> None:
    z = jnp.asarray(normal(2, 16, 4), jnp.bfloat16)
    slices = quick_slices(jax.random.key(0), 4, 5)
    both = quick_jit(jax.value_and_grad(functools.partial(sigreg, **QUADRATURE)))
    value, gradient = both(z, slices)
    assert value.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    wide = quick_sigreg(z.astype(jnp.float32), slices, **QUADRATURE)
    np.testing.assert_allclose(value, wide, rtol=1e-6)


def array_sizes(jaxpr: Jaxpr) -> list[int]:
    """Sizes of all intermediate arrays, those of nested jaxprs included."""
    sizes = []
    for equation in jaxpr.eqns:
        sizes += [int(np.prod(getattr(var.aval, "shape", ()))) for var in equation.outvars]
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, Jaxpr)):
            if isinstance(value, ClosedJaxpr):
                value = value.jaxpr
            if isinstance(value, Jaxpr):
                sizes += array_sizes(value)
    return sizes


def test_no_array_has_a_frequency_axis_over_samples() -> None:
    rows, dim, slices, points = 512, 32, 256, 17
    options = {**QUADRATURE, "n_points": points}
    z, directions = jnp.zeros((rows, dim)), jnp.zeros((dim, slices))
    function = jax.value_and_grad(functools.partial(sigreg, **options))
    sizes = array_sizes(jax.make_jaxpr(function)(z, directions).jaxpr)
    assert max(sizes) == rows * slices
    compiled = jax.jit(function).lower(z, directions).compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes <= 1.3 * 4 * rows * slices


DEVICES_PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
jax.config.update("jax_num_cpu_devices", 4)
from hjepa_jax.objectives.sigreg import random_slices, sigreg
z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 64, 12)), jnp.float32)
slices = random_slices(jax.random.key(0), 12, 32)
for statistics in ("per_view", "flattened"):
    options = {"t_max": 3.0, "n_points": 9, "weight_type": "gaussian", "statistics": statistics}
    function = jax.jit(jax.value_and_grad(lambda z: sigreg(z, slices, **options)))
    results = []
    for count in (1, 4):
        mesh = jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=jax.devices()[:count])
        sharding = NamedSharding(mesh, PartitionSpec(None, "data"))
        placed = jax.device_put(z, sharding)
        results.append(jax.tree.map(np.asarray, function(placed)))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-4, atol=1e-7)
    assert np.abs(results[0][1]).max() > 1e-4
print("equal")
"""


def test_loss_and_gradient_are_equal_on_one_and_four_devices() -> None:
    result = subprocess.run(
        [sys.executable, "-c", DEVICES_PROGRAM],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "equal"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_points": 4}, "odd and at least 3"),
        ({"n_points": 1}, "odd and at least 3"),
        ({"t_max": 0.0}, "must be positive"),
        ({"weight_type": "flat"}, "gaussian, uniform"),
        ({"weight_type": "uniform", "t_min": -1.0}, "weighted as 'gaussian', not 'uniform'"),
        ({"reduction": "max"}, "mean, sum, none"),
        ({"statistics": "all"}, "per_view, flattened"),
    ],
)
def test_invalid_options(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sigreg(jnp.zeros((4, 5)), jnp.zeros((5, 2)), **{**QUADRATURE, **change})


@pytest.mark.usefixtures("unchecked")
def test_no_slices_and_no_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_slices must be at least 1"):
        random_slices(jax.random.key(0), 4, 0)
    for subsample in (0, 21):
        with pytest.raises(ValueError, match=r"must lie in 1..20 .*, got"):
            random_subsample(jax.random.key(0), 20, subsample)


@pytest.mark.usefixtures("unchecked")
def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"slices \[D, K\], got \(4, 5\) and \(6, 2\)"):
        sigreg(jnp.zeros((4, 5)), jnp.zeros((6, 2)), **QUADRATURE)
    with pytest.raises(ValueError, match=r"\[..., N, K\]"):
        epps_pulley(jnp.zeros(4), t_max=3.0, n_points=5, weight_type="gaussian")
    with pytest.raises(ValueError, match="t_min < t_max"):
        epps_pulley_two_sided(jnp.zeros((4, 2)), t_min=1.0, t_max=1.0, num_t=5)
