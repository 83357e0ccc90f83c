"""The configuration: one row for each field, and what follows from the rows.

The files in the folder `configs/` are small deltas of `base_config()`; `resolve` checks the result
and returns the typed `Settings` that code takes. To add a field, declare it with `field(...)` in
the dataclass of its section (data.py, model.py, losses.py, training.py): its default, type, bounds,
meaning, and when it has an effect stand there and nowhere else. Rules between fields stand in
rules.py.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

from hjepa_jax.config.checks import resolve
from hjepa_jax.config.files import base_config
from hjepa_jax.config.settings import (
    Settings,
    may_change_on_resume,
    may_differ_between_processes,
    rows,
    sections,
)

__all__ = [
    "Config",
    "Settings",
    "base_config",
    "may_change_on_resume",
    "may_differ_between_processes",
    "resolve",
    "rows",
    "sections",
    "steps_per_epoch",
    "total_steps",
    "view_sizes",
]


# Until every function takes `Settings`.
Config: TypeAlias = Any


def view_sizes(config: Config) -> dict[str, tuple[int, int]]:
    """Returns (number, side in pixels) of each kind of views that a batch has."""
    data = config.data
    sizes = {"global_views": (data.num_global_views, data.image_size)}
    if data.num_local_views:
        sizes["local_views"] = (data.num_local_views, data.local_size)
    return sizes


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Returns the whole batches in one epoch (the last partial batch is dropped)."""
    return num_images // batch_size


def total_steps(config: Config, num_images: int) -> int:
    """Returns the optimiser steps of a whole run."""
    steps = math.ceil(config.train.epochs * steps_per_epoch(num_images, config.data.batch_size))
    return steps if config.train.max_steps is None else min(steps, config.train.max_steps)
