"""Curves along the training: their hours against a sum by hand."""

import numpy as np
import pytest

from hjepa_jax.tools.reproduction.learning import has_scores, learning_curves, training_hours


def curve(steps: list[int], values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """A logged metric."""
    return np.array(steps), np.array(values)


TAGS = {
    "speed/images_per_second": curve([1, 10, 20], [64.0, 320.0, 640.0]),
    "online/knn_top1": curve([10, 15, 20], [0.25, 0.3125, 0.375]),
    "epoch": curve([1, 10, 15, 20], [0.1, 1.0, 1.5, 2.0]),
}


def test_hours_are_the_images_over_the_speeds() -> None:
    # A step of 64 images takes 1 s at first, then 0.2 s, and 0.1 s after step 10.
    hours = training_hours(TAGS, np.array([1, 10, 15, 20]), 64)
    assert 3600 * hours == pytest.approx([1.0, 2.8, 3.3, 3.8])


def test_a_run_without_scores_is_left_out(tmp_path) -> None:
    curves = {"hjepa": {0: TAGS, 1: {}}, "sigreg": {0: {}}}
    assert has_scores(curves)
    assert not has_scores({"sigreg": {0: {}}})
    titles = {"hjepa": "HJEPA", "sigreg": "SIGReg"}
    figure = learning_curves(curves, titles, {"hjepa": 64})
    epochs, hours = figure.axes
    (line,) = epochs.lines
    assert line.get_label() == "HJEPA"
    assert line.get_xdata() == pytest.approx([1.0, 1.5, 2.0])
    assert line.get_ydata() == pytest.approx([25.0, 31.25, 37.5])
    assert 3600 * np.asarray(hours.lines[0].get_xdata()) == pytest.approx([2.8, 3.3, 3.8])
    figure.savefig(tmp_path / "learning.png")
