"""The sections `loss`, `sigreg`, `spectral` and `parity`: the objectives."""

from __future__ import annotations

import dataclasses

from hjepa_jax.config.conditions import (
    CHAIN,
    GRID_KINDS,
    HJEPA,
    LEARNABLE,
    SPECTRUM,
    has_parameters,
    has_warmup_of_residual,
    uses_generic_leapfrog,
)
from hjepa_jax.config.fields import FREE, Condition, field

_Q_ALONE = Condition(lambda c: c.loss.match == "q", "config.loss.match='q'")
_WEIGHT = {"at_least": 0.0}
_FLOOR = {"at_least": -100.0, "at_most": 100.0}


@dataclasses.dataclass(frozen=True)
class Loss:
    """The HJEPA objective."""

    match: str = field("q", "Part of the state that is compared.", choices=("q", "p", "qp"))
    p_weight: float = field(0.2, "Weight of p's error beside match 'q'.", used=_Q_ALONE, **_WEIGHT)
    energy_weight: float = field(0.0, "Weight of the energy drift along the flow.", **_WEIGHT)
    bidirectional: bool = field(True, "Also predict the source view from the target.")
    detach_target: bool = field(True, "No gradient through the target.")
    pairing: str = field(
        "first_two",
        "Views that predict each other: the first two, all global ones, or every "
        "local one every global one.",
        choices=("first_two", "all_global", "local_to_global"),
    )
    budget_weight: float = field(0.2, "Weight of the budget.", **_WEIGHT)
    var_weight: float = field(0.5, "Weight of the variance floor.", **_WEIGHT)
    logdet_weight: float = field(0.5, "Weight of the projected log-det floor.", **_WEIGHT)
    mean_weight: float = field(0.05, "Weight of the squared mean.", **_WEIGHT)
    q_target: float = field(1.0, "Budget: target of mean(q^2).", at_least=0)
    p_target: float = field(1.0, "Budget: target of mean(p^2).", at_least=0)
    q_std_floor: float = field(0.2, "Floor of each dimension's deviation, of q.", at_least=0)
    p_std_floor: float = field(0.2, "Floor of each dimension's deviation, of p.", at_least=0)
    std_eps: float = field(1e-4, "Added to the variance under the root.", at_least=1e-12, at_most=1)
    logdet_dim: int = field(128, "Dimensions of the random projection.", above=0, at_most=65536)
    logdet_eps: float = field(1e-4, "Added to the covariance's diagonal.", at_least=1e-8, at_most=1)
    logdet_refresh_interval: int = field(16, "Steps between new projections.", above=0)
    q_logdet_floor: float = field(-1.5, "Floor of the log-det per dimension, of q.", **_FLOOR)
    p_logdet_floor: float = field(-1.5, "Floor of the log-det per dimension, of p.", **_FLOOR)
    q_pr_floor: float | None = field(
        0.12, "Floor of q's participation ratio per dimension; None = off.", at_least=0, at_most=1
    )
    p_pr_floor: float | None = field(
        0.16, "Floor of p's participation ratio per dimension; None = off.", at_least=0, at_most=1
    )
    q_eigmax_ceiling: float | None = field(
        0.35, "Ceiling of the largest eigenvalue's share, of q; None = off.", at_least=0, at_most=1
    )
    p_eigmax_ceiling: float | None = field(
        0.30, "Ceiling of the largest eigenvalue's share, of p; None = off.", at_least=0, at_most=1
    )


@dataclasses.dataclass(frozen=True)
class Sigreg:
    """The LeJEPA baseline."""

    loss_form: str = field(
        "additive",
        "'additive' (pred + weight * sigreg) or 'convex' ((1 - weight) * pred + weight * sigreg).",
        choices=("additive", "convex"),
    )
    weight: float = field(0.02, "Weight of SIGReg.", **_WEIGHT)
    weight_warmup_epochs: float = field(
        0.0, "Epochs over which the weight grows linearly from 0; 0 = constant.", at_least=0
    )
    statistics: str = field(
        "per_view",
        "Statistics of each view, or flattened over all.",
        choices=("per_view", "flattened"),
    )
    num_slices: int = field(64, "Random directions.", above=0, at_most=65536)
    t_max: float = field(3.0, "Largest frequency.", at_least=0.01, at_most=100)
    n_points: int = field(9, "Frequencies.", at_least=3, at_most=1025, odd=True)
    weight_type: str = field(
        "gaussian", "Weight of the frequencies.", choices=("gaussian", "uniform")
    )
    subsample: int | None = field(
        None, "Use only this many images for the statistic; None = all.", above=0
    )
    refresh_interval: int = field(1, "Steps between new directions.", above=0)
    clip_value: float | None = field(
        None, "Statistics below this count as zero; None = off.", at_least=0
    )
    reduction: str = field("mean", "Over slices and views.", choices=("mean", "sum"))


@dataclasses.dataclass(frozen=True)
class Spectral:
    """The transform of HamSIGReg: SIGReg of H^{1/2} z."""

    kind: str = field(
        "identity",
        "'identity' (plain SIGReg), 'diag', 'chain' (along the flat state), "
        "'chain_grid' (over the token grid) or 'learnable' (radial envelope).",
        choices=("identity", "diag", "chain", "chain_grid", "learnable"),
    )
    kappa: float = field(
        1.0, "Eigenvalues of the chains: eps + kappa * Laplacian.", at_least=0, used=CHAIN
    )
    eps: float = field(
        1e-3, "Eigenvalues of the chains: eps + kappa * Laplacian.", at_least=1e-6, used=CHAIN
    )
    gauge: str = field(
        "trace",
        "Spectrum normalized to mean 1 ('trace') or geometric mean 1 ('logdet').",
        choices=("trace", "logdet"),
        used=SPECTRUM,
    )
    base: str = field(
        "laplacian",
        "Fixed spectrum under the envelope.",
        choices=("identity", "r2", "laplacian"),
        used=LEARNABLE,
    )
    base_ridge: float = field(
        1.0, "a of the base a + b r^2 (or Laplacian).", at_least=1e-6, used=LEARNABLE
    )
    base_strength: float = field(
        4.0, "b of the base a + b r^2 (or Laplacian).", at_least=0, used=LEARNABLE
    )
    bins: int = field(8, "Radial bins of the envelope.", at_least=2, at_most=65536, used=LEARNABLE)
    binning: str = field(
        "linear_radius",
        "How frequencies fall into bins.",
        choices=("linear_radius", "linear_radius_sq", "quantile_radius"),
        used=LEARNABLE,
    )
    span_max: float = field(
        0.5, "Largest log-span of the envelope.", at_least=1e-6, at_most=50, used=LEARNABLE
    )
    init_loglambda_span: float = field(
        0.03, "Log-span of the envelope at the start.", at_least=0, at_most=50, used=LEARNABLE
    )
    delta_clip: float = field(
        0.0, "Smooth bound of the envelope; 0 = off.", at_least=0, at_most=50, used=LEARNABLE
    )
    center_delta: bool = field(False, "Subtract the envelope's mean over the grid.", used=LEARNABLE)
    log_lambda_clip: float = field(
        3.0, "Hard bound of the log spectrum.", at_least=1e-6, at_most=50, used=LEARNABLE
    )
    eps_ridge: float = field(
        0.0, "Added to the spectrum, which is then gauged again.", at_least=0, used=LEARNABLE
    )
    regulariser_weight: float = field(
        0.1,
        "Weight of the spectrum's regularizer.",
        at_least=0,
        used=LEARNABLE,
        aliases=("regularizer_weight",),
    )
    curvature_weight: float = field(
        1e-3, "Regularizer: weight of the curvature.", at_least=0, used=LEARNABLE
    )
    loglambda_l2_weight: float = field(
        1e-4, "Regularizer: weight of the squared log deviation.", at_least=0, used=LEARNABLE
    )
    cond_max: float = field(
        0.0,
        "Regularizer: condition number from which it counts; 0 = off.",
        at_least=0,
        used=LEARNABLE,
    )
    cond_weight: float = field(
        0.0, "Regularizer: weight of the condition number.", at_least=0, used=LEARNABLE
    )
    identity_epochs: float = field(0.0, "Epochs at the identity.", at_least=0, used=SPECTRUM)
    base_ramp_epochs: float = field(
        0.0, "Epochs over which base (or chain) then fades in.", at_least=0, used=SPECTRUM
    )
    learnable_ramp_epochs: float = field(
        0.0, "Epochs over which the envelope fades in.", at_least=0, used=LEARNABLE
    )
    update_mode: str = field(
        "max",
        "'max' (adversarial) or 'min' (joint) SIGReg.",
        choices=("max", "min"),
        used=LEARNABLE,
    )
    update_interval: int = field(10, "Steps between its updates.", above=0, used=LEARNABLE)
    lr: float = field(
        1e-3, "Learning rate of its AdamW, which has no decay.", at_least=1e-12, used=LEARNABLE
    )
    grad_scale: float = field(
        1.0, "Factor of its gradients, before clipping.", at_least=1e-6, used=LEARNABLE
    )
    grad_clip: float | None = field(
        1.0, "Norm of its gradients; None = no clipping.", at_least=1e-6, used=LEARNABLE
    )
    adversarial_multiplier: float = field(
        1.0, "Factor of SIGReg in its loss.", at_least=0, used=LEARNABLE
    )
    freeze_after_epochs: float | None = field(
        None, "No updates from this epoch on; None = never frozen.", above=0, used=LEARNABLE
    )


@dataclasses.dataclass(frozen=True)
class Parity:
    """Behaviors of the published scripts where ours differs (docs/parity.md).

    All False is what the method's mathematics says.
    """

    epochwise_residual_warmup: bool = field(
        False,
        "residual_scale grows at the start of each epoch instead of every step.",
        used=Condition(
            has_warmup_of_residual, "config.dynamics.residual_scale_warmup_epochs above 0"
        ),
    )
    forward_directions_only: bool = field(
        False,
        "The backward prediction also flows forward in time.",
        used=Condition(
            lambda c: c.objective == "hjepa" and c.loss.bidirectional,
            "config.objective='hjepa' with config.loss.bidirectional=True",
        ),
    )
    q_variance_floor_only: bool = field(False, "The variance floor counts q alone.", used=HJEPA)
    unclipped_predictor: bool = field(
        False,
        "The predictor's gradient is neither clipped nor counted in the norm.",
        used=Condition(
            lambda c: has_parameters(c) and c.train.grad_clip is not None,
            "config.train.grad_clip and a predictor that has parameters",
        ),
    )
    shared_lr_floor: bool = field(
        False,
        "The predictor's learning rate decays to the floor of the main one.",
        used=Condition(
            lambda c: has_parameters(c) and c.train.predictor_lr is not None,
            "config.train.predictor_lr",
        ),
    )
    reference_leapfrog: bool = field(
        False,
        "The generic leapfrog differentiates through the previous kick.",
        used=Condition(
            uses_generic_leapfrog,
            "config.dynamics.hamiltonian='learnable', or 'quadratic' with integrator 'leapfrog'",
        ),
    )
    reference_layout: bool = field(
        False,
        "Grid spectra read the flat state without regard to split_qp.",
        used=Condition(
            lambda c: c.objective == "sigreg" and c.spectral.kind in GRID_KINDS,
            "config.spectral.kind='chain_grid' or 'learnable'",
        ),
    )
    reference_evaluation: bool = field(
        False,
        "kNN ranks ties, and classes without a vote, by class number; random pairs repeat.",
        resume=FREE,
    )
