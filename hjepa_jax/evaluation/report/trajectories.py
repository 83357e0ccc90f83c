"""The picture of a learned flow: trajectories in planes of q and p, and their energy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from hjepa_jax.evaluation.report.figures import (
    CLASS_COLORS,
    class_name,
    new_figure,
    short_name,
    tidy,
)
from hjepa_jax.evaluation.report.flow import FlowPicture, HalfPicture
from hjepa_jax.evaluation.report.gallery import PictureInputs


def _draw_half(axes: Axes, half: HalfPicture, name: str) -> None:
    axes.scatter(*half.cloud.T, s=5, color="0.85", linewidths=0)
    now = len(half.trajectories) // 2
    for i, path in enumerate(np.swapaxes(half.trajectories, 0, 1)):
        color = CLASS_COLORS[i]
        axes.plot(*path[: now + 1].T, color=color, linewidth=1.6, linestyle=(0, (3, 1.5)))
        axes.plot(*path[now:].T, color=color, linewidth=2.2)
        axes.plot(*path[now], "o", color=color, markersize=7, markeredgecolor="white")
        axes.annotate(
            "",
            path[-1],
            path[-2],
            arrowprops={"arrowstyle": "-|>", "color": color, "linewidth": 2, "shrinkA": 0},
        )
    axes.set_title(f"{name}: {'position' if name == 'q' else 'momentum'}")
    axes.set_xlabel(f"first axis ({half.shares[0]:.0%} of variance)")
    axes.set_ylabel(f"second axis ({half.shares[1]:.0%})")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)


def _draw_energies(axes: Axes, flow: FlowPicture) -> None:
    now = len(flow.times) // 2
    start = flow.energies[now]
    for i, energies in enumerate(flow.energies.T):
        change = (energies - start[i]) / max(abs(float(start[i])), 1e-12)
        axes.plot(flow.times, change, color=CLASS_COLORS[i], linewidth=2)
    axes.axvline(0.0, color="0.6", linewidth=1, linestyle=":")
    axes.set_title("Energy along the flow")
    axes.set_xlabel("time t (0: the encoded image)")
    axes.set_ylabel("relative change of H")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    tidy(axes)


def _draw_samples(
    axes: Axes, images: Sequence[tuple[np.ndarray, int]], names: Sequence[str]
) -> None:
    """Draws the images in a column, framed in the colors of their trajectories."""
    for i, (image, label) in enumerate(images):
        top = 1.35 * i
        axes.imshow(image, extent=(0, 1, top + 1, top), interpolation="nearest")
        frame = Rectangle((0, top), 1, 1, fill=False, linewidth=3)
        frame.set_edgecolor(CLASS_COLORS[i])
        axes.add_patch(frame)
        caption = short_name(class_name(names, label))
        axes.text(0.5, top + 1.05, caption, fontsize=8, ha="center", va="top")
    axes.set_xlim(-0.05, 1.05)
    axes.set_ylim(1.35 * len(images), -0.05)
    axes.set_aspect("equal")
    axes.axis("off")


def flow_figure(flow: FlowPicture, inputs: PictureInputs) -> Figure:
    """Trajectories of the gallery's test images through q and p, and energy over time.

    Dashed lines are the past (the flow backward in time), solid lines the future; gray points are
    the states of other test images, which define the principal axes.
    """
    figure = new_figure(13.4, 4.6)
    widths = {"width_ratios": [0.3, 1, 1, 1], "wspace": 0.08}
    samples, left, middle, right = figure.subplots(1, 4, gridspec_kw=widths)
    images = [inputs.test_images[int(query)] for query in inputs.queries]
    _draw_samples(samples, images, inputs.class_names)
    _draw_half(left, flow.q, "q")
    _draw_half(middle, flow.p, "p")
    _draw_energies(right, flow)
    span = f"{flow.times[-1]:.3g}"
    figure.suptitle(
        f"States of test images (dots) under the learned flow: forward to time {span} (arrows), "
        f"and backward to time -{span} (dashed)"
    )
    return figure
