"""Measures which departures from N(0, I) each test of SIGReg sees, and draws the picture of it.

    python docs/power.py measure docs/method/power.json
    python docs/power.py draw docs/method/power.json docs/images/power.png

A statistic is that of SIGReg: the mean over 64 random directions, new in each trial, or the
multivariate one. It is compared with the 95 % quantile of its values for Gaussian states, which
have another seed, so that its power is that of a test of size 5 %.
"""

import functools
import json
import pathlib
import sys
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from hjepa_jax.objectives.normality.goodness_of_fit import (
    MULTIVARIATE,
    SLICED,
    goodness_of_fit,
)
from hjepa_jax.objectives.sigreg import epps_pulley

matplotlib.use("Agg")
from matplotlib import pyplot as plt

DIM, SLICES, COUNTS = 8, 64, (32, 128, 512)
TRIALS, NULL_TRIALS, CHUNK = 400, 2000, 50
TESTS = ("epps_pulley", *SLICED, *MULTIVARIATE)
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def gaussian(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """The hypothesis itself."""
    return random.standard_normal(shape)


def shift(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Mean 0.15 in every dimension."""
    return random.standard_normal(shape) + 0.15


def scale(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard deviation 0.9."""
    return 0.9 * random.standard_normal(shape)


def heavy_tail(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Multivariate t of 3 degrees of freedom, with unit covariance."""
    return random.standard_normal(shape) / np.sqrt(random.chisquare(3, (*shape[:-1], 1)))


def skew(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Independent exponential dimensions, less their mean."""
    return random.exponential(size=shape) - 1


def two_clusters(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Two Gaussians along the diagonal, of centers -0.95 and 0.95, with unit covariance."""
    x, center = random.standard_normal(shape), 0.95
    axis = np.full(shape[-1], shape[-1] ** -0.5)
    along = x @ axis
    sign = random.choice([-1.0, 1.0], shape[:-1])
    moved = center * sign + np.sqrt(1 - center**2) * along
    return x + (moved - along)[..., None] * axis


def uniform(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Independent uniform dimensions of unit variance."""
    return random.uniform(-np.sqrt(3), np.sqrt(3), shape)


def low_rank(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Half of the dimensions repeat the other half."""
    half = random.standard_normal((*shape[:-1], shape[-1] // 2))
    return np.concatenate([half, half], axis=-1)


def collapsed(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A quarter of the dimensions is zero."""
    x = random.standard_normal(shape)
    x[..., : shape[-1] // 4] = 0
    return x


DEPARTURES: dict[str, Draw] = {
    "none": gaussian,
    "shift": shift,
    "scale": scale,
    "heavy tail": heavy_tail,
    "skew": skew,
    "two clusters": two_clusters,
    "uniform": uniform,
    "low rank": low_rank,
    "collapsed dimensions": collapsed,
}


@functools.partial(jax.jit, static_argnums=2)
def _statistics(z: jax.Array, slices: jax.Array, test: str) -> jax.Array:
    """Returns the statistic of each trial of states [T, N, D] along directions [T, D, K]."""
    if test in MULTIVARIATE:
        return goodness_of_fit(z, None, test)
    projections = jnp.einsum("tnd,tdk->tnk", z, slices)
    if test == "epps_pulley":
        options = {"t_max": 3.0, "n_points": 9, "weight_type": "gaussian"}
        return jnp.mean(epps_pulley(projections, **options), axis=-1)
    return jnp.mean(SLICED[test](projections), axis=-1)


def sampled(draw: Draw, count: int, trials: int, seed: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns every test's statistics of `trials` samples of `count` states."""
    random, found = np.random.default_rng(list(seed)), {test: [] for test in TESTS}
    for start in range(0, trials, CHUNK):
        number = min(CHUNK, trials - start)
        z = jnp.asarray(draw(random, (number, count, DIM)), jnp.float32)
        slices = random.standard_normal((number, DIM, SLICES))
        slices /= np.linalg.norm(slices, axis=1, keepdims=True)
        for test in TESTS:
            found[test].append(_statistics(z, jnp.asarray(slices, jnp.float32), test))
    return {test: np.concatenate(values) for test, values in found.items()}


def measure(
    counts: Sequence[int] = COUNTS, trials: int = TRIALS, null_trials: int = NULL_TRIALS
) -> dict:
    """Returns the share of samples that each test rejects, by number of states and departure."""
    power: dict[str, dict[str, dict[str, float]]] = {}
    for count in counts:
        null = sampled(gaussian, count, null_trials, (1, count))
        limits = {test: float(np.quantile(values, 0.95)) for test, values in null.items()}
        power[str(count)] = {}
        for number, (name, draw) in enumerate(DEPARTURES.items()):
            values = sampled(draw, count, trials, (2, count, number))
            power[str(count)][name] = {
                test: round(float((values[test] > limits[test]).mean()), 3) for test in TESTS
            }
    sizes = {"dimensions": DIM, "directions": SLICES, "trials": trials, "null_trials": null_trials}
    return {**sizes, "power": power}


def draw(measured: dict, path: pathlib.Path) -> None:
    """Draws one panel for each number of states: departures by tests."""
    panels = measured["power"]
    figure, all_axes = plt.subplots(
        1, len(panels), figsize=(13, 4.6), layout="constrained", sharey=True
    )
    for axes, (count, rows) in zip(np.atleast_1d(all_axes), panels.items()):
        table = np.array([[row[test] for test in TESTS] for row in rows.values()])
        axes.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            color = "white" if value > 0.6 else "black"
            text = f"{100 * value:.0f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        names = [test.replace("_", " ") for test in TESTS]
        axes.set_xticks(range(len(TESTS)), names, rotation=60, ha="right", fontsize=9)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_title(f"{count} states", fontsize=11)
        axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def table(measured: dict, count: str) -> list[str]:
    """Returns the Markdown table of the percentages for a number of states."""
    rows = measured["power"][count]
    heads = [test.replace("_", " ") for test in TESTS]
    lines = [f"| departure | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(f'{100 * row[test]:.0f}' for test in TESTS)} |")
    return lines


if __name__ == "__main__":
    if sys.argv[1] == "measure":
        pathlib.Path(sys.argv[2]).write_text(json.dumps(measure(), indent=1) + "\n")
    else:
        draw(json.loads(pathlib.Path(sys.argv[2]).read_text()), pathlib.Path(sys.argv[3]))
