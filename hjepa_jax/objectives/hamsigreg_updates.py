"""When and by which loss HamSIGReg's learnable spectrum is trained.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107, HamSIGReg.
"""

import math
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Real

UpdateMode = Literal["max", "min"]
UPDATE_MODES: tuple[UpdateMode, ...] = get_args(UpdateMode)


def beta_schedule(
    epoch: Real[Array, "*epochs"] | float, identity_epochs: float, base_ramp_epochs: float
) -> Float[Array, "*epochs"]:
    """Returns the share of the base spectrum in an epoch, 0..1.

    Args:
        epoch: counted from 1; a scalar or an array of epochs.
        identity_epochs: epochs with share 0.
        base_ramp_epochs: epochs of the linear ramp to 1 that follows (0 = at once).
    """
    return _ramp(epoch, identity_epochs, base_ramp_epochs)


def alpha_schedule(
    epoch: Real[Array, "*epochs"] | float, learnable_ramp_epochs: float, start_epoch: int = 1
) -> Float[Array, "*epochs"]:
    """Returns the strength of the learned envelope in an epoch, 0..1.

    It is 0 before `start_epoch`, and then min(1, (epoch - start_epoch + 1) / ramp).

    Args:
        epoch: counted from 1; a scalar or an array of epochs.
        learnable_ramp_epochs: epochs of the linear ramp to 1 (0 = at once).
        start_epoch: first epoch of the ramp, counted from 1.
    """
    return _ramp(epoch, start_epoch - 1, learnable_ramp_epochs)


def _ramp(
    epoch: Real[Array, "*epochs"] | float, before: float, length: float
) -> Float[Array, "*epochs"]:
    """Returns 0 for the epochs `before`, then a linear ramp to 1 over `length` epochs."""
    past = jnp.asarray(epoch, jnp.result_type(float)) - before
    if length <= 0:
        return (past > 0).astype(past.dtype)
    return jnp.clip(past / length, 0.0, 1.0)


def is_update_step(
    step: Int[Array, ""] | int,
    interval: int,
    first: float = 0,
    end: float = math.inf,
) -> Bool[Array, ""] | bool:
    """Returns whether the spectrum's parameters are updated after a step of the encoder.

    Args:
        step: counted from 0.
        interval: steps between updates; the first is after step interval - 1.
        first: there is none before this step.
        end: there is none from this step on.
    """
    due = (step + 1) % interval == 0
    # Comparisons that always hold are left out of the compiled step.
    due = due if first <= 0 else due & (step >= first)
    return due if end == math.inf else due & (step < end)


def update_loss(
    regularizer: Float[Array, "*steps"],
    spectral: Float[Array, "*steps"],
    *,
    mode: UpdateMode,
    weight: Float[Array, ""] | float,
    spectral_weight: float,
    adversarial_multiplier: float,
) -> Float[Array, "*steps"]:
    """Returns the loss that the spectrum's own optimizer minimizes.

    'max' (adversarial): spectral_weight * spectral - multiplier * weight * regularizer.
    'min' (joint): spectral_weight * spectral + weight * regularizer.

    Args:
        regularizer: SIGReg of the transformed, detached embeddings.
        spectral: `spectral_regularizer`.
        mode: 'max' or 'min'.
        weight: weight of SIGReg in the encoder's loss.
        spectral_weight: weight of the spectral regularizer.
        adversarial_multiplier: extra factor of the adversarial term.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in UPDATE_MODES:
        raise ValueError(f"the spectrum's update mode must be 'max' or 'min', got {mode!r}")
    factor = -adversarial_multiplier if mode == "max" else 1.0
    return spectral_weight * spectral + factor * weight * regularizer
