"""The learnable spectrum of HamSIGReg: a monotone radial envelope over token-grid frequencies.

H is diagonal in the 2-D Fourier basis of the token grid. Its spectrum is a fixed base times
exp(alpha * delta), delta a non-decreasing step function of the radial frequency with few
parameters. alpha and beta (the share of the base) are scheduled from identity to full strength.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107, HamSIGReg.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Base = Literal["identity", "r2", "laplacian"]
Gauge = Literal["trace", "logdet"]
Binning = Literal["linear_radius", "linear_radius_sq", "quantile_radius"]
BASES: tuple[Base, ...] = get_args(Base)
GAUGES: tuple[Gauge, ...] = get_args(Gauge)
BINNINGS: tuple[Binning, ...] = get_args(Binning)

# NumPy arrays are those of a restored checkpoint.
LearnableParams = Mapping[str, Float[Array | np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class LearnableSettings:
    """Settings of the learnable spectrum on an h x w token grid.

    Attributes:
        h: rows of the token grid.
        w: columns of the token grid.
        bins: radial bins of the envelope.
        base: fixed spectrum, divided by its mean: 1 ('identity'), a + b r^2 ('r2'), or a + b times
            the grid Laplacian's eigenvalue ('laplacian'), a = base_ridge and b = base_strength.
        gauge: 'trace' fixes the mean of the spectrum to 1, 'logdet' its geometric mean.
        binning: how frequencies are assigned to the bins.
        base_ridge: a.
        base_strength: b.
        span_max: bound of the envelope's total log-span.
        init_loglambda_span: the log-span at the start (near 0 the sigmoid is saturated and the
            spectrum would hardly ever move).
        delta_clip: smooth bound of the envelope, 0 = off.
        center_delta: subtract the envelope's mean over the grid.
        log_lambda_clip: hard bound of the log spectrum before the ridge.
        eps_ridge: added to the spectrum, which is then normalized again.
        curvature_weight: see `spectral_regularizer`, as for the next three.
        loglambda_l2_weight: weight of the mean square of delta.
        cond_max: condition number above which the spectrum is penalized, 0 = off.
        cond_weight: weight of that penalty.
    """

    h: int
    w: int
    bins: int = 8
    base: Base = "laplacian"
    gauge: Gauge = "trace"
    binning: Binning = "linear_radius"
    base_ridge: float = 1.0
    base_strength: float = 4.0
    span_max: float = 0.5
    init_loglambda_span: float = 0.03
    delta_clip: float = 0.0
    center_delta: bool = False
    log_lambda_clip: float = 3.0
    eps_ridge: float = 0.0
    curvature_weight: float = 1e-3
    loglambda_l2_weight: float = 1e-4
    cond_max: float = 0.0
    cond_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.h < 1 or self.w < 1 or self.bins < 1:
            raise ValueError(f"h, w, bins must be at least 1: {self.h}, {self.w}, {self.bins}")
        for name, choices in (("base", BASES), ("gauge", GAUGES), ("binning", BINNINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if not (self.span_max > 0 and self.log_lambda_clip > 0 and self.base_ridge > 0):
            raise ValueError("span_max, log_lambda_clip and base_ridge must be positive")


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
    """
    rows, columns = _frequencies(h, w)
    radius = rows * rows + columns * columns
    if binning != "linear_radius_sq":
        radius = np.sqrt(radius)
    if binning == "quantile_radius":
        edges = _quantiles32(radius, bins + 1)
    else:
        edges = _linspace32(radius.min(), radius.max(), bins + 1)
    return np.searchsorted(edges[1:-1], radius, side="left").astype(np.int32)


def base_log_spectrum(settings: LearnableSettings) -> Float[np.ndarray, "h w"]:
    """Returns the log of the base spectrum [h, w], mean 1 before the log, in float64."""
    rows, columns = (f.astype(np.float64) for f in _frequencies(settings.h, settings.w))
    if settings.base == "identity":
        shape = np.zeros((settings.h, settings.w))
    elif settings.base == "r2":
        shape = rows**2 + columns**2
    else:
        shape = 4 * np.sin(np.pi * rows) ** 2 + 4 * np.sin(np.pi * columns) ** 2
    strength = 0.0 if settings.base == "identity" else settings.base_strength
    base = settings.base_ridge + strength * shape
    return np.log(base / base.mean())


def spectral_buffers(settings: LearnableSettings) -> SpectralBuffers:
    """Returns the constants of the settings' grid."""
    index = bin_indices(settings.h, settings.w, settings.bins, settings.binning)
    return SpectralBuffers(index, base_log_spectrum(settings))


def init_learnable(
    settings: LearnableSettings, dtype: jax.typing.DTypeLike = jnp.float32
) -> LearnableParams:
    """Returns {'raw_span' [], 'raw_shape' [bins - 1]}: equal increments of the initial span."""
    share = np.clip(settings.init_loglambda_span / settings.span_max, 1e-6, 1 - 1e-6)
    return {
        "raw_span": jnp.asarray(np.log(share / (1 - share)), dtype),
        "raw_shape": jnp.zeros((settings.bins - 1,), dtype),
    }


def envelope(params: LearnableParams, settings: LearnableSettings) -> Float[Array, " bins"]:
    """Returns the non-decreasing log envelope [bins], which starts at 0."""
    raw_shape = params["raw_shape"]
    start = jnp.zeros((1,), raw_shape.dtype)
    if settings.bins == 1:
        return start
    increments = jax.nn.softplus(raw_shape) + 1e-12
    increments = increments / jnp.sum(increments)
    span = settings.span_max * jax.nn.sigmoid(params["raw_span"])
    values = span * jnp.concatenate([start, jnp.cumsum(increments)])
    if settings.delta_clip > 0:
        values = settings.delta_clip * jnp.tanh(values / settings.delta_clip)
    return values


def init_increments(
    settings: LearnableSettings, dtype: jax.typing.DTypeLike = jnp.float32
) -> LearnableParams:
    """Returns {'offset' [], 'raw_increments' [bins - 1]} of the free envelope, log-span 1.6.

    Starts at -0.8 with equal increments that reach +0.8.
    """
    increment = 1.6 / max(settings.bins - 1, 1)
    return {
        "offset": jnp.asarray(-0.8, dtype),
        "raw_increments": jnp.full((settings.bins - 1,), np.log(np.expm1(increment)), dtype),
    }


def increment_envelope(params: LearnableParams) -> Float[Array, " bins"]:
    """Returns the published experimental envelope [bins]: an offset, free softplus increments."""
    steps = jnp.cumsum(jax.nn.softplus(params["raw_increments"]))
    return jnp.concatenate([jnp.zeros((1,), steps.dtype), steps]) + params["offset"]


def apply_gauge(spectrum: Float[Array, "*grid"], gauge: Gauge) -> Float[Array, "*grid"]:
    """Divides a positive spectrum by its mean ('trace') or its geometric mean ('logdet')."""
    if gauge == "trace":
        return spectrum / jnp.mean(spectrum)
    return spectrum / jnp.exp(jnp.mean(jnp.log(spectrum)))


def increment_spectrum(
    params: LearnableParams, settings: LearnableSettings, buffers: SpectralBuffers | None = None
) -> Spectrum:
    """Returns the spectrum of the experimental envelope: no base, no schedules.

    Args:
        params: from `init_increments`.
        settings: of these, gauge, log_lambda_clip and eps_ridge have an effect.
        buffers: the grid's constants; None = `spectral_buffers(settings)`.
    """
    buffers = spectral_buffers(settings) if buffers is None else buffers
    values = increment_envelope(params)
    delta = values[buffers.bin_index]
    if settings.gauge == "logdet":
        delta = delta - jnp.mean(delta)
    log_spectrum = jnp.clip(delta, -settings.log_lambda_clip, settings.log_lambda_clip)
    spectrum = apply_gauge(jnp.exp(log_spectrum) + settings.eps_ridge, settings.gauge)
    return Spectrum(values, delta, log_spectrum, spectrum)


def learnable_spectrum(
    params: LearnableParams,
    settings: LearnableSettings,
    alpha: Float[Array, ""] | float = 1.0,
    beta: Float[Array, ""] | float = 1.0,
    buffers: SpectralBuffers | None = None,
) -> Spectrum:
    """Returns the spectrum of H.

    lambda = ((1 - beta) + beta base) exp(alpha delta), normalized by the gauge, its log clipped,
    ridge added, normalized again (after which the clip need not hold exactly).

    Args:
        params: from `init_learnable`.
        settings: see `LearnableSettings`.
        alpha: strength of the learned envelope, 0..1; may be traced.
        beta: share of the base spectrum, 0..1; may be traced.
        buffers: the grid's constants; None = `spectral_buffers(settings)`.
    """
    buffers = spectral_buffers(settings) if buffers is None else buffers
    values = envelope(params, settings)
    delta = values[buffers.bin_index]
    if settings.center_delta:
        delta = delta - jnp.mean(delta)
    base = jnp.exp(jnp.asarray(buffers.log_base, values.dtype))
    alpha, beta = jnp.asarray(alpha, values.dtype), jnp.asarray(beta, values.dtype)
    blended = ((1 - beta) + beta * base) * jnp.exp(alpha * delta)
    log_spectrum = jnp.clip(
        jnp.log(apply_gauge(blended, settings.gauge)),
        -settings.log_lambda_clip,
        settings.log_lambda_clip,
    )
    spectrum = apply_gauge(jnp.exp(log_spectrum) + settings.eps_ridge, settings.gauge)
    return Spectrum(values, delta, log_spectrum, spectrum)


def condition_number(spectrum: Spectrum) -> Float[Array, ""]:
    """Returns the largest over the smallest eigenvalue, before the ridge."""
    return jnp.exp(jnp.max(spectrum.log_spectrum) - jnp.min(spectrum.log_spectrum))


def spectral_regularizer(spectrum: Spectrum, settings: LearnableSettings) -> Float[Array, ""]:
    """Returns the regularizer of the spectrum.

    curvature_weight sum (second differences of the envelope)^2 + loglambda_l2_weight mean delta^2
    + cond_weight relu(cond - cond_max)^2. The last has no gradient, as published: it is reported,
    and it would otherwise pull on the two extreme frequencies alone.
    """
    loss = settings.loglambda_l2_weight * jnp.mean(jnp.square(spectrum.delta))
    if spectrum.envelope.shape[0] >= 3:
        curvature = jnp.diff(spectrum.envelope, n=2)
        loss += settings.curvature_weight * jnp.sum(jnp.square(curvature))
    if settings.cond_max > 0 and settings.cond_weight > 0:
        excess = jax.nn.relu(condition_number(spectrum) - settings.cond_max)
        loss += settings.cond_weight * jax.lax.stop_gradient(jnp.square(excess))
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
