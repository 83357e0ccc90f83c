"""The section `hamsigreg`: the transform of the states, and the training of a learned one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal

import jax.numpy as jnp

from hjepa_jax.config.fields import Condition, field
from hjepa_jax.config.parts import ENCODERS, load_subclass
from hjepa_jax.config.settings import Settings
from hjepa_jax.models.base import Encoder
from hjepa_jax.objectives.hamsigreg_spectrum import Base, Binning, Envelope, Gauge
from hjepa_jax.objectives.hamsigreg_updates import UpdateMode

CHAIN_KINDS = ("chain", "chain_grid")
GRID_KINDS = ("chain_grid", "learnable")


def _kind(settings: Settings) -> str:
    return settings.section(HamSIGRegSection).kind


def _envelope(settings: Settings) -> Envelope:
    return settings.section(HamSIGRegSection).envelope


_CHAIN = Condition(
    lambda c: _kind(c) in CHAIN_KINDS, "config.hamsigreg.kind='chain' or 'chain_grid'"
)
_GRID = Condition(
    lambda c: _kind(c) in GRID_KINDS, "config.hamsigreg.kind='chain_grid' or 'learnable'"
)
_SPECTRUM = Condition(
    lambda c: _kind(c) != "diag", "config.hamsigreg.kind='chain', 'chain_grid' or 'learnable'"
)
_LEARNABLE = Condition(lambda c: _kind(c) == "learnable", "config.hamsigreg.kind='learnable'")
_BOUNDED = Condition(
    lambda c: _kind(c) == "learnable" and _envelope(c) == "bounded",
    "config.hamsigreg.kind='learnable' and envelope='bounded'",
)
_BASE = Condition(
    lambda c: _kind(c) in CHAIN_KINDS or (_kind(c) == "learnable" and _envelope(c) == "bounded"),
    "config.hamsigreg.kind='chain' or 'chain_grid', or 'learnable' with envelope='bounded'",
)


@dataclasses.dataclass(frozen=True)
class HamSIGRegSection:
    """The transform of HamSIGReg: SIGReg of H^{1/2} z."""

    kind: Literal["diag", "chain", "chain_grid", "learnable"] = field(
        "diag",
        "'diag' (a fixed diagonal), 'chain' (along the flat state), 'chain_grid' (over the token "
        "grid) or 'learnable' (radial envelope).",
    )
    kappa: float = field(
        1.0, "Eigenvalues of the chains: eps + kappa * Laplacian.", at_least=0, used=_CHAIN
    )
    eps: float = field(
        1e-3, "Eigenvalues of the chains: eps + kappa * Laplacian.", at_least=1e-6, used=_CHAIN
    )
    beta: float = field(
        1.0,
        "Share of the chain in the spectrum; the rest is the identity.",
        at_least=0,
        at_most=1,
        used=_CHAIN,
    )
    gauge: Gauge = field(
        "trace",
        "Spectrum normalized to mean 1 ('trace') or geometric mean 1 ('logdet').",
        used=_SPECTRUM,
    )
    envelope: Envelope = field(
        "bounded",
        "'bounded' (over a base, of range span_max at most) or 'free' (an offset and increments "
        "without bound, no base; the published experimental one).",
        used=_LEARNABLE,
    )
    base: Base = field(
        "laplacian",
        "Fixed base spectrum that the envelope multiplies.",
        used=_BOUNDED,
    )
    base_ridge: float = field(
        1.0, "a of the base a + b r^2 (or Laplacian).", at_least=1e-6, used=_BOUNDED
    )
    base_strength: float = field(
        4.0, "b of the base a + b r^2 (or Laplacian).", at_least=0, used=_BOUNDED
    )
    bins: int = field(8, "Radial bins of the envelope.", at_least=2, at_most=65536, used=_LEARNABLE)
    binning: Binning = field(
        "linear_radius",
        "Binning of the frequencies.",
        used=_LEARNABLE,
    )
    span_max: float = field(
        0.5, "Maximum log-range of the envelope.", at_least=1e-6, at_most=50, used=_BOUNDED
    )
    init_loglambda_span: float = field(
        0.03, "Initial log-range of the envelope.", at_least=0, at_most=50, used=_BOUNDED
    )
    delta_clip: float = field(
        0.0, "Soft bound of the envelope; 0 = off.", at_least=0, at_most=50, used=_BOUNDED
    )
    center_delta: bool = field(False, "Subtract the envelope's mean over the grid.", used=_BOUNDED)
    log_lambda_clip: float = field(
        3.0, "Clipping bound of the log-spectrum.", at_least=1e-6, at_most=50, used=_LEARNABLE
    )
    eps_ridge: float = field(
        0.0, "Added to the spectrum, which is then renormalized.", at_least=0, used=_LEARNABLE
    )
    regularizer_weight: float = field(
        0.1, "Weight of the spectrum's regularizer.", at_least=0, used=_LEARNABLE
    )
    curvature_weight: float = field(
        1e-3, "Regularizer: weight of the envelope's curvature.", at_least=0, used=_LEARNABLE
    )
    loglambda_l2_weight: float = field(
        1e-4, "Regularizer: weight of the squared log-deviation.", at_least=0, used=_LEARNABLE
    )
    cond_max: float = field(
        0.0,
        "Regularizer: threshold of the condition number; 0 = off.",
        at_least=0,
        used=_LEARNABLE,
    )
    cond_weight: float = field(
        0.0, "Regularizer: weight of the condition number.", at_least=0, used=_LEARNABLE
    )
    identity_epochs: float = field(
        0.0, "Epochs with the identity in place of the base (or chain).", at_least=0, used=_BASE
    )
    base_ramp_epochs: float = field(
        0.0,
        "Epochs over which the base (or chain) fades in afterwards.",
        at_least=0,
        used=_BASE,
    )
    learnable_start_epoch: int = field(
        1,
        "Epoch, counted from 1, before which the envelope is neither applied nor trained.",
        above=0,
        used=_LEARNABLE,
    )
    alpha_start_epoch: int | None = field(
        None,
        "Epoch from which the envelope fades in; None = learnable_start_epoch.",
        above=0,
        used=_LEARNABLE,
    )
    learnable_ramp_epochs: float = field(
        0.0, "Epochs over which the envelope fades in.", at_least=0, used=_LEARNABLE
    )
    update_mode: UpdateMode = field(
        "max",
        "The spectrum maximizes ('max', adversarial) or minimizes ('min', joint) SIGReg.",
        used=_LEARNABLE,
    )
    update_interval: int = field(
        10, "Steps between updates of the spectrum.", above=0, used=_LEARNABLE
    )
    lr: float = field(
        1e-3,
        "Learning rate of the spectrum's AdamW, which has no weight decay.",
        at_least=1e-12,
        used=_LEARNABLE,
    )
    grad_scale: float = field(
        1.0, "Factor on the spectrum's gradients, before clipping.", at_least=1e-6, used=_LEARNABLE
    )
    grad_clip: float | None = field(
        1.0,
        "Largest norm of the spectrum's gradients; None = no clipping.",
        at_least=1e-6,
        used=_LEARNABLE,
    )
    adversarial_multiplier: float = field(
        1.0, "Weight of SIGReg in the spectrum's loss.", at_least=0, used=_LEARNABLE
    )
    frozen_epochs: float = field(
        0.0,
        "Epochs at the start in which the spectrum is not trained.",
        at_least=0,
        used=_LEARNABLE,
    )
    freeze_after_epochs: float | None = field(
        None, "Freeze the spectrum from this epoch on; None = never.", above=0, used=_LEARNABLE
    )
    reference_layout: bool = field(
        False,
        "Grid spectra reshape the flat state to the grid, ignoring split_qp.",
        used=_GRID,
    )


def envelope_start(section: HamSIGRegSection) -> int:
    """Returns the first epoch, counted from 1, in which the learned envelope is applied."""
    return section.alpha_start_epoch or section.learnable_start_epoch


def training_epochs(section: HamSIGRegSection) -> tuple[float, float]:
    """Returns how many epochs are over when the spectrum's training starts, and when it ends."""
    start = max(section.learnable_start_epoch - 1, section.frozen_epochs)
    end = section.freeze_after_epochs
    return start, math.inf if end is None else end


def problems(settings: Settings) -> Iterator[str]:
    """Yields a sentence for each contradiction of the settings."""
    yield from _grid(settings)
    section = settings.section(HamSIGRegSection)
    if section.kind != "learnable":
        return
    if envelope_start(section) < section.learnable_start_epoch:
        yield (
            f"config.hamsigreg.alpha_start_epoch is {section.alpha_start_epoch}, but the envelope "
            f"starts with config.hamsigreg.learnable_start_epoch="
            f"{section.learnable_start_epoch}: set it to that or more, or to None."
        )
    start, end = training_epochs(section)
    if start >= end:
        frozen = section.frozen_epochs >= section.learnable_start_epoch - 1
        name = "frozen_epochs" if frozen else "learnable_start_epoch"
        yield (
            f"config.hamsigreg.freeze_after_epochs is {end:g}, but the spectrum's training starts "
            f"after {start:g} epochs by config.hamsigreg.{name}: freeze it later, or start earlier."
        )


def _grid(settings: Settings) -> Iterator[str]:
    """The spectrum acts on a token grid if the states have one."""
    kind = _kind(settings)
    if kind not in GRID_KINDS:
        return
    if settings.model.projector != "identity":
        yield (
            f"config.hamsigreg.kind is {kind!r}, which acts on the token grid, but the projector "
            "mixes the tokens: set config.model.projector='identity'."
        )
    encoder = load_subclass(ENCODERS, settings.model.encoder, Encoder, "encoder")
    built = encoder.build(settings, jnp.float32, 1)
    if built.shape(settings.data.image_size).token_grid is None:
        yield (
            f"config.hamsigreg.kind is {kind!r}, which acts on the token grid, but the states of "
            f"config.model.encoder={settings.model.encoder!r} have none here: set it to 'chain', "
            f"or have the encoder return tokens (config.{_section(settings)}.head='tokens')."
        )


def _section(settings: Settings) -> str:
    """Returns the section with the head of one of the package's encoders."""
    name = settings.model.encoder
    return name if name in ENCODERS else "resnet"


def unfinished(settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
    """Yields (field, value) for each ramp that does not end within the epochs."""
    section = settings.section(HamSIGRegSection)
    if section.kind == "diag":
        return
    identity, base = section.identity_epochs, section.base_ramp_epochs
    if identity >= epochs:
        yield "hamsigreg.identity_epochs", identity
    # Ramps advance at the start of an epoch, so they may end with the last one.
    if identity < epochs < identity + base:
        yield "hamsigreg.base_ramp_epochs", base
    if section.kind != "learnable":
        return
    for name in ("learnable_start_epoch", "alpha_start_epoch"):
        if (start := getattr(section, name) or 1) > epochs:
            yield f"hamsigreg.{name}", start
    past = envelope_start(section) - 1
    if past < epochs < past + section.learnable_ramp_epochs:
        yield "hamsigreg.learnable_ramp_epochs", section.learnable_ramp_epochs
    if section.frozen_epochs >= epochs:
        yield "hamsigreg.frozen_epochs", section.frozen_epochs
