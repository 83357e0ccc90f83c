"""Hamiltonian JEPA: a learned flow predicts one view's state from another's.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.methods.base import (
    Method,
    Metrics,
    PyTree,
    Randomness,
    Rate,
    Suspect,
    linear_warmup,
)
from hjepa_jax.methods.fill import settings_from
from hjepa_jax.methods.hjepa_settings import (
    Dynamics,
    Loss,
    Parity,
    has_parameters,
    has_potential,
    problems,
)
from hjepa_jax.models.base import StateShape
from hjepa_jax.models.predictor import build_predictor
from hjepa_jax.objectives.hjepa import HJEPASettings, hjepa_objective
from hjepa_jax.objectives.regularizers import orthonormal_projection, projection_rank

# Stream of the run's key; numbers are never reused, so that adding one changes no other.
_PROJECTIONS = 0
_FLOW = ("dt", "steps", "base_coeff", "residual_scale")


class HJEPA(Method):
    """The prediction by a flow, and floors that prevent collapse.

    Attributes:
      dynamics, options, parity: the sections `dynamics`, `loss` and `parity`.
      predictor: the Flax module of the flow, of the matched MLP, or of the identity.
      flow_time: steps * dt of the flow, None of other predictors.
    """

    sections: ClassVar[Mapping[str, type]] = {
        "dynamics": Dynamics,
        "loss": Loss,
        "parity": Parity,
    }

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
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction of the settings."""
        yield from problems(settings)

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) of the warm-up of the potential if it does not end in time."""
        dynamics = settings.section(Dynamics)
        if has_potential(dynamics) and dynamics.residual_scale_warmup_epochs >= epochs:
            yield "dynamics.residual_scale_warmup_epochs", dynamics.residual_scale_warmup_epochs

    @classmethod
    def trains_predictor(cls, settings: Settings) -> bool:
        """Returns whether the predictor has parameters."""
        return has_parameters(settings.section(Dynamics))

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces projection and predictor to the size of a smoke test."""
        config.loss.logdet_dim = 8
        if config.dynamics.predictor != "identity":
            config.dynamics.hidden_dim = 16
        if config.dynamics.predictor == "hamiltonian":
            warmup = config.dynamics.residual_scale_warmup_epochs
            config.dynamics.residual_scale_warmup_epochs = min(warmup, 0.75)

    def warnings(self) -> Iterator[str]:
        """Yields a sentence where the log-det floor sees too few rows to be met.

        The sample covariance of N rows in k dimensions loses log-determinant as k nears N, so that
        the floor pushes noise into the state instead of preventing collapse.
        """
        data, loss = self.settings.data, self.options
        rows = data.batch_size * (data.num_global_views + data.num_local_views)
        if loss.logdet_weight > 0 and loss.logdet_dim > rows // 4:
            yield (
                f"config.loss.logdet_dim is {loss.logdet_dim} but a step has only {rows} rows "
                "(views x images): the log-det floor cannot be met and drowns the prediction; set "
                f"it to {max(rows // 4, 1)} or less."
            )

    def residual_scale(self, step: jax.Array) -> jax.Array:
        """Returns the potential's residual scale at `step`, after its linear warm-up."""
        dynamics, epoch = self.dynamics, self.steps_per_epoch
        if self.parity.epochwise_residual_warmup:
            step = step // epoch * epoch + epoch - 1
        warmup_steps = dynamics.residual_scale_warmup_epochs * epoch
        return dynamics.residual_scale * linear_warmup(step, max(warmup_steps, 1e-9))

    def init(self, key: jax.Array, z: jax.Array) -> dict[str, PyTree]:
        """Returns the predictor's parameters; none of the identity."""
        params = self.predictor.init(key, z, 1.0, 1.0).get("params")
        return {"predictor": params} if params else {}

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: Any
    ) -> Randomness:
        """Draws the projections 'q' and 'p' [D/2, k] of the log-det floors; see `Method`."""
        del num_images
        loss, half_dim = self.options, self.shape.dim // 2
        rank = projection_rank(loss.logdet_dim, half_dim, num_rows)
        refresh = step // loss.logdet_refresh_interval
        keys = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, _PROJECTIONS), refresh))
        return {
            half: orthonormal_projection(half_key, half_dim, rank, dtype)
            for half, half_key in zip(("q", "p"), keys)
        }

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the prediction error with the regularizers; see `Method` and `hjepa_objective`.

        With a potential V the metrics have 'V_var', the variance of V(q).
        """
        del method_state
        predictor, scale = self.predictor, self.residual_scale(step)
        variables = {"params": params.get("predictor", {})}

        def flow(state: jax.Array, direction: Any) -> Any:
            return predictor.apply(variables, state, direction, scale)

        def energy(state: jax.Array) -> Any:
            return predictor.apply(variables, state, scale, method="energy")

        total, metrics = hjepa_objective(
            z,
            flow,
            energy if hasattr(predictor, "energy") else None,
            randomness,
            settings_from(
                HJEPASettings,
                self.options,
                reverse_direction_sign=1 if self.parity.forward_directions_only else -1,
                floor_p_variance=not self.parity.q_variance_floor_only,
            ),
            self.settings.data.num_global_views,
        )
        if hasattr(predictor, "potential"):
            q = jax.lax.stop_gradient(z[..., : z.shape[-1] // 2])
            potential: Any = predictor.apply(variables, q, scale, method="potential")
            metrics["V_var"] = jnp.var(jax.lax.stop_gradient(potential))
        return total, metrics

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the total loss."""
        loss = self.options
        return {
            "pred": 1.0,
            "energy": loss.energy_weight,
            "budget": loss.budget_weight,
            "var": loss.var_weight,
            "logdet": loss.logdet_weight,
            "mean": loss.mean_weight,
        }

    def learning_rates(self) -> dict[str, Rate]:
        """Returns the predictor's rate, for parity with the floor of the main one."""
        rates, train = super().learning_rates(), self.settings.train
        if self.parity.shared_lr_floor:
            rates["predictor"] = Rate(rates["predictor"].peak, train.lr * train.min_lr_ratio)
        return rates

    def unclipped(self) -> frozenset[str]:
        """Returns the predictor where parity with the published script asks for it."""
        return frozenset({"predictor"} if self.parity.unclipped_predictor else ())

    def decayed(self, params: PyTree) -> PyTree:
        """Returns a tree of bool: the parameters that have a gradient, which alone are decayed.

        The last bias of the potential shifts the energy and moves no trajectory: it has a gradient
        only through the energy loss.
        """
        potential = params.get("predictor", {}).get("potential", {})
        last = f"layer{len(potential) - 1}"

        def decayed(path: tuple[Any, ...], _: Any) -> bool:
            names = [entry.key for entry in path]
            shifts_energy = names[:2] == ["predictor", "potential"] and names[2:] == [last, "bias"]
            return self.options.energy_weight > 0 or not shifts_energy

        return jax.tree_util.tree_map_with_path(decayed, params)

    def targets(self) -> dict[str, float]:
        """Returns the budgets of the mean squares of q and p."""
        return {"q": self.options.q_target, "p": self.options.p_target}

    def remedy(self, part: str, term: str) -> str:
        """Returns the weights and floors to raise, see `Method`."""
        if term == "pred":
            return (
                "the flow throws the states far out; lower dynamics.dt, dynamics.steps, "
                "dynamics.base_coeff, dynamics.residual_scale or loss.energy_weight"
            )
        if term == "budget":
            return "raise loss.budget_weight"
        if term == "mean":
            return "raise loss.var_weight or loss.mean_weight"
        return f"raise loss.{term}_weight or loss.{part}_{'std' if term == 'var' else term}_floor"

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term, the prediction by the flow first."""
        found = {"predictor": Suspect("the predictor", ())}
        if self.flow_time is not None:
            flow = tuple(f"dynamics.{name}" for name in _FLOW)
            found["pred"] = Suspect("the prediction by the flow", flow)
            found["predictor"] = Suspect("the flow", flow)
        terms = {
            "budget": ("loss.q_target", "loss.p_target"),
            "logdet": ("loss.logdet_eps", "loss.logdet_dim"),
            "mean": ("loss.mean_weight",),
            "pred": ("data.mean", "data.std"),
            "var": ("loss.std_eps", "loss.q_std_floor", "loss.p_std_floor"),
        }
        for name, fields in terms.items():
            found.setdefault(name, Suspect(f"the loss term {name}", fields))
        return found
