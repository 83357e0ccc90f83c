"""VISReg: the views' states predict their center, and are Gaussian by mean, scale and shape.

Source: "VISReg", arXiv 2606.02572.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax

from hjepa_jax.config import Settings
from hjepa_jax.methods.baselines.views import ViewBaseline
from hjepa_jax.methods.regularizers.visreg import MeanScaleShape, VISRegSection
from hjepa_jax.objectives.lejepa import lejepa_prediction
from hjepa_jax.objectives.shares import AxisName


class VISReg(ViewBaseline):
    """LeJEPA's prediction of the views' center, with VISReg's terms in place of SIGReg."""

    sections: ClassVar[Mapping[str, type]] = {"visreg": VISRegSection}
    losses: ClassVar[tuple[str, ...]] = ("pred", *MeanScaleShape.losses)

    @classmethod
    def regularizer_of(cls, settings: Settings) -> type[MeanScaleShape]:
        """Returns VISReg's terms."""
        del settings
        return MeanScaleShape

    def agreement(self, z: jax.Array, axis_name: AxisName) -> jax.Array:
        """Returns half the mean squared distance from the center of the global views."""
        return lejepa_prediction(z, self.settings.data.num_global_views, axis_name)
