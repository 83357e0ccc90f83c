"""Draws the pictures of docs/method/hjepa.md and docs/tools.md from the package's own functions.

    python docs/pictures.py docs/images

`flow.png`: a pendulum's flow by three integrators. `sample.png`: the way of a digit to the loss.
`surface.png` and `heatmap.png`: those of `hjepa physics` for a double well.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from hjepa_jax.config import resolve
from hjepa_jax.data.batches import batch_indices
from hjepa_jax.data.pipeline import train_batches
from hjepa_jax.data.sources.open import open_source
from hjepa_jax.dynamics.hamiltonian import energy_of_state
from hjepa_jax.dynamics.integrators import integrate
from hjepa_jax.dynamics.non_symplectic import explicit_euler_step
from hjepa_jax.dynamics.systems import pendulum
from hjepa_jax.recipes import quickstart
from hjepa_jax.tools.physics_pictures import of_system

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

# Okabe and Ito's colors, which color-blind readers tell apart.
BLUE, ORANGE, GREEN, GRAY = "#0072B2", "#D55E00", "#009E73", "#666666"
STEP = 0.25


def paths(start: jax.Array, steps: int) -> dict[str, np.ndarray]:
    """Returns the trajectories [steps + 1, ..., 2] of states by integrator."""
    system = pendulum()
    found = {
        name: np.asarray(
            integrate(system, start, method=name, steps=steps, dt=STEP, return_trajectory=True)
        )
        for name in ("leapfrog", "symplectic_euler")
    }

    def euler(z: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        z = explicit_euler_step(system, z, STEP)
        return z, z

    found["explicit_euler"] = np.concatenate(
        [np.asarray(start)[None], np.asarray(jax.lax.scan(euler, start, None, length=steps)[1])]
    )
    return found


def _phase_space(axes: Axes, patch: jax.Array, times: tuple[int, ...]) -> None:
    """Draws how a patch of states moves along the contours of the energy."""
    q, p = np.meshgrid(np.linspace(-3.3, 3.3, 200), np.linspace(-2.6, 2.6, 200))
    energy = np.asarray(energy_of_state(pendulum(), jnp.stack([q, p], axis=-1)))
    axes.contour(q, p, energy, levels=np.linspace(0.1, 3.8, 12), colors="0.8", linewidths=0.8)
    for name, color in (("leapfrog", BLUE), ("explicit_euler", ORANGE)):
        trajectory = paths(patch, max(times))[name]
        for time in times:
            outline = trajectory[time]
            axes.fill(outline[:, 0], outline[:, 1], color=color, alpha=0.6, lw=0)
    axes.fill(patch[:, 0], patch[:, 1], color=GRAY, lw=0)
    axes.annotate("start", (1.3, 0), (1.3, 0.4), ha="center", fontsize=9, color=GRAY)
    axes.set(xlabel="position q", ylabel="momentum p")
    axes.set_title("A patch of states: leapfrog keeps its area")
    axes.set(xlim=(-3.3, 3.3), ylim=(-2.6, 2.6))


def _energies(axes: Axes, steps: int) -> None:
    """Draws the energy along one trajectory of each integrator."""
    labels = {
        "leapfrog": ("leapfrog", BLUE, "-"),
        "symplectic_euler": ("symplectic Euler", GREEN, "--"),
        "explicit_euler": ("explicit Euler", ORANGE, "-."),
    }
    for name, trajectory in paths(jnp.array([1.2, 0.0]), steps).items():
        label, color, style = labels[name]
        energy = np.asarray(energy_of_state(pendulum(), jnp.asarray(trajectory)))
        axes.plot(STEP * np.arange(steps + 1), energy, style, color=color, label=label)
    axes.set(xlabel="time", ylabel="energy H(q, p)", title="Energy along one path", ylim=(0.3, 1.6))
    axes.legend(frameon=False)


def draw_flow(out: pathlib.Path) -> None:
    """Draws `flow.png`."""
    angle = np.linspace(0, 2 * np.pi, 100)
    patch = jnp.asarray(np.stack([1.3 + 0.3 * np.cos(angle), 0.3 * np.sin(angle)], axis=-1))
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    _phase_space(left, patch, (7, 14, 21))
    _energies(right, 60)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "flow.png", dpi=130, metadata={"Software": None})
    plt.close(figure)


def digit_and_views() -> list[np.ndarray]:
    """Returns a training image of the digits and its two augmented views, uint8 [S, S, 3] each."""
    settings = resolve(quickstart.get_config()).replace({"data.backend": "host"})
    source = open_source(settings, settings.data.train_split)
    with train_batches(settings.data, settings.seed, source, start_step=0, num_steps=1) as stream:
        views = next(stream)["global_views"]
    _, indices = batch_indices(settings.seed, 0, len(source), settings.data.batch_size)
    return [np.asarray(source.record(int(indices[0])).image), *(view[0] for view in views)]


def _box(axes: Axes, x: float, y: float, text: str, color: str = GRAY) -> None:
    style = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": color, "lw": 1.5}
    axes.text(x, y, text, ha="center", va="center", fontsize=10, bbox=style)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **kwargs: str) -> None:
    style = {"arrowstyle": "-|>", "color": GRAY, "lw": 1.3} | kwargs
    axes.annotate("", end, start, arrowprops=style)


def draw_sample(out: pathlib.Path) -> None:
    """Draws `sample.png`."""
    figure = plt.figure(figsize=(10, 3.4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    places = ((0.7, 2.1, "image"), (2.3, 3.1, "$x_0$"), (2.3, 1.1, "$x_1$"))
    for image, (x, y, name) in zip(digit_and_views(), places):
        axes.imshow(image, extent=(x - 0.4, x + 0.4, y - 0.4, y + 0.4), aspect="auto")
        axes.text(x, y - 0.62, name, ha="center", fontsize=10)
    axes.set(xlim=(0, 10), ylim=(0.3, 3.7))
    axes.text(1.1, 2.9, "augmentation", ha="center", fontsize=9, color=GRAY)
    for y, name in ((3.1, "0"), (1.1, "1")):
        _arrow(axes, (1.2, 2.1), (1.8, y))
        _arrow(axes, (2.8, y), (3.5, y))
        _box(axes, 4.0, y, "encoder")
        _arrow(axes, (4.5, y), (4.95, y))
        _box(axes, 5.65, y, f"$z_{name} = [\\,q_{name}\\ |\\ p_{name}\\,]$", BLUE)
        _arrow(axes, (5.65, 2.1 + 0.7 * (y - 2.1)), (5.65, 2.1 + 0.4 * (y - 2.1)))
    _arrow(axes, (4.0, 2.8), (4.0, 1.4), arrowstyle="-", linestyle=":")
    axes.text(4.08, 2.1, "shared", fontsize=9, color=GRAY, va="center")
    _box(axes, 6.0, 2.1, "budget, floors, mean", ORANGE)
    _arrow(axes, (6.35, 3.1), (6.9, 3.1))
    _box(axes, 7.6, 3.1, "leapfrog\nof $H(q, p)$", BLUE)
    _arrow(axes, (8.2, 3.1), (8.75, 3.1))
    _box(axes, 9.2, 3.1, "$\\hat z$", BLUE)
    _arrow(axes, (9.2, 2.8), (9.2, 1.45))
    _arrow(axes, (6.35, 1.1), (8.5, 1.1))
    axes.text(7.4, 1.2, "stopped gradient", ha="center", fontsize=9, color=GRAY)
    _box(axes, 9.2, 1.1, "prediction\nloss", ORANGE)
    figure.savefig(out / "sample.png", dpi=130, metadata={"Software": None})
    plt.close(figure)


def draw_double_well(out: pathlib.Path) -> None:
    """Draws `surface.png` and `heatmap.png`."""
    pictures = of_system("double_well", ["surface", "heatmap"], dt=STEP, steps=100, grid=32)
    for name in ("surface.png", "heatmap.png"):
        pictures[name]().savefig(out / name, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    draw_flow(pathlib.Path(sys.argv[1]))
    draw_sample(pathlib.Path(sys.argv[1]))
    draw_double_well(pathlib.Path(sys.argv[1]))
