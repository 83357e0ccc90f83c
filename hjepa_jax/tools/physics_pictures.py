"""The pictures of `hjepa physics` by name, of a classical system and of trained runs."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hjepa_jax.dynamics.hamiltonian import Hamiltonian
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.distribution.figures import norms_figure, slices_figure, volume_figure
from hjepa_jax.evaluation.distribution.norms import norm_histograms
from hjepa_jax.evaluation.distribution.slices import slice_discrepancy
from hjepa_jax.evaluation.physics import animation
from hjepa_jax.evaluation.physics.cases import CASES
from hjepa_jax.evaluation.physics.figures import save_all, save_pictures
from hjepa_jax.evaluation.physics.heat_maps import heat_map_figure
from hjepa_jax.evaluation.physics.initial_conditions import Window, condition_maps
from hjepa_jax.evaluation.physics.measure import Measurement, MeasurementSetup, summarize
from hjepa_jax.evaluation.physics.names import COMPARISON, OF_ENERGIES
from hjepa_jax.evaluation.physics.surface import Surface, phase_surface, potential_surface
from hjepa_jax.evaluation.physics.surface_pictures import surface_frames, surface_picture
from hjepa_jax.evaluation.report.maps import principal_axes
from hjepa_jax.evaluation.report.text import plot_text
from hjepa_jax.tools.physics_runs import ShownRun, volume_curves

# File name -> function that draws the picture, or returns the file's content.
Painters = dict[str, Callable[[], Any]]
# At leapfrog's step, explicit Euler would leave the pictures at once.
_STEP = 0.5
# A trained energy takes seconds for each of them.
_MOST_OF_RUN = 16
# Deviations of the states that a window of initial conditions shows.
_DEVIATIONS = 2.0


def _surface_painters(surface: Callable[[], Surface]) -> Painters:
    """Returns the painters of the surface as a picture, a GIF and, with ffmpeg, an MP4."""
    seen = functools.cache(surface)
    frames = functools.cache(lambda: surface_frames(seen()))
    painters: Painters = {
        "surface.png": lambda: surface_picture(seen()),
        "surface.gif": lambda: animation.gif(frames()),
    }
    if animation.has_ffmpeg():
        painters["surface.mp4"] = lambda: animation.mp4(frames())
    else:
        print("no surface.mp4: ffmpeg is not installed")
    return painters


def _energy_painters(
    which: Sequence[str], surface: Callable[[], Surface], heat_map: Callable[[], Any]
) -> Painters:
    """Returns the painters of those pictures of an energy that are wanted."""
    painters = _surface_painters(surface) if "surface" in which else {}
    return painters | ({"heatmap.png": heat_map} if "heatmap" in which else {})


def of_system(name: str, which: Sequence[str], *, dt: float, steps: int, grid: int) -> Painters:
    """Returns the painters of a classical system, in float64.

    Args:
      name: a key of CASES.
      which: 'surface' and 'heatmap' are drawn.
      dt: step length of leapfrog; these pictures take half of it.
      steps: number of steps of the heat maps.
      grid: their initial conditions per side.
    """
    case, shown = CASES[name], name.replace("_", " ")

    def surface() -> Surface:
        with jax.enable_x64(True):
            return phase_surface(shown, case, dt=_STEP * dt)

    def heat_map() -> Any:
        with jax.enable_x64(True):
            origin = jnp.zeros(2 * case.dim)
            axes = origin.at[0].set(1.0), origin.at[case.dim].set(1.0)
            window = Window(origin, *axes, case.extent, case.extent)
            found = condition_maps(case.system(), window, dt=_STEP * dt, steps=steps, size=grid)
        return heat_map_figure(found, f"{shown}, {case.formula}")

    return _energy_painters(which, surface, heat_map)


def window_of(states: np.ndarray) -> Window:
    """Returns initial conditions along the first principal direction of q of states [B, 2d].

    They are in jax's widest floating-point type.
    """
    half = states.shape[1] // 2
    q, p = states[:, :half].astype(np.float64), states[:, half:].astype(np.float64)
    direction = principal_axes(q, 1).axes[:, 0]
    zeros = np.zeros(half)
    q_extent, p_extent = (
        _DEVIATIONS * max(float((part @ direction).std()), 1e-6) for part in (q, p)
    )
    parts = states.mean(axis=0), [*direction, *zeros], [*zeros, *direction]
    center, q_axis, p_axis = (jnp.asarray(part, jnp.result_type(float)) for part in parts)
    where = "from the mean, along the\n1st principal direction of q"
    return Window(center, q_axis, p_axis, q_extent, p_extent, f"q {where}", f"p {where}")


def _of_energy(
    shown: ShownRun,
    hamiltonian: Hamiltonian,
    which: Sequence[str],
    dt: float,
    steps: int,
    grid: int,
) -> Painters:
    name = plot_text(shown.name)

    def surface() -> Surface:
        return potential_surface(name, hamiltonian, shown.states, dt=_STEP * dt)

    def heat_map() -> Any:
        size = min(grid, _MOST_OF_RUN)
        with jax.enable_x64(True):
            window = window_of(shown.states)
            found = condition_maps(hamiltonian, window, dt=_STEP * dt, steps=steps, size=size)
        return heat_map_figure(found, f"{name}, trained H")

    return _energy_painters(which, surface, heat_map)


def of_runs(
    runs: Sequence[ShownRun], which: Sequence[str], *, dt: float, steps: int, grid: int
) -> Painters:
    """Returns the painters of trained runs.

    Args:
      runs: the runs; 'surface' and 'heatmap' show the first that has a Hamiltonian.
      which: names of the pictures.
      dt: see `of_system`.
      steps: see `of_system`.
      grid: see `of_system`; at most 16 are taken.
    """
    energies = (pair for run in runs if (pair := (run, run.hamiltonian))[1] is not None)
    shown, hamiltonian = next(energies, (None, None))
    painters: Painters = {}
    if shown is not None and hamiltonian is not None:
        painters = _of_energy(shown, hamiltonian, which, dt, steps, grid)

    def by_name(measure: Callable[[ShownRun], Any]) -> Mapping[str, Any]:
        return {plot_text(run.name): measure(run) for run in runs}

    def slices() -> Any:
        return slices_figure(
            by_name(
                lambda run: tuple(
                    slice_discrepancy(run.states, standardized=one) for one in (False, True)
                )
            )
        )

    own: Painters = {
        "logdet.png": lambda: volume_figure(by_name(volume_curves)),
        "slices.png": slices,
        "norms.png": lambda: norms_figure(
            by_name(lambda run: norm_histograms(run.states, run.split_qp))
        ),
    }
    return painters | {
        name: draw for name, draw in own.items() if name.removesuffix(".png") in which
    }


def possible(runs: Sequence[ShownRun], which: Sequence[str], *, strict: bool) -> list[str]:
    """Returns the pictures that runs have.

    Args:
      runs: the runs.
      which: names of the pictures.
      strict: whether to refuse what they do not have, instead of saying that it is left out.

    Raises:
      UserError: `strict`, and a picture needs a Hamiltonian or predictor that they do not have.
    """
    lacking = [run.name for run in runs if run.run.predictor[0] is None]
    reasons = {}
    if lacking:
        reasons |= dict.fromkeys(COMPARISON, f"the run {lacking[0]} has no predictor")
    if all(run.hamiltonian is None for run in runs):
        reasons |= dict.fromkeys(OF_ENERGIES, "no run has a Hamiltonian")
    left_out = [name for name in which if name in reasons]
    if left_out and strict:
        raise UserError(
            f"{reasons[left_out[0]]}, which the picture {left_out[0]} shows: give runs of "
            "config.method='hjepa', or choose others with --which."
        )
    for reason in dict.fromkeys(reasons[name] for name in left_out):
        names = [name for name in left_out if reasons[name] == reason]
        print(f"no {', '.join(names)}: {reason}")
    return [name for name in which if name not in reasons]


def save(folder: pathlib.Path, painters: Painters) -> list[pathlib.Path]:
    """Draws into a folder, which is made; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    return save_pictures(folder, painters)


def save_comparison(
    folder: pathlib.Path,
    results: Mapping[str, Measurement],
    setup: MeasurementSetup,
    which: Sequence[str],
) -> list[pathlib.Path]:
    """Writes the pictures of a comparison, and prints its main numbers; returns the paths."""
    written = save_all(results, setup, folder, which)
    for name, figures in summarize(results).items():
        drift, defect = figures.get("energy_drift_max_median"), figures["symplectic_defect_median"]
        shown = "  -" if drift is None else f"{drift:9.2e}"
        print(f"{name:16s} energy error {shown}   symplectic defect {defect:9.2e}")
    return written
