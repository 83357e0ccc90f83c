"""What each key of a published configuration becomes; `docs/parity.md` has these tables.

A key that stands in none of them is refused by name, so that no experiment changes silently.
"""

from __future__ import annotations

import dataclasses

from hjepa_jax.interop.published.scripts import (
    ALWAYS,
    CHAIN,
    CIFAR,
    HJEPA,
    IMAGENET,
    LEARNABLE,
    LEJEPA,
    NOT_LEARNABLE_H,
    REGULARIZED,
    TRANSFORMED,
    Branch,
)
from hjepa_jax.interop.published.values import (
    Reader,
    as_field,
    as_float32,
    epoch_after,
    one_of,
    zero_is_none,
)


@dataclasses.dataclass(frozen=True)
class Mapped:
    """A key that becomes a field.

    Attributes:
      field: dotted name of our field.
      when: where the scripts read the key; elsewhere it has no effect.
      read: converts the value.
      note: what differs from a plain copy.
    """

    field: str
    when: Branch = ALWAYS
    read: Reader = as_field
    note: str = ""


def _same(section: str, ours: str, names: str, when: Branch = ALWAYS) -> dict[str, Mapped]:
    """Returns the keys of a section that have the same names in ours."""
    return {f"{section}.{name}": Mapped(f"{ours}.{name}", when) for name in names.split()}


_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
_METHODS = {"sigreg": "lejepa", "ham_sigreg": "hamsigreg", "none": "lejepa"}
_KINDS = {
    "identity": "diag",  # not used: the method becomes 'lejepa'
    "diag": "diag",
    "chain": "chain",
    "learnable": "learnable",
}
_OF_Q = "that of q if it is missing"
_NEXT = "the epoch after it, counted from 1"

_ENCODER = {
    "data.batch_size": Mapped("data.batch_size"),
    "data.drop_last": Mapped("data.drop_last"),
    "data.num_global_views": Mapped("data.num_global_views"),
    "data.num_local_views": Mapped("data.num_local_views"),
    "data.out_size": Mapped("data.image_size", note="also of the local views"),
    "data.global_scale": Mapped("data.global_scale"),
    "data.local_scale": Mapped("data.local_scale"),
    "model.encoder_mode": Mapped("resnet.head"),
    "model.encoder_stem": Mapped("resnet.stem", note="tells the two scripts apart"),
    "model.token_layer": Mapped("resnet.token_layer"),
    "model.token_d_f": Mapped("resnet.token_dim"),
    "model.token_hw": Mapped("resnet.token_grid"),
    "model.embed_dim": Mapped("resnet.embed_dim"),
    "model.split_qp": Mapped("model.split_qp"),
    "model.projector_type": Mapped("model.projector"),
    "model.proj_hidden": Mapped("model.projector_hidden"),
    "model.proj_out": Mapped("model.projector_dim"),
}
_OPTIMIZER = {
    "seed": Mapped("seed"),
    "train.precision": Mapped("model.compute_dtype", read=one_of(_PRECISIONS)),
    "train.epochs": Mapped("train.epochs"),
    "train.lr": Mapped("train.lr"),
    "train.h_lr": Mapped(
        "train.predictor_lr", IMAGENET, note="a tenth of `train.lr` if it is missing or null"
    ),
    "train.weight_decay": Mapped("train.weight_decay"),
    "train.warmup_epochs": Mapped(
        "train.warmup_epochs",
        note="the rate is constant if this is `train.epochs` or more, or 0 with "
        "`train.min_lr_ratio: 0`",
    ),
    "train.min_lr_ratio": Mapped("train.min_lr_ratio"),
    "train.grad_clip": Mapped("train.grad_clip", HJEPA, zero_is_none, "0 is no clipping"),
}
_HJEPA = {
    "hjepa.method": Mapped("dynamics.integrator"),
    "hjepa.dt": Mapped("dynamics.dt", read=as_float32, note="rounded to float32"),
    **_same("hjepa", "dynamics", "steps learn_dt hamiltonian hidden_dim depth residual_scale"),
    "hjepa.residual_scale_warmup_epochs": Mapped("dynamics.residual_scale_warmup_epochs", CIFAR),
    "hjepa.base_coeff": Mapped("dynamics.base_coeff", NOT_LEARNABLE_H),
    **_same("loss", "loss", "match detach_target energy_weight bidirectional p_weight"),
    "train.lambda_budget": Mapped("loss.budget_weight"),
    "train.lambda_var": Mapped("loss.var_weight"),
    "train.lambda_logdet": Mapped("loss.logdet_weight"),
    "train.lambda_mean": Mapped("loss.mean_weight"),
    "regularizer.q_per_dim_target": Mapped("loss.q_target"),
    "regularizer.p_per_dim_target": Mapped("loss.p_target"),
    "regularizer.q_std_floor": Mapped("loss.q_std_floor"),
    "regularizer.p_std_floor": Mapped("loss.p_std_floor", note=_OF_Q),
    "regularizer.q_logdet_floor": Mapped("loss.q_logdet_floor"),
    "regularizer.p_logdet_floor": Mapped("loss.p_logdet_floor"),
    "regularizer.q_logdet_proj_dim": Mapped("loss.logdet_dim"),
    "regularizer.p_logdet_proj_dim": Mapped("loss.p_logdet_dim", note=_OF_Q),
    "regularizer.q_logdet_eps": Mapped("loss.logdet_eps"),
    "regularizer.p_logdet_eps": Mapped("loss.p_logdet_eps", note=_OF_Q),
    "regularizer.q_logdet_refresh_interval": Mapped("loss.logdet_refresh_interval"),
    "regularizer.p_logdet_refresh_interval": Mapped("loss.p_logdet_refresh_interval", note=_OF_Q),
    "regularizer.q_pr_norm_floor": Mapped("loss.q_pr_floor"),
    "regularizer.p_pr_norm_floor": Mapped("loss.p_pr_floor"),
    "regularizer.q_eigmax_frac_ceiling": Mapped("loss.q_eigmax_ceiling"),
    "regularizer.p_eigmax_frac_ceiling": Mapped("loss.p_eigmax_ceiling"),
}
_SIGREG = {
    "regularizer.type": Mapped(
        "method", LEJEPA, one_of(_METHODS), "`none` is `lejepa` with `sigreg.weight: 0`"
    ),
    "train.lambda_reg": Mapped("sigreg.weight", REGULARIZED),
    **_same(
        "regularizer",
        "sigreg",
        "num_slices t_max n_points weight_type clip_value subsample reduction refresh_interval",
        REGULARIZED,
    ),
    "train.lambda_reg_warmup_epochs": Mapped(
        "sigreg.weight_warmup_epochs", REGULARIZED, note="with `sigreg.epochwise_weight_warmup`"
    ),
    "regularizer.t_min": Mapped(
        "sigreg.t_min", REGULARIZED, note="the two-sided statistic; `t_max` is 5 if it is missing"
    ),
    "regularizer.num_t": Mapped("sigreg.num_t", REGULARIZED),
}
_HAMSIGREG = {
    "regularizer.ham_kind": Mapped(
        "hamsigreg.kind",
        TRANSFORMED,
        one_of(_KINDS),
        "`chain` if it is missing; `identity` is `method: lejepa`; a chain with a grid is "
        "`chain_grid`",
    ),
    **_same("regularizer.ham_kwargs", "hamsigreg", "kappa eps beta"),
    "regularizer.ham_kwargs.normalize_trace": Mapped(
        "hamsigreg.gauge",
        CHAIN,
        read=one_of({True: "trace", False: "logdet"}),
        note="true is `trace`, false is `logdet`",
    ),
    **_same(
        "regularizer.ham_kwargs",
        "hamsigreg",
        "bins base binning span_max init_loglambda_span base_ridge base_strength delta_clip "
        "center_delta log_lambda_clip eps_ridge curvature_weight loglambda_l2_weight cond_weight "
        "cond_max",
    ),
    "regularizer.ham_kwargs.gauge": Mapped(
        "hamsigreg.gauge", LEARNABLE, note="`logdet` if it is missing"
    ),
    "regularizer.spectral_weight": Mapped("hamsigreg.regularizer_weight", LEARNABLE),
    "train.reg_lr": Mapped("hamsigreg.lr", LEARNABLE),
    "train.h_update_interval": Mapped("hamsigreg.update_interval", LEARNABLE),
    "train.h_update_mode": Mapped("hamsigreg.update_mode", LEARNABLE),
    "train.h_grad_clip": Mapped("hamsigreg.grad_clip", LEARNABLE),
    "train.h_grad_scale": Mapped(
        "hamsigreg.grad_scale", LEARNABLE, note="applied before `h_grad_clip`"
    ),
    "train.h_adv_mult": Mapped("hamsigreg.adversarial_multiplier", LEARNABLE),
    "train.freeze_h_epochs": Mapped(
        "hamsigreg.frozen_epochs", LEARNABLE, note="no update in these first epochs"
    ),
    "train.h_learnable_start_epoch": Mapped(
        "hamsigreg.learnable_start_epoch", LEARNABLE, epoch_after, _NEXT
    ),
    "train.h_alpha_start_epoch": Mapped(
        "hamsigreg.alpha_start_epoch",
        LEARNABLE,
        epoch_after,
        f"{_NEXT}; `h_learnable_start_epoch` if it is missing",
    ),
    "train.h_identity_epochs": Mapped("hamsigreg.identity_epochs", LEARNABLE),
    "train.h_base_ramp_epochs": Mapped("hamsigreg.base_ramp_epochs", LEARNABLE),
    "train.h_learnable_ramp_epochs": Mapped("hamsigreg.learnable_ramp_epochs", LEARNABLE),
}
MAPPED: dict[str, Mapped] = {**_ENCODER, **_OPTIMIZER, **_HJEPA, **_SIGREG, **_HAMSIGREG}

# Keys whose only value that can be followed is what ours always does, and why.
FIXED: dict[str, tuple[object, str]] = {
    "hjepa.integrate_fp32": (True, "the flow is computed in float32"),
    "regularizer.ddp_sync": (True, "statistics are of the batch of all devices"),
}
# Keys that are compared with what the encoder gives.
CHECKED: dict[str, str] = {
    "regularizer.ham_kwargs.h": "must be the rows of the encoder's token grid",
    "regularizer.ham_kwargs.w": "must be the columns of the encoder's token grid",
    "regularizer.ham_kwargs.d_f": "must be the channels of the encoder's tokens",
}
_PLACE = "where files are; give --config.data.root or --workdir"
_LOADER = "how images are loaded, not which"
_OUTPUT = "what is written, and when"
NO_EFFECT: dict[str, str] = {
    "data.root": _PLACE,
    "data.num_workers": _LOADER,
    "data.pin_memory": _LOADER,
    "data.persistent_workers": _LOADER,
    "data.prefetch_factor": _LOADER,
    "hjepa.activation": "no script reads it: the activation is always GELU",
    "train.ckpt_dir": _PLACE,
    "train.checkpoint_every": _OUTPUT,
    "train.log_every": _OUTPUT,
    "train.profile_timing": _OUTPUT,
    "train.profile_every": _OUTPUT,
    "train.device": "the device of a run is chosen by its environment",
}
