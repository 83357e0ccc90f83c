"""Which way a logged figure is better; the one table of it."""

from __future__ import annotations

import difflib

# Losses and their terms, of every objective and of the online probe.
_LOSSES = (
    *("total", "pred", "energy", "budget", "var", "var_q", "var_p"),
    *("logdet", "logdet_q", "logdet_p", "mean", "z_mean2", "sigreg", "spec", "online/probe_loss"),
)
_ACCURACIES = ("online/knn_top1", "online/knn_top5", "online/probe_top1")
# Others, such as a norm, a rate or a spread, are neither better large nor better small.
DIRECTIONS: dict[str, str] = {
    **dict.fromkeys(_LOSSES, "min"),
    **dict.fromkeys(_ACCURACIES, "max"),
}


def best_direction(metric: str, mode: str | None) -> str | None:
    """Returns 'min' or 'max': a known metric's own direction, `mode` for any other (or None)."""
    return DIRECTIONS.get(metric, mode)


def direction_problem(metric: str, mode: str | None) -> str | None:
    """Returns a sentence where a metric and config.checkpoint.best_mode do not fit, else None."""
    own = DIRECTIONS.get(metric)
    if own is None and mode is None:
        near = difflib.get_close_matches(metric, DIRECTIONS, 1)
        meant = f", or did you mean {near[0]!r}?" if near else "."
        return (
            f"config.checkpoint.best_metric is {metric!r}, of which it is not known whether small "
            f"or large is better: set config.checkpoint.best_mode to 'min' or 'max'{meant}"
        )
    if own is None or mode in (None, own):
        return None
    better = "small" if own == "min" else "large"
    return (
        f"config.checkpoint.best_mode is {mode!r}, but {metric!r} is better when it is {better}, "
        "so that the worst would be kept: leave best_mode at None."
    )
