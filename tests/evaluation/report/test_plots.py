"""Data of the plots: the series of one run and of several, and how matplotlib draws them."""

import math

import numpy as np
import pytest

from hjepa_jax.evaluation.report import figures, plots


def _spectrum(*eigenvalues: float | None) -> dict:
    return {"diagnostics": {"covariance_spectrum_topq": {"eigenvalues": list(eigenvalues)}}}


def test_a_spectrum_is_relative_to_its_largest_and_ends_at_rounding_errors() -> None:
    assert plots.spectrum_line(_spectrum(8.0, 2.0, 4e-12, 0.0)) == ([1.0, 2.0], [1.0, 0.25])
    for collapsed in ((), (0.0, 0.0), (None, None)):
        assert plots.spectrum_line(_spectrum(*collapsed)) == ([], [])


def test_an_accuracy_without_a_value_is_nan() -> None:
    ks, accuracies = plots.knn_line({"knn": {"k_values": [1, 5], "top1": [None, 0.5]}})
    assert ks == [1, 5]
    assert math.isnan(accuracies[0])
    assert accuracies[1] == 0.5


def test_runs_are_averaged_where_all_have_a_point() -> None:
    lines = [([1.0, 2.0, 3.0], [1.0, 0.25, 0.1]), ([1.0, 2.0], [1.0, 0.01])]
    one = plots.over_runs("a", 0, lines, geometric=True)
    assert (one.x, one.low, one.high) == ([1.0, 2.0], [1.0, 0.01], [1.0, 0.25])
    np.testing.assert_allclose(one.y, [1.0, 0.05])
    np.testing.assert_allclose(plots.over_runs("a", 0, lines).y, [1.0, 0.13])
    assert plots.over_runs("a", 0, lines[:1]).low is None


@pytest.mark.parametrize("described", [plots.SPECTRUM_AXES, plots.knn_axes([])])
def test_matplotlib_draws_what_is_described(described: plots.Axes) -> None:
    axes = figures.new_figure(4, 3).add_subplot()
    series = [
        plots.Series("a", [1, 5], [0.5, 0.25], 0, [0.4, 0.2], [0.6, 0.3]),
        plots.Series("nothing", [], [], 1),
    ]
    figures.draw_series(axes, series, described)
    assert (axes.get_xlabel(), axes.get_ylabel()) == (described.x_label, described.y_label)
    assert axes.get_title() == described.title
    scales = ("log" if log else "linear" for log in (described.log_x, described.log_y))
    assert (axes.get_xscale(), axes.get_yscale()) == tuple(scales)
    (line,) = axes.lines
    assert line.get_label() == "a"
    assert (line.get_marker() == "None") == (described.x_ticks is None)
    np.testing.assert_array_equal(line.get_ydata(), [0.5, 0.25])
    assert len(axes.collections) == 1


def test_mean_curve_is_at_common_steps_and_in_blocks() -> None:
    one = (np.array([1, 2, 3, 4]), np.array([1.0, 2.0, 3.0, 4.0]))
    two = (np.array([2, 3, 4, 5]), np.array([4.0, 5.0, 6.0, 9.0]))
    (steps, mean), (low, high) = plots.mean_curve([one, two])
    assert steps.tolist() == [2, 3, 4]
    assert mean.tolist() == [3, 4, 5]
    assert (low.tolist(), high.tolist()) == ([2, 3, 4], [4, 5, 6])
    (steps, mean), _ = plots.mean_curve([one], max_points=2)
    assert (steps.tolist(), mean.tolist()) == ([1, 3], [1.5, 3.5])
    assert plots.mean_curve([one, (np.array([9]), np.array([1.0]))]) is None
    assert plots.mean_curve([]) is None
