"""The sections `model` and `dynamics`: encoder, projector and predictor."""

from __future__ import annotations

import dataclasses

from hjepa_jax.config.conditions import FLOWS, MOVES, POTENTIAL, PREDICTOR
from hjepa_jax.config.fields import Condition, field

_MLP = Condition(lambda c: c.model.projector == "mlp", "config.model.projector='mlp'")
_MIDPOINT = Condition(
    lambda c: c.dynamics.integrator == "implicit_midpoint",
    "config.dynamics.integrator='implicit_midpoint'",
)


@dataclasses.dataclass(frozen=True)
class Model:
    """The encoder, its state, the projector and the arithmetic."""

    encoder: str = field(
        "resnet", "'resnet', or a class of your own, 'module.path:Class'.", aliases=("backbone",)
    )
    split_qp: bool = field(
        True, "Half of each token's channels is position q, half momentum p: z = [q | p]."
    )
    projector: str = field(
        "identity",
        "'identity' or 'mlp' (Linear, BatchNorm, ReLU, Linear).",
        choices=("identity", "mlp"),
    )
    projector_hidden: int = field(
        2048, "Hidden units of the projector.", above=0, at_most=2**20, used=_MLP
    )
    projector_dim: int = field(2048, "Outputs of the projector.", above=0, at_most=2**20, used=_MLP)
    batch_norm: str = field(
        "global",
        "Batch statistics of the whole batch, or of each device's share ('local': less "
        "waiting, but the result depends on the number of devices).",
        choices=("global", "local"),
        aliases=("sync_bn", "sync_batch_norm"),
    )
    compute_dtype: str = field(
        "bfloat16",
        "Encoder arithmetic; parameters and losses are float32.",
        choices=("bfloat16", "float32"),
        aliases=("dtype", "precision"),
    )


@dataclasses.dataclass(frozen=True)
class Dynamics:
    """The predictor of one view's state from another's."""

    predictor: str = field(
        "hamiltonian",
        "'hamiltonian', 'mlp' (matched parameter count) or 'identity'.",
        choices=("hamiltonian", "mlp", "identity"),
    )
    hamiltonian: str = field(
        "separable",
        "Form of the energy; a matched MLP takes its parameter count.",
        choices=("separable", "learnable", "quadratic"),
        used=MOVES,
    )
    integrator: str = field(
        "leapfrog",
        "Integrator of the flow.",
        choices=("leapfrog", "symplectic_euler", "yoshida4", "implicit_midpoint"),
        used=FLOWS,
    )
    steps: int = field(2, "Steps of the flow.", above=0, at_most=1024, used=MOVES)
    dt: float = field(0.05, "Length of a step.", at_least=1e-6, at_most=100, used=MOVES)
    learn_dt: bool = field(
        False,
        "Learn dt through a softplus; refused for training, where dt collapses to zero.",
        used=MOVES,
    )
    damping: float = field(
        0.0, "Conformal-symplectic momentum damping rate; 0 = none.", at_least=0, used=FLOWS
    )
    hidden_dim: int = field(
        256, "Width of the residual's hidden layers.", above=0, at_most=65536, used=PREDICTOR
    )
    depth: int = field(2, "Hidden layers of the residual.", above=0, at_most=256, used=PREDICTOR)
    activation: str = field(
        "gelu", "Activation of the residual.", choices=("gelu", "relu", "silu"), used=PREDICTOR
    )
    residual_scale: float = field(
        0.02, "Weight of the residual f in the potential.", at_least=0, at_most=100, used=POTENTIAL
    )
    residual_scale_warmup_epochs: float = field(
        10.0, "Epochs over which residual_scale grows linearly from 0.", at_least=0, used=POTENTIAL
    )
    base_coeff: float = field(
        0.1, "Stiffness of the potential's quadratic well.", at_least=0, used=POTENTIAL
    )
    midpoint_iterations: int = field(
        50, "Iterations of implicit_midpoint at most.", above=0, at_most=10_000, used=_MIDPOINT
    )
    midpoint_tolerance: float = field(
        1e-6,
        "Residual of implicit_midpoint that counts as converged.",
        at_least=1e-12,
        at_most=1,
        used=_MIDPOINT,
    )
