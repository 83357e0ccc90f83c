"""Names of splits, and one numbering of the classes for all splits of a dataset."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterable, Mapping, Sequence

from hjepa_jax.errors import DataError, counted

_log = logging.getLogger(__name__)

# Splits whose classes are numbered together by default.
SPLITS = ("train", "test")
# Common names of splits, in lower case.
_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
# Substitutes for missing splits.
_STAND_INS = {"val": "test", "test": "val"}
# Parts `train.X1`, `train.X2` make one split together.
_PART = re.compile(r"\.X\d*$")


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning about a dataset once per process, since datasets are opened repeatedly."""
    _log.warning("%s", message)


@functools.cache
def say_once(message: str) -> None:
    """Logs a line about a dataset once per process."""
    _log.info("%s", message)


def is_training(split: str) -> bool:
    """Returns whether a name is that of a training split."""
    return split.lower() in _NAMES["train"]


def choose(split: str, present: Iterable[str], where: str) -> list[str]:
    """Returns the names that make up a split; several only if it has parts.

    A split has its own name, in any case, or a synonym ('train', 'training'; 'val', 'valid',
    'validation'; 'test', 'testing'); and 'val' stands in for 'test', and vice versa.

    Args:
      split: the requested name.
      present: names of folders or files.
      where: their location, for the message.

    Returns:
      Names, sorted; [] if there are none.

    Raises:
      DataError: if several match equally well.
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
    """Returns the splits that share one numbering of classes, in order of precedence."""
    return list(dict.fromkeys((*siblings, split)))


def number_classes(where: str, classes: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """Returns the classes of a dataset in the order of their numbers.

    Args:
      where: description of the dataset, for the warning.
      classes: the ordered classes of each split, in order of precedence.

    Returns:
      The classes of the first split, then the additional ones of the next, and so on. A warning is
      logged if the splits have different classes.
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
