"""When and by which loss HamSIGReg's learnable spectrum is trained.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107, HamSIGReg.
"""

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
    past = jnp.asarray(epoch, jnp.result_type(float)) - identity_epochs
    if base_ramp_epochs <= 0:
        return (past > 0).astype(past.dtype)
    return jnp.clip(past / base_ramp_epochs, 0.0, 1.0)


def alpha_schedule(
    epoch: Real[Array, "*epochs"] | float, learnable_ramp_epochs: float
) -> Float[Array, "*epochs"]:
    """Returns the strength of the learned envelope in an epoch, min(1, epoch / ramp).

    Args:
        epoch: counted from 1; a scalar or an array of epochs.
        learnable_ramp_epochs: epochs of the linear ramp to 1 (0 = at once).
    """
    epoch = jnp.asarray(epoch, jnp.result_type(float))
    if learnable_ramp_epochs <= 0:
        return jnp.ones_like(epoch)
    return jnp.clip(epoch / learnable_ramp_epochs, 0.0, 1.0)


def is_update_step(step: Int[Array, ""] | int, interval: int) -> Bool[Array, ""] | bool:
    """Returns whether the spectrum's parameters are updated after the encoder's step (from 0)."""
    return (step + 1) % interval == 0


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
