"""The learnable spectrum of HamSIGReg: a monotone radial envelope over token-grid frequencies.

H is diagonal in the 2-D Fourier basis of the token grid. Its spectrum is a fixed base times
exp(alpha * delta), delta a non-decreasing step function of the radial frequency with few
parameters. alpha and beta (the share of the base) are scheduled from identity to full strength.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107, HamSIGReg.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Envelope = Literal["bounded", "free"]
Base = Literal["identity", "r2", "laplacian"]
Gauge = Literal["trace", "logdet"]
Binning = Literal["linear_radius", "linear_radius_sq", "quantile_radius"]
BASES: tuple[Base, ...] = get_args(Base)
GAUGES: tuple[Gauge, ...] = get_args(Gauge)
BINNINGS: tuple[Binning, ...] = get_args(Binning)

# NumPy arrays are those of a restored checkpoint.
LearnableParams = Mapping[str, Float[Array | np.ndarray, "..."]]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name} must be positive, got {value}")


class SpectralBuffers(NamedTuple):
    """Constants of a grid.

    Attributes:
        bin_index: the radial bin of every frequency, [h, w].
        log_base: the log of the base spectrum, [h, w].
    """

    bin_index: Int[np.ndarray | Array, "h w"]
    log_base: Float[np.ndarray | Array, "h w"]


class Spectrum(NamedTuple):
    """A spectrum and what it is made of.

    Attributes:
        envelope: the log envelope per bin, [bins].
        delta: the log envelope per frequency, [h, w].
        log_spectrum: the clipped log spectrum, before the ridge, [h, w].
        spectrum: the eigenvalues of H, [h, w].
    """

    envelope: Float[Array, " bins"]
    delta: Float[Array, "h w"]
    log_spectrum: Float[Array, "h w"]
    spectrum: Float[Array, "h w"]


def _frequencies(h: int, w: int) -> tuple[Float[np.ndarray, "{h} 1"], Float[np.ndarray, "1 {w}"]]:
    """Returns |frequency| along rows [h, 1] and columns [1, w] in float32, in cycles per token."""
    rows, columns = (
        (np.minimum(np.arange(n), n - np.arange(n)).astype(np.float32) / np.float32(n))
        for n in (h, w)
    )
    return rows[:, None], columns[None, :]


def _linspace32(first: np.float32, last: np.float32, count: int) -> Float[np.ndarray, " {count}"]:
    """Returns a float32 linspace from both ends: ties at bin edges depend on its rounding."""
    step = np.float32(last - first) / np.float32(count - 1)
    index = np.arange(count, dtype=np.float32)
    from_end = np.float32(last) - step * (np.float32(count - 1) - index)
    return np.where(index < count // 2, np.float32(first) + step * index, from_end)


def _quantiles32(values: Float[np.ndarray, "..."], count: int) -> Float[np.ndarray, " {count}"]:
    """Returns `count` equally spaced quantiles with linear interpolation, in float32 arithmetic."""
    ordered = np.sort(values.ravel())
    rank = _linspace32(np.float32(0), np.float32(1), count) * np.float32(ordered.size - 1)
    below = np.floor(rank).astype(int)
    share = rank - below.astype(np.float32)
    low, high = ordered[below], ordered[np.ceil(rank).astype(int)]
    gap = high - low
    return np.where(share < 0.5, low + share * gap, high - gap * (np.float32(1) - share))


def bin_indices(h: int, w: int, bins: int, binning: Binning) -> Int[np.ndarray, "{h} {w}"]:
    """Assigns every frequency of the grid to a radial bin.

    Args:
        h: rows of the token grid.
        w: columns of the token grid.
        bins: number of bins.
        binning: bins of equal width in the radius or its square, or of equal counts.

    Returns:
        Bins [h, w], int32; edges are computed in float32, as published.

    Raises:
        ValueError: an unknown binning, or no rows, columns or bins.
    """
    _check_choice("binning", binning, BINNINGS)
    if h < 1 or w < 1 or bins < 1:
        raise ValueError(f"h, w, bins must be at least 1, got {h}, {w}, {bins}")
    rows, columns = _frequencies(h, w)
    radius = rows * rows + columns * columns
    if binning != "linear_radius_sq":
        radius = np.sqrt(radius)
    if binning == "quantile_radius":
        edges = _quantiles32(radius, bins + 1)
    else:
        edges = _linspace32(radius.min(), radius.max(), bins + 1)
    return np.searchsorted(edges[1:-1], radius, side="left").astype(np.int32)


def base_log_spectrum(
    h: int, w: int, *, base: Base, base_ridge: float, base_strength: float
) -> Float[np.ndarray, "{h} {w}"]:
    """Returns the log of the base spectrum [h, w], mean 1 before the log, in float64.

    Args:
        h: rows of the token grid.
        w: columns of the token grid.
        base: 1 ('identity'), a + b r^2 ('r2'), or a + b times the grid Laplacian's eigenvalue
            ('laplacian').
        base_ridge: a.
        base_strength: b.

    Raises:
        ValueError: an unknown base, or a ridge that is not positive.
    """
    _check_choice("base", base, BASES)
    _check_positive("base_ridge", base_ridge)
    rows, columns = (f.astype(np.float64) for f in _frequencies(h, w))
    if base == "identity":
        shape = np.zeros((h, w))
    elif base == "r2":
        shape = rows**2 + columns**2
    else:
        shape = 4 * np.sin(np.pi * rows) ** 2 + 4 * np.sin(np.pi * columns) ** 2
    strength = 0.0 if base == "identity" else base_strength
    spectrum = base_ridge + strength * shape
    return np.log(spectrum / spectrum.mean())


def spectral_buffers(
    h: int,
    w: int,
    *,
    bins: int,
    binning: Binning,
    base: Base,
    base_ridge: float,
    base_strength: float,
) -> SpectralBuffers:
    """Returns the constants of an h x w grid; see `bin_indices` and `base_log_spectrum`."""
    log_base = base_log_spectrum(
        h, w, base=base, base_ridge=base_ridge, base_strength=base_strength
    )
    return SpectralBuffers(bin_indices(h, w, bins, binning), log_base)


def init_learnable(
    *,
    bins: int,
    span_max: float,
    init_loglambda_span: float,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> LearnableParams:
    """Returns {'raw_span' [], 'raw_shape' [bins - 1]}: equal increments of the initial span.

    Args:
        bins: radial bins of the envelope.
        span_max: bound of the envelope's total log-span.
        init_loglambda_span: the log-span at the start (near 0 the sigmoid is saturated and the
            spectrum would hardly ever move).
        dtype: floating-point dtype of the result.

    Raises:
        ValueError: span_max is not positive.
    """
    _check_positive("span_max", span_max)
    share = np.clip(init_loglambda_span / span_max, 1e-6, 1 - 1e-6)
    return {
        "raw_span": jnp.asarray(np.log(share / (1 - share)), dtype),
        "raw_shape": jnp.zeros((bins - 1,), dtype),
    }


def envelope(
    params: LearnableParams, *, span_max: float, delta_clip: float
) -> Float[Array, " bins"]:
    """Returns the non-decreasing log envelope [bins], which starts at 0.

    Args:
        params: from `init_learnable`.
        span_max: bound of the envelope's total log-span.
        delta_clip: smooth bound of the envelope, 0 = off.

    Raises:
        ValueError: span_max is not positive.
    """
    _check_positive("span_max", span_max)
    raw_shape = params["raw_shape"]
    start = jnp.zeros((1,), raw_shape.dtype)
    if raw_shape.shape[0] == 0:
        return start
    increments = jax.nn.softplus(raw_shape) + 1e-12
    increments = increments / jnp.sum(increments)
    span = span_max * jax.nn.sigmoid(params["raw_span"])
    values = span * jnp.concatenate([start, jnp.cumsum(increments)])
    if delta_clip > 0:
        values = delta_clip * jnp.tanh(values / delta_clip)
    return values


def init_increments(bins: int, dtype: jax.typing.DTypeLike = jnp.float32) -> LearnableParams:
    """Returns {'offset' [], 'raw_increments' [bins - 1]} of the free envelope, log-span 1.6.

    Starts at -0.8 with equal increments that reach +0.8.
    """
    increment = 1.6 / max(bins - 1, 1)
    return {
        "offset": jnp.asarray(-0.8, dtype),
        "raw_increments": jnp.full((bins - 1,), np.log(np.expm1(increment)), dtype),
    }


def increment_envelope(params: LearnableParams) -> Float[Array, " bins"]:
    """Returns the published experimental envelope [bins]: an offset, free softplus increments."""
    steps = jnp.cumsum(jax.nn.softplus(params["raw_increments"]))
    return jnp.concatenate([jnp.zeros((1,), steps.dtype), steps]) + params["offset"]


def apply_gauge(spectrum: Float[Array, "*grid"], gauge: Gauge) -> Float[Array, "*grid"]:
    """Divides a positive spectrum by its mean ('trace') or its geometric mean ('logdet').

    Raises:
        ValueError: an unknown gauge.
    """
    _check_choice("gauge", gauge, GAUGES)
    if gauge == "trace":
        return spectrum / jnp.mean(spectrum)
    return spectrum / jnp.exp(jnp.mean(jnp.log(spectrum)))


def increment_spectrum(
    params: LearnableParams,
    buffers: SpectralBuffers,
    alpha: Float[Array, ""] | float = 1.0,
    *,
    gauge: Gauge,
    log_lambda_clip: float,
    eps_ridge: float,
) -> Spectrum:
    """Returns the spectrum of the experimental envelope: no base.

    Its `delta` is clipped: the regularizer bounds what the spectrum uses.

    Args:
        params: from `init_increments`.
        buffers: the grid's constants, of which the bins have an effect.
        alpha: see `learnable_spectrum`, as for the next three.
        gauge: what is fixed to 1.
        log_lambda_clip: hard bound of the log spectrum before the ridge.
        eps_ridge: added to the spectrum.

    Raises:
        ValueError: an unknown gauge, or a clip that is not positive.
    """
    _check_positive("log_lambda_clip", log_lambda_clip)
    values = increment_envelope(params)
    delta = values[buffers.bin_index]
    if gauge == "logdet":
        delta = delta - jnp.mean(delta)
    delta = jnp.clip(delta, -log_lambda_clip, log_lambda_clip)
    log_spectrum = jnp.asarray(alpha, values.dtype) * delta
    spectrum = apply_gauge(jnp.exp(log_spectrum) + eps_ridge, gauge)
    return Spectrum(values, delta, log_spectrum, spectrum)


def learnable_spectrum(
    params: LearnableParams,
    buffers: SpectralBuffers,
    alpha: Float[Array, ""] | float = 1.0,
    beta: Float[Array, ""] | float = 1.0,
    *,
    gauge: Gauge,
    span_max: float,
    delta_clip: float,
    center_delta: bool,
    log_lambda_clip: float,
    eps_ridge: float,
) -> Spectrum:
    """Returns the spectrum of H.

    lambda = ((1 - beta) + beta base) exp(alpha delta), normalized by the gauge, its log clipped,
    ridge added, normalized again (after which the clip need not hold exactly).

    Args:
        params: from `init_learnable`.
        buffers: the grid's constants, from `spectral_buffers`.
        alpha: strength of the learned envelope, 0..1; may be traced.
        beta: share of the base spectrum, 0..1; may be traced.
        gauge: 'trace' fixes the mean of the spectrum to 1, 'logdet' its geometric mean.
        span_max: see `envelope`, as for the next one.
        delta_clip: smooth bound of the envelope.
        center_delta: subtract the envelope's mean over the grid.
        log_lambda_clip: hard bound of the log spectrum before the ridge.
        eps_ridge: added to the spectrum.

    Raises:
        ValueError: an unknown gauge, or a span or clip that is not positive.
    """
    _check_positive("log_lambda_clip", log_lambda_clip)
    values = envelope(params, span_max=span_max, delta_clip=delta_clip)
    delta = values[buffers.bin_index]
    if center_delta:
        delta = delta - jnp.mean(delta)
    base = jnp.exp(jnp.asarray(buffers.log_base, values.dtype))
    alpha, beta = jnp.asarray(alpha, values.dtype), jnp.asarray(beta, values.dtype)
    blended = ((1 - beta) + beta * base) * jnp.exp(alpha * delta)
    log_spectrum = jnp.clip(jnp.log(apply_gauge(blended, gauge)), -log_lambda_clip, log_lambda_clip)
    spectrum = apply_gauge(jnp.exp(log_spectrum) + eps_ridge, gauge)
    return Spectrum(values, delta, log_spectrum, spectrum)


def condition_number(spectrum: Spectrum) -> Float[Array, ""]:
    """Returns the largest over the smallest eigenvalue, before the ridge."""
    return jnp.exp(jnp.max(spectrum.log_spectrum) - jnp.min(spectrum.log_spectrum))


def spectral_regularizer(
    spectrum: Spectrum,
    *,
    curvature_weight: float,
    loglambda_l2_weight: float,
    cond_max: float,
    cond_weight: float,
) -> Float[Array, ""]:
    """Returns the regularizer of the spectrum.

    curvature_weight sum (second differences of the envelope)^2 + loglambda_l2_weight mean delta^2
    + cond_weight relu(cond - cond_max)^2. The last has no gradient, as published: it is reported,
    and it would otherwise pull on the two extreme frequencies alone.

    Args:
        spectrum: from `learnable_spectrum` or `increment_spectrum`.
        curvature_weight: weight of the envelope's curvature.
        loglambda_l2_weight: weight of the mean square of delta.
        cond_max: condition number above which the spectrum is penalized, 0 = off.
        cond_weight: weight of that penalty.
    """
    loss = loglambda_l2_weight * jnp.mean(jnp.square(spectrum.delta))
    if spectrum.envelope.shape[0] >= 3:
        curvature = jnp.diff(spectrum.envelope, n=2)
        loss += curvature_weight * jnp.sum(jnp.square(curvature))
    if cond_max > 0 and cond_weight > 0:
        excess = jax.nn.relu(condition_number(spectrum) - cond_max)
        loss += cond_weight * jax.lax.stop_gradient(jnp.square(excess))
    return loss


def spectral_health(
    spectrum: Spectrum, *, after_ridge: bool = False
) -> dict[str, Float[Array, ""]]:
    """Returns the logged statistics of a spectrum, without gradient.

    'lam_min', 'lam_max', 'lam_cond' before the ridge (or of the final spectrum), 'loglam_min' and
    'loglam_max' always before it, and the envelope's ends 'g0' and 'g_last'.
    """
    low, high = jnp.min(spectrum.log_spectrum), jnp.max(spectrum.log_spectrum)
    smallest, largest = jnp.exp(low), jnp.exp(high)
    if after_ridge:
        smallest, largest = jnp.min(spectrum.spectrum), jnp.max(spectrum.spectrum)
    health = {
        "lam_min": smallest,
        "lam_max": largest,
        "lam_cond": largest / smallest,
        "g0": spectrum.envelope[0],
        "g_last": spectrum.envelope[-1],
        "loglam_min": low,
        "loglam_max": high,
    }
    return {name: jax.lax.stop_gradient(value) for name, value in health.items()}
