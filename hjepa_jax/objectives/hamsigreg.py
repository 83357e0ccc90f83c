"""HamSIGReg: the transforms z -> H^{1/2} z that precede SIGReg.

H is a fixed diagonal, or a function of the periodic Laplacian along the flat state or on the token
grid; `hamsigreg_spectrum.py` has the learnable one. SIGReg of the transformed state asks for
covariance H^{-1}.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107, HamSIGReg.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hjepa_jax.objectives.hamsigreg_spectrum import GAUGES, Gauge
from hjepa_jax.objectives.regularizers import at_least_float32


def _gauged(spectrum: Float[np.ndarray, "*grid"], gauge: Gauge) -> Float[np.ndarray, "*grid"]:
    if gauge not in GAUGES:
        raise ValueError(f"gauge must be one of {', '.join(GAUGES)}, got {gauge!r}")
    mean = spectrum.mean() if gauge == "trace" else np.exp(np.log(spectrum).mean())
    return spectrum / mean


def diag_sqrt(dim: int) -> Float[np.ndarray, " {dim}"]:
    """Returns sqrt(v) [dim], v = linspace(1, 2) over its geometric mean, in float64."""
    return np.sqrt(_gauged(np.linspace(1.0, 2.0, dim), "logdet"))


def chain_spectrum_1d(
    dim: int, kappa: float, eps: float, gauge: Gauge
) -> Float[np.ndarray, " {dim}//2+1"]:
    """Returns eps + kappa (2 - 2 cos(2 pi k / dim)), k = 0..dim//2, normalized; float64.

    The gauge averages over this half spectrum, as published: over the whole spectrum, where all
    but the ends count twice, the mean differs by O(1/dim).

    Args:
        dim: the width of the state.
        kappa: strength of the Laplacian.
        eps: smallest eigenvalue, before normalization.
        gauge: 'trace' (mean 1) or 'logdet' (geometric mean 1).

    Returns:
        The spectrum [dim//2 + 1].
    """
    angle = 2 * np.pi * np.arange(dim // 2 + 1) / dim
    return _gauged(eps + kappa * (2 - 2 * np.cos(angle)), gauge)


def chain_spectrum_grid(
    h: int, w: int, kappa: float, eps: float, gauge: Gauge
) -> Float[np.ndarray, "{h} {w}"]:
    """Returns eps + kappa (4 sin^2(pi ky/h) + 4 sin^2(pi kx/w)), normalized; float64.

    Args:
        h: rows of the token grid.
        w: columns of the token grid.
        kappa: strength of the Laplacian.
        eps: smallest eigenvalue, before normalization.
        gauge: 'trace' (mean 1) or 'logdet' (geometric mean 1).

    Returns:
        The spectrum [h, w].
    """
    rows = 4 * np.sin(np.pi * np.arange(h) / h) ** 2
    columns = 4 * np.sin(np.pi * np.arange(w) / w) ** 2
    return _gauged(eps + kappa * (rows[:, None] + columns[None, :]), gauge)


def blend_identity(
    spectrum: Float[np.ndarray | Array, "*grid"],
    beta: Float[Array, ""] | float,
    dtype: jnp.dtype,
) -> Float[Array, "*grid"]:
    """Returns (1 - beta) + beta * spectrum in `dtype`; beta, in 0..1, may be traced."""
    beta = jnp.asarray(beta, dtype)
    return (1 - beta) + beta * jnp.asarray(spectrum, dtype)


def apply_diag(z: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
    """Multiplies z [..., d] by `diag_sqrt`; bfloat16 is computed in float32, float64 stays."""
    z = at_least_float32(z)
    return z * jnp.asarray(diag_sqrt(z.shape[-1]), z.dtype)


def apply_chain(
    z: Float[Array, "*batch d"], root: Float[Array, " d//2+1"]
) -> Float[Array, "*batch d"]:
    """Multiplies the real Fourier modes of z [..., d] by root [d//2 + 1], the spectrum's root."""
    modes = jnp.fft.rfft(at_least_float32(z), norm="ortho") * root
    return jnp.fft.irfft(modes, n=z.shape[-1], norm="ortho")


def apply_grid(
    z: Float[Array, "*batch d"],
    root: Float[Array, "h w"],
    token_dim: int,
    *,
    channels_first: bool = False,
) -> Float[Array, "*batch d"]:
    """Multiplies the 2-D Fourier modes of every channel by root.

    Args:
        z: [..., h * w * d_f], tokens flattened in (h, w, d_f) order.
        root: [h, w], the square root of a spectrum that is even in both frequencies.
        token_dim: d_f.
        channels_first: read z as (d_f, h, w) instead.

    Raises:
        ValueError: the width of z is not h * w * d_f.
    """
    z = at_least_float32(z)
    h, w = root.shape
    if z.shape[-1] != h * w * token_dim:
        raise ValueError(
            f"a state of width {z.shape[-1]} is not a {h} x {w} grid of {token_dim} channels"
        )
    axes = (-2, -1) if channels_first else (-3, -2)
    grid = (token_dim, h, w) if channels_first else (h, w, token_dim)
    # Real input and an even spectrum: half the modes along w are enough.
    half = root[:, : w // 2 + 1]
    half = half if channels_first else half[..., None]
    modes = jnp.fft.rfft2(z.reshape(*z.shape[:-1], *grid), axes=axes) * half
    return jnp.fft.irfft2(modes, s=(h, w), axes=axes).reshape(z.shape)


def apply_tokens(
    z: Float[Array, "*batch d"],
    root: Float[Array, "h w"],
    token_dim: int,
    *,
    split_qp: bool,
    channels_first: bool = False,
) -> Float[Array, "*batch d"]:
    """`apply_grid` of a state that may consist of two grids.

    Args:
        z: [..., h * w * d_f].
        root: [h, w], see `apply_grid`.
        token_dim: d_f.
        split_qp: the state is [q(h, w, d_f/2) | p(h, w, d_f/2)]; q and p are transformed
            separately.
        channels_first: see `apply_grid`.

    Raises:
        ValueError: the width of z is not h * w * d_f, or an odd d_f has two halves.
    """
    if not split_qp:
        return apply_grid(z, root, token_dim, channels_first=channels_first)
    if token_dim % 2:
        raise ValueError(f"split_qp needs an even token_dim, got {token_dim}")
    # [q | p] is two grids of d_f/2 channels one after the other.
    halves = z.reshape(*z.shape[:-1], 2, -1)
    return apply_grid(halves, root, token_dim // 2, channels_first=channels_first).reshape(z.shape)
