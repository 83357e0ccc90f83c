"""Golden checks of HamSIGReg (hamsigreg.npz)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_differences import quick_jit

from golden_checks.common import assert_close, groups, load, recorded, subtree
from golden_checks.objectives import FLOAT32, FLOAT64, cases, flag
from hjepa_jax.objectives import hamsigreg
from hjepa_jax.objectives import hamsigreg_spectrum as learnable
from hjepa_jax.objectives.sigreg import sigreg

HAM = load("hamsigreg.npz")
BASES = ("identity", "r2", "laplacian")
GAUGES = ("logdet", "trace")
BINNINGS = ("linear_radius", "linear_radius_sq", "quantile_radius")


INITIAL = ("bins", "span_max", "init_loglambda_span")
BUFFERS = ("bins", "binning", "base", "base_ridge", "base_strength")
SPECTRUM = ("gauge", "span_max", "delta_clip", "center_delta", "log_lambda_clip", "eps_ridge")
REGULARIZER = ("curvature_weight", "loglambda_l2_weight", "cond_max", "cond_weight")


def learnable_options(group: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns all options of a recorded learnable spectrum; `chosen` takes those of a function."""
    fields: dict[str, Any] = {
        name.removeprefix("cfg/"): value.item()
        for name, value in group.items()
        if name.startswith("cfg/")
    }
    return {
        **fields,
        "center_delta": bool(fields["center_delta"]),
        "bins": group["bins"].item(),
        "base": BASES[group["base"].item()],
        "gauge": GAUGES[group["gauge"].item()],
        "binning": BINNINGS[group["binning"].item()],
    }


def chosen(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names}


def check_bins(ours: Any, published: np.ndarray, binning: str) -> int:
    """Asserts equal bins but for frequencies at a bin's edge, where rounding decides.

    Returns the number of such ties that were decided differently.
    """
    rows, columns = (np.fft.fftfreq(n) for n in published.shape)
    radius = rows[:, None] ** 2 + columns[None, :] ** 2
    radius = radius if binning == "linear_radius_sq" else np.sqrt(radius)
    bins = int(published.max()) + 1
    if binning == "quantile_radius":
        edges = np.quantile(radius, np.linspace(0, 1, bins + 1))
    else:
        edges = np.linspace(radius.min(), radius.max(), bins + 1)
    at_edge = np.abs(radius[..., None] - edges).min(-1) < 1e-6
    different = np.asarray(ours) != published
    assert not np.any(different & ~at_edge)
    return int(different.sum())


def channels_first(case: str) -> bool:
    """Whether the published code mistakes the layout of a learnable case (h = w = d_f)."""
    return len({HAM[f"{case}/{name}"].item() for name in ("h", "w", "d_f")}) == 1


@functools.partial(quick_jit, static_argnums=(3, 4))
def apply_and_pull(z: jax.Array, root: jax.Array, cot: jax.Array, kind: str, layout: Any) -> Any:
    """Returns H^{1/2} z and the pull-back of cot to z and to the spectrum's root."""

    def transform(z: jax.Array, root: jax.Array) -> jax.Array:
        if kind == "chain":
            return hamsigreg.apply_chain(z, root)
        if kind == "grid":
            return hamsigreg.apply_grid(z, root, layout[0], channels_first=layout[1])
        return z * root

    out, pull = jax.vjp(transform, z, root)
    return out, *pull(cot)


@functools.partial(quick_jit, static_argnums=(2, 3))
def sigreg_and_gradient(z: jax.Array, slices: jax.Array, t_max: float, n_points: int) -> Any:
    plain = functools.partial(sigreg, t_max=t_max, n_points=n_points, weight_type="gaussian")
    return jax.value_and_grad(plain)(z, slices)


def ham_cases(kind: str) -> list[Any]:
    experimental = tuple(n for n in groups(HAM) if f"{n}/raw_deltas" in HAM)
    if kind == "experimental":
        return list(experimental) or cases({})
    known = {
        "all": lambda n: n not in experimental,
        "learnable": lambda n: f"{n}/raw_span" in HAM,
        "spectrum": lambda n: f"{n}/sqrt_diag" in HAM or f"{n}/normalize_trace" in HAM,
        "fixed": lambda n: n not in experimental and f"{n}/raw_span" not in HAM,
    }
    return [n for n in groups(HAM) if known[kind](n)] or cases({})


def check_transform(
    group: Mapping[str, np.ndarray], prefix: str, root: jax.Array, kind: str, layout: Any
) -> tuple[jax.Array, jax.Array]:
    """Checks transform, loss and their gradients in z; returns both gradients in the root."""
    dtype, tolerance = (jnp.float64, FLOAT64) if prefix else (jnp.float32, FLOAT32)
    z, cot, slices = (jnp.asarray(group[name], dtype) for name in ("z", "cot", "A"))
    out, grad_z, grad_root = apply_and_pull(z, root, cot, kind, layout)
    assert out.dtype == dtype
    frequencies = recorded(group, "t_max", 3.0), recorded(group, "n_points", 9)
    loss, grad_out = sigreg_and_gradient(out, slices, *frequencies)
    _, loss_grad_z, loss_grad_root = apply_and_pull(z, root, grad_out, kind, layout)
    assert_close(out, group[prefix + "transform"], tolerance, "transform")
    assert_close(grad_z, group[prefix + "grad_z"], tolerance, "grad_z")
    assert_close(loss, group[prefix + "loss"], tolerance, "loss")
    assert_close(loss_grad_z, group[prefix + "loss_grad_z"], tolerance, "loss_grad_z")
    return grad_root, loss_grad_root


@pytest.mark.parametrize("case", ham_cases("fixed"))
def test_golden_objectives_ham_fixed_gradients(case: str) -> None:
    group = subtree(HAM, f"{case}/")
    # The published buffers are float32, also where the rest is float64.
    names = {"sqrt_lam_rfft": "chain", "sqrt_lam_grid": "grid", "sqrt_diag": "diag"}
    found = [name for name in names if name in group]
    kind = names[found[0]] if found else "diag"
    layout = (group["d_f"].item(), False) if kind == "grid" else None
    for prefix, dtype in (("f64/", jnp.float64), ("", jnp.float32)):
        with jax.enable_x64(True):
            root = jnp.asarray(group[found[0]] if found else 1.0, dtype)
            check_transform(group, prefix, root, kind, layout)


# Every case is checked in float64, and through the public entry in float32; these in both fully.
BOTH_PRECISIONS = ham_cases("learnable")[::4]
OUTPUTS = {
    "envelope": "g_bins",
    "delta": "delta_2d",
    "log_spectrum": "log_lambda_2d",
    "spectrum": "lambda_2d",
}


@pytest.mark.parametrize("case", ham_cases("learnable"))
def test_golden_objectives_ham_learnable(case: str) -> None:
    group = subtree(HAM, f"{case}/")
    options = learnable_options(group)
    # The published buffers, alpha and beta are float32, also where the rest is float64.
    buffers = learnable.SpectralBuffers(group["bin_idx_2d"], group["loglam0_2d"])
    alpha, beta = (float(np.float32(group[name])) for name in ("alpha", "beta"))

    def roots(params: Any) -> Any:
        result = learnable.learnable_spectrum(
            params, buffers, alpha, beta, **chosen(options, SPECTRUM)
        )
        regularizer = learnable.spectral_regularizer(result, **chosen(options, REGULARIZER))
        return (jnp.sqrt(result.spectrum), regularizer), (result, learnable.spectral_health(result))

    @quick_jit
    def everything(params: Any, cotangent: Any) -> Any:
        primals, pull, extra = jax.vjp(roots, params, has_aux=True)
        return primals, extra, pull(cotangent)[0]

    precisions = (("f64/", jnp.float64), ("", jnp.float32))
    for prefix, dtype in precisions if case in BOTH_PRECISIONS else precisions[:1]:
        tolerance = FLOAT64 if prefix else FLOAT32
        with jax.enable_x64(True):
            params = {name: jnp.asarray(group[name], dtype) for name in ("raw_span", "raw_shape")}
            zero, one = jnp.zeros(group["bin_idx_2d"].shape, dtype), jnp.ones((), dtype)
            (root, regularizer), (result, health), grads = everything(params, (zero, one))
            for ours, theirs in OUTPUTS.items():
                assert_close(getattr(result, ours), group[prefix + theirs], tolerance, theirs)
            for name, value in health.items():
                assert_close(value, group[f"{prefix}health/{name}"], tolerance, name)
            expected = group[prefix + "spectral_regularizer"]
            assert_close(regularizer, expected, tolerance, "regularizer")
            layout = (group["d_f"].item(), channels_first(case))
            grad_root, loss_grad_root = check_transform(group, prefix, root, "grid", layout)
            pulled = {
                "spectral_grad": grads,
                "grad": everything(params, (grad_root, 0 * one))[2],
                "loss_grad": everything(params, (loss_grad_root, 0 * one))[2],
            }
            for kind, grads in pulled.items():
                for name, value in grads.items():
                    assert_close(value, group[f"{prefix}{kind}/{name}"], tolerance, name)


@pytest.mark.parametrize("case", ham_cases("learnable"))
def test_golden_objectives_ham_learnable_from_settings(case: str) -> None:
    """The same with our own buffers and initial values, in float32."""
    group = subtree(HAM, f"{case}/")
    options = learnable_options(group)
    h, w = group["h"].item(), group["w"].item()
    buffers = learnable.spectral_buffers(h, w, **chosen(options, BUFFERS))
    ties = check_bins(buffers.bin_index, group["bin_idx_2d"], options["binning"])
    assert_close(buffers.log_base, group["loglam0_2d"], 1e-6, "loglam0_2d")
    initial = learnable.init_learnable(**chosen(options, INITIAL))
    assert_close(initial["raw_span"], group["init_raw_span"], 1e-6, "init_raw_span")

    @quick_jit
    def transform(params: Any, z: jax.Array, alpha: Any, beta: Any) -> jax.Array:
        result = learnable.learnable_spectrum(
            params, buffers, alpha, beta, **chosen(options, SPECTRUM)
        )
        layout: dict[str, Any] = {"split_qp": False, "channels_first": channels_first(case)}
        return hamsigreg.apply_tokens(z, jnp.sqrt(result.spectrum), group["d_f"].item(), **layout)

    params = {name: group[name] for name in ("raw_span", "raw_shape")}
    out = transform(params, group["z"], group["alpha"].item(), group["beta"].item())
    if not ties:
        assert_close(out, group["transform"], FLOAT32, "transform")


@pytest.mark.parametrize("case", ham_cases("spectrum"))
def test_golden_objectives_ham_fixed_spectrum(case: str) -> None:
    group = subtree(HAM, f"{case}/")
    beta = group["beta"].item() if "beta" in group else 1.0
    z: Any = group["z"]
    if "sqrt_diag" in group:
        ours, theirs = hamsigreg.diag_sqrt(z.shape[-1]), group["sqrt_diag"]
        out = quick_jit(hamsigreg.apply_diag)(z)
    else:
        kappa, eps = group["kappa"].item(), group["eps"].item()
        gauge = "trace" if flag(group["normalize_trace"]) else "logdet"
        if "lam_rfft_base" in group:
            theirs = group["lam_rfft_base"]
            ours = hamsigreg.chain_spectrum_1d(group["d"].item(), kappa, eps, gauge)
            root = jnp.sqrt(hamsigreg.blend_identity(ours, beta, z.dtype))
            out = quick_jit(hamsigreg.apply_chain)(z, root)
        else:
            h, w, token = (group[n].item() for n in ("h", "w", "d_f"))
            theirs = group["lam_grid_base"]
            ours = hamsigreg.chain_spectrum_grid(h, w, kappa, eps, gauge)
            root = jnp.sqrt(hamsigreg.blend_identity(ours, beta, z.dtype))
            out = quick_jit(hamsigreg.apply_grid, static_argnums=2)(z, root, token)
    assert_close(ours, theirs, 1e-6, "base spectrum")
    for name in ("sqrt_lam_rfft", "sqrt_lam_grid"):
        if name in group:
            root = np.sqrt(1 - beta + beta * ours)
            assert_close(root, group[name], 1e-6, name)
    assert_close(out, group["transform"], FLOAT32, "transform")


@pytest.mark.parametrize("case", ham_cases("experimental"))
def test_golden_objectives_ham_experimental(case: str) -> None:
    group = subtree(HAM, f"{case}/")
    bins = group["bins"].item()
    options: dict[str, Any] = {
        "gauge": GAUGES[group["gauge"].item()],
        "eps_ridge": group["eps_ridge"].item(),
        "log_lambda_clip": group["log_lambda_clip"].item(),
    }
    published = {"curvature_weight": 1e-3, "loglambda_l2_weight": 1e-4}
    weights = {name: recorded(group, name, published.get(name, 0.0)) for name in REGULARIZER}
    binning = BINNINGS[recorded(group, "binning", 0)]
    index = learnable.bin_indices(group["h"].item(), group["w"].item(), bins, binning)
    ties = check_bins(index, group["bin_idx_2d"], binning)
    assert ties < group["bin_idx_2d"].size / 4
    buffers = learnable.SpectralBuffers(group["bin_idx_2d"], np.zeros(group["bin_idx_2d"].shape))
    initial = learnable.init_increments(bins)
    assert_close(initial["offset"], group["init_g1"], 1e-6, "init_g1")
    assert_close(initial["raw_increments"], group["init_raw_deltas"], 1e-6, "init_raw_deltas")
    with jax.enable_x64(True):
        params = {
            "offset": jnp.asarray(group["g1"], jnp.float64),
            "raw_increments": jnp.asarray(group["raw_deltas"], jnp.float64),
        }
        x = jnp.asarray(group["x"])

        def transform(params: Any, x: jax.Array) -> jax.Array:
            root = jnp.sqrt(learnable.increment_spectrum(params, buffers, **options).spectrum)
            return hamsigreg.apply_grid(x.reshape(len(x), -1), root, x.shape[-1]).reshape(x.shape)

        @quick_jit
        def everything(params: Any, x: jax.Array, cot: jax.Array) -> Any:
            out, pull = jax.vjp(transform, params, x)
            result = learnable.increment_spectrum(params, buffers, **options)
            regularizer = learnable.spectral_regularizer(result, **weights)
            health = learnable.spectral_health(result, after_ridge=True)
            return out, *pull(cot), result, regularizer, health

        out, grads, grad_x, result, regularizer, health = everything(
            params, x, jnp.asarray(group["cot"])
        )
        assert_close(out, group["transform"], FLOAT64, "transform")
        assert_close(grad_x, group["grad_x"], FLOAT64, "grad_x")
        assert_close(grads["offset"], group["grad/g1"], FLOAT64, "grad/g1")
        assert_close(grads["raw_increments"], group["grad/raw_deltas"], FLOAT64, "raw_deltas")
        assert_close(result.envelope, group["g_bins"], FLOAT64, "g_bins")
        assert_close(result.spectrum, group["lambda_2d"], FLOAT64, "lambda_2d")
        for name, value in health.items():
            assert_close(value, group[f"health/{name}"], FLOAT64, name)
        assert_close(regularizer, group["spectral_regularizer"], FLOAT64, "regularizer")
