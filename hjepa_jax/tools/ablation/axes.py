"""The axes of an ablation, their levels, and the arms that combine them."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from hjepa_jax.errors import UserError

# Level -> overrides 'section.field=value'; effects are relative to levels that come first.
Levels: TypeAlias = Mapping[str, tuple[str, ...]]
AXES: dict[str, Levels] = {
    "head": {"none": ("model.projector=identity",), "halves": ("model.projector=halves",)},
    "predictor": {
        "identity": ("dynamics.predictor=identity",),
        "mlp": ("dynamics.predictor=mlp",),
        "hamiltonian": ("dynamics.predictor=hamiltonian",),
    },
    "regularizer": {
        "floors": ("loss.regularizer=floors",),
        "sigreg": ("loss.regularizer=sigreg",),
    },
}
_NAME = re.compile(r"[\w.+]+")


class Arm(NamedTuple):
    """A combination of levels.

    Attributes:
      name: the levels joined by '-'.
      levels: axis -> level.
      overrides: those of all levels.
    """

    name: str
    levels: dict[str, str]
    overrides: tuple[str, ...]


def chosen_axes(names: Sequence[str], given: Sequence[str]) -> dict[str, Levels]:
    """Returns axes with levels added or changed.

    Args:
      names: axes of `AXES` to take.
      given: 'AXIS LEVEL section.field=value ...': a level of a new axis, a new level of a known
        one, or another meaning of a known level.

    Raises:
      UserError: for an unknown axis, a malformed level, or an axis with a single level.
    """
    axes: dict[str, Levels] = {}
    for name in names:
        if name not in AXES:
            near = difflib.get_close_matches(name, AXES, 1, 0.0)[0]
            raise UserError(
                f"--axes: {name!r} is none of {', '.join(AXES)}: did you mean {near!r}? Another "
                "axis is made by --level."
            )
        axes[name] = AXES[name]
    for text in given:
        axis, level, *overrides = [*text.split(), "", ""][: max(2, len(text.split()))]
        if not (_NAME.fullmatch(axis) and _NAME.fullmatch(level)):
            raise UserError(
                f"--level={text!r} is not a level: write 'AXIS LEVEL section.field=value ...', "
                "with names of letters, digits, and underscores."
            )
        axes[axis] = {**axes.get(axis, {}), level: tuple(overrides)}
    for axis, levels in axes.items():
        if len(levels) < 2:
            raise UserError(
                f"the axis {axis!r} has one level, {next(iter(levels))!r}, and nothing to compare "
                "it with: add another --level."
            )
    return axes


def arms_of(axes: Mapping[str, Levels]) -> list[Arm]:
    """Returns every combination of the levels, the last axis varying fastest."""
    arms = []
    for levels in itertools.product(*axes.values()):
        overrides = [part for axis, level in zip(axes, levels) for part in axes[axis][level]]
        arms.append(Arm("-".join(levels), dict(zip(axes, levels)), tuple(overrides)))
    return arms
