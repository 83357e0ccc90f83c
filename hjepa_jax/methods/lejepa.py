"""LeJEPA: the views' states predict their center, and SIGReg keeps them isotropic Gaussian.

Source: LeJEPA, arXiv 2511.08544.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import jax
from jaxtyping import PyTree

from hjepa_jax.config import Settings
from hjepa_jax.methods.base import Metrics, Randomness
from hjepa_jax.methods.composed import Composed
from hjepa_jax.methods.regularizers.sigreg import SIGReg, SIGRegSection
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.lejepa import effective_weights, lejepa_prediction, lejepa_total
from hjepa_jax.objectives.regularizers import state_statistics
from hjepa_jax.objectives.shares import AxisName


class LeJEPA(Composed):
    """Prediction of the views' center, with SIGReg of their states.

    Attributes:
      regularizer: SIGReg.
      sigreg: the section `sigreg` of the configuration.
    """

    sections: ClassVar[Mapping[str, type]] = {"sigreg": SIGRegSection}
    takes_shares: ClassVar[bool] = True
    losses: ClassVar[tuple[str, ...]] = ("pred", *SIGReg.losses, "z_mean2")
    regularizer: SIGReg

    def __init__(self, settings: Settings, shape: StateShape, steps_per_epoch: int):
        """See `Method`."""
        super().__init__(settings, shape, steps_per_epoch)
        self.sigreg = settings.section(SIGRegSection)

    @classmethod
    def regularizer_of(cls, settings: Settings) -> type[SIGReg]:
        """Returns SIGReg."""
        del settings
        return SIGReg

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        if settings.data.num_global_views + settings.data.num_local_views < 2:
            yield (
                "config.data.num_global_views is 1 and there are no local views, so the prediction "
                "loss is exactly 0: set it to 2 or more."
            )
        yield from SIGReg.problems(settings)

    def regularized(
        self,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        transform: Callable[[jax.Array], jax.Array] | None = None,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss of states z [V, B, D], with SIGReg applied to `transform(z)`.

        The metrics are 'pred', 'sigreg' unless its weight is 0, 'total', and those of
        `state_statistics`.
        """
        prediction = lejepa_prediction(z, self.settings.data.num_global_views, axis_name)
        if self.sigreg.weight == 0:
            total = self.weights()["pred"] * prediction
            losses = {"pred": prediction, "total": total}
            return total, {**losses, **state_statistics(z, axis_name)}
        transformed = z if transform is None else transform(z)
        _, terms = self.regularizer.terms(transformed, randomness, step, axis_name)
        total = lejepa_total(
            prediction,
            terms["sigreg"],
            weight=self.regularizer.weight(step),
            loss_form=self.sigreg.loss_form,
            prediction_weight=self.sigreg.prediction_weight,
        )
        losses = {"pred": prediction, **terms, "total": total}
        return total, {**losses, **state_statistics(z, axis_name)}

    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns prediction and SIGReg; see `Method` and `regularized`."""
        del params, method_state
        return self.regularized(z, randomness, step, axis_name=axis_name)

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the total loss, and their ratio."""
        sigreg = self.sigreg
        return effective_weights(sigreg.weight, sigreg.loss_form, sigreg.prediction_weight)
