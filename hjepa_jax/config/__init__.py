"""The configuration: one declaration per field; everything else is derived from it.

The recipes in `hjepa_jax.recipes` modify `base_config()`; `resolve` checks the result
and returns the typed `Settings` that code takes. To add a field, declare it with `field(...)` in
the dataclass of its section, in data.py, training.py, or the file of its method, encoder or
dataset. The declaration is the only place for its default, type, bounds, meaning, and the condition
under which it has an effect. Rules between fields are in rules.py or in the part that they concern.
"""

from __future__ import annotations

import math

from hjepa_jax.config.checks import resolve
from hjepa_jax.config.data import Data
from hjepa_jax.config.files import base_config
from hjepa_jax.config.settings import (
    Settings,
    may_change_on_resume,
    may_differ_between_processes,
    rows,
    sections,
)
from hjepa_jax.config.training import Train

__all__ = [
    "Settings",
    "base_config",
    "may_change_on_resume",
    "may_differ_between_processes",
    "resolve",
    "rows",
    "sections",
    "steps_in_epochs",
    "steps_per_epoch",
    "total_steps",
    "view_sizes",
]


def view_sizes(data: Data) -> dict[str, tuple[int, int]]:
    """Returns (number, side in pixels) of each kind of view in a batch."""
    sizes = {"global_views": (data.num_global_views, data.image_size)}
    if data.num_local_views:
        sizes["local_views"] = (data.num_local_views, data.local_size)
    return sizes


def steps_per_epoch(num_images: int, batch_size: int, drop_last: bool = True) -> int:
    """Returns the number of batches in an epoch, without a last partial one if it is dropped."""
    return num_images // batch_size if drop_last else math.ceil(num_images / batch_size)


def steps_in_epochs(epochs: float, epoch_steps: int) -> int:
    """Returns the steps nearest to a number of epochs, at least one."""
    return max(1, round(epochs * epoch_steps))


def total_steps(train: Train, epoch_steps: int) -> int:
    """Returns the number of optimizer steps of a complete run.

    Args:
      train: the section `train`.
      epoch_steps: steps in one epoch.
    """
    steps = math.ceil(train.epochs * epoch_steps)
    return steps if train.max_steps is None else min(steps, train.max_steps)
