"""What values the fields of a configuration may have, and when a field has an effect."""

from __future__ import annotations

from collections.abc import Callable

from hjepa_jax.config import Config, base_config

CHOICES: dict[str, tuple[str, ...]] = {
    "objective": ("hjepa", "sigreg"),
    "model.stem": ("cifar", "imagenet"),
    "model.mode": ("tokens", "global"),
    "model.token_layer": ("layer2", "layer3", "layer4"),
    "model.projector": ("identity", "mlp"),
    "model.remat": ("none", "blocks"),
    "model.batch_norm": ("global", "local"),
    "model.compute_dtype": ("bfloat16", "float32"),
    "dynamics.predictor": ("hamiltonian", "mlp", "identity"),
    "dynamics.hamiltonian": ("separable", "learnable", "quadratic"),
    "dynamics.integrator": ("leapfrog", "symplectic_euler", "yoshida4", "implicit_midpoint"),
    "dynamics.activation": ("gelu", "relu", "silu"),
    "loss.match": ("q", "p", "qp"),
    "loss.pairing": ("first_two", "all_global", "local_to_global"),
    "sigreg.loss_form": ("additive", "convex"),
    "sigreg.statistics": ("per_view", "flattened"),
    "sigreg.weight_type": ("gaussian", "uniform"),
    "sigreg.reduction": ("mean", "sum"),
    "spectral.kind": ("identity", "diag", "chain", "chain_grid", "learnable"),
    "spectral.gauge": ("trace", "logdet"),
    "spectral.base": ("identity", "r2", "laplacian"),
    "spectral.binning": ("linear_radius", "linear_radius_sq", "quantile_radius"),
    "spectral.update_mode": ("max", "min"),
    "data.backend": ("host", "device"),
    "data.on_corrupt": ("error", "skip"),
    "evaluation.variant": ("q", "p", "qp"),
    "evaluation.coordinates": ("raw", "sqrt_h"),
    "train.on_nonfinite": ("stop", "skip"),
    "checkpoint.best_mode": ("min", "max"),
}
# Fields that hold several values, each one of these.
ELEMENT_CHOICES: dict[str, tuple[str, ...]] = {
    "evaluation.robustness": ("grey", "noise", "blur", "shift", "contrast", "occlusion"),
}
# Fields that hold several numbers above 0.
POSITIVE_ELEMENTS = (
    "model.stage_blocks",
    "evaluation.knn_k",
    "evaluation.few_shot",
    "evaluation.probe_lr_sweep",
)

POSITIVE = [
    "data.batch_size",
    "data.num_global_views",
    "data.image_size",
    "data.local_size",
    "data.prefetch_batches",
    "data.num_threads",
    "data.device_prefetch",
    "model.width",
    "model.token_dim",
    "model.token_hw",
    "model.embed_dim",
    "model.projector_hidden",
    "model.projector_dim",
    "dynamics.steps",
    "dynamics.dt",
    "dynamics.hidden_dim",
    "dynamics.depth",
    "loss.std_eps",
    "loss.logdet_dim",
    "loss.logdet_eps",
    "loss.logdet_refresh_interval",
    "sigreg.num_slices",
    "sigreg.t_max",
    "sigreg.subsample",
    "sigreg.refresh_interval",
    "train.epochs",
    "train.max_steps",
    "train.lr",
    "train.predictor_lr",
    "train.adam_eps",
    "train.grad_clip",
    "train.max_skips_in_a_row",
    "train.accumulation",
    "evaluation.batch_size",
    "evaluation.probe_epochs",
    "evaluation.headline_k",
    "evaluation.knn_block",
    "evaluation.probe_batch_size",
    "evaluation.probe_lr",
    "evaluation.few_shot_trials",
    "evaluation.max_pairs",
    "evaluation.spectrum_samples",
    "evaluation.spectrum_top",
    "evaluation.alignment_samples",
    "evaluation.online_every_epochs",
    "evaluation.online_images",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "log.every_steps",
]
NOT_NEGATIVE = [
    "data.num_local_views",
    "data.num_workers",
    "data.cache_mb",
    "dynamics.damping",
    "dynamics.residual_scale_warmup_epochs",
    "loss.p_weight",
    "loss.energy_weight",
    "loss.budget_weight",
    "loss.var_weight",
    "loss.logdet_weight",
    "loss.mean_weight",
    "evaluation.probe_weight_decay",
    "train.weight_decay",
    "checkpoint.keep_best",
    "train.warmup_epochs",
    "train.warmup_init_ratio",
    "train.min_lr_ratio",
    "sigreg.weight",
]
PROBABILITIES = tuple(
    f"data.augment.{name}_probability" for name in ("flip", "jitter", "grey", "blur", "solarise")
)

_CHAIN_FIELDS = ("kind", "kappa", "eps", "gauge", "identity_epochs", "base_ramp_epochs")
_LEARNABLE = tuple(name for name in base_config().spectral if name not in _CHAIN_FIELDS)


def _has_predictor(config: Config) -> bool:
    return config.objective == "hjepa" and config.dynamics.predictor != "identity"


def _chain(config: Config) -> bool:
    return config.objective == "sigreg" and config.spectral.kind in ("chain", "chain_grid")


def _spectrum(config: Config) -> bool:
    kinds = ("chain", "chain_grid", "learnable")
    return config.objective == "sigreg" and config.spectral.kind in kinds


# Fields that have an effect only under a condition: prefix -> (condition, how to make it hold).
_Condition = Callable[[Config], bool]
USED_WHEN: dict[str, tuple[_Condition, str]] = {
    "dynamics": (lambda c: c.objective == "hjepa", "config.objective='hjepa'"),
    "loss": (lambda c: c.objective == "hjepa", "config.objective='hjepa'"),
    "sigreg": (lambda c: c.objective == "sigreg", "config.objective='sigreg'"),
    "spectral.kind": (lambda c: c.objective == "sigreg", "config.objective='sigreg'"),
    "spectral.kappa": (_chain, "config.spectral.kind='chain' or 'chain_grid'"),
    "spectral.eps": (_chain, "config.spectral.kind='chain' or 'chain_grid'"),
    "spectral.gauge": (_spectrum, "config.spectral.kind='chain', 'chain_grid' or 'learnable'"),
    "spectral.identity_epochs": (
        _spectrum,
        "config.spectral.kind='chain', 'chain_grid' or 'learnable'",
    ),
    "spectral.base_ramp_epochs": (
        _spectrum,
        "config.spectral.kind='chain', 'chain_grid' or 'learnable'",
    ),
    **{
        f"spectral.{name}": (
            lambda c: c.objective == "sigreg" and c.spectral.kind == "learnable",
            "config.spectral.kind='learnable'",
        )
        for name in _LEARNABLE
    },
    "parity.reference_layout": (
        lambda c: c.spectral.kind in ("chain_grid", "learnable"),
        "config.spectral.kind='chain_grid' or 'learnable'",
    ),
    "train.predictor_lr": (_has_predictor, "a predictor that has parameters"),
    "model.token": (lambda c: c.model.mode == "tokens", "config.model.mode='tokens'"),
    "model.embed_dim": (lambda c: c.model.mode == "global", "config.model.mode='global'"),
    "model.projector_": (lambda c: c.model.projector == "mlp", "config.model.projector='mlp'"),
    "data.local_s": (lambda c: c.data.num_local_views > 0, "config.data.num_local_views above 0"),
    **{
        f"dynamics.{name}": (
            lambda c: c.dynamics.predictor == "hamiltonian",
            "config.dynamics.predictor='hamiltonian'",
        )
        for name in ("hamiltonian", "integrator", "steps", "dt", "learn_dt", "damping")
    },
    "dynamics.hidden_dim": (_has_predictor, "a predictor that has parameters"),
    "dynamics.depth": (_has_predictor, "a predictor that has parameters"),
    "dynamics.midpoint": (
        lambda c: c.dynamics.integrator == "implicit_midpoint",
        "config.dynamics.integrator='implicit_midpoint'",
    ),
    "train.max_skips_in_a_row": (
        lambda c: c.train.on_nonfinite == "skip",
        "config.train.on_nonfinite='skip'",
    ),
    "checkpoint.best_": (lambda c: c.checkpoint.keep_best > 0, "config.checkpoint.keep_best"),
    "loss.p_weight": (lambda c: c.loss.match == "q", "config.loss.match='q'"),
    "evaluation.coordinates": (
        lambda c: c.objective == "sigreg" and c.spectral.kind != "identity",
        "config.objective='sigreg' with another config.spectral.kind than 'identity'",
    ),
    "evaluation.online_images": (
        lambda c: c.evaluation.online_every_epochs is not None,
        "config.evaluation.online_every_epochs",
    ),
}
