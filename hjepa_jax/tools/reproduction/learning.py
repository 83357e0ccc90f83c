"""The kNN accuracy along the training, over epochs and over the time that training took."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from hjepa_jax.evaluation.report.figures import new_figure, styles_of, tidy
from hjepa_jax.storage.metrics_file import Curve

_SCORE, _SPEED = "online/knn_top1", "speed/images_per_second"
# Method -> seed -> tag -> curve.
Curves = Mapping[str, Mapping[int, Mapping[str, Curve]]]


def has_scores(curves: Curves) -> bool:
    """Returns whether a run was evaluated along its training."""
    return any(_SCORE in tags for by_seed in curves.values() for tags in by_seed.values())


def training_hours(
    tags: Mapping[str, Curve], steps: npt.NDArray[np.int64], batch_size: int
) -> npt.NDArray[np.float64]:
    """Returns the hours that training took until steps, without evaluations and interruptions.

    Args:
      tags: the run's curves, with its speed at some steps: that since the one before.
      steps: ascending steps; until one between two with a known speed, the later speed counts.
      batch_size: images of a step.
    """
    known, speeds = tags[_SPEED]
    seconds = np.cumsum(np.diff(known, prepend=0) * batch_size / speeds)
    return np.interp(steps, np.append(0, known), np.append(0.0, seconds)) / 3600


def learning_curves(
    curves: Curves, titles: Mapping[str, str], batch_sizes: Mapping[str, int]
) -> Figure:
    """Draws kNN over epochs, and over hours of training on this machine, one line for each run."""
    figure = new_figure(10.0, 4.4)
    panels = figure.subplots(1, 2, sharey=True)
    styles = styles_of(list(curves))
    for method, by_seed in curves.items():
        label: str | None = titles[method]
        style = {**styles[method], "markersize": 3, "linewidth": 1.3}
        for tags in by_seed.values():
            if _SCORE not in tags:
                continue
            steps, scores = tags[_SCORE]
            epochs = np.interp(steps, *tags["epoch"])
            panels[0].plot(epochs, 100 * scores, label=label, **style)
            hours = training_hours(tags, steps, batch_sizes[method])
            panels[1].plot(hours, 100 * scores, **style)
            label = None
    for axes, title in zip(panels, ("epoch", "hours of training on this machine")):
        axes.set_xlabel(title)
        tidy(axes)
    panels[0].set_ylabel("kNN top-1 during training (%)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure
