"""VICReg: the views' states agree, vary, and are uncorrelated.

Source: "VICReg", arXiv 2105.04906.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax

from hjepa_jax.config import Settings
from hjepa_jax.methods.baselines.views import ViewBaseline
from hjepa_jax.methods.regularizers.vicreg import VarianceCovariance, VICRegSection
from hjepa_jax.objectives.baselines.vicreg import view_distance
from hjepa_jax.objectives.shares import AxisName


class VICReg(ViewBaseline):
    """Invariance, variance and covariance of pairs of views, the mean over all pairs."""

    sections: ClassVar[Mapping[str, type]] = {"vicreg": VICRegSection}
    losses: ClassVar[tuple[str, ...]] = ("pred", *VarianceCovariance.losses)

    @classmethod
    def regularizer_of(cls, settings: Settings) -> type[VarianceCovariance]:
        """Returns VICReg's variance and covariance."""
        del settings
        return VarianceCovariance

    def agreement(self, z: jax.Array, axis_name: AxisName) -> jax.Array:
        """Returns the mean squared distance of pairs of views."""
        return view_distance(z, axis_name)

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the total loss."""
        own = self.settings.section(VICRegSection)
        return {"pred": own.invariance_weight, **self.regularizer.weights()}
