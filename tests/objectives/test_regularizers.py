"""The anti-collapse floors against NumPy, finite differences and their defining properties."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_jax.objectives import regularizers

VIEWS, IMAGES, DIM = 2, 12, 6


def sample(seed: int = 0, scale: float = 1.0, width: int = DIM) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((VIEWS, IMAGES, width))


def numpy_logdet(
    x: np.ndarray, projection: np.ndarray, eps: float, bounds: tuple[float, float, float]
) -> tuple[float, np.ndarray]:
    """The log-det floor by SVD-free textbook NumPy; bounds = (logdet, pr, eigmax)."""
    rank = projection.shape[1]
    covariance = np.cov(x.reshape(-1, x.shape[-1]) @ projection, rowvar=False).reshape(rank, rank)
    eigenvalues = np.linalg.eigvalsh(covariance + eps * np.eye(rank))
    logdet = np.log(eigenvalues).mean()
    participation = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
    share = eigenvalues[-1] / eigenvalues.sum()
    loss = max(0, bounds[0] - logdet) ** 2 + max(0, bounds[1] - participation / rank) ** 2
    loss += max(0, share - bounds[2]) ** 2
    statistics = [logdet, participation, participation / rank, share, eigenvalues.sum()]
    return loss, np.array(statistics)


def test_budget_matches_numpy_and_differences() -> None:
    with jax.enable_x64(True):
        z = sample(width=2 * DIM)
        loss = quick_jit(lambda z: regularizers.budget(z, 0.7, 1.4))(jnp.asarray(z))
        expected = ((z[..., :DIM] ** 2).mean() - 0.7) ** 2 + ((z[..., DIM:] ** 2).mean() - 1.4) ** 2
        np.testing.assert_allclose(loss, expected, rtol=1e-12)
        assert_gradient(lambda z: regularizers.budget(z, 0.7, 1.4), z)


def test_budget_of_variance_ignores_the_mean() -> None:
    with jax.enable_x64(True):
        z = sample(width=2 * DIM) * np.linspace(0.5, 2.0, 2 * DIM)
        rows = z.reshape(-1, 2 * DIM)
        found = (rows[:, :DIM].var(0).mean(), rows[:, DIM:].var(0).mean())
        expected = (found[0] - 0.7) ** 2 + (found[1] - 1.4) ** 2

        def loss(z: jax.Array) -> jax.Array:
            return regularizers.budget(z, 0.7, 1.4, of="variance")

        for shift in (0.0, 3.0):
            np.testing.assert_allclose(loss(jnp.asarray(z + shift)), expected, rtol=1e-12)
        assert_gradient(loss, z)


def test_variance_floor_matches_numpy_and_differences() -> None:
    with jax.enable_x64(True):
        x = sample() * np.linspace(0.1, 1.5, DIM) + 3.0
        std = np.sqrt(x.reshape(-1, DIM).var(0) + 1e-4)
        expected = (np.maximum(0, 0.9 - std) ** 2).mean()
        np.testing.assert_allclose(regularizers.variance_floor(jnp.asarray(x), 0.9, 1e-4), expected)
        assert 0 < (std < 0.9).sum() < DIM
        assert_gradient(lambda x: regularizers.variance_floor(x, 0.9, 1e-4), x)


def test_mean_penalty_matches_numpy_and_differences() -> None:
    with jax.enable_x64(True):
        z = sample() + np.arange(DIM)
        expected = (z.reshape(-1, DIM).mean(0) ** 2).mean()
        np.testing.assert_allclose(regularizers.mean_penalty(jnp.asarray(z)), expected)
        assert_gradient(regularizers.mean_penalty, z)


@pytest.mark.parametrize("bounds", [(1.0, 0.99, 0.1), (1.0, 0.0, 2.0), (-9.0, 0.99, 0.1)])
def test_logdet_floor_matches_numpy_and_differences(bounds: tuple[float, float, float]) -> None:
    with jax.enable_x64(True):
        x = sample() * np.linspace(0.3, 1.5, DIM) + 2.0
        projection = np.linalg.qr(np.random.default_rng(1).standard_normal((DIM, 4)))[0]

        def loss(x: jax.Array) -> tuple[jax.Array, regularizers.LogdetStatistics]:
            return regularizers.logdet_floor(
                x,
                jnp.asarray(projection),
                logdet_floor=bounds[0],
                eps=1e-3,
                pr_floor=bounds[1],
                eigmax_ceiling=bounds[2],
            )

        value, statistics = quick_jit(loss)(jnp.asarray(x))
        expected, expected_statistics = numpy_logdet(x, projection, 1e-3, bounds)
        np.testing.assert_allclose(value, expected, rtol=1e-10)
        np.testing.assert_allclose(np.array(statistics), expected_statistics, rtol=1e-10)
        assert expected > 0
        assert_gradient(lambda x: loss(x)[0], x)


def test_logdet_weights_and_absent_terms() -> None:
    x, projection = jnp.asarray(sample(), jnp.float32), jnp.eye(DIM)[:, :3]

    def loss(**terms: float) -> float:
        function = functools.partial(regularizers.logdet_floor, logdet_floor=9, eps=1e-4, **terms)
        return float(quick_jit(function)(x, projection)[0])

    bare, pr, eig = loss(), loss(pr_floor=2.0), loss(eigmax_ceiling=0.0)
    both = loss(pr_floor=2.0, eigmax_ceiling=0.0, pr_weight=3.0, eigmax_weight=5.0)
    np.testing.assert_allclose(both, bare + 3 * (pr - bare) + 5 * (eig - bare), rtol=1e-4)
    assert bare < pr
    assert bare < eig


@quick_jit
@jax.value_and_grad
def satisfied(x: jax.Array) -> jax.Array:
    """Floors far below any sample of the test."""
    penalty, _ = regularizers.logdet_floor(
        x, jnp.eye(DIM)[:, :3], logdet_floor=-8.0, eps=1e-4, pr_floor=0.05, eigmax_ceiling=0.999
    )
    return penalty + regularizers.variance_floor(x, 0.01, 1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.6, 3.0))
def test_satisfied_floors_have_exactly_zero_gradient(seed: int, scale: float) -> None:
    value, gradient = satisfied(jnp.asarray(sample(seed, scale), jnp.float32))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@quick_jit
@jax.value_and_grad
def all_active(x: jax.Array) -> jax.Array:
    """Floors that every sample of the test violates."""
    penalty, _ = regularizers.logdet_floor(
        x, jnp.eye(DIM), logdet_floor=2.0, eps=1e-4, pr_floor=2.0, eigmax_ceiling=0.0
    )
    return penalty + regularizers.variance_floor(x, 9.0, 1e-4) + regularizers.mean_penalty(x)


def repeated_eigenvalues() -> np.ndarray:
    """Rows +-e_i: every eigenvalue of the covariance is the same."""
    return np.concatenate([np.eye(DIM), -np.eye(DIM)])


@pytest.mark.parametrize(
    "x",
    [
        repeated_eigenvalues(),
        np.full((8, DIM), 3.0),
        np.zeros((8, DIM)),
        np.outer(np.arange(8.0), np.ones(DIM)),
        np.repeat(np.random.default_rng(0).standard_normal((2, DIM)), 4, axis=0) * 30,
    ],
    ids=["repeated", "constant", "zero", "rank_one", "two_points_large"],
)
def test_gradients_are_finite_for_degenerate_inputs(x: np.ndarray) -> None:
    value, gradient = all_active(jnp.asarray(x, jnp.float32))
    assert np.isfinite(value)
    assert value > 0
    assert np.all(np.isfinite(gradient))


def test_largest_eigenvalue_gradient_is_that_of_eigh_where_it_is_simple() -> None:
    with jax.enable_x64(True):
        root = np.random.default_rng(3).standard_normal((5, 5))
        matrix = jnp.asarray(root @ root.T + 0.1 * np.eye(5))
        ours = jax.grad(lambda c: regularizers.logdet_statistics(c).eigmax_frac)
        share = quick_jit(ours)(matrix)
        direct = quick_jit(jax.grad(lambda c: jnp.linalg.eigvalsh(c)[-1] / jnp.trace(c)))(matrix)
        np.testing.assert_allclose(share, direct, atol=1e-9)


def test_descent_on_the_log_det_floor_recovers_a_collapsed_direction() -> None:
    x = jnp.asarray(sample(), jnp.float32).at[..., 0].multiply(1e-3)

    def loss(x: jax.Array) -> jax.Array:
        return regularizers.logdet_floor(x, jnp.eye(DIM), logdet_floor=-0.5, eps=1e-4)[0]

    step = quick_jit(lambda x: x - 0.5 * jax.grad(loss)(x))
    before = float(jnp.std(x[..., 0]))
    for _ in range(60):
        x = step(x)
    assert float(jnp.std(x[..., 0])) > 20 * before
    assert quick_jit(loss)(x) < 0.05


@quick_jit
def all_losses(x: jax.Array) -> list[jax.Array]:
    return [
        regularizers.budget(x, 1.0, 2.0),
        regularizers.variance_floor(x, 2.0, 1e-4),
        regularizers.mean_penalty(x),
        regularizers.logdet_floor(x, jnp.eye(DIM), logdet_floor=1.0, eps=1e-4)[0],
    ]


def test_leading_axes_are_pooled() -> None:
    x = jnp.asarray(sample(), jnp.float32)
    flat = x.reshape(-1, DIM)
    np.testing.assert_allclose(all_losses(x), all_losses(flat), rtol=1e-5)


def test_bfloat16_is_computed_in_float32() -> None:
    x = jnp.asarray(sample(), jnp.bfloat16)
    wide = x.astype(jnp.float32)
    losses = all_losses(x)
    assert {loss.dtype for loss in losses} == {jnp.dtype("float32")}
    np.testing.assert_allclose(losses, all_losses(wide), rtol=1e-6)


def test_projection_is_orthonormal_and_haar() -> None:
    draw = jax.jit(jax.vmap(lambda key: regularizers.orthonormal_projection(key, 4, 2)))
    draws = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    gram = np.einsum("ndi,ndj->nij", draws, draws)
    np.testing.assert_allclose(gram, np.broadcast_to(np.eye(2), gram.shape), atol=1e-5)
    # A Haar column is uniform on the sphere: mean 0, covariance I/4; unsigned QR has mean != 0.
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.03)
    np.testing.assert_allclose((draws**2).mean(0), 0.25, atol=0.02)
    np.testing.assert_allclose((draws[:, 0, 0] * draws[:, 1, 1]).mean(), 0, atol=0.03)


@pytest.mark.parametrize(("dim", "rank"), [(256, 128), (700, 90), (300, 200), (255, 20)])
def test_large_projections_are_the_signed_q_factor(dim: int, rank: int) -> None:
    """By Cholesky (the first two) or by QR, the same draw has the same Q factor."""
    key = jax.random.key(3)
    drawn = regularizers.orthonormal_projection(key, dim, rank)
    q, r = np.linalg.qr(np.asarray(jax.random.normal(key, (dim, rank)), np.float64))
    np.testing.assert_allclose(drawn, q * np.sign(np.diagonal(r)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(drawn.T @ drawn, np.eye(rank), rtol=0, atol=2e-6)
    traced = str(jax.make_jaxpr(lambda: regularizers.orthonormal_projection(key, dim, rank))())
    assert ("cholesky" in traced) == (dim in (256, 700))


def test_projection_rank() -> None:
    assert regularizers.projection_rank(128, 1024, 1024) == 128
    assert regularizers.projection_rank(128, 64, 1024) == 64
    assert regularizers.projection_rank(128, 1024, 16) == 15


@pytest.mark.usefixtures("unchecked")
def test_errors_name_the_cause() -> None:
    with pytest.raises(ValueError, match="at least 2 samples"):
        regularizers.projection_rank(8, 8, 1)
    with pytest.raises(ValueError, match="rank must lie"):
        regularizers.orthonormal_projection(jax.random.key(0), 4, 5)
    with pytest.raises(ValueError, match="first axis must be x's last"):
        regularizers.projected_covariance(jnp.zeros((8, 4)), jnp.zeros((5, 2)), 1e-4)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        regularizers.projected_covariance(jnp.zeros((1, 4)), jnp.eye(4), 1e-4)


def test_state_statistics_match_numpy_and_carry_no_gradient() -> None:
    found = quick_jit(regularizers.state_statistics)(jnp.asarray(sample(), jnp.bfloat16))
    flat = np.asarray(jnp.asarray(sample(), jnp.bfloat16), np.float64).reshape(-1, DIM)
    wanted = {
        "z2": (flat**2).mean(),
        "z_mean2": (flat.mean(0) ** 2).mean(),
        "z_std_min": flat.std(0).min(),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == jnp.float32
        np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
    gradient = quick_jit(jax.grad(lambda z: regularizers.state_statistics(z)["z_std_min"]))
    np.testing.assert_array_equal(gradient(jnp.asarray(sample(), jnp.float32)), 0)
