"""Differences between methods, paired by test image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from hjepa_jax.evaluation.paired.bootstrap import image_effect
from hjepa_jax.evaluation.paired.per_image import CLASSIFIERS, Answers
from hjepa_jax.evaluation.report.tables import markdown_table
from hjepa_jax.tools.reproduction.recipes import TITLES, TUNED

# Row -> seed -> answers.
Answered: TypeAlias = Mapping[str, Mapping[int, Answers]]
_TITLES = dict(zip(CLASSIFIERS, ("kNN", "probe top-1", "logistic top-1"), strict=True))


def image_differences(answered: Answered) -> str:
    """Returns a Markdown table of HJEPA minus every other row, published and tuned apart.

    References without training are compared with the published recipe. '' without two rows.
    """
    names = [
        name
        for name in CLASSIFIERS
        if all(name in one.classes for by_seed in answered.values() for one in by_seed.values())
    ]
    rows = []
    for of in ("hjepa", f"hjepa{TUNED}"):
        for other in answered:
            same_kind = other.endswith(TUNED) == of.endswith(TUNED)
            if of in answered and other != of and same_kind:
                rows += _row(of, other, answered, names)
    if f"hjepa{TUNED}" in answered and "hjepa" in answered:
        rows += _row(f"hjepa{TUNED}", "hjepa", answered, names)
    if not rows:
        return ""
    header = ["difference in points", "pairs", *(_TITLES[name] for name in names)]
    return "\n".join(markdown_table(header, rows))


def _row(of: str, other: str, answered: Answered, names: list[str]) -> list[list[str]]:
    """Returns the row of a difference; none without a common seed."""
    seeds = sorted(answered[of].keys() & answered[other].keys())
    if not seeds:
        return []
    cells = []
    for name in names:
        ours, theirs = ([answered[row][s].hits()[name] for s in seeds] for row in (of, other))
        found = image_effect(ours, theirs)
        low, high = 100 * found.low, 100 * found.high
        cells.append(f"{100 * found.difference:+.2f} [{low:+.2f}, {high:+.2f}]")
    return [[f"{TITLES[of]} − {TITLES[other]}", str(len(seeds)), *cells]]
