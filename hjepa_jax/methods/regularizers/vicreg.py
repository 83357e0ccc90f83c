"""VICReg's variance and covariance as a regularizer.

Source: "VICReg", arXiv 2105.04906.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar

import jax

from hjepa_jax.config import Settings
from hjepa_jax.config.fields import Condition, field
from hjepa_jax.methods.base import Metrics, Randomness, Suspect
from hjepa_jax.methods.regularizers.base import Regularizer
from hjepa_jax.objectives.baselines.vicreg import variance_covariance
from hjepa_jax.objectives.shares import AxisName


@dataclasses.dataclass(frozen=True)
class VICRegSection:
    """VICReg, or its regularizer in HJEPA."""

    invariance_weight: float = field(
        25.0,
        "Weight of the views' mean squared distance.",
        at_least=0,
        used=Condition(lambda c: c.method != "hjepa", "config.method='vicreg'"),
        aliases="sim_coeff sim_loss_weight",
    )
    variance_weight: float = field(
        25.0,
        "Weight of the hinge on standard deviations.",
        at_least=0,
        aliases="std_coeff var_loss_weight",
    )
    covariance_weight: float = field(
        1.0, "Weight of the squared covariances.", at_least=0, aliases="cov_coeff cov_loss_weight"
    )
    gamma: float = field(1.0, "Standard deviation below which the hinge acts.", at_least=1e-3)
    eps: float = field(
        1e-4, "Added to variances before their square root.", at_least=1e-12, at_most=1
    )


class VarianceCovariance(Regularizer):
    """A hinge on each dimension's deviation, and the squared covariances between dimensions.

    Attributes:
      options: the section `vicreg`.
    """

    sections: ClassVar[Mapping[str, type]] = {"vicreg": VICRegSection}
    losses: ClassVar[tuple[str, ...]] = ("hinge", "covariance")

    @property
    def options(self) -> VICRegSection:
        """The section `vicreg`."""
        return self.settings.section(VICRegSection)

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for a batch without variance."""
        yield from one_image(settings)

    def terms(
        self,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[list[jax.Array], Metrics]:
        """Returns both terms; see `Regularizer` and `variance_covariance`."""
        del randomness, step
        options = self.options
        hinge, covariance = variance_covariance(
            z, gamma=options.gamma, eps=options.eps, axis_name=axis_name
        )
        weighted = [options.variance_weight * hinge, options.covariance_weight * covariance]
        return weighted, {"hinge": hinge, "covariance": covariance}

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term."""
        options = self.options
        return {"hinge": options.variance_weight, "covariance": options.covariance_weight}

    def remedy(self, part: str, term: str) -> str:
        """Returns the weights to raise; see `Regularizer`."""
        del part
        return f"raise vicreg.{'covariance' if term == 'logdet' else 'variance'}_weight"

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind each term."""
        return {
            "hinge": Suspect("the loss term hinge", ("vicreg.variance_weight", "vicreg.eps")),
            "covariance": Suspect("the loss term covariance", ("vicreg.covariance_weight",)),
        }


def one_image(settings: Settings) -> Iterator[str]:
    """Yields a sentence if a batch has one image, whose states have no variance."""
    if settings.data.batch_size < 2:
        yield "config.data.batch_size is 1, but one image has no variance: set it to 2 or more."
