"""Warnings about valid settings that are likely mistakes, logged once when training starts."""

from __future__ import annotations

from collections.abc import Iterator

from hjepa_jax.config import Settings, steps_per_epoch, total_steps
from hjepa_jax.config.rules import unfinished_schedules
from hjepa_jax.config.training import Model
from hjepa_jax.methods.base import Method
from hjepa_jax.runtime.devices import on_cpu


def cautions(settings: Settings, method: Method, num_images: int) -> Iterator[str]:
    """Yields a sentence for each setting that is likely a mistake, the method's first.

    Args:
      settings: a validated configuration.
      method: the run's method.
      num_images: number of images in the training split.
    """
    yield from method.warnings()
    yield from _cut_schedules(settings, num_images)
    yield from _slow_arithmetic(settings.model)


def _cut_schedules(settings: Settings, num_images: int) -> Iterator[str]:
    """Yields a sentence if config.train.max_steps ends a run before its warm-ups."""
    epoch_steps = steps_per_epoch(num_images, settings.data.batch_size)
    steps = total_steps(settings.train, epoch_steps)
    epochs = steps / epoch_steps
    unfinished = unfinished_schedules(settings, epochs)
    # A run of a few steps only checks that everything runs.
    if unfinished and settings.train.max_steps == steps > 10:
        yield (
            f"config.train.max_steps ends the run after {epochs:.3g} epochs, before the end of "
            f"{' and '.join(unfinished)}: the schedule never reaches its peak."
        )


def _slow_arithmetic(model: Model) -> Iterator[str]:
    """Yields a sentence if the encoder uses bfloat16 on a CPU, where it is emulated."""
    if on_cpu() and model.compute_dtype == "bfloat16":
        yield (
            "config.model.compute_dtype is bfloat16, two to three times slower than float32 on "
            "a CPU: set --config.model.compute_dtype=float32, unless it must match a run on a GPU."
        )
