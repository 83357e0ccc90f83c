"""Hamiltonian JEPA: a learned flow predicts one view's state from another's.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar, Literal, TypeAlias, cast

import jax
from jaxtyping import PyTree
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.config.parts import REGULARIZERS, RegularizerPart, load_part, load_subclass
from hjepa_jax.methods.base import Metrics, Randomness, Rate, Suspect, linear_warmup
from hjepa_jax.methods.composed import Composed
from hjepa_jax.methods.hjepa_rules import problems
from hjepa_jax.methods.hjepa_settings import (
    Dynamics,
    Loss,
    Parity,
    has_parameters,
    has_potential,
)
from hjepa_jax.methods.regularizers.base import Regularizer
from hjepa_jax.models.base import StateShape, applied
from hjepa_jax.models.predictor import build_predictor
from hjepa_jax.objectives import shares
from hjepa_jax.objectives.hjepa import Energy, Flow, prediction_loss
from hjepa_jax.objectives.regularizers import at_least_float32, state_statistics
from hjepa_jax.objectives.shares import AxisName

# z [V, B, 2d] -> what `Regularizer.terms` returns.
Regularize: TypeAlias = Callable[[jax.Array], tuple[list[jax.Array], Metrics]]

_FLOW = ("dt", "steps", "base_coeff", "residual_scale")


class HJEPA(Composed):
    """Prediction by a flow, with a regularizer that prevents collapse.

    Attributes:
      dynamics, options, parity: the sections `dynamics`, `loss` and `parity`.
      predictor: Flax module of the flow, the matched MLP, or the identity.
      flow_time: steps * dt of the flow; None for other predictors.
    """

    sections: ClassVar[Mapping[str, type]] = {
        "dynamics": Dynamics,
        "loss": Loss,
        "parity": Parity,
    }
    takes_shares: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = (
        *("pred", "energy", "budget", "var", "var_q", "var_p"),
        *("logdet", "logdet_q", "logdet_p", "mean", "z_mean2"),
        *("sigreg", "hinge", "covariance", "center", "scale", "shape"),
    )

    def __init__(self, settings: Settings, shape: StateShape, steps_per_epoch: int):
        """See `Method`."""
        super().__init__(settings, shape, steps_per_epoch)
        self.dynamics = dynamics = settings.section(Dynamics)
        self.options = settings.section(Loss)
        self.parity = settings.section(Parity)
        self.predictor = build_predictor(
            dynamics.predictor,
            {**vars(dynamics), "reference_leapfrog": self.parity.reference_leapfrog},
        )
        flows = dynamics.predictor == "hamiltonian"
        self.flow_time: float | None = dynamics.steps * dynamics.dt if flows else None

    @classmethod
    def regularizer_of(cls, settings: Settings) -> type[Regularizer]:
        """Returns the class that `config.loss.regularizer` selects.

        Raises:
          ConfigError: it does not exist, or is no regularizer.
        """
        name = settings.section(Loss).regularizer
        return load_subclass(REGULARIZERS, name, Regularizer, "regularizer")

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        yield from problems(settings)

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) of each warm-up that, unlike the published, must end in time."""
        yield from super().unfinished(settings, epochs)
        warmup = settings.section(Dynamics).residual_scale_warmup_epochs
        published = settings.section(Parity).epochwise_residual_warmup
        if has_potential(settings.section(Dynamics)) and warmup >= epochs and not published:
            yield "dynamics.residual_scale_warmup_epochs", warmup

    @classmethod
    def trains_predictor(cls, settings: Settings) -> bool:
        """Returns whether the predictor has parameters."""
        return has_parameters(settings.section(Dynamics))

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces regularizer and predictor to the size of a smoke test."""
        regularizer = load_part(REGULARIZERS, config.loss.regularizer)
        cast(type[RegularizerPart], regularizer).shrink(config)
        if config.dynamics.predictor != "identity":
            config.dynamics.hidden_dim = 16
        if config.dynamics.predictor == "hamiltonian":
            warmup = config.dynamics.residual_scale_warmup_epochs
            config.dynamics.residual_scale_warmup_epochs = min(warmup, 0.75)

    def residual_scale(self, step: jax.Array) -> jax.Array:
        """Returns the potential's residual scale at `step`, after its linear warm-up."""
        dynamics, epoch = self.dynamics, self.steps_per_epoch
        stride = epoch if self.parity.epochwise_residual_warmup else 1
        warmup_steps = dynamics.residual_scale_warmup_epochs * epoch
        return dynamics.residual_scale * linear_warmup(step, max(warmup_steps, 1e-9), stride)

    def init(self, key: jax.Array, z: jax.Array) -> dict[str, PyTree]:
        """Returns the predictor's parameters; none for the identity."""
        params = self.predictor.init(key, z, 1.0, 1.0).get("params")
        return {"predictor": params} if params else {}

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the prediction error plus regularizer; see `Method` and `hjepa_loss`.

        With a potential V, the metrics include 'V_var', the variance of V(q).
        """
        del method_state
        predictor, scale = self.predictor, self.residual_scale(step)
        variables = {"params": params.get("predictor", {})}

        def flow(state: jax.Array, direction: int) -> jax.Array:
            return applied(predictor, variables, state, direction, scale)

        def energy(state: jax.Array) -> jax.Array:
            return applied(predictor, variables, state, scale, method="energy")

        def regularize(states: jax.Array) -> tuple[list[jax.Array], Metrics]:
            return self.regularizer.terms(states, randomness, step, axis_name)

        total, metrics = hjepa_loss(
            z,
            flow,
            energy if hasattr(predictor, "energy") else None,
            regularize,
            self.options,
            self.settings.data.num_global_views,
            reverse_direction_sign=1 if self.parity.forward_directions_only else -1,
            axis_name=axis_name,
        )
        if hasattr(predictor, "potential"):
            q = jax.lax.stop_gradient(z[..., : z.shape[-1] // 2])
            potential = applied(predictor, variables, q, scale, method="potential")
            values = jax.lax.stop_gradient(potential)[..., None]
            metrics["V_var"] = shares.variance(values, axis_name)[0]
        return total, metrics

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the total loss."""
        own = {"pred": 1.0, "energy": self.options.energy_weight}
        return {**own, **self.regularizer.weights()}

    def learning_rates(self) -> dict[str, Rate]:
        """Returns the predictor's rate; with parity, its floor is that of the main rate."""
        rates, train = super().learning_rates(), self.settings.train
        if self.parity.shared_lr_floor:
            rates["predictor"] = Rate(rates["predictor"].peak, train.lr * train.min_lr_ratio)
        return rates

    def unclipped(self) -> frozenset[str]:
        """Returns the predictor if parity with the published script requires it."""
        return frozenset({"predictor"} if self.parity.unclipped_predictor else ())

    def decayed(self, params: PyTree) -> PyTree:
        """Returns a tree of bool: weight decay applies only to parameters that have a gradient.

        The last bias of the potential shifts the energy but no trajectory: it has a gradient only
        through the energy loss.
        """
        potential = params.get("predictor", {}).get("potential", {})
        last = f"layer{len(potential) - 1}"

        def decayed(path: jax.tree_util.KeyPath, _: jax.Array) -> bool:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            shifts_energy = name == f"predictor/potential/{last}/bias"
            return self.options.energy_weight > 0 or not shifts_energy

        return jax.tree_util.tree_map_with_path(decayed, params)

    def remedy(self, part: str, term: str) -> str:
        """Returns the fields of the flow, or those of the regularizer; see `Method`."""
        if term == "pred":
            return (
                "the flow moves the states too far; lower dynamics.dt, dynamics.steps, "
                "dynamics.base_coeff, dynamics.residual_scale or loss.energy_weight"
            )
        return super().remedy(part, term)

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term, starting with the prediction by the flow."""
        found = {"predictor": Suspect("the predictor", ())}
        if self.flow_time is not None:
            flow = tuple(f"dynamics.{name}" for name in _FLOW)
            found["pred"] = Suspect("the prediction by the flow", flow)
            found["predictor"] = Suspect("the flow", flow)
        for name, suspect in {**self.regularizer.suspects(), **super().suspects()}.items():
            found.setdefault(name, suspect)
        return found


def hjepa_loss(
    z: jax.Array,
    flow: Flow,
    energy: Energy | None,
    regularize: Regularize,
    options: Loss,
    num_global_views: int,
    *,
    reverse_direction_sign: Literal[-1, 1] = -1,
    axis_name: AxisName = None,
) -> tuple[jax.Array, Metrics]:
    """Returns the total loss, the prediction's error plus the regularizer's terms, and its terms.

    Args:
      z: [V, B, 2d], z = [q | p], global views first; computed in float32 (or float64 if given).
      flow: (z [S, B, 2d], direction +1 or -1) -> prediction [S, B, 2d].
      energy: z [..., 2d] -> [...], or None.
      regularize: z [V, B, 2d] -> (weighted terms, metrics), see `Regularizer.terms`.
      options: the section `loss`.
      num_global_views: number of global views among V.
      reverse_direction_sign: see `prediction_loss`.
      axis_name: see `hjepa_jax.objectives.shares`.

    Returns:
      (total, metrics): 'pred', 'total', and those of the regularizer. If they lack statistics of q
      and p, there are those of `objectives.regularizers.state_statistics`.
    """
    z = at_least_float32(z)
    prediction = prediction_loss(
        flow,
        energy,
        z,
        num_global_views=num_global_views,
        pairing=options.pairing,
        match=options.match,
        p_weight=options.p_weight,
        energy_weight=options.energy_weight,
        bidirectional=options.bidirectional,
        detach_target=options.detach_target,
        reverse_direction_sign=reverse_direction_sign,
        axis_name=axis_name,
    )
    weighted, regularizer = regularize(z)
    total = prediction
    for term in weighted:
        total = total + term
    metrics = {"pred": prediction, **regularizer, "total": total}
    if "q_std_min" not in metrics:
        metrics |= state_statistics(z, axis_name)
    return total, metrics
