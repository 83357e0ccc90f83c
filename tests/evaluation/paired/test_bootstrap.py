"""Paired bootstrap over images, against a direct resampling of the images and a closed form."""

import numpy as np
import pytest

from hjepa_jax.evaluation.paired.bootstrap import image_effect


def hits(seed: int, number: int, images: int, share: float) -> list[np.ndarray]:
    """Random answers, right with a probability that differs between images."""
    rng = np.random.default_rng(seed)
    easy = rng.uniform(-0.3, 0.3, images)
    return [rng.uniform(size=images) < share + easy for _ in range(number)]


def test_interval_is_that_of_resampled_images() -> None:
    ours, theirs = hits(0, 2, 400, 0.6), hits(1, 3, 400, 0.5)
    found = image_effect(ours, theirs, resamples=40_000)
    difference = np.mean(ours, axis=0) - np.mean(theirs, axis=0)
    assert found.difference == pytest.approx(difference.mean(), abs=1e-12)
    # Independent draws of whole images.
    rng = np.random.default_rng(5)
    means = [difference[rng.integers(400, size=400)].mean() for _ in range(40_000)]
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=2e-3)
    # By the central limit theorem.
    half = 1.96 * difference.std() / np.sqrt(400)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.03)


def test_pairing_narrows_the_interval_of_encoders_that_agree() -> None:
    (one,) = hits(2, 1, 1000, 0.5)
    other = one.copy()
    other[:20] = ~other[:20]
    found = image_effect([one], [other])
    unpaired = 2 * 1.96 * np.sqrt(2 * one.mean() * (1 - one.mean()) / 1000)
    assert found.high - found.low < unpaired / 3
    same = image_effect([one], [one])
    assert same == (0.0, 0.0, 0.0)


def test_order_and_sign() -> None:
    ours, theirs = hits(3, 2, 300, 0.7), hits(4, 2, 300, 0.4)
    there = image_effect(ours, theirs)
    back = image_effect(theirs, ours)
    assert there.difference == pytest.approx(-back.difference)
    assert there.low > 0.15
    assert image_effect(ours[::-1], theirs) == there


@pytest.mark.parametrize(
    ("ours", "theirs"), [([], [[True]]), ([[True]], [[True, False]]), ([[]], [[]])]
)
def test_other_images_are_refused(ours, theirs) -> None:
    with pytest.raises(ValueError, match="the same images in both groups"):
        image_effect(ours, theirs)
