"""Effects of an ablation's levels on accuracies, paired by seed and by test image."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.paired.bootstrap import Effect, image_effect
from hjepa_jax.evaluation.paired.per_image import CLASSIFIERS, Answers
from hjepa_jax.tools.ablation.axes import Arm, Levels

# Arm -> seed -> answers.
Answered: TypeAlias = Mapping[str, Mapping[int, Answers]]


class Contrast(NamedTuple):
    """A level minus another one of the same axis.

    Attributes:
      axis: the axis.
      level: the level whose effect it is.
      base: the level that it is compared with.
      others: levels of the other axes, by axis; {} = the mean over all of them.
      pairs: number of pairs of runs.
      effects: accuracy -> the difference, and its interval over test images.
      by_seed: accuracy -> the difference of each seed.
    """

    axis: str
    level: str
    base: str
    others: dict[str, str]
    pairs: int
    effects: dict[str, Effect]
    by_seed: dict[str, dict[int, float]]


def check_same_images(answered: Answered) -> None:
    """Refuses runs that were tested on different images.

    Raises:
      UserError: naming two of them.
    """
    every = [(f"{arm}, seed {seed}", a) for arm, by in answered.items() for seed, a in by.items()]
    for (first, one), (second, other) in itertools.pairwise(every):
        same = np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)
        if not same:
            raise UserError(
                f"{first} and {second} were tested on different images and cannot be compared "
                "image by image: evaluate them on the same."
            )


def common_classifiers(answered: Answered) -> list[str]:
    """Returns the accuracies that all runs have."""
    every = [one.classes for by_seed in answered.values() for one in by_seed.values()]
    return [name for name in CLASSIFIERS if all(name in one for one in every)]


def contrasts(
    axes: Mapping[str, Levels], arms: Sequence[Arm], answered: Answered
) -> tuple[list[Contrast], list[Contrast]]:
    """Returns (main effects, differences of two arms that differ in one level).

    Arms without a finished run are left out; a main effect is then over the pairs that there are.
    """
    names = common_classifiers(answered)
    by_levels = {tuple(arm.levels.items()): arm.name for arm in arms}
    mains, simple = [], []
    for axis, levels in axes.items():
        for base, level in itertools.combinations(levels, 2):
            matched: list[tuple[dict[str, str], str, str]] = []
            for arm in arms:
                if arm.levels[axis] == base:
                    counterpart = by_levels[tuple({**arm.levels, axis: level}.items())]
                    others = {name: at for name, at in arm.levels.items() if name != axis}
                    matched.append((others, counterpart, arm.name))
            pairs = [(ours, theirs) for _, ours, theirs in matched]
            mains += _contrast(axis, level, base, {}, pairs, answered, names)
            if len(matched) > 1:
                for others, ours, theirs in matched:
                    one = [(ours, theirs)]
                    simple += _contrast(axis, level, base, others, one, answered, names)
    return mains, simple


def _contrast(
    axis: str,
    level: str,
    base: str,
    others: dict[str, str],
    pairs: Sequence[tuple[str, str]],
    answered: Answered,
    names: Sequence[str],
) -> list[Contrast]:
    """Returns the contrast over pairs of arms with the seeds that both have; [] without any."""
    ours: list[dict[str, npt.NDArray[np.bool_]]] = []
    theirs: list[dict[str, npt.NDArray[np.bool_]]] = []
    seeds: list[int] = []
    for first, second in pairs:
        for seed in sorted(answered.get(first, {}).keys() & answered.get(second, {}).keys()):
            ours.append(answered[first][seed].hits())
            theirs.append(answered[second][seed].hits())
            seeds.append(seed)
    if not seeds:
        return []
    effects, by_seed = {}, {}
    for name in names:
        a, b = [one[name] for one in ours], [one[name] for one in theirs]
        effects[name] = image_effect(a, b)
        differences = [float(x.mean() - y.mean()) for x, y in zip(a, b, strict=True)]
        by_seed[name] = {
            seed: float(np.mean([d for d, s in zip(differences, seeds, strict=True) if s == seed]))
            for seed in sorted(set(seeds))
        }
    return [Contrast(axis, level, base, others, len(seeds), effects, by_seed)]
