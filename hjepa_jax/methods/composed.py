"""Methods whose loss is an error of prediction plus a regularizer of the same states."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import jax
from jax.typing import DTypeLike

from hjepa_jax.config import Settings
from hjepa_jax.methods.base import Method, Randomness, Suspect
from hjepa_jax.methods.regularizers.base import Regularizer
from hjepa_jax.models.base import StateShape


class Composed(Method):
    """A method that leaves what concerns its regularizer to it.

    Attributes:
      regularizer: of the class that `regularizer_of` returns.
    """

    def __init__(self, settings: Settings, shape: StateShape, steps_per_epoch: int):
        """See `Method`."""
        super().__init__(settings, shape, steps_per_epoch)
        self.regularizer = self.regularizer_of(settings)(settings, shape, steps_per_epoch)

    @classmethod
    @abc.abstractmethod
    def regularizer_of(cls, settings: Settings) -> type[Regularizer]:
        """Returns the class of the regularizer."""

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) of each warm-up that does not end within the epochs."""
        yield from cls.regularizer_of(settings).unfinished(settings, epochs)

    def warnings(self) -> Iterator[str]:
        """Yields a sentence for each setting that is allowed but likely a mistake."""
        yield from self.regularizer.warnings()

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: DTypeLike
    ) -> Randomness:
        """Draws what the regularizer needs; see `Method`."""
        return self.regularizer.draw(
            key, step, num_rows=num_rows, num_images=num_images, dtype=dtype
        )

    def redraw(self) -> dict[str, int]:
        """Returns the regularizer's arrays that change every so many steps alone."""
        return self.regularizer.redraw()

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the total loss."""
        return {"pred": 1.0, **self.regularizer.weights()}

    def targets(self) -> dict[str, float]:
        """Returns the mean squares that the regularizer drives the state to."""
        return self.regularizer.targets()

    def remedy(self, part: str, term: str) -> str:
        """Returns what to change in the regularizer; see `Method`."""
        return self.regularizer.remedy(part, term)

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term."""
        prediction = Suspect("the loss term pred", ("data.mean", "data.std"))
        return {"pred": prediction, **self.regularizer.suspects()}
