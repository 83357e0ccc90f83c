"""A dataset of your own: colored shapes, each drawn from its index when it is read.

hjepa train --config=quickstart --workdir=runs/own_source \
    --config.data.name=examples.own_source:Shapes --config.shapes.noise=0.2
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from hjepa_jax.config.fields import field
from hjepa_jax.data.sources.base import DataSet, Record, describe, digest

_CLASSES = ("disk", "square", "diamond", "ring")
# The splits use different random streams, so no image is in both.
_SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class ShapesSection:
    """Shapes that are drawn instead of stored."""

    images: int = field(1024, "Images in each split.", above=0)
    side: int = field(32, "Side of the images in pixels.", at_least=8, at_most=1024)
    noise: float = field(
        0.1, "Standard deviation of the noise on images of 0..1.", at_least=0, at_most=1
    )


class ShapeImages:
    """One split; picklable, so that worker processes can draw it too."""

    class_names = _CLASSES

    def __init__(self, settings: ShapesSection, split: str):
        self._settings = settings
        self._split = split

    @property
    def description(self) -> str:
        return describe(f"shapes ({self._split})", self)

    def __len__(self) -> int:
        return self._settings.images

    def labels(self) -> np.ndarray:
        return np.arange(len(self), dtype=np.int32) % len(_CLASSES)

    def fingerprint(self) -> str:
        return digest("shapes", self._split, repr(self._settings))

    def record(self, index: int) -> Record:
        label, side = index % len(_CLASSES), self._settings.side
        rng = np.random.default_rng((_SPLITS.index(self._split), index))
        center, radius = rng.uniform(0.35, 0.65, (2, 1, 1)), rng.uniform(0.2, 0.33)
        y, x = np.abs((np.mgrid[:side, :side] + 0.5) / side - center)
        distance = (np.hypot(x, y), np.maximum(x, y), x + y, np.hypot(x, y))[label] / radius
        inside = (distance < 1) & ((label != 3) | (distance > 0.6))
        background, color = rng.uniform(0, 0.4, 3), rng.uniform(0.6, 1, 3)
        image = np.where(inside[..., None], color, background)
        image += self._settings.noise * rng.standard_normal(image.shape)
        pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
        return Record(None, pixels, label, f"shapes/{self._split}[{index}]")


class Shapes(DataSet):
    """The dataset, selected by `config.data.name`."""

    sections: ClassVar = {"shapes": ShapesSection}

    def open(self, split: str, siblings: Sequence[str]) -> ShapeImages:
        del siblings
        if split not in _SPLITS:
            raise ValueError(f"Shapes have the splits 'train' and 'test', not {split!r}.")
        return ShapeImages(self.settings.section(ShapesSection), split)
