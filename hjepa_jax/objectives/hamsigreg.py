"""HamSIGReg: the transform z -> H^{1/2} z that precedes SIGReg.

Kinds: 'identity'; 'diag' (a fixed diagonal); 'chain' (periodic Laplacian along the flat state);
'chain_grid' (periodic Laplacian on the token grid); 'learnable' (radial envelope on the token
grid, see `hamsigreg_spectrum.py`). SIGReg of the transformed state asks for covariance H^{-1}.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107, HamSIGReg.
"""

import dataclasses
from typing import Literal, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hjepa_jax.objectives.hamsigreg_spectrum import (
    GAUGES,
    Gauge,
    LearnableParams,
    LearnableSettings,
    SpectralBuffers,
    learnable_spectrum,
)
from hjepa_jax.objectives.regularizers import at_least_float32

Kind = Literal["identity", "diag", "chain", "chain_grid", "learnable"]
KINDS: tuple[Kind, ...] = get_args(Kind)
GRID_KINDS = ("chain_grid", "learnable")


@dataclasses.dataclass(frozen=True)
class SpectralSettings:
    """Settings of `apply_spectral`.

    Attributes:
        kind: one of KINDS.
        kappa: strength of the Laplacian; the chain kinds have eigenvalues eps + kappa * Laplacian.
        eps: smallest eigenvalue of the chain kinds, before normalization.
        gauge: normalization of the chain kinds, 'trace' (mean 1) or 'logdet' (geometric mean 1).
        h: rows of the token grid, for the grid kinds.
        w: columns of the token grid.
        token_dim: channels d_f of a token.
        split_qp: the state is [q(h, w, d_f/2) | p(h, w, d_f/2)]; q and p are transformed
            separately.
        reference_layout: read the flat state as the published code does, which ignores split_qp and
            takes a learnable grid with h = w = d_f for channels-first. For parity only.
        learnable: settings of the learnable spectrum, on the same grid.
    """

    kind: Kind = "identity"
    kappa: float = 1.0
    eps: float = 1e-3
    gauge: Gauge = "trace"
    h: int | None = None
    w: int | None = None
    token_dim: int | None = None
    split_qp: bool = False
    reference_layout: bool = False
    learnable: LearnableSettings | None = None

    def __post_init__(self) -> None:
        for name, choices in (("kind", KINDS), ("gauge", GAUGES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.kind not in GRID_KINDS:
            return
        if not (self.h and self.w and self.token_dim):
            raise ValueError(f"kind {self.kind!r} needs the token grid h, w and token_dim")
        if self.split_qp and self.token_dim % 2 and not self.reference_layout:
            raise ValueError(f"split_qp needs an even token_dim, got {self.token_dim}")
        if self.kind == "learnable":
            if self.learnable is None:
                raise ValueError("kind 'learnable' needs LearnableSettings in `learnable`")
            if (self.learnable.h, self.learnable.w) != (self.h, self.w):
                raise ValueError(
                    f"the learnable spectrum is for a {self.learnable.h} x {self.learnable.w} "
                    f"grid, the tokens form {self.h} x {self.w}"
                )


def _gauged(spectrum: Float[np.ndarray, "*grid"], gauge: Gauge) -> Float[np.ndarray, "*grid"]:
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


def apply_chain(
    z: Float[Array, "*batch d"], root: Float[Array, " d//2+1"]
) -> Float[Array, "*batch d"]:
    """Multiplies the real Fourier modes of z [..., d] by root [d//2 + 1], the spectrum's root."""
    modes = jnp.fft.rfft(z, norm="ortho") * root
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


def _apply_tokens(
    z: Float[Array, "*batch d"], root: Float[Array, "h w"], settings: SpectralSettings
) -> Float[Array, "*batch d"]:
    """`apply_grid` in the layout of the settings."""
    token_dim = settings.token_dim
    assert token_dim is not None
    if settings.split_qp and not settings.reference_layout:
        # [q | p] is two grids of d_f/2 channels one after the other.
        halves = z.reshape(*z.shape[:-1], 2, -1)
        return apply_grid(halves, root, token_dim // 2).reshape(z.shape)
    ambiguous = settings.kind == "learnable" and settings.h == settings.w == token_dim
    channels_first = settings.reference_layout and ambiguous
    return apply_grid(z, root, token_dim, channels_first=channels_first)


def apply_spectral(
    settings: SpectralSettings,
    params: LearnableParams | None,
    z: Float[Array, "*batch d"],
    alpha: Float[Array, ""] | float = 1.0,
    beta: Float[Array, ""] | float = 1.0,
    *,
    buffers: SpectralBuffers | None = None,
) -> Float[Array, "*batch d"]:
    """Returns H^{1/2} z.

    Args:
        settings: see `SpectralSettings`.
        params: {'raw_span', 'raw_shape'} of kind 'learnable', else None.
        z: [..., D]; bfloat16 is computed in float32, float64 stays.
        alpha: strength of the learnable envelope; may be traced.
        beta: share of the chain's or the learnable base's spectrum, from identity; may be traced.
        buffers: the constants of the learnable grid; None = derived from the settings.

    Raises:
        ValueError: kind 'learnable' without params, or a width that does not fit the grid.
    """
    z = at_least_float32(z)
    if settings.kind == "identity":
        return z
    if settings.kind == "diag":
        return z * jnp.asarray(diag_sqrt(z.shape[-1]), z.dtype)
    if settings.kind == "chain":
        base = chain_spectrum_1d(z.shape[-1], settings.kappa, settings.eps, settings.gauge)
        return apply_chain(z, jnp.sqrt(blend_identity(base, beta, z.dtype)))
    assert settings.h is not None
    assert settings.w is not None
    if settings.kind == "chain_grid":
        base = chain_spectrum_grid(
            settings.h, settings.w, settings.kappa, settings.eps, settings.gauge
        )
        return _apply_tokens(z, jnp.sqrt(blend_identity(base, beta, z.dtype)), settings)
    assert settings.learnable is not None
    if params is None:
        raise ValueError("kind 'learnable' needs its parameters (see init_learnable)")
    spectrum = learnable_spectrum(params, settings.learnable, alpha, beta, buffers)
    return _apply_tokens(z, jnp.sqrt(spectrum.spectrum).astype(z.dtype), settings)
