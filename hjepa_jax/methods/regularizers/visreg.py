"""VISReg's mean, scale and shape as a regularizer.

Source: "VISReg", arXiv 2606.02572.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax
from jax.typing import DTypeLike

from hjepa_jax.config import Settings
from hjepa_jax.config.fields import field
from hjepa_jax.methods.base import Metrics, Randomness, Suspect
from hjepa_jax.methods.regularizers.base import Regularizer, refreshed_key
from hjepa_jax.methods.regularizers.vicreg import one_image
from hjepa_jax.objectives.baselines.visreg import visreg_terms
from hjepa_jax.objectives.shares import AxisName
from hjepa_jax.objectives.sigreg import random_slices

# Stream of the run's key; the floors, SIGReg and HamSIGReg have 0 to 3.
_SLICES = 4


@dataclasses.dataclass(frozen=True)
class VISRegSection:
    """VISReg, or its regularizer in HJEPA."""

    weight: float = field(0.6, "Weight of the three terms together.", at_least=0)
    mean_weight: float = field(1.0, "Weight of the squared means among them.", at_least=0)
    scale_weight: float = field(1.0, "Weight of the deviations from unit scale.", at_least=0)
    shape_weight: float = field(1.0, "Weight of the distance to Gaussian quantiles.", at_least=0)
    num_slices: int = field(256, "Random directions.", above=0, at_most=65536)
    refresh_interval: int = field(1, "Steps between new directions.", above=0)


class MeanScaleShape(Regularizer):
    """Zero mean, unit scale, and Gaussian shape along random directions, of each view.

    Attributes:
      options: the section `visreg`.
    """

    sections: ClassVar[Mapping[str, type]] = {"visreg": VISRegSection}
    losses: ClassVar[tuple[str, ...]] = ("center", "scale", "shape")

    @property
    def options(self) -> VISRegSection:
        """The section `visreg`."""
        return self.settings.section(VISRegSection)

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for a batch without variance."""
        yield from one_image(settings)

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: DTypeLike
    ) -> Randomness:
        """Draws 'visreg_slices' [D, K]; see `Regularizer`."""
        del num_rows, num_images
        slices_key = refreshed_key(key, step, _SLICES, self.options.refresh_interval)
        slices = random_slices(slices_key, self.shape.dim, self.options.num_slices, dtype)
        return {"visreg_slices": slices}

    def redraw(self) -> dict[str, int]:
        """Returns that the slices change every `visreg.refresh_interval` steps."""
        return {"visreg_slices": self.options.refresh_interval}

    def terms(
        self,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[list[jax.Array], Metrics]:
        """Returns the three terms; see `Regularizer` and `visreg_terms`."""
        del step
        values = visreg_terms(z, randomness["visreg_slices"], axis_name)
        metrics = dict(zip(self.losses, values, strict=True))
        return [weight * metrics[name] for name, weight in self.weights().items()], metrics

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term."""
        options = self.options
        own = (options.mean_weight, options.scale_weight, options.shape_weight)
        return {name: options.weight * one for name, one in zip(self.losses, own, strict=True)}

    def targets(self) -> dict[str, float]:
        """Returns 1, the unit variance that the scale drives z to, unless its weight is 0."""
        return {"z": 1.0} if self.weights()["scale"] > 0 else {}

    def remedy(self, part: str, term: str) -> str:
        """Returns the weights to raise; see `Regularizer`."""
        del part
        names = {"mean": "mean_weight", "logdet": "shape_weight"}
        return f"raise visreg.weight or visreg.{names.get(term, 'scale_weight')}"

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term."""
        return {name: Suspect(f"the loss term {name}", ("visreg.weight",)) for name in self.losses}
