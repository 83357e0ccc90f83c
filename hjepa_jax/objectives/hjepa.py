"""The terms of Hamiltonian JEPA: prediction by a flow, and the statistics of q and p.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from hjepa_jax.objectives import shares
from hjepa_jax.objectives.regularizers import (
    LogdetStatistics,
    at_least_float32,
    logdet_statistics,
    pooled_variance,
    projected_covariance,
)
from hjepa_jax.objectives.shares import AxisName

Flow = Callable[[Float[Array, "views batch n"], int], Float[Array, "views batch n"]]
Energy = Callable[[Float[Array, "*batch n"]], Float[Array, "*batch"]]

Match = Literal["q", "p", "qp"]
Pairing = Literal["first_two", "all_global", "local_to_global"]
MATCHES: tuple[Match, ...] = get_args(Match)
PAIRINGS: tuple[Pairing, ...] = get_args(Pairing)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"loss.{name} must be one of {', '.join(choices)}, got {value!r}")


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
        ValueError: an unknown pairing, or too few views for it.
    """
    _check_choice("pairing", pairing, PAIRINGS)
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


def _match(
    error: Float[Array, "pairs batch n"], match: Match, p_weight: float, axis_name: AxisName
) -> Float[Array, ""]:
    """Returns the mean squared error [P, B, 2d] -> scalar of the part that is matched."""
    square = jnp.square(error)
    if match == "qp":
        return shares.mean(square, axis_name)
    half = error.shape[-1] // 2
    if match == "p":
        return shares.mean(square[..., half:], axis_name)
    loss = shares.mean(square[..., :half], axis_name)
    return loss + p_weight * shares.mean(square[..., half:], axis_name) if p_weight else loss


def _directed_loss(
    flow: Flow,
    energy: Energy | None,
    z: Float[Array, "views batch n"],
    pairs: list[tuple[int, int]],
    direction: int,
    *,
    match: Match,
    p_weight: float,
    energy_weight: float,
    detach_target: bool,
    axis_name: AxisName,
) -> Float[Array, ""]:
    """Returns the mean loss of pairs of one direction; each source flows once, all in one call."""
    sources = sorted({source for source, _ in pairs})
    z_source = z[jnp.array(sources)]
    z_hat = at_least_float32(flow(z_source, direction))
    rows = jnp.array([sources.index(source) for source, _ in pairs])
    target = z[jnp.array([target for _, target in pairs])]
    if detach_target:
        target = jax.lax.stop_gradient(target)
    loss = _match(z_hat[rows] - target, match, p_weight, axis_name)
    if energy_weight:
        if energy is None:
            raise ValueError(
                "loss.energy_weight > 0 needs a predictor with an energy: "
                "set dynamics.predictor = 'hamiltonian' or loss.energy_weight = 0"
            )
        drift = energy(z_hat) - jax.lax.stop_gradient(energy(z_source))
        loss += energy_weight * shares.mean(jnp.square(drift)[rows], axis_name)
    return loss


def _check_prediction(z: jax.Array, match: str, reverse_direction_sign: int) -> None:
    _check_choice("match", match, MATCHES)
    if reverse_direction_sign not in (-1, 1):
        raise ValueError(f"reverse_direction_sign must be -1 or 1, got {reverse_direction_sign}")
    if z.ndim != 3 or z.shape[-1] % 2:
        raise ValueError(f"z must be [V, B, 2d] with an even last axis, got {z.shape}")


def prediction_loss(
    flow: Flow,
    energy: Energy | None,
    z: Float[Array, "views batch n"],
    *,
    num_global_views: int,
    pairing: Pairing,
    match: Match,
    p_weight: float,
    energy_weight: float,
    bidirectional: bool,
    detach_target: bool,
    reverse_direction_sign: Literal[-1, 1],
    axis_name: AxisName = None,
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
        num_global_views: how many of the V views are global.
        pairing: which views predict each other, see `view_pairs`.
        match: part of the state that is compared, one of MATCHES.
        p_weight: weight of p's error beside match 'q'.
        energy_weight: weight of the energy's drift along the flow.
        bidirectional: also predict the source view from the target.
        detach_target: no gradient through the target.
        reverse_direction_sign: direction of the backward prediction: -1, the reversed flow, or +1,
            for parity with the published ImageNet script.
        axis_name: see `shares`.

    Raises:
        ValueError: an unknown choice, too few views, or energy_weight > 0 without an energy.
    """
    _check_prediction(z, match, reverse_direction_sign)
    z = at_least_float32(z)
    directed = functools.partial(
        _directed_loss,
        flow,
        energy,
        z,
        match=match,
        p_weight=p_weight,
        energy_weight=energy_weight,
        detach_target=detach_target,
        axis_name=axis_name,
    )
    forward = view_pairs(pairing, z.shape[0], num_global_views)
    if not bidirectional:
        return directed(forward, 1)
    backward = [(target, source) for source, target in forward]
    if reverse_direction_sign == 1:
        return directed(forward + backward, 1)
    return 0.5 * (directed(forward, 1) + directed(backward, reverse_direction_sign))


def logdet_statistics_of_both(
    q: Float[Array, "*batch d"],
    p: Float[Array, "*batch d"],
    projections: Mapping[str, Float[Array, "d _"]],
    eps: Mapping[str, float],
    axis_name: AxisName = None,
) -> tuple[LogdetStatistics, LogdetStatistics]:
    """Returns the log-det statistics of q and p, decomposed in one batch when the ranks agree.

    Args:
        q: rows [..., d].
        p: rows [..., d].
        projections: 'q' and 'p', each [d, k] with orthonormal columns.
        eps: 'q' and 'p', added to the covariances' diagonals.
        axis_name: see `shares`.
    """
    covariances = [
        projected_covariance(x, projections[name], eps[name], axis_name)
        for name, x in (("q", q), ("p", p))
    ]
    if covariances[0].shape != covariances[1].shape:
        return logdet_statistics(covariances[0]), logdet_statistics(covariances[1])
    both = logdet_statistics(jnp.stack(covariances))
    q_statistics, p_statistics = (LogdetStatistics(*(leaf[i] for leaf in both)) for i in (0, 1))
    return q_statistics, p_statistics


def state_statistics(
    q: Float[Array, "*batch d"],
    p: Float[Array, "*batch d"],
    statistics: tuple[LogdetStatistics, LogdetStatistics],
    axis_name: AxisName = None,
) -> dict[str, Float[Array, ""]]:
    """Returns the logged statistics, without gradient.

    Args:
        q: rows [..., d].
        p: rows [..., d].
        statistics: of q and of p, from `logdet_statistics_of_both`.
        axis_name: see `shares`.

    Returns:
        'q_pr', 'q_logdet', 'q_eigmax', the smallest deviation of a dimension 'q_std_min', the
        mean square 'q2', and the same of p.
    """
    observed = {}
    for name, x, logdet in (("q", q, statistics[0]), ("p", p, statistics[1])):
        observed[f"{name}_pr"] = logdet.pr_norm
        observed[f"{name}_logdet"] = logdet.logdet_per_dim
        observed[f"{name}_eigmax"] = logdet.eigmax_frac
        rows = jax.lax.stop_gradient(x)
        observed[f"{name}_std_min"] = jnp.sqrt(jnp.min(pooled_variance(rows, axis_name)))
        observed[f"{name}2"] = shares.mean(jnp.square(rows), axis_name)
    return {name: jax.lax.stop_gradient(value) for name, value in observed.items()}
