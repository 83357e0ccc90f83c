"""Opens the images of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from hjepa_jax.config import Settings
from hjepa_jax.config.parts import SOURCES, is_import_path, load_subclass
from hjepa_jax.data.formats.pixels import FULL, Ranges
from hjepa_jax.data.sources.base import DataSet, ImageSource
from hjepa_jax.data.sources.derived import RangedSource, hold_out, sample_ranges, subset
from hjepa_jax.data.sources.splits import warn_once
from hjepa_jax.errors import ConfigError, DataError


def open_data_set(settings: Settings) -> DataSet:
    """Returns the dataset of `config.data.name`, without reading its splits.

    Args:
      settings: the complete configuration, including sections of the dataset.

    Raises:
      ConfigError: if the dataset does not exist.
    """
    name = settings.data.name
    # The loaded class is a concrete subclass, which the base type cannot express.
    kind = cast(
        "Callable[[Settings, str], DataSet]", load_subclass(SOURCES, name, DataSet, "dataset")
    )
    argument = "" if is_import_path(SOURCES, name) else name.partition(":")[2]
    return kind(settings, argument)


def open_source(
    settings: Settings, split: str, siblings: Sequence[str] | None = None
) -> ImageSource:
    """Opens the images of one split.

    Classes have the same numbers in every split: first those of the training split, then those
    found only in others. All splits share one scale for images of more than 8 bits per channel,
    chosen from a sample of the training split (`pixels.choose_ranges`); a warning reports it.

    Args:
      settings: the complete configuration; `data.name` and `data.root` select the data.
      split: name of the split, usually `data.train_split` or `data.test_split`.
      siblings: splits whose classes are numbered together, in this order; None = these two.

    Returns:
      The full split; `open_split` applies `data.max_train_images`.

    Raises:
      ValueError: if the name is unknown, or the data is inconsistent.
      FileNotFoundError: if the data is missing; the message says how to get it.
    """
    data = settings.data
    siblings = siblings or (data.train_split, data.test_split)
    data_set = open_data_set(settings)
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
                f"{source.description}: some images have more than 8 bits per channel. In a "
                f"sample, "
                f"their {kind} lie in {bounds[0]:g} .. {bounds[1]:g}, which becomes 0 .. 255 for "
                "every image; values outside saturate."
            )
    return RangedSource(source, ranges)


def open_split(settings: Settings, which: str) -> ImageSource:
    """Opens a split of a configuration's images, limited to its maximum size.

    Args:
      settings: the configuration.
      which: 'train', 'test', or 'holdout': the training images that
        `config.evaluation.online_holdout` keeps out of 'train'. With `config.data.test_holdout`,
        'test' is kept out of 'train' too.

    Raises:
      DataError: if the data is missing or inconsistent.
    """
    data, seed = settings.data, settings.seed
    held_out = settings.evaluation.online_holdout
    try:
        if which == "test" and data.test_holdout is None:
            return subset(open_source(settings, data.test_split), data.max_test_images, seed)
        source = subset(open_source(settings, data.train_split), data.max_train_images, seed)
        if data.test_holdout is not None:
            source, test = hold_out(source, data.test_holdout, seed)
            if which == "test":
                return subset(test, data.max_test_images, seed)
        if held_out is None:
            return source
        remaining, held = hold_out(source, held_out, seed)
        return held if which == "holdout" else remaining
    except ConfigError:
        raise
    except FileNotFoundError as error:
        advice = " To test on training images that are held out, set config.data.test_holdout."
        raise DataError(f"{error}{advice * (which == 'test')}") from error
    except (ValueError, OSError) as error:
        raise DataError(str(error)) from error
