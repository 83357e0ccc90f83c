"""The sections of HJEPA: `dynamics`, `loss` and `parity`."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

from hjepa_jax.config.fields import FREE, Condition, field
from hjepa_jax.config.settings import Settings
from hjepa_jax.dynamics.hamiltonian import Activation
from hjepa_jax.dynamics.integrators import Integrator
from hjepa_jax.objectives.hjepa import Match, Pairing
from hjepa_jax.objectives.regularizers import BudgetOf


def has_potential(dynamics: Dynamics) -> bool:
    """Returns whether the flow has a learned potential with a residual scale."""
    return dynamics.predictor == "hamiltonian" and dynamics.hamiltonian != "quadratic"


def has_parameters(dynamics: Dynamics) -> bool:
    """Returns whether the predictor has parameters."""
    return dynamics.predictor != "identity" and dynamics.hamiltonian != "quadratic"


def has_warmup(dynamics: Dynamics) -> bool:
    """Returns whether the residual scale grows during training."""
    return has_potential(dynamics) and dynamics.residual_scale_warmup_epochs > 0


def uses_generic_leapfrog(dynamics: Dynamics) -> bool:
    """Returns whether parity.reference_leapfrog changes the flow."""
    return (
        dynamics.predictor == "hamiltonian"
        and dynamics.hamiltonian != "separable"
        and (dynamics.integrator == "leapfrog" or dynamics.hamiltonian == "learnable")
    )


def _dynamics(settings: Settings) -> Dynamics:
    return settings.section(Dynamics)


_MOVES = Condition(
    lambda c: _dynamics(c).predictor != "identity",
    "config.dynamics.predictor='hamiltonian' or 'mlp'",
)
_FLOWS = Condition(
    lambda c: _dynamics(c).predictor == "hamiltonian",
    "config.dynamics.predictor='hamiltonian'",
)
_RUNS_BACKWARD = Condition(
    lambda c: (
        (_dynamics(c).predictor, _dynamics(c).hamiltonian, _dynamics(c).integrator)
        == ("hamiltonian", "separable", "leapfrog")
    ),
    "config.dynamics.predictor='hamiltonian' with hamiltonian='separable', integrator='leapfrog'",
)
_MIDPOINT = Condition(
    lambda c: _dynamics(c).integrator == "implicit_midpoint",
    "config.dynamics.integrator='implicit_midpoint'",
)
_PREDICTOR = Condition(lambda c: has_parameters(_dynamics(c)), "a predictor that has parameters")
_POTENTIAL = Condition(
    lambda c: has_potential(_dynamics(c)), "a config.dynamics.hamiltonian with a potential"
)
_Q_ALONE = Condition(lambda c: c.section(Loss).match == "q", "config.loss.match='q'")
_WEIGHT = {"at_least": 0.0}
_FLOOR = {"at_least": -100.0, "at_most": 100.0}


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """The predictor of one view's state from another's."""

    predictor: Literal["hamiltonian", "mlp", "identity"] = field(
        "hamiltonian",
        "'hamiltonian', 'mlp' (matched parameter count) or 'identity'.",
    )
    hamiltonian: Literal["separable", "learnable", "quadratic"] = field(
        "separable",
        "Form of the energy; a matched MLP has the same parameter count.",
        used=_MOVES,
    )
    integrator: Integrator = field(
        "leapfrog",
        "Integrator of the flow.",
        used=_FLOWS,
    )
    steps: int = field(
        2,
        "Steps of the flow.",
        above=0,
        at_most=1024,
        used=_MOVES,
        aliases="leapfrog_steps num_leapfrog_steps",
    )
    dt: float = field(
        0.05, "Step size.", at_least=1e-6, at_most=100, used=_MOVES, aliases="step_size delta_t"
    )
    learn_dt: bool = field(
        False,
        "Learn dt through a softplus; an error for training, where dt collapses to zero.",
        used=_MOVES,
    )
    damping: float = field(
        0.0, "Conformal-symplectic momentum damping rate; 0 = none.", at_least=0, used=_FLOWS
    )
    reversible: bool = field(
        False,
        "Recompute the flow in the backward pass by running it backward: memory constant in steps, "
        "for about twice the flow's time.",
        used=_RUNS_BACKWARD,
        resume=FREE,
    )
    hidden_dim: int = field(
        256, "Width of the residual's hidden layers.", above=0, at_most=65536, used=_PREDICTOR
    )
    depth: int = field(2, "Hidden layers of the residual.", above=0, at_most=256, used=_PREDICTOR)
    activation: Activation = field("gelu", "Activation of the residual.", used=_PREDICTOR)
    residual_scale: float = field(
        0.02, "Weight of the residual f in the potential.", at_least=0, at_most=100, used=_POTENTIAL
    )
    residual_scale_warmup_epochs: float = field(
        10.0,
        "Epochs over which residual_scale grows linearly from 0.",
        at_least=0,
        used=_POTENTIAL,
        auto=True,
    )
    base_coeff: float = field(
        0.1, "Stiffness of the potential's quadratic well.", at_least=0, used=_POTENTIAL
    )
    midpoint_iterations: int = field(
        50,
        "Maximum number of implicit_midpoint iterations.",
        above=0,
        at_most=10_000,
        used=_MIDPOINT,
    )
    midpoint_tolerance: float = field(
        1e-6,
        "Residual at which implicit_midpoint has converged.",
        at_least=1e-12,
        at_most=1,
        used=_MIDPOINT,
    )


@dataclasses.dataclass(frozen=True)
class Loss:
    """The HJEPA objective."""

    match: Match = field("q", "Part of the state that is compared.")
    p_weight: float = field(
        0.2, "Weight of p's error in addition to match 'q'.", used=_Q_ALONE, **_WEIGHT
    )
    energy_weight: float = field(0.0, "Weight of the energy drift along the flow.", **_WEIGHT)
    bidirectional: bool = field(True, "Also predict the source view from the target.")
    detach_target: bool = field(True, "Stop the gradient through the target.")
    pairing: Pairing = field(
        "first_two",
        "Views that predict each other: the first two, all global ones, or every global view from "
        "every local one.",
    )
    regularizer: str = field(
        "floors",
        "What prevents collapse: 'floors' (budget, variance and log-det floors, mean), "
        "'sigreg', 'vicreg' (its variance and covariance), or 'visreg', each of the whole state; "
        "or a class of your own, 'module.path:Class'.",
    )
    budget_weight: float = field(0.2, "Weight of the budget.", **_WEIGHT)
    budget_of: BudgetOf = field(
        "energy",
        "What the budget fixes, of q and of p: the mean square ('energy'), which the mean state "
        "can meet alone, or the mean 'variance' of a dimension.",
    )
    var_weight: float = field(0.5, "Weight of the variance floor.", **_WEIGHT)
    logdet_weight: float = field(0.5, "Weight of the projected log-det floor.", **_WEIGHT)
    mean_weight: float = field(0.05, "Weight of the squared mean.", **_WEIGHT)
    q_target: float = field(1.0, "Budget: target of mean(q^2), or of the variance.", at_least=0)
    p_target: float = field(1.0, "Budget: target of mean(p^2), or of the variance.", at_least=0)
    q_std_floor: float = field(
        0.2, "Floor of the standard deviation of each dimension of q.", at_least=0
    )
    p_std_floor: float = field(
        0.2, "Floor of the standard deviation of each dimension of p.", at_least=0
    )
    std_eps: float = field(
        1e-4, "Added to the variance under the square root.", at_least=1e-12, at_most=1
    )
    logdet_dim: int = field(
        128, "Dimensions of the random projection.", above=0, at_most=65536, auto=True
    )
    logdet_eps: float = field(1e-4, "Added to the covariance's diagonal.", at_least=1e-8, at_most=1)
    logdet_refresh_interval: int = field(16, "Steps between new projections.", above=0)
    p_logdet_dim: int | None = field(
        None, "logdet_dim of p; None = that of q.", above=0, at_most=65536
    )
    p_logdet_eps: float | None = field(
        None, "logdet_eps of p; None = that of q.", at_least=1e-8, at_most=1
    )
    p_logdet_refresh_interval: int | None = field(
        None, "logdet_refresh_interval of p; None = that of q.", above=0
    )
    q_logdet_floor: float = field(-1.5, "Floor of q's log-det per dimension.", **_FLOOR)
    p_logdet_floor: float = field(-1.5, "Floor of p's log-det per dimension.", **_FLOOR)
    q_pr_floor: float | None = field(
        0.12, "Floor of q's participation ratio per dimension; None = off.", at_least=0, at_most=1
    )
    p_pr_floor: float | None = field(
        0.16, "Floor of p's participation ratio per dimension; None = off.", at_least=0, at_most=1
    )
    q_eigmax_ceiling: float | None = field(
        0.35, "Ceiling of the largest eigenvalue's share for q; None = off.", at_least=0, at_most=1
    )
    p_eigmax_ceiling: float | None = field(
        0.30, "Ceiling of the largest eigenvalue's share for p; None = off.", at_least=0, at_most=1
    )


class LogdetSettings(NamedTuple):
    """What the log-det floor of a half of the state is computed with.

    Attributes:
      dim: dimensions of the random projection, at most.
      eps: added to the covariance's diagonal.
      refresh_interval: steps between new projections.
    """

    dim: int
    eps: float
    refresh_interval: int


def logdet_of(loss: Loss, half: Literal["q", "p"]) -> LogdetSettings:
    """Returns the settings of a half's log-det floor: those of q, but for what p has of its own."""
    names = ("logdet_dim", "logdet_eps", "logdet_refresh_interval")
    own = [getattr(loss, f"p_{name}") if half == "p" else None for name in names]
    shared = [getattr(loss, name) for name in names]
    return LogdetSettings(*(common if o is None else o for o, common in zip(own, shared)))


@dataclasses.dataclass(frozen=True)
class Parity:
    """Behaviors of the published scripts that differ from ours (docs/parity.md).

    All False follows the method's mathematics.
    """

    epochwise_residual_warmup: bool = field(
        False,
        "residual_scale grows at the start of each epoch instead of at every step.",
        used=Condition(
            lambda c: has_warmup(_dynamics(c)),
            "config.dynamics.residual_scale_warmup_epochs above 0",
        ),
    )
    forward_directions_only: bool = field(
        False,
        "The backward prediction also flows forward in time.",
        used=Condition(lambda c: c.section(Loss).bidirectional, "config.loss.bidirectional=True"),
    )
    q_variance_floor_only: bool = field(False, "The variance floor applies to q only.")
    unclipped_predictor: bool = field(
        False,
        "The predictor's gradient is neither clipped nor counted in the norm.",
        used=Condition(
            lambda c: has_parameters(_dynamics(c)) and c.train.grad_clip is not None,
            "config.train.grad_clip and a predictor that has parameters",
        ),
    )
    shared_lr_floor: bool = field(
        False,
        "The predictor's learning rate decays to the floor of the main one.",
        used=Condition(
            lambda c: has_parameters(_dynamics(c)) and c.train.predictor_lr is not None,
            "config.train.predictor_lr",
        ),
    )
    reference_leapfrog: bool = field(
        False,
        "The generic leapfrog differentiates through the previous kick.",
        used=Condition(
            lambda c: uses_generic_leapfrog(_dynamics(c)),
            "config.dynamics.hamiltonian='learnable', or 'quadratic' with integrator 'leapfrog'",
        ),
    )
