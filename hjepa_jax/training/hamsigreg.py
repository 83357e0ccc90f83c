"""The learnable spectrum of HamSIGReg in training: its schedules, and its own update.

The spectrum is a player of its own: after the encoder's step, every `update_interval` steps, its
AdamW moves it on the detached embeddings of that step with fresh slices, against the encoder
(update_mode 'max') or with it ('min'). Source: arXiv 2605.20107, HamSIGReg.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from hjepa_jax.config import Config
from hjepa_jax.kernels.characteristic_function import characteristic_means
from hjepa_jax.objectives.hamsigreg import apply_spectral
from hjepa_jax.objectives.hamsigreg_spectrum import (
    init_learnable,
    learnable_spectrum,
    spectral_health,
    spectral_regularizer,
)
from hjepa_jax.objectives.hamsigreg_updates import (
    alpha_schedule,
    beta_schedule,
    is_update_step,
    update_loss,
)
from hjepa_jax.objectives.sigreg import SIGRegSettings, sigreg
from hjepa_jax.training.method import settings_from, spectral_settings
from hjepa_jax.training.state import clip_by_global_norm


def spectral_optimizer(config: Config) -> optax.GradientTransformation:
    """Returns the spectrum's AdamW: scaled, then clipped gradients, no weight decay."""
    spectral = config.spectral
    chain = [optax.scale(spectral.grad_scale)]
    if spectral.grad_clip is not None:
        chain.append(clip_by_global_norm(spectral.grad_clip))
    chain.append(optax.adam(spectral.lr))
    return optax.chain(*chain)


def has_learnable_spectrum(config: Config) -> bool:
    """Returns whether the configuration trains a spectrum."""
    return config.objective == "sigreg" and config.spectral.kind == "learnable"


def init_spectral(config: Config, dtype: Any = jnp.float32) -> dict[str, Any]:
    """Returns {'params', 'opt_state'} of the learnable spectrum, {} where there is none."""
    if not has_learnable_spectrum(config):
        return {}
    learnable = spectral_settings(config).learnable
    assert learnable is not None
    params = init_learnable(learnable, dtype)
    return {"params": params, "opt_state": spectral_optimizer(config).init(params)}


def spectral_schedule(
    config: Config, step: jax.Array, steps_per_epoch: int
) -> tuple[jax.Array, jax.Array]:
    """Returns (alpha, beta) of the epoch that `step` lies in, counted from 1."""
    spectral = config.spectral
    epoch = step // steps_per_epoch + 1
    alpha = alpha_schedule(epoch, spectral.learnable_ramp_epochs)
    beta = beta_schedule(epoch, spectral.identity_epochs, spectral.base_ramp_epochs)
    return alpha, beta


def transform(
    config: Config, params: Any, z: jax.Array, alpha: jax.Array, beta: jax.Array
) -> jax.Array:
    """Returns H^{1/2} z of the configuration's spectrum."""
    settings = spectral_settings(config)
    return apply_spectral(settings, params, z, alpha, beta)


def spectral_terms(
    config: Config, params: Any, alpha: jax.Array, beta: jax.Array
) -> dict[str, jax.Array]:
    """Returns the spectral regulariser ('spec') and the spectrum's health, for the log."""
    learnable = spectral_settings(config).learnable
    if learnable is None:
        return {}
    spectrum = learnable_spectrum(params, learnable, alpha, beta)
    return {"spec": spectral_regularizer(spectrum, learnable), **spectral_health(spectrum)}


def update_spectral(
    config: Config,
    spectral: dict[str, Any],
    z: jax.Array,
    randomness: dict[str, jax.Array],
    *,
    step: jax.Array,
    weight: jax.Array | float,
    steps_per_epoch: int,
) -> dict[str, Any]:
    """Updates the spectrum if this is one of its steps.

    Args:
      config: the configuration.
      spectral: {'params', 'opt_state'}.
      z: [V, B, D], the step's embeddings.
      randomness: 'spectral_slices' [D, K], 'alpha' and 'beta'.
      step: int32 scalar, the encoder steps done before this one.
      weight: of SIGReg in the encoder's loss, at this step.
      steps_per_epoch: for `freeze_after_epochs`.

    Returns:
      The new {'params', 'opt_state'}.
    """
    options, learnable = config.spectral, spectral_settings(config).learnable
    assert learnable is not None
    detached = jax.lax.stop_gradient(z)
    alpha, beta = randomness["alpha"], randomness["beta"]

    def loss(params: Any) -> jax.Array:
        transformed = transform(config, params, detached, alpha, beta)
        value = sigreg(
            transformed,
            randomness["spectral_slices"],
            settings_from(SIGRegSettings, config.sigreg),
            subsample_index=randomness.get("subsample"),
            means=characteristic_means,
        )
        spectrum = learnable_spectrum(params, learnable, alpha, beta)
        return update_loss(
            value,
            spectral_regularizer(spectrum, learnable),
            mode=options.update_mode,
            weight=weight,
            spectral_weight=options.regulariser_weight,
            adversarial_multiplier=options.adversarial_multiplier,
        )

    def update(current: dict[str, Any]) -> dict[str, Any]:
        gradient = jax.grad(loss)(current["params"])
        updates, opt_state = spectral_optimizer(config).update(
            gradient, current["opt_state"], current["params"]
        )
        return {"params": optax.apply_updates(current["params"], updates), "opt_state": opt_state}

    due = jnp.asarray(is_update_step(step, options.update_interval))
    if options.freeze_after_epochs is not None:
        due &= step < options.freeze_after_epochs * steps_per_epoch
    return jax.lax.cond(due, update, lambda current: current, spectral)
