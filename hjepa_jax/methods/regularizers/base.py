"""The base class of regularizers: terms of the states alone, which a method adds to its prediction.

A regularizer is a subclass of `Regularizer` in its own file, here or in a user's project. A method
composes one: LeJEPA has SIGReg, and HJEPA the one that `config.loss.regularizer` selects. `draw`
and `terms` are traced by `jax.jit`, as those of `hjepa_jax.methods.base.Method` are.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.methods.base import Metrics, Randomness, Suspect
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.shares import AxisName


class Regularizer(abc.ABC):
    """A regularizer, built from the configuration; it holds no arrays.

    Subclasses define `terms`; everything else has a default.

    Attributes:
      sections: its configuration sections by name, see `hjepa_jax.methods.base.Method`.
      fields: dotted names of the fields that it uses in the section `loss` of HJEPA; set with
        another regularizer, they are an error.
      losses: names of its metrics to minimize.
      settings: the run's configuration.
      shape: shape of the states.
      steps_per_epoch: for schedules that count in epochs.
    """

    sections: ClassVar[Mapping[str, type]] = {}
    fields: ClassVar[tuple[str, ...]] = ()
    losses: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Settings, shape: StateShape, steps_per_epoch: int):
        """Stores a checked configuration, the shape of the states and the length of an epoch."""
        self.settings = settings
        self.shape = shape
        self.steps_per_epoch = steps_per_epoch

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings, which are then rejected."""
        del settings
        yield from ()

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) of each warm-up that does not end within the epochs."""
        del settings, epochs
        yield from ()

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces its fields to the size of a smoke test.

        Args:
          config: configuration with its sections, modified in place.
        """
        del config

    def warnings(self) -> Iterator[str]:
        """Yields a sentence for each setting that is allowed but likely a mistake."""
        yield from ()

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: DTypeLike
    ) -> Randomness:
        """Draws the named random numbers of a step; see `hjepa_jax.methods.base.Method.draw`."""
        del key, step, num_rows, num_images, dtype
        return {}

    def redraw(self) -> dict[str, int]:
        """Returns the arrays of `draw` that change every so many steps alone, with the steps."""
        return {}

    @abc.abstractmethod
    def terms(
        self,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[list[jax.Array], Metrics]:
        """Returns the terms to add to a loss, weighted, and scalars to log.

        Args:
          z: [V, B, D], global views first, of all images or of a share of them; float32 or
            float64.
          randomness: what `draw` returned; other arrays may be among them.
          step: int32 scalar, the optimizer steps done before this one.
          axis_name: the axis that the images are split over, see `hjepa_jax.objectives.shares`.

        Returns:
          (scalars, which the method adds up in this order; the terms without their weights, and
          other scalars, by name).
        """

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term by name."""
        return {}

    def targets(self) -> dict[str, float]:
        """Returns the mean square that parts are driven to; see `methods.base.Method.targets`."""
        return {}

    def remedy(self, part: str, term: str) -> str:
        """Returns what to change if the state collapses; see `methods.base.Method.remedy`."""
        del part, term
        return "change the weights of the loss"

    def suspects(self) -> dict[str, Suspect]:
        """Returns advice for each of its metrics that may be non-finite."""
        return {}


def refreshed_key(key: jax.Array, step: jax.Array, stream: int, interval: int) -> jax.Array:
    """Returns the key of what a regularizer draws anew every `interval` steps.

    Args:
      key: typed PRNG key of the run.
      step: int32 scalar.
      stream: number of the purpose; no two share one.
      interval: steps.
    """
    return jax.random.fold_in(jax.random.fold_in(key, stream), step // interval)
