"""HamSIGReg's transform: linearity, gauges, envelopes, layouts, schedules and gradients."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import assert_gradient, quick_jit
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_jax.objectives import hamsigreg_spectrum as learnable
from hjepa_jax.objectives import hamsigreg_updates as updates
from hjepa_jax.objectives.hamsigreg import (
    SpectralSettings,
    apply_spectral,
    chain_spectrum_1d,
    chain_spectrum_grid,
    diag_sqrt,
)
from hjepa_jax.objectives.hamsigreg_spectrum import LearnableSettings

H, W, TOKEN = 4, 6, 2
DIM = H * W * TOKEN
LEARNABLE = LearnableSettings(h=H, w=W, bins=5, init_loglambda_span=0.3, gauge="trace")
GRID: dict[str, Any] = {"h": H, "w": W, "token_dim": TOKEN}
KINDS = {
    "identity": SpectralSettings(),
    "diag": SpectralSettings("diag"),
    "chain": SpectralSettings("chain", eps=0.1),
    "chain_grid": SpectralSettings("chain_grid", eps=0.1, **GRID),
    "learnable": SpectralSettings("learnable", learnable=LEARNABLE, **GRID),
    "learnable_split": SpectralSettings("learnable", learnable=LEARNABLE, split_qp=True, **GRID),
}


def parameters(config: LearnableSettings = LEARNABLE, seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    initial = learnable.init_learnable(config)
    shape = random.standard_normal(config.bins - 1).astype(np.float32)
    return {"raw_span": np.asarray(initial["raw_span"] + 0.5), "raw_shape": shape}


# alpha and beta are traced.
transform = quick_jit(apply_spectral, static_argnums=0)
quick_spectrum = quick_jit(learnable.learnable_spectrum, static_argnums=1)


def matrix(config: SpectralSettings, alpha: float = 0.7, beta: float = 0.6) -> np.ndarray:
    """The matrix of H^{1/2} in float64, by its action on the unit vectors."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters())
        return np.asarray(transform(config, params, jnp.eye(DIM), alpha, beta)).T


@pytest.mark.parametrize("kind", KINDS)
def test_transform_is_linear_symmetric_and_positive(kind: str) -> None:
    root = matrix(KINDS[kind])
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    assert np.linalg.eigvalsh(root).min() > 0
    z = np.random.default_rng(0).standard_normal((2, 3, DIM))
    out = transform(KINDS[kind], parameters(), jnp.asarray(z, jnp.float32), 0.7, 0.6)
    assert out.shape == z.shape
    np.testing.assert_allclose(out, z @ root.T, atol=1e-5)


def test_chain_is_the_root_of_the_periodic_laplacian() -> None:
    root = matrix(KINDS["chain"], beta=1.0)
    laplacian = 2 * np.eye(DIM) - np.roll(np.eye(DIM), 1, 0) - np.roll(np.eye(DIM), -1, 0)
    wanted = 0.1 * np.eye(DIM) + laplacian
    square = root @ root
    np.testing.assert_allclose(square * (wanted[0, 0] / square[0, 0]), wanted, atol=1e-10)


def test_chain_grid_is_the_root_of_the_token_grids_laplacian() -> None:
    root = matrix(KINDS["chain_grid"], beta=1.0)

    def ring(n: int) -> np.ndarray:
        return 2 * np.eye(n) - np.roll(np.eye(n), 1, 0) - np.roll(np.eye(n), -1, 0)

    grid = np.kron(ring(H), np.eye(W)) + np.kron(np.eye(H), ring(W))
    wanted = np.kron(0.1 * np.eye(H * W) + grid, np.eye(TOKEN))
    square = root @ root
    np.testing.assert_allclose(square * (wanted[0, 0] / square[0, 0]), wanted, atol=1e-10)
    # Gauge 'trace': the mean eigenvalue of H is 1.
    assert np.trace(square) / DIM == pytest.approx(1)


@pytest.mark.parametrize("gauge", learnable.GAUGES)
@pytest.mark.parametrize("dim", [7, 8])
def test_gauges(gauge: str, dim: int) -> None:
    mean = {"trace": lambda x: x.mean(), "logdet": lambda x: np.exp(np.log(x).mean())}[gauge]
    assert mean(chain_spectrum_1d(dim, 0.8, 0.01, gauge)) == pytest.approx(1)
    assert mean(chain_spectrum_grid(dim, 5, 0.8, 0.01, gauge)) == pytest.approx(1)
    assert np.prod(diag_sqrt(dim)) == pytest.approx(1)
    config = dataclasses.replace(LEARNABLE, gauge=gauge, eps_ridge=0.05)
    spectrum = quick_spectrum(parameters(), config, 0.8, 0.5).spectrum
    assert mean(np.asarray(spectrum)) == pytest.approx(1, rel=1e-5)


def test_beta_zero_and_alpha_zero_are_the_identity() -> None:
    for kind in ("chain", "chain_grid", "learnable"):
        np.testing.assert_allclose(
            matrix(KINDS[kind], alpha=0.0, beta=0.0), np.eye(DIM), atol=1e-12
        )


def test_schedules_are_full_strength_by_default() -> None:
    z = jnp.asarray(np.random.default_rng(0).standard_normal((3, DIM)), jnp.float32)
    for kind in ("chain_grid", "learnable"):
        by_default = transform(KINDS[kind], parameters(), z)
        np.testing.assert_allclose(by_default, z @ matrix(KINDS[kind], 1.0, 1.0), atol=1e-5)


def test_split_state_is_two_grids() -> None:
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.standard_normal((3, H, W, TOKEN)), jnp.float32)
    plain = transform(KINDS["learnable"], parameters(), tokens.reshape(3, -1))
    plain = plain.reshape(3, H, W, TOKEN)
    half = TOKEN // 2

    def split(x: jax.Array) -> jax.Array:
        q, p = x[..., :half].reshape(3, -1), x[..., half:].reshape(3, -1)
        return jnp.concatenate([q, p], axis=-1)

    out = transform(KINDS["learnable_split"], parameters(), split(tokens))
    np.testing.assert_allclose(out, split(plain), atol=1e-5)
    # The published layout reads the same numbers as one grid, which is another transform.
    config = dataclasses.replace(KINDS["learnable_split"], reference_layout=True)
    published = transform(config, parameters(), split(tokens))
    as_one = transform(KINDS["learnable"], parameters(), split(tokens))
    np.testing.assert_allclose(published, as_one, atol=1e-6)
    assert np.abs(published - out).max() > 1e-3


def test_ambiguous_layout_only_on_request() -> None:
    config = LearnableSettings(h=3, w=3, bins=3, init_loglambda_span=0.4)
    ours = SpectralSettings("learnable", h=3, w=3, token_dim=3, learnable=config)
    z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 3, 3)), jnp.float32)
    params = parameters(config)
    right = transform(ours, params, z.reshape(2, -1)).reshape(z.shape)
    published = dataclasses.replace(ours, reference_layout=True)
    moved = jnp.moveaxis(z, -1, 1).reshape(2, -1)
    as_published = transform(published, params, moved).reshape(2, 3, 3, 3)
    np.testing.assert_allclose(jnp.moveaxis(as_published, 1, -1), right, atol=1e-6)
    assert (
        np.abs(transform(published, params, z.reshape(2, -1)) - right.reshape(2, -1)).max() > 1e-3
    )


quick_envelope = quick_jit(learnable.envelope, static_argnums=1)


@settings(max_examples=30, deadline=None)
@given(st.floats(-20, 20), st.lists(st.floats(-20, 20), min_size=4, max_size=4), st.booleans())
def test_envelope_is_monotone_and_bounded(span: float, shape: list[float], clip: bool) -> None:
    config = dataclasses.replace(LEARNABLE, delta_clip=0.2 if clip else 0.0)
    params = {"raw_span": jnp.float32(span), "raw_shape": jnp.asarray(shape, jnp.float32)}
    values = np.asarray(quick_envelope(params, config))
    assert values[0] == 0
    assert np.all(np.diff(values) >= -1e-7)
    assert values[-1] <= (0.2 if clip else config.span_max) + 1e-6


def test_initial_span_is_the_configured_one() -> None:
    values = learnable.envelope(learnable.init_learnable(LEARNABLE), LEARNABLE)
    np.testing.assert_allclose(values, np.linspace(0, 0.3, 5), atol=1e-6)
    single = dataclasses.replace(LEARNABLE, bins=1)
    np.testing.assert_array_equal(learnable.envelope(learnable.init_learnable(single), single), [0])


@pytest.mark.parametrize("binning", learnable.BINNINGS)
@pytest.mark.parametrize(("h", "w", "bins"), [(8, 8, 6), (6, 5, 4), (14, 14, 8), (3, 1, 1)])
def test_bins_are_radial_and_cover(h: int, w: int, bins: int, binning: str) -> None:
    index = learnable.bin_indices(h, w, bins, binning)
    rows, columns = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None]
    radius = np.hypot(rows, columns).ravel()
    order = np.argsort(radius, kind="stable")
    assert np.all(np.diff(index.ravel()[order]) >= -0)
    assert index.min() == 0
    assert index.max() == bins - 1
    for axis, size in ((0, h), (1, w)):
        mirrored = np.take(index, -np.arange(size) % size, axis=axis)
        np.testing.assert_array_equal(mirrored, index)


def test_regularizer_matches_numpy_and_its_condition_term_has_no_gradient() -> None:
    config = dataclasses.replace(
        LEARNABLE, center_delta=True, curvature_weight=0.3, loglambda_l2_weight=0.7
    )
    heavy = dataclasses.replace(config, cond_max=1.1, cond_weight=5.0)
    params = parameters()
    spectrum = quick_spectrum(params, config)
    values = np.asarray(spectrum.envelope, np.float64)
    delta = values[learnable.bin_indices(H, W, 5, "linear_radius")]
    delta = delta - delta.mean()
    expected = 0.3 * (np.diff(values, n=2) ** 2).sum() + 0.7 * (delta**2).mean()
    np.testing.assert_allclose(
        learnable.spectral_regularizer(spectrum, config), expected, rtol=1e-4
    )
    lam = np.asarray(spectrum.spectrum, np.float64)
    excess = 5.0 * (lam.max() / lam.min() - 1.1) ** 2
    both = learnable.spectral_regularizer(spectrum, heavy)
    np.testing.assert_allclose(both, expected + excess, rtol=1e-4)

    def loss(params: Any, config: LearnableSettings) -> jax.Array:
        spectrum = learnable.learnable_spectrum(params, config)
        return learnable.spectral_regularizer(spectrum, config)

    gradient = quick_jit(jax.grad(loss), static_argnums=1)
    light_grad, heavy_grad = (gradient(params, c) for c in (config, heavy))
    jax.tree.map(np.testing.assert_array_equal, light_grad, heavy_grad)


@pytest.mark.parametrize("kind", ["chain", "learnable_split"])
def test_gradients_match_differences(kind: str) -> None:
    random = np.random.default_rng(0)
    z, cot = random.standard_normal((2, 3, DIM))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters())

        def in_z(z: jax.Array) -> jax.Array:
            return jnp.sum(cot * apply_spectral(KINDS[kind], params, z, 0.7, 0.6))

        def in_shape(shape: jax.Array) -> jax.Array:
            changed = {"raw_span": shape[0], "raw_shape": shape[1:]}
            return jnp.sum(cot * apply_spectral(KINDS[kind], changed, jnp.asarray(z), 0.7, 0.6))

        assert_gradient(in_z, z)
        if kind != "chain":
            flat = np.concatenate([params["raw_span"][None], params["raw_shape"]])
            assert np.abs(assert_gradient(in_shape, flat)).min() > 0


def test_schedules() -> None:
    epochs = jnp.arange(1, 8)
    np.testing.assert_allclose(updates.beta_schedule(epochs, 2, 4), [0, 0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(updates.beta_schedule(epochs, 2, 0), [0, 0, 1, 1, 1, 1, 1])
    np.testing.assert_allclose(updates.alpha_schedule(epochs, 4), [0.25, 0.5, 0.75, 1, 1, 1, 1])
    np.testing.assert_allclose(updates.alpha_schedule(epochs, 0), 1)
    assert [s for s in range(9) if updates.is_update_step(s, 4)] == [3, 7]


@pytest.mark.usefixtures("unchecked")
def test_update_loss_is_adversarial_or_joint() -> None:
    arguments: dict[str, Any] = {"weight": 0.1, "spectral_weight": 2.0, "adversarial_multiplier": 3}
    regularizer, spectral = jnp.float32(5.0), jnp.float32(0.25)
    assert updates.update_loss(regularizer, spectral, mode="max", **arguments) == 0.5 - 1.5
    assert updates.update_loss(regularizer, spectral, mode="min", **arguments) == 0.5 + 0.5
    with pytest.raises(ValueError, match="'max' or 'min'"):
        updates.update_loss(regularizer, spectral, mode="both", **arguments)


def test_bfloat16_is_computed_in_float32() -> None:
    z = jnp.asarray(np.random.default_rng(0).standard_normal((3, DIM)), jnp.bfloat16)
    params = parameters()
    for config in KINDS.values():
        out = jax.eval_shape(lambda z, config=config: apply_spectral(config, params, z), z)
        assert out.dtype == jnp.float32


@pytest.mark.usefixtures("unchecked")
def test_errors_name_the_cause() -> None:
    with pytest.raises(ValueError, match="identity, diag, chain, chain_grid, learnable"):
        SpectralSettings("circle")
    with pytest.raises(ValueError, match="needs the token grid"):
        SpectralSettings("chain_grid")
    with pytest.raises(ValueError, match="even token_dim"):
        SpectralSettings("chain_grid", h=2, w=2, token_dim=3, split_qp=True)
    with pytest.raises(ValueError, match="needs LearnableSettings"):
        SpectralSettings("learnable", **GRID)
    with pytest.raises(ValueError, match="the tokens form 2 x 2"):
        SpectralSettings("learnable", h=2, w=2, token_dim=2, learnable=LEARNABLE)
    with pytest.raises(ValueError, match="needs its parameters"):
        apply_spectral(KINDS["learnable"], None, jnp.zeros((1, DIM)))
    with pytest.raises(ValueError, match="width 7 is not a 4 x 6 grid"):
        apply_spectral(KINDS["chain_grid"], None, jnp.zeros((1, 7)))
    with pytest.raises(ValueError, match="binning must be one of"):
        LearnableSettings(h=2, w=2, binning="log")
    with pytest.raises(ValueError, match="must be positive"):
        LearnableSettings(h=2, w=2, span_max=0.0)
