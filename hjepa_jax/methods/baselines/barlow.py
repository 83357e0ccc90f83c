"""Barlow Twins: the cross-correlation of two views is the identity.

Source: "Barlow Twins", arXiv 2103.03230.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
from jaxtyping import PyTree

from hjepa_jax.config import Settings
from hjepa_jax.config.fields import field
from hjepa_jax.methods.base import Method, Metrics, Randomness, Suspect
from hjepa_jax.methods.baselines.views import one_view
from hjepa_jax.methods.regularizers.vicreg import one_image
from hjepa_jax.objectives.baselines.barlow import cross_correlation_terms
from hjepa_jax.objectives.regularizers import state_statistics
from hjepa_jax.objectives.shares import AxisName


@dataclasses.dataclass(frozen=True)
class BarlowSection:
    """Barlow Twins."""

    redundancy_weight: float = field(
        0.0051,
        "Weight of the squared correlations of different dimensions.",
        at_least=0,
        aliases="lambd lambda barlow_lambda lamb",
    )
    eps: float = field(1e-5, "Added to variances.", at_least=1e-12, at_most=1)


class BarlowTwins(Method):
    """Correlation 1 of a dimension with itself in another view, 0 with all others."""

    sections: ClassVar[Mapping[str, type]] = {"barlow": BarlowSection}
    takes_shares: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("invariance", "redundancy")

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        yield from one_view(settings)
        yield from one_image(settings)

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns both terms, the mean over pairs of views; see `Method`."""
        del params, method_state, randomness, step
        own = self.settings.section(BarlowSection)
        invariance, redundancy = cross_correlation_terms(z, eps=own.eps, axis_name=axis_name)
        total = invariance + own.redundancy_weight * redundancy
        terms = {"invariance": invariance, "redundancy": redundancy, "total": total}
        return total, {**terms, **state_statistics(z, axis_name)}

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the total loss."""
        own = self.settings.section(BarlowSection)
        return {"invariance": 1.0, "redundancy": own.redundancy_weight}

    def remedy(self, part: str, term: str) -> str:
        """Returns the weight as the setting to change; see `Method`."""
        del part, term
        return "raise barlow.redundancy_weight"

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term."""
        fields = ("barlow.eps", "barlow.redundancy_weight")
        return {name: Suspect(f"the loss term {name}", fields) for name in self.losses}
