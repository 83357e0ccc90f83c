"""The sections of the base configuration that only the SIGReg objectives use."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict, config_dict


def optional(kind: type, value: Any = None) -> Any:
    """A typed field that may also be None."""
    return config_dict.FieldReference(value, field_type=kind)


def sigreg_section() -> ConfigDict:
    """Returns the section `sigreg`: the LeJEPA baseline."""
    return ConfigDict(
        {
            # sigreg objective: 'additive' (pred + weight * sigreg) or
            # 'convex' ((1 - weight) * pred + weight * sigreg).
            "loss_form": "additive",
            "weight": 0.02,
            # Epochs over which the weight grows linearly from 0; 0 = constant.
            "weight_warmup_epochs": 0.0,
            # Statistics 'per_view' or 'flattened' over all views.
            "statistics": "per_view",
            "num_slices": 64,
            "t_max": 3.0,
            "n_points": 9,
            "weight_type": "gaussian",
            # Use only this many images for the statistic; None = all.
            "subsample": optional(int),
            "refresh_interval": 1,
            # Statistics below this count as zero; None = off.
            "clip_value": optional(float),
            # Over slices and views: 'mean' or 'sum'.
            "reduction": "mean",
        }
    )


def spectral_section() -> ConfigDict:
    """Returns the section `spectral`: the transform of HamSIGReg."""
    return ConfigDict(
        {
            # HamSIGReg: SIGReg of H^{1/2} z. 'identity' (plain SIGReg), 'diag', 'chain' (along the
            # flat state), 'chain_grid' (over the token grid) or 'learnable' (radial envelope).
            "kind": "identity",
            # Eigenvalues of the chains: eps + kappa * Laplacian.
            "kappa": 1.0,
            "eps": 1e-3,
            # Spectrum normalised to mean 1 ('trace') or geometric mean 1 ('logdet').
            "gauge": "trace",
            # learnable: fixed base spectrum ('identity', 'r2', 'laplacian') and radial bins.
            "base": "laplacian",
            "base_ridge": 1.0,
            "base_strength": 4.0,
            "bins": 8,
            # 'linear_radius', 'linear_radius_sq' or 'quantile_radius'.
            "binning": "linear_radius",
            # Largest and initial log-span of the envelope; bounds of envelope and log spectrum.
            "span_max": 0.5,
            "init_loglambda_span": 0.03,
            "delta_clip": 0.0,
            "center_delta": False,
            "log_lambda_clip": 3.0,
            "eps_ridge": 0.0,
            # Regulariser: curvature, L2 of the log deviation, condition number above cond_max.
            "regulariser_weight": 0.1,
            "curvature_weight": 1e-3,
            "loglambda_l2_weight": 1e-4,
            "cond_max": 0.0,
            "cond_weight": 0.0,
            # Epochs at identity, then over which base (and chain) and envelope fade in.
            "identity_epochs": 0.0,
            "base_ramp_epochs": 0.0,
            "learnable_ramp_epochs": 0.0,
            # Update of the envelope: 'max' (adversarial) or 'min' (joint) SIGReg, every so many
            # steps, by its own AdamW without decay; gradients are scaled, then clipped.
            "update_mode": "max",
            "update_interval": 10,
            "lr": 1e-3,
            "grad_scale": 1.0,
            "grad_clip": optional(float, 1.0),
            "adversarial_multiplier": 1.0,
            # No updates from this epoch on; None = never frozen.
            "freeze_after_epochs": optional(float),
        }
    )
