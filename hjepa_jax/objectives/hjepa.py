"""The Hamiltonian JEPA objective: prediction by a flow plus anti-collapse regularizers.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hjepa_jax.objectives.regularizers import (
    LogdetStatistics,
    at_least_float32,
    budget,
    logdet_penalty,
    logdet_statistics,
    mean_penalty,
    pooled_variance,
    projected_covariance,
    variance_floor,
)

Flow = Callable[[Float[Array, "views batch n"], int], Float[Array, "views batch n"]]
Energy = Callable[[Float[Array, "*batch n"]], Float[Array, "*batch"]]

Match = Literal["q", "p", "qp"]
Pairing = Literal["first_two", "all_global", "local_to_global"]
MATCHES: tuple[Match, ...] = get_args(Match)
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)


@dataclasses.dataclass(frozen=True)
class HJEPASettings:
    """Settings of `hjepa_objective`; the fields are those of `config.loss`, documented there.

    Attributes:
        reverse_direction_sign: direction of the backward prediction, -1 (reversed flow) or +1;
            for parity with the published ImageNet script, like the next one.
        floor_p_variance: whether the variance floor applies to the momenta.
    """

    match: Match = "q"
    p_weight: float = 0.2
    energy_weight: float = 0.0
    bidirectional: bool = True
    detach_target: bool = True
    pairing: Pairing = "first_two"
    budget_weight: float = 0.2
    var_weight: float = 0.5
    logdet_weight: float = 0.5
    mean_weight: float = 0.05
    q_target: float = 1.0
    p_target: float = 1.0
    q_std_floor: float = 0.2
    p_std_floor: float = 0.2
    std_eps: float = 1e-4
    logdet_dim: int = 128
    logdet_eps: float = 1e-4
    logdet_refresh_interval: int = 16
    q_logdet_floor: float = -1.5
    p_logdet_floor: float = -1.5
    q_pr_floor: float | None = 0.12
    p_pr_floor: float | None = 0.16
    q_eigmax_ceiling: float | None = 0.35
    p_eigmax_ceiling: float | None = 0.30
    reverse_direction_sign: Literal[-1, 1] = -1
    floor_p_variance: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("match", MATCHES), ("pairing", PAIRINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"loss.{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.reverse_direction_sign not in (-1, 1):
            raise ValueError(
                f"reverse_direction_sign must be -1 or 1, got {self.reverse_direction_sign}"
            )


def view_pairs(pairing: Pairing, num_views: int, num_global_views: int) -> list[tuple[int, int]]:
    """Returns the (source, target) views of the forward predictions, direction +1.

    'first_two': (0, 1), as published. 'all_global': every pair i < j of global views.
    'local_to_global': every local crop to every global view. The backward predictions, if any,
    are the same pairs with source and target exchanged.

    Args:
        pairing: one of PAIRINGS.
        num_views: number of views, global ones first.
        num_global_views: how many of them are global.

    Raises:
        ValueError: too few views for the pairing.
    """
    if not 1 <= num_global_views <= num_views:
        raise ValueError(
            f"num_global_views must lie in 1..{num_views} (the views of z), got {num_global_views}"
        )
    if pairing == "local_to_global":
        if num_global_views == num_views:
            raise ValueError(
                "loss.pairing 'local_to_global' needs local views: set data.num_local_views"
            )
        return [(i, j) for i in range(num_global_views, num_views) for j in range(num_global_views)]
    if num_global_views < 2:
        raise ValueError(f"loss.pairing {pairing!r} needs at least 2 global views, got 1")
    count = 2 if pairing == "first_two" else num_global_views
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


def _match(error: Float[Array, "pairs batch n"], settings: HJEPASettings) -> Float[Array, ""]:
    """Returns the mean squared error [P, B, 2d] -> scalar of the part that is matched."""
    square = jnp.square(error)
    if settings.match == "qp":
        return jnp.mean(square)
    half = error.shape[-1] // 2
    if settings.match == "p":
        return jnp.mean(square[..., half:])
    loss = jnp.mean(square[..., :half])
    return loss + settings.p_weight * jnp.mean(square[..., half:]) if settings.p_weight else loss


def _directed_loss(
    flow: Flow,
    energy: Energy | None,
    z: Float[Array, "views batch n"],
    pairs: list[tuple[int, int]],
    direction: int,
    settings: HJEPASettings,
) -> Float[Array, ""]:
    """Returns the mean loss of pairs of one direction; each source flows once, all in one call."""
    sources = sorted({source for source, _ in pairs})
    z_source = z[jnp.array(sources)]
    z_hat = at_least_float32(flow(z_source, direction))
    rows = jnp.array([sources.index(source) for source, _ in pairs])
    target = z[jnp.array([target for _, target in pairs])]
    if settings.detach_target:
        target = jax.lax.stop_gradient(target)
    loss = _match(z_hat[rows] - target, settings)
    if settings.energy_weight:
        if energy is None:
            raise ValueError(
                "loss.energy_weight > 0 needs a predictor with an energy: "
                "set dynamics.predictor = 'hamiltonian' or loss.energy_weight = 0"
            )
        drift = energy(z_hat) - jax.lax.stop_gradient(energy(z_source))
        loss += settings.energy_weight * jnp.mean(jnp.square(drift)[rows])
    return loss


def prediction_loss(
    flow: Flow,
    energy: Energy | None,
    z: Float[Array, "views batch n"],
    settings: HJEPASettings,
    *,
    num_global_views: int,
) -> Float[Array, ""]:
    """Returns the error of predicting target views by the flow of source views.

    The pairs are those of `view_pairs`. Forward predictions go from source to target in direction
    +1; with `bidirectional`, backward ones go from target to source in direction
    `reverse_direction_sign`, and the loss is the mean of both.

    Args:
        flow: (z [S, B, 2d], direction) -> prediction [S, B, 2d].
        energy: z [S, B, 2d] -> [S, B]; needed only for energy_weight > 0, whose term is
            mean (H(z_hat) - stop_gradient(H(z)))^2.
        z: [V, B, 2d], global views first.
        settings: see `HJEPASettings`.
        num_global_views: how many of the V views are global.

    Raises:
        ValueError: too few views for the pairing, or energy_weight > 0 without an energy.
    """
    if z.ndim != 3 or z.shape[-1] % 2:
        raise ValueError(f"z must be [V, B, 2d] with an even last axis, got {z.shape}")
    z = at_least_float32(z)
    forward = view_pairs(settings.pairing, z.shape[0], num_global_views)
    if not settings.bidirectional:
        return _directed_loss(flow, energy, z, forward, 1, settings)
    backward = [(target, source) for source, target in forward]
    sign = settings.reverse_direction_sign
    if sign == 1:
        return _directed_loss(flow, energy, z, forward + backward, 1, settings)
    return 0.5 * (
        _directed_loss(flow, energy, z, forward, 1, settings)
        + _directed_loss(flow, energy, z, backward, sign, settings)
    )


def _logdet_statistics_of_both(
    q: Float[Array, "*batch d"],
    p: Float[Array, "*batch d"],
    projections: Mapping[str, Float[Array, "d _"]],
    eps: float,
) -> tuple[LogdetStatistics, LogdetStatistics]:
    """Returns the statistics of q and p, decomposed in one batch when the ranks agree."""
    covariances = [
        projected_covariance(x, projections[name], eps) for name, x in (("q", q), ("p", p))
    ]
    if covariances[0].shape != covariances[1].shape:
        return logdet_statistics(covariances[0]), logdet_statistics(covariances[1])
    both = logdet_statistics(jnp.stack(covariances))
    q_statistics, p_statistics = (LogdetStatistics(*(leaf[i] for leaf in both)) for i in (0, 1))
    return q_statistics, p_statistics


def _observed(
    q: Float[Array, "*batch d"],
    p: Float[Array, "*batch d"],
    statistics: tuple[LogdetStatistics, LogdetStatistics],
) -> dict[str, Float[Array, ""]]:
    """Returns the logged statistics, without gradient."""
    observed = {}
    for name, x, logdet in (("q", q, statistics[0]), ("p", p, statistics[1])):
        observed[f"{name}_pr"] = logdet.pr_norm
        observed[f"{name}_logdet"] = logdet.logdet_per_dim
        observed[f"{name}_eigmax"] = logdet.eigmax_frac
        rows = jax.lax.stop_gradient(x)
        observed[f"{name}_std_min"] = jnp.sqrt(jnp.min(pooled_variance(rows)))
        observed[f"{name}2"] = jnp.mean(jnp.square(rows))
    return {name: jax.lax.stop_gradient(value) for name, value in observed.items()}


def hjepa_objective(
    z: Float[Array, "views batch n"],
    flow: Flow,
    energy: Energy | None,
    projections: Mapping[str, Float[Array, "n//2 _"]],
    settings: HJEPASettings,
    num_global_views: int,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Returns the total loss and its parts; every regularizer pools the rows of all views.

    total = pred + budget_weight budget + var_weight (var_q + var_p)
    + logdet_weight (logdet_q + logdet_p) + mean_weight mean.

    Args:
        z: [V, B, 2d], z = [q | p], global views first; computed in float32 (float64 stays).
        flow: (z [S, B, 2d], direction +1 or -1) -> prediction [S, B, 2d].
        energy: z [..., 2d] -> [...], or None.
        projections: 'q' and 'p', each [d, k] with orthonormal columns.
        settings: see `HJEPASettings`.
        num_global_views: how many of the V views are global.

    Returns:
        (total, metrics): the unweighted losses 'pred', 'budget', 'var', 'var_q', 'var_p',
        'logdet', 'logdet_q', 'logdet_p', 'mean', and 'total'; and without gradient 'q_pr',
        'q_logdet', 'q_eigmax', 'q_std_min', 'q2', the same for p, and 'z_mean2'.
        With floor_p_variance=False, 'var_p' is 0.

    Raises:
        ValueError: see `prediction_loss` and `logdet_floor`.
    """
    z = at_least_float32(z)
    prediction = prediction_loss(flow, energy, z, settings, num_global_views=num_global_views)
    half = z.shape[-1] // 2
    q, p = z[..., :half], z[..., half:]
    var_q = variance_floor(q, settings.q_std_floor, settings.std_eps)
    var_p = jnp.zeros_like(var_q)
    if settings.floor_p_variance:
        var_p = variance_floor(p, settings.p_std_floor, settings.std_eps)
    statistics = _logdet_statistics_of_both(q, p, projections, settings.logdet_eps)
    logdet_q = logdet_penalty(
        statistics[0],
        logdet_floor=settings.q_logdet_floor,
        pr_floor=settings.q_pr_floor,
        eigmax_ceiling=settings.q_eigmax_ceiling,
    )
    logdet_p = logdet_penalty(
        statistics[1],
        logdet_floor=settings.p_logdet_floor,
        pr_floor=settings.p_pr_floor,
        eigmax_ceiling=settings.p_eigmax_ceiling,
    )
    losses = {
        "pred": prediction,
        "budget": budget(z, settings.q_target, settings.p_target),
        "var": var_q + var_p,
        "logdet": logdet_q + logdet_p,
        "mean": mean_penalty(z),
    }
    total = (
        losses["pred"]
        + settings.budget_weight * losses["budget"]
        + settings.var_weight * losses["var"]
        + settings.logdet_weight * losses["logdet"]
        + settings.mean_weight * losses["mean"]
    )
    parts = {"var_q": var_q, "var_p": var_p, "logdet_q": logdet_q, "logdet_p": logdet_p}
    metrics = {**losses, **parts, "total": total, **_observed(q, p, statistics)}
    metrics["z_mean2"] = jax.lax.stop_gradient(losses["mean"])
    return total, metrics
