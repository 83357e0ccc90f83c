"""What the baselines have in common: a loss of the views' states, without a predictor."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
from jaxtyping import PyTree

from hjepa_jax.config import Settings
from hjepa_jax.methods.base import Metrics, Randomness
from hjepa_jax.methods.composed import Composed
from hjepa_jax.objectives.regularizers import state_statistics
from hjepa_jax.objectives.shares import AxisName


class ViewBaseline(Composed):
    """Agreement of the views, times its weight, plus a regularizer."""

    takes_shares: ClassVar[bool] = True

    @abc.abstractmethod
    def agreement(self, z: jax.Array, axis_name: AxisName) -> jax.Array:
        """Returns how far the views of an image are from each other, a scalar, of z [V, B, D]."""

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        yield from one_view(settings)
        yield from cls.regularizer_of(settings).problems(settings)

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns agreement and regularizer, and `state_statistics`; see `Method`."""
        del params, method_state
        prediction = self.agreement(z, axis_name)
        weighted, terms = self.regularizer.terms(z, randomness, step, axis_name)
        total = self.weights()["pred"] * prediction
        for term in weighted:
            total = total + term
        metrics = {"pred": prediction, **terms, "total": total}
        return total, {**metrics, **state_statistics(z, axis_name)}


def one_view(settings: Settings) -> Iterator[str]:
    """Yields a sentence if there is a single view of an image."""
    if settings.data.num_global_views + settings.data.num_local_views < 2:
        yield (
            f"config.data.num_global_views is 1 and there are no local views, but config.method="
            f"{settings.method!r} compares views: set it to 2 or more."
        )
