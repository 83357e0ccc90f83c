"""SIGReg: the states' projections on random directions are to be N(0, 1).

Source: LeJEPA, arXiv 2511.08544.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

import jax
from jax.typing import DTypeLike

from hjepa_jax.config import Settings
from hjepa_jax.config.fields import Condition, field
from hjepa_jax.errors import ConfigError
from hjepa_jax.kernels.characteristic_function import characteristic_means
from hjepa_jax.methods.base import Metrics, Randomness, Suspect, linear_warmup
from hjepa_jax.methods.regularizers.base import Regularizer, refreshed_key
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.lejepa import LossForm
from hjepa_jax.objectives.normality.goodness_of_fit import (
    MULTIVARIATE,
    SCALE_FREE,
    Multivariate,
    Sliced,
    goodness_of_fit,
)
from hjepa_jax.objectives.normality.shape import LEAST_SAMPLES
from hjepa_jax.objectives.shares import AxisName
from hjepa_jax.objectives.sigreg import (
    Statistics,
    WeightType,
    random_slices,
    random_subsample,
    reduced,
    sigreg,
)

# Streams of the run's key; numbers are never reused, so that adding one changes no other.
_SLICES, _SUBSAMPLE = 1, 2


def _sigreg(settings: Settings) -> SIGRegSection:
    return settings.section(SIGRegSection)


_ADDITIVE = Condition(
    lambda c: _sigreg(c).loss_form == "additive", "config.sigreg.loss_form='additive'"
)
_EPPS_PULLEY = Condition(
    lambda c: _sigreg(c).test == "epps_pulley", "config.sigreg.test='epps_pulley'"
)
_ONE_SIDED = Condition(
    lambda c: _sigreg(c).test == "epps_pulley" and _sigreg(c).t_min is None,
    "config.sigreg.t_min=None and test='epps_pulley'",
)
_TWO_SIDED = Condition(
    lambda c: _sigreg(c).test == "epps_pulley" and _sigreg(c).t_min is not None,
    "config.sigreg.t_min and test='epps_pulley'",
)
_SLICED = Condition(
    lambda c: _sigreg(c).test not in MULTIVARIATE, "a config.sigreg.test of projections"
)
_BHEP = Condition(lambda c: _sigreg(c).test == "bhep", "config.sigreg.test='bhep'")
_WARMUP = Condition(
    lambda c: _sigreg(c).weight_warmup_epochs > 0, "config.sigreg.weight_warmup_epochs above 0"
)


@dataclasses.dataclass(frozen=True)
class SIGRegSection:
    """SIGReg, of LeJEPA or of HJEPA."""

    loss_form: LossForm = field(
        "additive",
        "'additive' (prediction_weight * pred + weight * sigreg) or 'convex' ((1 - weight) * pred "
        "+ weight * sigreg).",
    )
    prediction_weight: float = field(
        1.0, "Weight of LeJEPA's prediction, which is half a mean square.", above=0, used=_ADDITIVE
    )
    weight: float = field(
        0.02,
        "Weight of SIGReg; 0 = it is not computed.",
        at_least=0,
        aliases="lambda lambd lamb sigreg_weight",
    )
    weight_warmup_epochs: float = field(
        0.0, "Epochs over which the weight grows linearly from 0; 0 = constant.", at_least=0
    )
    epochwise_weight_warmup: bool = field(
        False,
        "The weight grows at the start of each epoch instead of at every step, as published.",
        used=_WARMUP,
    )
    test: Literal["epps_pulley", Sliced, Multivariate] = field(
        "epps_pulley",
        "Statistic: of projections, or of whole states ('bhep', 'henze_zirkler'). 'shapiro_wilk', "
        "'jarque_bera', and 'henze_zirkler' see neither mean nor scale.",
        aliases="univariate_test statistic",
    )
    statistics: Statistics = field(
        "per_view",
        "Statistic of each view, or over all views together.",
    )
    num_slices: int = field(
        64,
        "Random directions.",
        above=0,
        at_most=65536,
        used=_SLICED,
        aliases="slices num_projections num_proj",
    )
    t_max: float = field(3.0, "Largest frequency.", at_least=0.01, at_most=100, used=_EPPS_PULLEY)
    n_points: int = field(
        9, "Frequencies from 0 to t_max.", at_least=3, at_most=1025, odd=True, used=_ONE_SIDED
    )
    weight_type: WeightType = field("gaussian", "Weighting of the frequencies.", used=_ONE_SIDED)
    t_min: float | None = field(
        None,
        "Smallest frequency: the integral is over [t_min, t_max] by the trapezoid rule, with "
        "Gaussian weights; None = over [0, t_max], doubled.",
        at_least=-100,
        at_most=100,
        used=_EPPS_PULLEY,
    )
    beta: float | None = field(
        None,
        "Width of the weights of 'bhep'; None = 1/sqrt(D) for states of D dimensions.",
        at_least=1e-4,
        at_most=100,
        used=_BHEP,
    )
    num_t: int = field(
        17, "Frequencies from t_min to t_max.", at_least=2, at_most=1025, used=_TWO_SIDED
    )
    subsample: int | None = field(
        None, "Use only this many images for the statistic; None = all.", above=0
    )
    refresh_interval: int = field(1, "Steps between new directions.", above=0, used=_SLICED)
    clip_value: float | None = field(
        None, "Statistics below this threshold count as zero; None = off.", at_least=0
    )
    reduction: Literal["mean", "sum"] = field("mean", "Reduction over slices and views.")


class SIGReg(Regularizer):
    """SIGReg with a weight that may warm up.

    Attributes:
      options: the section `sigreg`.
    """

    sections: ClassVar[Mapping[str, type]] = {"sigreg": SIGRegSection}
    losses: ClassVar[tuple[str, ...]] = ("sigreg",)

    def __init__(self, settings: Settings, shape: StateShape, steps_per_epoch: int):
        """See `Regularizer`."""
        super().__init__(settings, shape, steps_per_epoch)
        self.options = settings.section(SIGRegSection)
        rows = self.options.subsample or _rows(settings)
        if self.options.test == "henze_zirkler" and rows <= shape.dim:
            raise ConfigError(
                f"config.sigreg.test is 'henze_zirkler', but the covariance of {rows} images in "
                f"{shape.dim} dimensions is singular: raise config.data.batch_size, or make the "
                "states smaller."
            )

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        sigreg = settings.section(SIGRegSection)
        if sigreg.loss_form == "convex" and sigreg.weight > 1:
            yield (
                f"config.sigreg.weight is {sigreg.weight}, which would give the prediction a "
                "negative weight in config.sigreg.loss_form='convex': set it to 1 or less."
            )
        if sigreg.t_min is not None and sigreg.t_min >= sigreg.t_max:
            yield (
                f"config.sigreg.t_min is {sigreg.t_min}, but it must be below "
                f"config.sigreg.t_max={sigreg.t_max}."
            )
        rows = _rows(settings)
        if sigreg.subsample is not None and sigreg.subsample > rows:
            yield (
                f"config.sigreg.subsample is {sigreg.subsample}, but a statistic has only {rows} "
                f"images: set it to {rows} or less, or None for all."
            )
        used = sigreg.subsample or rows
        if sigreg.test == "shapiro_wilk" and used < LEAST_SAMPLES:
            yield (
                f"config.sigreg.test is 'shapiro_wilk', which needs {LEAST_SAMPLES} images or "
                f"more, but a statistic has {used}: raise config.data.batch_size or subsample."
            )

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) for the warm-up of the weight if it does not end in time."""
        warmup = settings.section(SIGRegSection).weight_warmup_epochs
        if warmup >= epochs:
            yield "sigreg.weight_warmup_epochs", warmup

    def warnings(self) -> Iterator[str]:
        """Yields a sentence if the test alone does not prevent a collapse."""
        if self.options.test in SCALE_FREE and self.options.weight > 0:
            yield (
                f"config.sigreg.test is {self.options.test!r}, which is the same for states of any "
                "mean and scale, so that nothing keeps them from collapsing: set it to another, "
                "unless that is what you study."
            )

    def weight(self, step: jax.Array) -> jax.Array | float:
        """Returns the weight at `step`, after its linear warm-up."""
        options = self.options
        if options.weight_warmup_epochs == 0:
            return options.weight
        epoch = self.steps_per_epoch
        stride = epoch if options.epochwise_weight_warmup else 1
        return options.weight * linear_warmup(step, options.weight_warmup_epochs * epoch, stride)

    def slices(
        self, key: jax.Array, step: jax.Array, dtype: DTypeLike, stream: int = _SLICES
    ) -> jax.Array:
        """Draws directions [D, K], which change every `refresh_interval` steps.

        Args:
          key: see `Method.draw`, as the next two.
          step: int32 scalar.
          dtype: of the directions.
          stream: of the key.
        """
        options = self.options
        slices_key = refreshed_key(key, step, stream, options.refresh_interval)
        return random_slices(slices_key, self.shape.dim, options.num_slices, dtype)

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: DTypeLike
    ) -> Randomness:
        """Draws 'slices' [D, K] and the rows 'subsample' [S], where used; see `Regularizer`."""
        options = self.options
        sliced = options.test not in MULTIVARIATE
        drawn = {"slices": self.slices(key, step, dtype)} if sliced else {}
        if options.subsample is not None:
            rows = num_rows if options.statistics == "flattened" else num_images
            subsample_key = jax.random.fold_in(jax.random.fold_in(key, _SUBSAMPLE), step)
            drawn["subsample"] = random_subsample(subsample_key, rows, options.subsample)
        return drawn

    def redraw(self) -> dict[str, int]:
        """Returns that the slices change every `sigreg.refresh_interval` steps."""
        sliced = self.options.test not in MULTIVARIATE
        return {"slices": self.options.refresh_interval} if sliced else {}

    def statistic(
        self,
        z: jax.Array,
        slices: jax.Array | None,
        randomness: Randomness,
        axis_name: AxisName = None,
    ) -> jax.Array:
        """Returns the test of the drawn rows of states z [V, B, D] along `slices` [D, K]."""
        options = self.options
        if options.test != "epps_pulley":
            values = goodness_of_fit(
                z,
                slices,
                options.test,
                flattened=options.statistics == "flattened",
                beta=options.beta,
                subsample_index=randomness.get("subsample"),
                axis_name=axis_name,
            )
            return reduced(values, options.reduction, options.clip_value)
        assert slices is not None
        return sigreg(
            z,
            slices,
            t_max=options.t_max,
            n_points=options.n_points if options.t_min is None else options.num_t,
            t_min=options.t_min,
            weight_type=options.weight_type,
            statistics=options.statistics,
            reduction=options.reduction,
            clip_value=options.clip_value,
            subsample_index=randomness.get("subsample"),
            means=characteristic_means,
            axis_name=axis_name,
        )

    def terms(
        self,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[list[jax.Array], Metrics]:
        """Returns SIGReg of the states, nothing for a weight of 0; see `Regularizer`."""
        if self.options.weight == 0:
            return [], {}
        value = self.statistic(z, randomness.get("slices"), randomness, axis_name)
        return [self.weight(step) * value], {"sigreg": value}

    def weights(self) -> dict[str, float]:
        """Returns the weight after its warm-up."""
        return {"sigreg": self.options.weight}

    def targets(self) -> dict[str, float]:
        """Returns 1, the unit variance that SIGReg drives z to, if it has a weight and sees it."""
        seen = self.options.test not in SCALE_FREE and self.options.weight > 0
        return {"z": 1.0} if seen else {}

    def remedy(self, part: str, term: str) -> str:
        """Returns the weight as the setting to change; see `Regularizer`."""
        del part, term
        return "raise sigreg.weight"

    def suspects(self) -> dict[str, Suspect]:
        """Returns the fields behind the term."""
        fields = ("sigreg.weight", "sigreg.loss_form")
        return {"sigreg": Suspect("the loss term sigreg", fields)}


def _rows(settings: Settings) -> int:
    """Returns the number of images that a statistic has, of which a subsample may be used."""
    sigreg, data = settings.section(SIGRegSection), settings.data
    views = data.num_global_views + data.num_local_views
    return data.batch_size * (views if sigreg.statistics == "flattened" else 1)
