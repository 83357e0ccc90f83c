"""Names of splits, and one numbering of the classes for all splits of a dataset."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence

from hjepa_jax.errors import DataError, counted

_log = logging.getLogger(__name__)

# Splits whose classes are numbered together where nothing else is said.
SPLITS = ("train", "test")
# What the splits that people use are called, in lower case.
_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# What serves where there is no such split.
_STAND_INS = {"val": "test", "test": "val"}
# Parts `train.X1`, `train.X2` make one split together.
_PART = re.compile(r"\.X\d*$")


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning about a dataset, once a process: datasets are opened again and again."""
    _log.warning("%s", message)


def choose(split: str, present: Iterable[str], where: str) -> list[str]:
    """Returns which of the names present make up a split; several only for its parts.

    A split has its own name, in any case, or a synonym ('train', 'training'; 'val', 'valid',
    'validation'; 'test', 'testing'); and 'val' stands in for 'test', and the other way round.

    Args:
      split: the name asked for.
      present: names of folders or files.
      where: what they are in, for the message.

    Returns:
      Names, sorted; [] if there is none.

    Raises:
      DataError: if several fit equally well.
    """
    parts: dict[str, list[str]] = {}
    for name in sorted(present):
        parts.setdefault(_PART.sub("", name), []).append(name)
    kind = next((kind for kind, names in _NAMES.items() if split.lower() in names), None)
    tiers: list[tuple[str, ...]] = [(split.lower(),)]
    if kind is not None:
        tiers += [_NAMES[kind]] + ([_NAMES[_STAND_INS[kind]]] if kind in _STAND_INS else [])
    for tier in tiers:
        fitting = [base for base in parts if base.lower() in tier]
        if split in fitting:
            fitting = [split]
        found = [name for base in fitting for name in parts[base]]
        if len(fitting) > 1 or (len(found) > 1 and fitting[0] in found):
            raise DataError(
                f"{where}: {' and '.join(found)} could each be the split '{split}'; name it in "
                "data.train_split or data.test_split, or rename the others."
            )
        if found:
            return found
    return []


def family(split: str, siblings: Sequence[str]) -> list[str]:
    """Returns the splits that share one numbering of classes, the one that comes first first."""
    return list(dict.fromkeys((*siblings, split)))


def number_classes(where: str, classes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Returns the classes of a dataset in the order of their numbers.

    Args:
      where: what the dataset is, for the warning.
      classes: of each split, the one that comes first first: its classes in their order.

    Returns:
      The classes of the first split, then those that only the next one has, and so on. A warning
      says if splits that have classes differ in them.
    """
    ordered = list(dict.fromkeys(name for names in classes.values() for name in names))
    for split, names in classes.items():
        known, first = set(names), next(iter(classes.values()))
        missing = [name for name in ordered if name not in known]
        if names and first and known.isdisjoint(first):
            warn_once(
                f"{where}: the split '{split}' ({', '.join(names[:5])}) shares no class with the "
                f"split '{next(iter(classes))}' ({', '.join(first[:5])}); is it sorted into the "
                "same class folders?"
            )
        elif names and missing:
            more = ", ..." if len(missing) > 5 else ""
            number = counted(len(missing), "class", "classes")
            warn_once(
                f"{where}: the split '{split}' has no images of {number} that other splits have "
                f"({', '.join(missing[:5])}{more})."
            )
    return tuple(ordered)
