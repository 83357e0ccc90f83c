"""Converts configurations of the published PyTorch scripts, with their deviations as parity flags.

The published code has two training scripts, for CIFAR and for ImageNet, that differ in more than
their data; the encoder stem tells which one a configuration belongs to.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from ml_collections import ConfigDict

from hjepa_jax.config import base_config, rows
from hjepa_jax.config.files import flatten
from hjepa_jax.config.values import problems_of, shown
from hjepa_jax.errors import ConfigError
from hjepa_jax.methods.hamsigreg_settings import GRID_KINDS
from hjepa_jax.methods.hjepa_settings import (
    Dynamics,
    has_parameters,
    has_warmup,
    uses_generic_leapfrog,
)

Published: TypeAlias = Mapping[str, object]

# Published name -> ours, by section; missing fields get the published defaults below.
_DATA = {
    "batch_size": "batch_size",
    "num_global_views": "num_global_views",
    "num_local_views": "num_local_views",
    "out_size": "image_size",
    "global_scale": "global_scale",
}
_MODEL = {
    "projector_type": "projector",
    "split_qp": "split_qp",
}
_RESNET = {"encoder_mode": "head", "encoder_stem": "stem"}
_TOKENS = {"token_layer": "token_layer", "token_d_f": "token_dim", "token_hw": "token_grid"}
_DYNAMICS = {
    "method": "integrator",
    "steps": "steps",
    "learn_dt": "learn_dt",
    "hamiltonian": "hamiltonian",
    "hidden_dim": "hidden_dim",
    "depth": "depth",
    "residual_scale": "residual_scale",
    "base_coeff": "base_coeff",
}
_LOSS = {
    "match": "match",
    "detach_target": "detach_target",
    "energy_weight": "energy_weight",
    "bidirectional": "bidirectional",
}
_TRAIN = {
    "epochs": "epochs",
    "lr": "lr",
    "weight_decay": "weight_decay",
    "warmup_epochs": "warmup_epochs",
    "min_lr_ratio": "min_lr_ratio",
}
_WEIGHTS = {
    "lambda_budget": "budget_weight",
    "lambda_var": "var_weight",
    "lambda_logdet": "logdet_weight",
    "lambda_mean": "mean_weight",
}
_SIGREG = {
    name: name
    for name in ("num_slices", "t_max", "n_points", "clip_value", "subsample", "reduction")
}
_SPECTRUM = {
    name: name
    for name in [
        "bins",
        "base",
        "gauge",
        "binning",
        "span_max",
        "init_loglambda_span",
        "base_ridge",
        "base_strength",
        "delta_clip",
        "center_delta",
        "log_lambda_clip",
        "eps_ridge",
        "curvature_weight",
        "loglambda_l2_weight",
        "cond_weight",
        "cond_max",
        "kappa",
        "eps",
    ]
}
_SPECTRUM_TRAIN = {
    "h_update_interval": "update_interval",
    "h_update_mode": "update_mode",
    "h_grad_clip": "grad_clip",
    "h_adv_mult": "adversarial_multiplier",
    "reg_lr": "lr",
    "h_identity_epochs": "identity_epochs",
    "h_base_ramp_epochs": "base_ramp_epochs",
    "h_learnable_ramp_epochs": "learnable_ramp_epochs",
}


def _converted(name: str, value: object, kind: type) -> Any:
    """Returns a published value converted to the type of our field; YAML reads 1e-4 as a string.

    Raises:
      ConfigError: if it has the wrong type.
    """
    if kind is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if kind is float and isinstance(value, (int, float, str)):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    if kind is bool and value in (0, 1):
        return bool(value)
    if kind is int and isinstance(value, (int, float)) and value == value // 1:
        return int(value)
    if kind is str and isinstance(value, str):
        return value
    raise ConfigError(
        f"the published configuration's {name} is {shown(value)}: it must be of type "
        f"{kind.__name__}."
    )


def _copy(source: Published, names: Mapping[str, str], target: ConfigDict) -> None:
    """Sets the fields that are present, converted to our types."""
    for theirs, ours in names.items():
        value = source.get(theirs)
        if value is not None:
            target[ours] = _converted(theirs, value, target.get_type(ours))


def _section(published: Published, name: str) -> Published:
    """Returns a section, which may be missing.

    Raises:
      ConfigError: if it is not a section.
    """
    found = published.get(name)
    if found is not None and not isinstance(found, Mapping):
        raise ConfigError(
            f"the published configuration's {name} is {shown(found)}: it must be a section."
        )
    return found or {}


def _number(source: Published, name: str, default: float | None = None) -> float:
    """Returns a number from a section.

    Raises:
      ConfigError: if it is missing and has no default, or is not a number.
    """
    value = source.get(name, default)
    if value is None:
        raise ConfigError(f"the published configuration has no {name}.")
    return _converted(name, value, float)


def is_imagenet_script(published: Published) -> bool:
    """Returns whether a configuration belongs to the ImageNet script."""
    return _section(published, "model").get("encoder_stem", "cifar") == "imagenet"


def _set_floors(loss: ConfigDict, floors: Published) -> None:
    """Variance, budget and log-det settings of the HJEPA regularizer."""
    same = {
        "q_per_dim_target": "q_target",
        "p_per_dim_target": "p_target",
        "q_std_floor": "q_std_floor",
        "q_logdet_proj_dim": "logdet_dim",
        "q_logdet_eps": "logdet_eps",
        "q_logdet_refresh_interval": "logdet_refresh_interval",
    }
    _copy(floors, same, loss)
    loss.p_std_floor = _number(floors, "p_std_floor", loss.q_std_floor)
    for half in ("q", "p"):
        loss[f"{half}_logdet_floor"] = _number(floors, f"{half}_logdet_floor")
        for theirs, ours in (
            ("pr_norm_floor", "pr_floor"),
            ("eigmax_frac_ceiling", "eigmax_ceiling"),
        ):
            name = f"{half}_{theirs}"
            absent = floors.get(name) is None
            loss[f"{half}_{ours}"] = None if absent else _number(floors, name)
    for name in ("proj_dim", "eps", "refresh_interval"):
        q, p = (floors.get(f"{half}_logdet_{name}") for half in ("q", "p"))
        if p is not None and p != q:
            raise ConfigError(
                f"q_logdet_{name} ({q}) and p_logdet_{name} ({p}) differ: config.loss has one "
                f"value for both."
            )


def _set_hjepa(config: ConfigDict, published: Published) -> None:
    hjepa, loss, train = (_section(published, name) for name in ("hjepa", "loss", "train"))
    _copy(hjepa, _DYNAMICS, config.dynamics)
    # The published code keeps dt in a float32 buffer.
    config.dynamics.dt = float(np.float32(_number(hjepa, "dt", config.dynamics.dt)))
    _copy(loss, _LOSS, config.loss)
    if config.loss.match == "q":
        config.loss.p_weight = _number(loss, "p_weight", 0.0)
    _copy(train, _WEIGHTS, config.loss)
    _set_floors(config.loss, _section(published, "regularizer"))
    config.train.grad_clip = _number(train, "grad_clip") if train.get("grad_clip") else None
    imagenet = is_imagenet_script(published)
    warmup = 0.0 if imagenet else _number(hjepa, "residual_scale_warmup_epochs", 0.0)
    config.dynamics.residual_scale_warmup_epochs = warmup
    dynamics = Dynamics(**config.dynamics)
    if imagenet and has_parameters(dynamics):
        config.train.predictor_lr = _number(train, "h_lr", 0.1 * config.train.lr)
    config.parity.update(
        epochwise_residual_warmup=not imagenet and has_warmup(dynamics),
        forward_directions_only=imagenet and config.loss.bidirectional,
        q_variance_floor_only=imagenet,
        unclipped_predictor=imagenet
        and has_parameters(dynamics)
        and config.train.grad_clip is not None,
        shared_lr_floor=imagenet and has_parameters(dynamics),
        reference_leapfrog=uses_generic_leapfrog(dynamics),
    )


def _set_sigreg(config: ConfigDict, published: Published) -> None:
    regularizer, train = (_section(published, name) for name in ("regularizer", "train"))
    config.method = "lejepa"
    config.train.grad_clip = None
    _copy(regularizer, _SIGREG, config.sigreg)
    _copy(train, {"lambda_reg": "weight"}, config.sigreg)
    if not config.model.split_qp:
        config.evaluation.state_part = "qp"
    kind = regularizer.get("ham_kind", "identity")
    if regularizer.get("type") != "ham_sigreg" or kind == "identity":
        return
    options = _section(regularizer, "ham_kwargs")
    on_grid = kind == "chain" and {"h", "w", "d_f"} <= set(options)
    config.method = "hamsigreg"
    config.hamsigreg.kind = "chain_grid" if on_grid else _converted("ham_kind", kind, str)
    _copy(options, _SPECTRUM, config.hamsigreg)
    if kind == "learnable":
        _copy(train, _SPECTRUM_TRAIN, config.hamsigreg)
        _copy(regularizer, {"spectral_weight": "regularizer_weight"}, config.hamsigreg)
        config.hamsigreg.gauge = _converted("gauge", options.get("gauge", "logdet"), str)
    config.hamsigreg.reference_layout = config.hamsigreg.kind in GRID_KINDS


def config_from_torch(published: Published) -> ConfigDict:
    """Translates a configuration of the published scripts, deviations included.

    Args:
      published: the nested dictionary of its YAML file, or of a checkpoint's `config`.

    Returns:
      Our configuration, with a `parity` section that reproduces the script exactly.

    Raises:
      ConfigError: if it uses an unsupported feature or has an invalid value.
    """
    config = base_config()
    imagenet = is_imagenet_script(published)
    config.data.name = "folder" if imagenet else "cifar100"
    config.seed = _converted("seed", published.get("seed", config.seed), int)
    model, data = _section(published, "model"), _section(published, "data")
    # Published defaults for fields that the configuration does not set.
    config.model.split_qp = False
    _copy(data, _DATA, config.data)
    if config.data.num_local_views > 0:
        _copy(data, {"local_scale": "local_scale"}, config.data)
        # All published crops have the same size.
        config.data.local_size = config.data.image_size
    _copy(model, _MODEL, config.model)
    _copy(model, _RESNET, config.resnet)
    if config.resnet.head == "tokens":
        _copy(model, _TOKENS, config.resnet)
    else:
        _copy(model, {"embed_dim": "embed_dim"}, config.resnet)
    if config.model.projector == "mlp":
        names = {"proj_hidden": "projector_hidden", "proj_out": "projector_dim"}
        _copy(model, names, config.model)
    train = _section(published, "train")
    _copy(train, _TRAIN, config.train)
    precision = train.get("precision", "bf16")
    config.model.compute_dtype = "float32" if precision == "fp32" else "bfloat16"
    if "hjepa" in published:
        _set_hjepa(config, published)
    else:
        _set_sigreg(config, published)
    config.evaluation.reference_evaluation = True
    bad = [p for name, value in flatten(config) for p in problems_of(rows()[name], value)]
    if bad:
        raise ConfigError(f"the published configuration is not supported: {' '.join(bad)}")
    return config
