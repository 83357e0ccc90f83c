"""The floors of HJEPA: budget, variance, log-determinant and mean of q and of p.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.methods.base import Metrics, Randomness, Suspect
from hjepa_jax.methods.hjepa_settings import Loss, Parity, logdet_of
from hjepa_jax.methods.regularizers.base import Regularizer, refreshed_key
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.hjepa import logdet_statistics_of_both, state_statistics
from hjepa_jax.objectives.regularizers import (
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
_OF_BOTH = ("std_floor", "logdet_floor", "pr_floor", "eigmax_ceiling", "target")
_OWN = (
    *("budget_weight", "budget_of", "var_weight", "logdet_weight", "mean_weight", "std_eps"),
    *("logdet_dim", "logdet_eps", "logdet_refresh_interval"),
    *("p_logdet_dim", "p_logdet_eps", "p_logdet_refresh_interval"),
    *(f"{half}_{name}" for half in "qp" for name in _OF_BOTH),
)


class Floors(Regularizer):
    """Floors of q and of p, each with a weight in the section `loss`.

    Attributes:
      options: the section `loss`.
      floor_p_variance: whether the variance floor applies to p.
    """

    fields: ClassVar[tuple[str, ...]] = (
        *(f"loss.{name}" for name in _OWN),
        "parity.q_variance_floor_only",
    )
    losses: ClassVar[tuple[str, ...]] = (
        *("budget", "var", "var_q", "var_p", "logdet", "logdet_q", "logdet_p", "mean"),
    )

    def __init__(self, settings: Settings, shape: StateShape, steps_per_epoch: int):
        """See `Regularizer`."""
        super().__init__(settings, shape, steps_per_epoch)
        self.options = settings.section(Loss)
        self.floor_p_variance = not settings.section(Parity).q_variance_floor_only

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces the projection to the size of a smoke test."""
        config.loss.logdet_dim = 8
        if config.loss.p_logdet_dim is not None:
            config.loss.p_logdet_dim = min(8, config.loss.p_logdet_dim)

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

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: DTypeLike
    ) -> Randomness:
        """Draws the projections 'q' and 'p' [D/2, k] of the log-det floors; see `Regularizer`."""
        del num_images
        loss, half_dim = self.options, self.shape.dim // 2
        drawn = {}
        for number, half in enumerate(("q", "p")):
            floor = logdet_of(loss, half)
            half_key = jax.random.split(
                refreshed_key(key, step, _PROJECTIONS, floor.refresh_interval)
            )
            rank = projection_rank(floor.dim, half_dim, num_rows)
            drawn[half] = orthonormal_projection(half_key[number], half_dim, rank, dtype)
        return drawn

    def redraw(self) -> dict[str, int]:
        """Returns the steps between new projections of each half."""
        return {half: logdet_of(self.options, half).refresh_interval for half in ("q", "p")}

    def terms(
        self,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[list[jax.Array], Metrics]:
        """Returns the weighted terms, and the metrics of `floor_terms`; see `Regularizer`."""
        del step
        metrics = floor_terms(z, randomness, self.options, self.floor_p_variance, axis_name)
        return [weight * metrics[name] for name, weight in self.weights().items()], metrics

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term."""
        names = ("budget", "var", "logdet", "mean")
        return {name: getattr(self.options, f"{name}_weight") for name in names}

    def targets(self) -> dict[str, float]:
        """Returns the budgets of the mean squares of q and p; none if they are of variances."""
        if self.options.budget_of == "variance":
            return {}
        return {"q": self.options.q_target, "p": self.options.p_target}

    def remedy(self, part: str, term: str) -> str:
        """Returns the weights and floors to raise; see `Regularizer`."""
        if term == "budget":
            return "raise loss.budget_weight"
        if term == "mean":
            return "raise loss.var_weight or loss.mean_weight"
        return f"raise loss.{term}_weight or loss.{part}_{'std' if term == 'var' else term}_floor"

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term."""
        terms = {
            "budget": ("loss.q_target", "loss.p_target"),
            "logdet": ("loss.logdet_eps", "loss.p_logdet_eps", "loss.logdet_dim"),
            "mean": ("loss.mean_weight",),
            "var": ("loss.std_eps", "loss.q_std_floor", "loss.p_std_floor"),
        }
        return {name: Suspect(f"the loss term {name}", fields) for name, fields in terms.items()}


def floor_terms(
    z: jax.Array,
    projections: Mapping[str, jax.Array],
    options: Loss,
    floor_p_variance: bool = True,
    axis_name: AxisName = None,
) -> Metrics:
    """Returns the terms without weights, and statistics; every term pools the rows of all views.

    Args:
      z: [V, B, 2d], z = [q | p]; float32 or float64.
      projections: 'q' and 'p', each [d, k] with orthonormal columns.
      options: the section `loss`.
      floor_p_variance: whether the variance floor applies to p; if not, 'var_p' is 0.
      axis_name: see `hjepa_jax.objectives.shares`.

    Returns:
      'budget', 'var', 'var_q', 'var_p', 'logdet', 'logdet_q', 'logdet_p', 'mean'; and, without
      gradient, those of `state_statistics` and 'z_mean2'.
    """
    half = z.shape[-1] // 2
    q, p = z[..., :half], z[..., half:]
    var_q = variance_floor(q, options.q_std_floor, options.std_eps, axis_name)
    var_p = jnp.zeros_like(var_q)
    if floor_p_variance:
        var_p = variance_floor(p, options.p_std_floor, options.std_eps, axis_name)
    ridges = {name: logdet_of(options, name).eps for name in ("q", "p")}
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
    mean = mean_penalty(z, axis_name)
    return {
        "budget": budget(z, options.q_target, options.p_target, axis_name, of=options.budget_of),
        "var": var_q + var_p,
        "logdet": logdet_q + logdet_p,
        "mean": mean,
        "var_q": var_q,
        "var_p": var_p,
        "logdet_q": logdet_q,
        "logdet_p": logdet_p,
        **state_statistics(q, p, statistics, axis_name),
        "z_mean2": jax.lax.stop_gradient(mean),
    }
