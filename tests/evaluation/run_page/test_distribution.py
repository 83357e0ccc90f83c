"""The section on the distribution of states: its charts have the values that are measured."""

import evaluations
import numpy as np

from hjepa_jax.evaluation.distribution.norms import norm_histogram
from hjepa_jax.evaluation.distribution.slices import slice_discrepancy
from hjepa_jax.evaluation.distribution.volume import volume
from hjepa_jax.evaluation.run_page.distribution import distribution


def _values(text: str, name: str, number: int, axis: str = "y") -> np.ndarray:
    """Returns the values of a series in the chart of that number."""
    chart = text.split('<svg class="chart')[1 + number]
    series = next(part for part in chart.split("<g ") if f'data-name="{name}"' in part)
    found = series.partition(f' data-{axis}="')[2].partition('"')[0]
    return np.array(found.split(), float)


def test_charts_and_table_have_what_is_measured() -> None:
    inputs, metrics = evaluations.pictures(), evaluations.metrics()
    text = distribution(metrics, inputs)
    states = inputs.encoders["trained"].states
    half = states.shape[1] // 2
    for number, standardized in enumerate((False, True)):
        found = slice_discrepancy(states, standardized=standardized)
        shown = _values(text, "trained", number)
        np.testing.assert_allclose(shown, found.states.median, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            _values(text, "N(0, 1)", number, "high"), found.sample.high, rtol=1e-3, atol=1e-4
        )
    for number, part in enumerate((states[:, :half], states[:, half:], states), start=2):
        found = norm_histogram(part)
        np.testing.assert_allclose(_values(text, "trained", number), found.density, rtol=1e-3)
        np.testing.assert_allclose(_values(text, "χ", number), found.chi, rtol=1e-3, atol=1e-9)
        assert f"√{part.shape[1]}" in text
    expected = volume(states[:, :half], 128, 1e-4)
    assert f"{expected.smallest:.4g}"[:4] in text
    assert "momentum p" in text


def test_states_without_halves_are_shown_whole() -> None:
    metrics = evaluations.metrics()
    for one in metrics["encoders"].values():
        one.pop("state_parts", None)
        one["state_part"] = "qp"
    text = distribution(metrics, evaluations.pictures())
    assert "state z" in text
    assert "position q" not in text
