"""Hamiltonian JEPA: a learned flow predicts one view's state from another's.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.methods.base import (
    Method,
    Metrics,
    Randomness,
    Rate,
    Suspect,
    linear_warmup,
)
from hjepa_jax.methods.hjepa_settings import (
    Dynamics,
    Loss,
    Parity,
    has_parameters,
    has_potential,
    logdet_of,
    problems,
)
from hjepa_jax.models.base import StateShape, applied
from hjepa_jax.models.predictor import build_predictor
from hjepa_jax.objectives import shares
from hjepa_jax.objectives.hjepa import (
    Energy,
    Flow,
    logdet_statistics_of_both,
    prediction_loss,
    state_statistics,
)
from hjepa_jax.objectives.regularizers import (
    LogdetStatistics,
    at_least_float32,
    budget,
    logdet_penalty,
    mean_penalty,
    orthonormal_projection,
    projection_rank,
    variance_floor,
)
from hjepa_jax.objectives.shares import AxisName

# Stream of the run's key; numbers are never reused, so that adding one changes no others.
_PROJECTIONS = 0
_FLOW = ("dt", "steps", "base_coeff", "residual_scale")


class HJEPA(Method):
    """Prediction by a flow, with floors that prevent collapse.

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
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        yield from problems(settings)

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) for the warm-up if it, unlike the published, must end in time."""
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
        """Reduces projection and predictor to the size of a smoke test."""
        config.loss.logdet_dim = 8
        if config.loss.p_logdet_dim is not None:
            config.loss.p_logdet_dim = min(8, config.loss.p_logdet_dim)
        if config.dynamics.predictor != "identity":
            config.dynamics.hidden_dim = 16
        if config.dynamics.predictor == "hamiltonian":
            warmup = config.dynamics.residual_scale_warmup_epochs
            config.dynamics.residual_scale_warmup_epochs = min(warmup, 0.75)

    def warnings(self) -> Iterator[str]:
        """Yields a sentence if there are too few rows to meet the log-det floor.

        The sample covariance of N rows in k dimensions loses log-determinant as k approaches N, so
        the floor would push noise into the state instead of preventing collapse.
        """
        data, loss = self.settings.data, self.options
        rows = data.batch_size * (data.num_global_views + data.num_local_views)
        for name in ("logdet_dim", "p_logdet_dim"):
            dim = getattr(loss, name)
            if loss.logdet_weight > 0 and dim is not None and dim > rows // 4:
                yield (
                    f"config.loss.{name} is {dim} but a step has only {rows} rows "
                    "(views x images): the log-det floor cannot be met and dominates the "
                    f"prediction loss; set it to {max(rows // 4, 1)} or less."
                )

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

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: DTypeLike
    ) -> Randomness:
        """Draws the projections 'q' and 'p' [D/2, k] of the log-det floors; see `Method`."""
        del num_images
        loss, half_dim = self.options, self.shape.dim // 2
        stream = jax.random.fold_in(key, _PROJECTIONS)
        drawn = {}
        for number, half in enumerate(("q", "p")):
            floor = logdet_of(loss, half)
            half_key = jax.random.split(jax.random.fold_in(stream, step // floor.refresh_interval))
            rank = projection_rank(floor.dim, half_dim, num_rows)
            drawn[half] = orthonormal_projection(half_key[number], half_dim, rank, dtype)
        return drawn

    def redraw(self) -> dict[str, int]:
        """Returns the steps between new projections of each half."""
        return {half: logdet_of(self.options, half).refresh_interval for half in ("q", "p")}

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the prediction error plus regularizers; see `Method` and `hjepa_loss`.

        With a potential V, the metrics include 'V_var', the variance of V(q).
        """
        del method_state
        predictor, scale = self.predictor, self.residual_scale(step)
        variables = {"params": params.get("predictor", {})}

        def flow(state: jax.Array, direction: int) -> jax.Array:
            return applied(predictor, variables, state, direction, scale)

        def energy(state: jax.Array) -> jax.Array:
            return applied(predictor, variables, state, scale, method="energy")

        total, metrics = hjepa_loss(
            z,
            flow,
            energy if hasattr(predictor, "energy") else None,
            randomness,
            self.options,
            self.settings.data.num_global_views,
            reverse_direction_sign=1 if self.parity.forward_directions_only else -1,
            floor_p_variance=not self.parity.q_variance_floor_only,
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

    def targets(self) -> dict[str, float]:
        """Returns the budgets of the mean squares of q and p."""
        return {"q": self.options.q_target, "p": self.options.p_target}

    def remedy(self, part: str, term: str) -> str:
        """Returns the weights and floors to raise; see `Method`."""
        if term == "pred":
            return (
                "the flow moves the states too far; lower dynamics.dt, dynamics.steps, "
                "dynamics.base_coeff, dynamics.residual_scale or loss.energy_weight"
            )
        if term == "budget":
            return "raise loss.budget_weight"
        if term == "mean":
            return "raise loss.var_weight or loss.mean_weight"
        return f"raise loss.{term}_weight or loss.{part}_{'std' if term == 'var' else term}_floor"

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term, starting with the prediction by the flow."""
        found = {"predictor": Suspect("the predictor", ())}
        if self.flow_time is not None:
            flow = tuple(f"dynamics.{name}" for name in _FLOW)
            found["pred"] = Suspect("the prediction by the flow", flow)
            found["predictor"] = Suspect("the flow", flow)
        terms = {
            "budget": ("loss.q_target", "loss.p_target"),
            "logdet": ("loss.logdet_eps", "loss.p_logdet_eps", "loss.logdet_dim"),
            "mean": ("loss.mean_weight",),
            "pred": ("data.mean", "data.std"),
            "var": ("loss.std_eps", "loss.q_std_floor", "loss.p_std_floor"),
        }
        for name, fields in terms.items():
            found.setdefault(name, Suspect(f"the loss term {name}", fields))
        return found


def hjepa_loss(
    z: jax.Array,
    flow: Flow,
    energy: Energy | None,
    projections: Mapping[str, jax.Array],
    options: Loss,
    num_global_views: int,
    *,
    reverse_direction_sign: Literal[-1, 1] = -1,
    floor_p_variance: bool = True,
    axis_name: AxisName = None,
) -> tuple[jax.Array, Metrics]:
    """Returns the total loss and its terms; every regularizer pools the rows of all views.

    total = pred + budget_weight budget + var_weight (var_q + var_p)
    + logdet_weight (logdet_q + logdet_p) + mean_weight mean.

    Args:
      z: [V, B, 2d], z = [q | p], global views first; computed in float32 (or float64 if given).
      flow: (z [S, B, 2d], direction +1 or -1) -> prediction [S, B, 2d].
      energy: z [..., 2d] -> [...], or None.
      projections: 'q' and 'p', each [d, k] with orthonormal columns.
      options: the section `loss`.
      num_global_views: number of global views among V.
      reverse_direction_sign: see `prediction_loss`.
      floor_p_variance: whether the variance floor applies to p; if not, 'var_p' is 0.
      axis_name: see `hjepa_jax.objectives.shares`.

    Returns:
      (total, metrics): the unweighted losses 'pred', 'budget', 'var', 'var_q', 'var_p',
      'logdet', 'logdet_q', 'logdet_p', 'mean', and 'total'; and, without gradient, those of
      `state_statistics` and 'z_mean2'.
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
    half = z.shape[-1] // 2
    q, p = z[..., :half], z[..., half:]
    regularizers, statistics = _regularizers(
        z, q, p, projections, options, floor_p_variance, axis_name
    )
    losses = {"pred": prediction, **regularizers}
    total = _weighted_sum(losses, options)
    metrics = {**losses, "total": total, **state_statistics(q, p, statistics, axis_name)}
    metrics["z_mean2"] = jax.lax.stop_gradient(losses["mean"])
    return total, metrics


def _weighted_sum(losses: Mapping[str, jax.Array], options: Loss) -> jax.Array:
    """Returns the total loss of its terms."""
    return (
        losses["pred"]
        + options.budget_weight * losses["budget"]
        + options.var_weight * losses["var"]
        + options.logdet_weight * losses["logdet"]
        + options.mean_weight * losses["mean"]
    )


def _regularizers(
    z: jax.Array,
    q: jax.Array,
    p: jax.Array,
    projections: Mapping[str, jax.Array],
    options: Loss,
    floor_p_variance: bool,
    axis_name: AxisName,
) -> tuple[Metrics, tuple[LogdetStatistics, LogdetStatistics]]:
    """Returns the unweighted terms that prevent collapse, and the statistics of q and p."""
    var_q = variance_floor(q, options.q_std_floor, options.std_eps, axis_name)
    var_p = jnp.zeros_like(var_q)
    if floor_p_variance:
        var_p = variance_floor(p, options.p_std_floor, options.std_eps, axis_name)
    ridges = {half: logdet_of(options, half).eps for half in ("q", "p")}
    statistics = logdet_statistics_of_both(q, p, projections, ridges, axis_name)
    logdet_q = logdet_penalty(
        statistics[0],
        logdet_floor=options.q_logdet_floor,
        pr_floor=options.q_pr_floor,
        eigmax_ceiling=options.q_eigmax_ceiling,
    )
    logdet_p = logdet_penalty(
        statistics[1],
        logdet_floor=options.p_logdet_floor,
        pr_floor=options.p_pr_floor,
        eigmax_ceiling=options.p_eigmax_ceiling,
    )
    terms = {
        "budget": budget(z, options.q_target, options.p_target, axis_name),
        "var": var_q + var_p,
        "logdet": logdet_q + logdet_p,
        "mean": mean_penalty(z, axis_name),
        "var_q": var_q,
        "var_p": var_p,
        "logdet_q": logdet_q,
        "logdet_p": logdet_p,
    }
    return terms, statistics
