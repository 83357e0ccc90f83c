"""The picture of `initial_conditions.condition_maps`: one column for each integrator."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize, SymLogNorm
from matplotlib.figure import Figure

from hjepa_jax.evaluation.physics.initial_conditions import ConditionMaps
from hjepa_jax.evaluation.report.figures import new_figure

_DPI = 140
# Column titles: name, and what to expect of it.
_TITLES = {
    "leapfrog": "leapfrog\norder 2, symplectic",
    "symplectic_euler": "symplectic Euler\norder 1, symplectic",
    "yoshida4": "Yoshida\norder 4, symplectic",
    "implicit_midpoint": "implicit midpoint\norder 2, symplectic",
    "runge_kutta4": "Runge-Kutta\norder 4",
    "explicit_euler": "explicit Euler\norder 1",
    "implicit_euler": "implicit Euler\norder 1",
}
# Colors of drifts below this share of the largest are linear, not logarithmic.
_LINEAR_SHARE = 1e-5
_DIVERGED = "#BDBDBD"
_LEVELS = 7


def reversal_limits(found: ConditionMaps) -> tuple[float, float]:
    """Returns the common logarithmic scale of the reversal errors: rounding at most, to 1."""
    every = np.concatenate([one.reversal.ravel() for one in found.maps.values()])
    positive = every[np.isfinite(every) & (every > 0)]
    low = float(np.quantile(positive, 0.02)) if positive.size else 1e-16
    return min(low, 0.1), 1.0


def drift_limit(found: ConditionMaps) -> float:
    """Returns the largest drift of the common scale, the largest energy of the window at most."""
    every = np.abs(np.concatenate([one.drift.ravel() for one in found.maps.values()]))
    finite = every[np.isfinite(every)]
    largest = float(finite.max()) if finite.size else 1.0
    span = float(np.ptp(found.energy))
    return min(largest, span) or 1.0


def _draw(axes: Axes, values: np.ndarray, found: ConditionMaps, norm: Normalize, cmap: Colormap):
    window = found.window
    q, p = window.q_extent, window.p_extent
    axes.imshow(
        np.ma.masked_invalid(values),
        origin="lower",
        extent=(-q, q, -p, p),
        aspect=q / p,
        norm=norm,
        cmap=cmap,
        interpolation="nearest",
    )
    side = np.linspace(-1, 1, len(found.energy))
    if np.ptp(found.energy) > 0:
        levels = np.quantile(found.energy, np.linspace(0.1, 0.9, _LEVELS))
        axes.contour(
            q * side,
            p * side,
            found.energy,
            np.unique(levels),
            colors="k",
            linewidths=0.4,
            alpha=0.5,
        )
    lost = 1 - np.isfinite(values).mean()
    if lost > 0:
        share = f"{lost:.0%}" if lost >= 0.01 else "under 1%"
        where = "all diverge" if lost == 1 else f"gray: {share} diverge"
        white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5}
        axes.text(
            *(0.5, 0.04, where), transform=axes.transAxes, ha="center", fontsize=7.5, bbox=white
        )


def heat_map_figure(found: ConditionMaps, system: str) -> Figure:
    """Reversal error above and signed energy drift below, over initial conditions.

    Args:
      found: the maps.
      system: names the system in the title.
    """
    count = len(found.maps)
    figure = new_figure(1.75 * count + 1.7, 4.5, _DPI)
    panels = figure.subplots(2, count, squeeze=False, sharex=True, sharey=True)
    limit = drift_limit(found)
    errors, drifts = (
        colormaps[name].with_extremes(bad=_DIVERGED) for name in ("cividis", "RdBu_r")
    )
    logarithmic = LogNorm(*reversal_limits(found), clip=True)
    signed = SymLogNorm(_LINEAR_SHARE * limit, vmin=-limit, vmax=limit, clip=True)
    for column, (name, one) in enumerate(found.maps.items()):
        _draw(panels[0, column], one.reversal, found, logarithmic, errors)
        _draw(panels[1, column], one.drift, found, signed, drifts)
        panels[0, column].set_title(_TITLES[name], fontsize=9)
        panels[1, column].set_xlabel(found.window.q_label, fontsize=8)
    for axes in panels.flat:
        axes.tick_params(labelsize=7)
    for axes in panels[:, 0]:
        axes.set_ylabel(found.window.p_label, fontsize=8)
    bar = figure.colorbar(ScalarMappable(logarithmic, errors), ax=list(panels[0]), pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.set_label("reversal error\n|return − start| / (1 + |start|)", fontsize=8)
    bar = figure.colorbar(ScalarMappable(signed, drifts), ax=list(panels[1]), pad=0.01)
    bar.set_ticks(
        [*(-limit * 10.0**-k for k in (0, 2, 4)), 0, *(limit * 10.0**-k for k in (4, 2, 0))]
    )
    bar.ax.set_yticklabels(
        [f"{tick:+.0e}" if tick else "0" for tick in bar.get_ticks()], fontsize=7
    )
    bar.set_label("energy drift\nred: gained, blue: lost", fontsize=8)
    figure.suptitle(
        f"{system}. {found.steps} steps of {found.dt:g} from every initial condition: error of the "
        "way back (above), and mean energy of the last half minus that of the start (below)",
        fontsize=10,
    )
    return figure
