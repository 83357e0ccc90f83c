"""HamSIGReg's transform: linearity, gauges, envelopes, layouts, schedules and gradients."""

from __future__ import annotations

import functools
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
    apply_chain,
    apply_diag,
    apply_grid,
    apply_tokens,
    blend_identity,
    chain_spectrum_1d,
    chain_spectrum_grid,
    diag_sqrt,
)

H, W, TOKEN, BINS = 4, 6, 2, 5
DIM = H * W * TOKEN
KINDS = ("diag", "chain", "chain_grid", "learnable", "learnable_split")
INITIAL: dict[str, Any] = {"bins": BINS, "span_max": 0.5, "init_loglambda_span": 0.3}
GRID: dict[str, Any] = {
    "bins": BINS,
    "binning": "linear_radius",
    "base": "laplacian",
    "base_ridge": 1.0,
    "base_strength": 4.0,
}
SPECTRUM: dict[str, Any] = {
    "gauge": "trace",
    "span_max": 0.5,
    "delta_clip": 0.0,
    "center_delta": False,
    "log_lambda_clip": 3.0,
    "eps_ridge": 0.0,
}
BUFFERS = learnable.spectral_buffers(H, W, **GRID)


def parameters(seed: int = 0) -> Any:
    random = np.random.default_rng(seed)
    initial = learnable.init_learnable(**INITIAL)
    shape = random.standard_normal(BINS - 1).astype(np.float32)
    return {"raw_span": np.asarray(initial["raw_span"] + 0.5), "raw_shape": shape}


quick_spectrum = quick_jit(learnable.learnable_spectrum, static_argnames=tuple(SPECTRUM))


def apply(kind: str, params: Any, z: jax.Array, alpha: Any = 1.0, beta: Any = 1.0) -> jax.Array:
    """Returns H^{1/2} z of each kind; alpha and beta may be traced."""
    if kind == "diag":
        return apply_diag(z)
    wide = jnp.promote_types(z.dtype, jnp.float32)
    if kind == "chain":
        base = chain_spectrum_1d(z.shape[-1], 1.0, 0.1, "trace")
        return apply_chain(z, jnp.sqrt(blend_identity(base, beta, wide)))
    if kind == "chain_grid":
        base = chain_spectrum_grid(H, W, 1.0, 0.1, "trace")
        return apply_grid(z, jnp.sqrt(blend_identity(base, beta, wide)), TOKEN)
    spectrum = learnable.learnable_spectrum(params, BUFFERS, alpha, beta, **SPECTRUM)
    root = jnp.sqrt(spectrum.spectrum).astype(wide)
    return apply_tokens(z, root, TOKEN, split_qp=kind == "learnable_split")


transform = quick_jit(apply, static_argnums=0)


def matrix(kind: str, alpha: float = 0.7, beta: float = 0.6) -> np.ndarray:
    """The matrix of H^{1/2} in float64, by its action on the unit vectors."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters())
        return np.asarray(transform(kind, params, jnp.eye(DIM), alpha, beta)).T


@pytest.mark.parametrize("kind", KINDS)
def test_transform_is_linear_symmetric_and_positive(kind: str) -> None:
    root = matrix(kind)
    np.testing.assert_allclose(root, root.T, atol=1e-12)
    assert np.linalg.eigvalsh(root).min() > 0
    z = np.random.default_rng(0).standard_normal((2, 3, DIM))
    out = transform(kind, parameters(), jnp.asarray(z, jnp.float32), 0.7, 0.6)
    assert out.shape == z.shape
    np.testing.assert_allclose(out, z @ root.T, atol=1e-5)


def test_chain_is_the_root_of_the_periodic_laplacian() -> None:
    root = matrix("chain", beta=1.0)
    laplacian = 2 * np.eye(DIM) - np.roll(np.eye(DIM), 1, 0) - np.roll(np.eye(DIM), -1, 0)
    wanted = 0.1 * np.eye(DIM) + laplacian
    square = root @ root
    np.testing.assert_allclose(square * (wanted[0, 0] / square[0, 0]), wanted, atol=1e-10)


def test_chain_grid_is_the_root_of_the_token_grids_laplacian() -> None:
    root = matrix("chain_grid", beta=1.0)

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
    options = {**SPECTRUM, "gauge": gauge, "eps_ridge": 0.05}
    spectrum = quick_spectrum(parameters(), BUFFERS, 0.8, 0.5, **options).spectrum
    assert mean(np.asarray(spectrum)) == pytest.approx(1, rel=1e-5)


def test_beta_zero_and_alpha_zero_are_the_identity() -> None:
    for kind in ("chain", "chain_grid", "learnable"):
        np.testing.assert_allclose(matrix(kind, alpha=0.0, beta=0.0), np.eye(DIM), atol=1e-12)


def test_the_learned_spectrum_is_at_full_strength_by_default() -> None:
    by_default = quick_spectrum(parameters(), BUFFERS, **SPECTRUM)
    in_full = quick_spectrum(parameters(), BUFFERS, 1.0, 1.0, **SPECTRUM)
    np.testing.assert_allclose(by_default.spectrum, in_full.spectrum, rtol=1e-6)
    assert np.ptp(by_default.spectrum) > 0.5


def test_split_state_is_two_grids() -> None:
    random = np.random.default_rng(0)
    tokens = jnp.asarray(random.standard_normal((3, H, W, TOKEN)), jnp.float32)
    plain = transform("learnable", parameters(), tokens.reshape(3, -1))
    plain = plain.reshape(3, H, W, TOKEN)
    half = TOKEN // 2

    def split(x: jax.Array) -> jax.Array:
        q, p = x[..., :half].reshape(3, -1), x[..., half:].reshape(3, -1)
        return jnp.concatenate([q, p], axis=-1)

    out = transform("learnable_split", parameters(), split(tokens))
    np.testing.assert_allclose(out, split(plain), atol=1e-5)
    as_one = transform("learnable", parameters(), split(tokens))
    assert np.abs(as_one - out).max() > 1e-3


def test_channels_first_reads_the_state_as_channels_of_grids() -> None:
    root = jnp.sqrt(jnp.asarray(chain_spectrum_grid(3, 3, 1.0, 0.1, "trace"), jnp.float32))
    z = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 3, 4)), jnp.float32)
    right = apply_grid(z.reshape(2, -1), root, 4).reshape(z.shape)
    moved = jnp.moveaxis(z, -1, 1).reshape(2, -1)
    for apply_layout in (apply_grid, functools.partial(apply_tokens, split_qp=False)):
        first = apply_layout(moved, root, 4, channels_first=True).reshape(2, 4, 3, 3)
        np.testing.assert_allclose(jnp.moveaxis(first, 1, -1), right, atol=1e-6)
        last = apply_layout(moved, root, 4).reshape(2, 4, 3, 3)
        assert np.abs(jnp.moveaxis(last, 1, -1) - right).max() > 1e-3


quick_envelope = quick_jit(learnable.envelope, static_argnames=("span_max", "delta_clip"))


@settings(max_examples=30, deadline=None)
@given(st.floats(-20, 20), st.lists(st.floats(-20, 20), min_size=4, max_size=4), st.booleans())
def test_envelope_is_monotone_and_bounded(span: float, shape: list[float], clip: bool) -> None:
    params = {"raw_span": jnp.float32(span), "raw_shape": jnp.asarray(shape, jnp.float32)}
    values = np.asarray(quick_envelope(params, span_max=0.5, delta_clip=0.2 if clip else 0.0))
    assert values[0] == 0
    assert np.all(np.diff(values) >= -1e-7)
    assert values[-1] <= (0.2 if clip else 0.5) + 1e-6


def test_initial_span_is_the_configured_one() -> None:
    bounds: dict[str, float] = {"span_max": 0.5, "delta_clip": 0.0}
    values = learnable.envelope(learnable.init_learnable(**INITIAL), **bounds)
    np.testing.assert_allclose(values, np.linspace(0, 0.3, 5), atol=1e-6)
    single = learnable.init_learnable(**{**INITIAL, "bins": 1})
    np.testing.assert_array_equal(learnable.envelope(single, **bounds), [0])


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
    options = {**SPECTRUM, "center_delta": True}
    light: dict[str, float] = {
        "curvature_weight": 0.3,
        "loglambda_l2_weight": 0.7,
        "cond_max": 0.0,
        "cond_weight": 0.0,
    }
    heavy = {**light, "cond_max": 1.1, "cond_weight": 5.0}
    params = parameters()
    spectrum = quick_spectrum(params, BUFFERS, **options)
    values = np.asarray(spectrum.envelope, np.float64)
    delta = values[learnable.bin_indices(H, W, BINS, "linear_radius")]
    delta = delta - delta.mean()
    expected = 0.3 * (np.diff(values, n=2) ** 2).sum() + 0.7 * (delta**2).mean()
    np.testing.assert_allclose(
        learnable.spectral_regularizer(spectrum, **light), expected, rtol=1e-4
    )
    lam = np.asarray(spectrum.spectrum, np.float64)
    excess = 5.0 * (lam.max() / lam.min() - 1.1) ** 2
    both = learnable.spectral_regularizer(spectrum, **heavy)
    np.testing.assert_allclose(both, expected + excess, rtol=1e-4)

    def loss(params: Any, **weights: float) -> jax.Array:
        spectrum = learnable.learnable_spectrum(params, BUFFERS, **options)
        return learnable.spectral_regularizer(spectrum, **weights)

    gradient = quick_jit(jax.grad(loss), static_argnames=tuple(light))
    light_grad, heavy_grad = (gradient(params, **weights) for weights in (light, heavy))
    jax.tree.map(np.testing.assert_array_equal, light_grad, heavy_grad)


FREE: dict[str, Any] = {"gauge": "logdet", "log_lambda_clip": 0.6, "eps_ridge": 0.05}


def numpy_free(steps: np.ndarray, alpha: float, options: dict[str, Any]) -> Any:
    """Returns (envelope, delta, eigenvalues) of the free envelope with offset -0.7."""
    values = -0.7 + np.concatenate([[0.0], np.cumsum(np.log1p(np.exp(steps)))])
    delta = values[learnable.bin_indices(H, W, BINS, "linear_radius")]
    if options["gauge"] == "logdet":
        delta = delta - delta.mean()
    delta = np.clip(delta, -options["log_lambda_clip"], options["log_lambda_clip"])
    raised = np.exp(alpha * delta) + options["eps_ridge"]
    mean = raised.mean() if options["gauge"] == "trace" else np.exp(np.log(raised).mean())
    return values, delta, raised / mean


@pytest.mark.parametrize("gauge", learnable.GAUGES)
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_free_envelope_matches_numpy(gauge: Any, alpha: float) -> None:
    """Its clip is active, and the regularizer sees the clipped deviation, whatever alpha is."""
    steps = np.array([-0.6, -1.4, -0.2, 0.3])
    options = {**FREE, "gauge": gauge}
    values, delta, eigenvalues = numpy_free(steps, alpha, options)
    assert (np.abs(delta) == 0.6).any()
    weights: dict[str, float] = {
        "curvature_weight": 0.3,
        "loglambda_l2_weight": 0.7,
        "cond_max": 0.0,
        "cond_weight": 0.0,
    }

    def both(steps: jax.Array) -> Any:
        params = {"offset": jnp.asarray(-0.7), "raw_increments": steps}
        spectrum = learnable.increment_spectrum(params, BUFFERS, alpha, **options)
        return spectrum, learnable.spectral_regularizer(spectrum, **weights)

    with jax.enable_x64(True):
        spectrum, regularizer = quick_jit(both)(jnp.asarray(steps))
        np.testing.assert_allclose(spectrum.envelope, values, rtol=1e-12)
        np.testing.assert_allclose(spectrum.spectrum, eigenvalues, rtol=1e-12)
        expected = 0.3 * (np.diff(values, n=2) ** 2).sum() + 0.7 * (delta**2).mean()
        np.testing.assert_allclose(regularizer, expected, rtol=1e-12)
        if alpha == 0.4:
            cot = np.random.default_rng(0).standard_normal((H, W))
            assert_gradient(lambda s: jnp.sum(cot * both(s)[0].spectrum) + both(s)[1], steps)


@pytest.mark.parametrize("kind", ["chain", "learnable_split"])
def test_gradients_match_differences(kind: str) -> None:
    random = np.random.default_rng(0)
    z, cot = random.standard_normal((2, 3, DIM))
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: np.asarray(x, np.float64), parameters())

        def in_z(z: jax.Array) -> jax.Array:
            return jnp.sum(cot * apply(kind, params, z, 0.7, 0.6))

        def in_shape(shape: jax.Array) -> jax.Array:
            changed = {"raw_span": shape[0], "raw_shape": shape[1:]}
            return jnp.sum(cot * apply(kind, changed, jnp.asarray(z), 0.7, 0.6))

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
    # As published: start epoch 2 and a ramp over two epochs.
    np.testing.assert_allclose(updates.alpha_schedule(epochs[:3], 2, 2), [0, 0.5, 1])
    np.testing.assert_allclose(updates.alpha_schedule(epochs, 4, 3), [0, 0, 0.25, 0.5, 0.75, 1, 1])
    np.testing.assert_allclose(updates.alpha_schedule(epochs, 0, 3), [0, 0, 1, 1, 1, 1, 1])
    assert [s for s in range(9) if updates.is_update_step(s, 4)] == [3, 7]
    assert [s for s in range(12) if updates.is_update_step(s, 3, 5.5)] == [8, 11]
    assert [s for s in range(12) if updates.is_update_step(s, 3, 5, 11)] == [5, 8]


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
    for kind in KINDS:
        out = jax.eval_shape(lambda z, kind=kind: apply(kind, params, z), z)
        assert out.dtype == jnp.float32


@pytest.mark.usefixtures("unchecked")
def test_errors_of_the_transforms_name_the_cause() -> None:
    with pytest.raises(ValueError, match="gauge must be one of trace, logdet"):
        chain_spectrum_grid(2, 2, 1.0, 0.1, "mean")
    with pytest.raises(ValueError, match="even token_dim"):
        apply_tokens(jnp.zeros((1, 12)), jnp.ones((2, 2)), 3, split_qp=True)
    with pytest.raises(ValueError, match="width 7 is not a 4 x 6 grid"):
        apply_grid(jnp.zeros((1, 7)), jnp.ones((4, 6)), TOKEN)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"binning": "log"}, "binning must be one of"),
        ({"base": "flat"}, "base must be one of"),
        ({"base_ridge": 0.0}, "base_ridge must be positive"),
        ({"bins": 0}, "h, w, bins must be at least 1, got 4, 6, 0"),
        ({"gauge": "mean"}, "gauge must be one of"),
        ({"span_max": 0.0}, "span_max must be positive"),
        ({"log_lambda_clip": 0.0}, "log_lambda_clip must be positive"),
    ],
)
def test_errors_of_the_learned_spectrum_name_the_cause(
    change: dict[str, Any], message: str
) -> None:
    def spectrum() -> learnable.Spectrum:
        grid = {name: change.get(name, value) for name, value in GRID.items()}
        options = {name: change.get(name, value) for name, value in SPECTRUM.items()}
        buffers = learnable.spectral_buffers(H, W, **grid)
        return learnable.learnable_spectrum(parameters(), buffers, **options)

    with pytest.raises(ValueError, match=message):
        spectrum()
    if "span_max" in change:
        with pytest.raises(ValueError, match=message):
            learnable.init_learnable(**{**INITIAL, **change})
