"""Opening the images that a configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from hjepa_jax.config import Config
from hjepa_jax.data.formats.pixels import FULL, Ranges
from hjepa_jax.data.sources.base import DataSet, ImageSource
from hjepa_jax.data.sources.derived import RangedSource, hold_out, sample_ranges, subset
from hjepa_jax.data.sources.splits import warn_once
from hjepa_jax.errors import DataError

# Imported when named: each data set needs libraries that the others do not.
_DATA_SETS = {
    "digits": "hjepa_jax.data.sources.digits:Digits",
    "cifar10": "hjepa_jax.data.sources.cifar:Cifar10",
    "cifar100": "hjepa_jax.data.sources.cifar:Cifar100",
    "folder": "hjepa_jax.data.sources.folder:Folder",
    "tfds": "hjepa_jax.data.sources.tfds:Tfds",
}


def open_data_set(data: Any) -> DataSet:
    """Returns the data set that `data.name` names; its splits are not read yet.

    Args:
      data: `config.data`.

    Raises:
      ValueError: if there is no data set of this name.
    """
    name, _, argument = data.name.partition(":")
    if name not in _DATA_SETS or (name == "tfds") != bool(argument):
        raise ValueError(
            f"data.name is '{data.name}'; it must be 'digits', 'cifar10', 'cifar100', 'folder' or "
            "'tfds:<name>'."
        )
    module, _, kind = _DATA_SETS[name].partition(":")
    return getattr(importlib.import_module(module), kind)(data, argument)


def open_source(data: Any, split: str, siblings: Sequence[str] | None = None) -> ImageSource:
    """Opens the images of one split.

    Classes have the same numbers in every split: first those of the training split, then those
    that only others have. All splits share one scale for images of more than 8 bits a channel,
    chosen from a sample of the training split (`pixels.choose_ranges`); a warning reports it.

    Args:
      data: `config.data`; `name` and `root` say what and where.
      split: name of the split, usually `data.train_split` or `data.test_split`.
      siblings: splits whose classes are numbered together, in this order; None = these two.

    Returns:
      The whole split; `open_split` applies `data.max_train_images`.

    Raises:
      ValueError: if the name is unknown, or the data does not fit together.
      FileNotFoundError: if the data is not there; the message says how to get it.
    """
    siblings = siblings or (data.train_split, data.test_split)
    data_set = open_data_set(data)
    source = data_set.open(split, siblings)
    own = sample_ranges(source)
    if own is None:
        return source
    ranges = own
    if split != data.train_split:
        try:
            reference = sample_ranges(data_set.open(data.train_split, siblings))
        except (OSError, ValueError):
            reference = None
        if reference is not None:
            ranges = Ranges(reference.integer or own.integer, reference.real or own.real)
    for kind, bounds in (("integers", ranges.integer), ("floats", ranges.real)):
        if bounds is not None and bounds != (0.0, FULL):
            warn_once(
                f"{source.description}: some images have more than 8 bits a channel. In a sample, "
                f"their {kind} lie in {bounds[0]:g} .. {bounds[1]:g}, which becomes 0 .. 255 for "
                "every image; values outside saturate."
            )
    return RangedSource(source, ranges)


def open_split(config: Config, which: str) -> ImageSource:
    """Opens a part of the images of a configuration, limited as it says.

    Args:
      config: the configuration.
      which: 'train', 'test', or 'holdout': the training images that
        `config.evaluation.online_holdout` keeps out of 'train'.

    Raises:
      DataError: if the data is missing or does not fit together.
    """
    data = config.data
    split, limit = {
        "train": (data.train_split, data.max_train_images),
        "holdout": (data.train_split, data.max_train_images),
        "test": (data.test_split, data.max_test_images),
    }[which]
    held_out = config.evaluation.online_holdout
    try:
        source = subset(open_source(data, split), limit, config.seed)
        if which == "test" or held_out is None:
            return source
        remaining, held = hold_out(source, held_out, config.seed)
        return held if which == "holdout" else remaining
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
