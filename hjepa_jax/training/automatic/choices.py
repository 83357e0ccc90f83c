"""The rules by which settings are chosen from a census: one for each field, each with its reason.

A rule sees the fields that were given or chosen before it, so that what a user sets is heeded by
everything that depends on it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from hjepa_jax.config import Settings, steps_per_epoch, total_steps
from hjepa_jax.config.settings import schema_of
from hjepa_jax.errors import ConfigError, counted
from hjepa_jax.training.automatic.census import Census

# Sides of views, in pixels.
_SIDES = (16, 24, 32, 48, 64, 96, 128, 160, 192, 224)
# Tokens lie on a grid of at most this side.
_GRID = 8
_TENTH = 0.1
# Test images beyond this number narrow the intervals little.
_MOST_HELD_OUT = 10_000


@dataclasses.dataclass(frozen=True)
class _Extent:
    """What a kind of device is asked to do.

    Attributes:
      name: the kind, for the reasons.
      side: largest side of the views in pixels.
      small: largest side whose views keep their resolution in the stem.
      batch, large_batch: largest batch of views up to, and above, this side.
      width, few_width: width of the encoder, and that for fewer than `few` images.
      few: see `few_width`.
      steps: steps to train, within `epochs`.
      epochs: least and most epochs.
    """

    name: str
    side: int
    small: int
    batch: int
    large_batch: int
    width: int
    few_width: int
    few: int
    steps: int
    epochs: tuple[int, int]


_CPU = _Extent("CPU", 64, 32, 128, 128, 32, 16, 20_000, 600, (10, 400))
_ACCELERATOR = _Extent("accelerator", 224, 64, 512, 256, 64, 32, 2_000, 20_000, (30, 800))


class Choice(NamedTuple):
    """A value, and the reason for it in a few words."""

    value: Any
    why: str


Rule = Callable[[Census, Settings], Choice]


def _extent(census: Census) -> _Extent:
    return _CPU if census.platform == "cpu" else _ACCELERATOR


def _power_of_two(number: int) -> int:
    """Returns the largest power of two that is not above a number of at least 1."""
    return 1 << (number.bit_length() - 1)


def training_images(census: Census, settings: Settings) -> int:
    """Returns how many images are trained on."""
    held = (settings.data.test_holdout or 0) + (settings.evaluation.online_holdout or 0)
    return census.count - held


def _steps(census: Census, settings: Settings) -> tuple[int, int]:
    """Returns the steps of an epoch, at least 1, and of the training."""
    count = training_images(census, settings)
    epoch = max(1, steps_per_epoch(count, settings.data.batch_size, settings.data.drop_last))
    return epoch, total_steps(settings.train, epoch)


def _test_holdout(census: Census, settings: Settings) -> Choice:
    del settings
    if census.has_test:
        return Choice(None, "there is a test split")
    candidates = census.labeled or census.count
    if candidates < 5:
        raise ConfigError(
            f"there are {counted(candidates, 'image')} and no test split: give at least 5 images, "
            "or set config.data.test_holdout=None and train with --mode=train."
        )
    number = min(candidates // 5, _MOST_HELD_OUT)
    by_class = ", by class" if census.labeled else ""
    return Choice(max(2, number), f"no test split: a seeded fifth{by_class}, not trained on")


def _image_size(census: Census, settings: Settings) -> Choice:
    del settings
    low, middle, _ = census.short_side
    extent = _extent(census)
    fitting = [side for side in _SIDES if side <= min(low, extent.side)]
    why = f"short sides: a tenth below {low}, half below {middle} pixels"
    if low >= extent.side:
        why += f"; at most {extent.side} ({extent.name})"
    return Choice(max(fitting, default=_SIDES[0]), why)


def _stem(census: Census, settings: Settings) -> Choice:
    extent, size = _extent(census), settings.data.image_size
    if size > extent.small:
        return Choice("imagenet", f"{extent.name}, views of more than {extent.small} pixels")
    return Choice("cifar", f"{extent.name}, views of at most {extent.small} pixels")


def _width(census: Census, settings: Settings) -> Choice:
    extent, count = _extent(census), training_images(census, settings)
    if count < extent.few:
        return Choice(extent.few_width, f"{extent.name}, fewer than {extent.few} images")
    return Choice(extent.width, f"{extent.name}, {extent.few} images or more")


def _token_dim(census: Census, settings: Settings) -> Choice:
    del census
    width = settings.value("resnet.width")
    return Choice(max(2, min(32, width // 2 * 2)), f"encoder of width {width}")


def _token_grid(census: Census, settings: Settings) -> Choice:
    del census
    stride = 2 if settings.value("resnet.stem") == "cifar" else 8
    stride *= {"layer2": 1, "layer3": 2, "layer4": 4}[settings.value("resnet.token_layer")]
    side = math.ceil(settings.data.image_size / stride)
    if side > _GRID:
        return Choice(_GRID, f"the feature map has {side} x {side} positions")
    return Choice(None, f"the feature map has only {side} x {side} positions")


def _batch_size(census: Census, settings: Settings) -> Choice:
    extent, count = _extent(census), training_images(census, settings)
    small = settings.data.image_size <= extent.small
    most = extent.batch if small else extent.large_batch
    unit = census.devices * settings.train.accumulation
    size = _power_of_two(max(2, min(most, count // 2)))
    size = max(unit, size - size % unit)
    if count // 2 < most:
        return Choice(size, f"{count} training images, at least two steps an epoch")
    return Choice(size, f"{count} training images, {most} at most on this device")


def _epochs(census: Census, settings: Settings) -> Choice:
    extent = _extent(census)
    epoch, _ = _steps(census, settings)
    least, most = extent.epochs
    epochs = min(max(round(extent.steps / epoch), least), most)
    return Choice(epochs, f"{epoch * epochs} steps, {epoch} an epoch")


def _warmup(census: Census, settings: Settings) -> Choice:
    epoch, steps = _steps(census, settings)
    epochs = round(min(10.0, _TENTH * steps / epoch), 4)
    return Choice(epochs, "a tenth of the training" if epochs < 10 else "ten epochs")


def _residual_warmup(census: Census, settings: Settings) -> Choice:
    del census
    return Choice(settings.train.warmup_epochs, "as the learning rate's")


def _logdet_dim(census: Census, settings: Settings) -> Choice:
    del census
    batch = settings.data.batch_size
    number = max(1, min(128, batch // 2))
    why = "half the batch, so that its covariance has full rank" if number < 128 else "the default"
    return Choice(number, why)


def _compute_dtype(census: Census, settings: Settings) -> Choice:
    del settings
    if census.platform == "cpu":
        return Choice("float32", "a CPU emulates bfloat16")
    return Choice("bfloat16", "accelerator")


def _mean(census: Census, settings: Settings) -> Choice:
    del settings
    return Choice(census.mean, f"measured on {counted(census.sampled, 'image')}")


def _std(census: Census, settings: Settings) -> Choice:
    return Choice(census.std, _mean(census, settings).why)


def _blur_kernel(census: Census, settings: Settings) -> Choice:
    del census
    size = round(_TENTH * settings.data.image_size)
    return Choice(max(3, size + 1 - size % 2), "a tenth of the view")


def _num_workers(census: Census, settings: Settings) -> Choice:
    del settings
    if census.platform == "cpu":
        return Choice(0, "the CPU trains")
    if not census.files:
        return Choice(0, "the images are in memory")
    number = min(16, census.cores - 2) if census.cores > 3 else 0
    return Choice(number, f"{counted(census.cores, 'core')} to decode the files")


def _evaluation_batch(census: Census, settings: Settings) -> Choice:
    unit = census.devices
    size = max(unit, settings.data.batch_size - settings.data.batch_size % unit)
    return Choice(size, "as in training")


def _checkpoint_every(census: Census, settings: Settings) -> Choice:
    epoch, steps = _steps(census, settings)
    if epoch >= 100:
        return Choice(None, "once per epoch")
    return Choice(max(1, math.ceil(_TENTH * steps)), f"ten in the run: epochs have {epoch} steps")


def _log_every(census: Census, settings: Settings) -> Choice:
    _, steps = _steps(census, settings)
    return Choice(min(50, max(1, steps // 100)), "about a hundred in the run, or more")


# In the order in which they are chosen.
RULES: Mapping[str, Rule] = {
    "data.test_holdout": _test_holdout,
    "data.image_size": _image_size,
    "data.batch_size": _batch_size,
    "data.mean": _mean,
    "data.std": _std,
    "data.augment.blur_kernel": _blur_kernel,
    "data.num_workers": _num_workers,
    "model.compute_dtype": _compute_dtype,
    "resnet.stem": _stem,
    "resnet.width": _width,
    "resnet.token_dim": _token_dim,
    "resnet.token_grid": _token_grid,
    "train.epochs": _epochs,
    "train.warmup_epochs": _warmup,
    "dynamics.residual_scale_warmup_epochs": _residual_warmup,
    "loss.logdet_dim": _logdet_dim,
    "evaluation.batch_size": _evaluation_batch,
    "checkpoint.every_steps": _checkpoint_every,
    "log.every_steps": _log_every,
}


def choose(census: Census, settings: Settings, wanted: Collection[str]) -> dict[str, Choice]:
    """Chooses fields from a census; the same census gives the same choices.

    Args:
      census: the images and the devices.
      settings: the given fields; those that are wanted have any value.
      wanted: fields to choose, by dotted name. Those without an effect here are left out.

    Returns:
      The choice of each field, in the order of `RULES`.

    Raises:
      ConfigError: if there are too few images.
    """
    rows, found = schema_of(settings).rows, {}
    for path, rule in RULES.items():
        if path in wanted and all(condition.holds(settings) for condition in rows[path].conditions):
            found[path] = rule(census, settings)
            settings = settings.replace({path: found[path].value})
    return found
