"""Successive halving against its definition."""

import math

import pytest

from hjepa_jax.tools.tuning.halving import rung_steps, survivors


@pytest.mark.parametrize(
    ("total", "factor", "count", "steps"),
    [
        (234, 3, 2, [26, 78, 234]),
        (100, 3, 2, [11, 33, 100]),
        (8, 2, 3, [1, 2, 4, 8]),
        (2, 3, 2, [1, 2]),
        (1, 2, 2, [1]),
        (50, 4, 0, [50]),
    ],
)
def test_rungs_are_multiples_of_the_first_and_end_at_the_end(total, factor, count, steps) -> None:
    assert rung_steps(total, factor, count) == steps
    assert all(step % steps[0] == 0 for step in steps[:-1])


def test_one_in_three_goes_on() -> None:
    scores = {0: 0.1, 1: 0.4, 2: 0.3, 3: 0.4, 4: 0.2, 5: 0.0, 6: 0.25}
    assert survivors(scores, 3) == [1, 2, 3]
    assert survivors(scores, 7) == [1]  # of equal ones the first
    # A failed trial counts as one of those compared, but never goes on.
    assert survivors({**scores, 1: math.nan, 3: math.nan}, 3) == [2, 4, 6]
    assert survivors({0: math.nan, 1: 0.5, 2: math.nan}, 2) == [1]
    assert survivors({0: 0.2}, 3) == [0]
