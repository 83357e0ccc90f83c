"""The base class of methods: the loss of a batch's states, and everything that belongs to it.

The train step, the loop, the evaluation and the configuration use only this class and know no
method by name. A method is a subclass of `Method` in its own file, here or in a user's project, and
is selected by `config.method`; `examples/own_method.py` is a short example.

In a step, the encoder and then the projector map V views of B images to states z [V, B, D]. `draw`
makes random numbers for them, `loss` is differentiated with respect to z and the parameters of
`init`, the optimizer updates the parameters, and `update_state` the method state. All four are
traced by `jax.jit`: they must be pure functions of their arguments and of the configuration. They
see the whole batch, however many devices and micro-batches it is split over.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.models.base import StateShape
from hjepa_jax.objectives.shares import AxisName

Metrics: TypeAlias = dict[str, jax.Array]
Randomness: TypeAlias = dict[str, jax.Array]


class Rate(NamedTuple):
    """The learning rate of a part: `peak` after config.train.warmup_epochs, `floor` at the end."""

    peak: float
    floor: float


class Suspect(NamedTuple):
    """Advice about a value that is not finite.

    Attributes:
      what: the beginning of a sentence that ends with "is not finite", such as "the flow".
      fields: dotted names of the fields to check, such as "loss.std_eps".
    """

    what: str
    fields: tuple[str, ...]


class Method(abc.ABC):
    """A method, built from the configuration; it holds no arrays.

    Subclasses define `loss`; everything else has a default. A method that predicts states has the
    attributes of `HasFlow` as well, and one that transforms them those of `HasCoordinates`.

    Attributes:
      sections: its configuration sections by name, frozen dataclasses of `field(...)`;
        the first line of a dataclass's docstring describes the section.
      losses: names of metrics to minimize beside 'total', which config.checkpoint.best_metric may
        name without config.checkpoint.best_mode.
      takes_shares: whether `loss` and `update_state` take a device's share of the states with the
        name of the axis that they are split over. If not, which is simpler, each device gets the
        states of the whole batch.
      coordinate_fields: see `HasCoordinates`; () = the loss acts on the states as they are.
      settings: the run's configuration; `settings.section(Kind)` returns the method's own section.
      shape: shape of the states passed to the loss (of the projector's output, if there is one).
      steps_per_epoch: for schedules that count in epochs.
    """

    sections: ClassVar[Mapping[str, type]] = {}
    coordinate_fields: ClassVar[tuple[str, ...]] = ()
    losses: ClassVar[tuple[str, ...]] = ()
    takes_shares: ClassVar[bool] = False

    def __init__(self, settings: Settings, shape: StateShape, steps_per_epoch: int):
        """Stores a checked configuration, the shape of the states and the length of an epoch."""
        self.settings = settings
        self.shape = shape
        self.steps_per_epoch = steps_per_epoch

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings, which are then rejected.

        The bounds of single fields have already been checked.

        Args:
          settings: the configuration; `settings.section` returns the method's own sections.
        """
        del settings
        yield from ()

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) of each warm-up or ramp that does not end within the epochs.

        Args:
          settings: the configuration.
          epochs: epochs of the training; may be fractional.
        """
        del settings, epochs
        yield from ()

    @classmethod
    def trains_predictor(cls, settings: Settings) -> bool:
        """Returns whether `init` has a part 'predictor', trained at config.train.predictor_lr.

        If not, setting that field is an error.
        """
        del settings
        return False

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces the method's sections to the size of a smoke test: two steps of tiny states.

        Args:
          config: configuration with the method's sections, modified in place.
        """
        del config

    def warnings(self) -> Iterator[str]:
        """Yields a sentence for each setting that is allowed but likely a mistake.

        They are logged when training starts.
        """
        yield from ()

    def init(self, key: jax.Array, z: jax.Array) -> dict[str, PyTree]:
        """Returns the parameters that the optimizer trains in addition to the encoder's, by part.

        A part is a tree of arrays under a name of your choice other than 'encoder' and 'projector',
        such as {'predictor': ...}.

        Args:
          key: typed PRNG key.
          z: zeros [2, D] of the width and dtype of the states.
        """
        del key, z
        return {}

    def init_state(self) -> PyTree:
        """Returns the initial method state, a tree of arrays that no gradient changes.

        `update_state` changes it after each step. Checkpoints hold it.
        """
        return {}

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: DTypeLike
    ) -> Randomness:
        """Draws the named random numbers of a step, from key and step alone.

        Nothing else in a method may be random, so that resumed runs are bit-exact and results do
        not depend on the number of devices. Derive a key per step and purpose by
        `jax.random.fold_in`.

        Args:
          key: typed PRNG key of the run, the same at every step.
          step: int32 scalar, the optimizer steps done before this one.
          num_rows: V*B states over all devices.
          num_images: B images over all devices.
          dtype: dtype of the states.
        """
        del key, step, num_rows, num_images, dtype
        return {}

    def redraw(self) -> dict[str, int]:
        """Returns the arrays of `draw` that the train state keeps until they change.

        Each has the steps between new ones, and must depend on step // interval alone.
        """
        return {}

    @abc.abstractmethod
    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss of the states of a whole batch, and scalars to log.

        The scalars are logged under their names, and 'total', 'grad_norm' and 'lr' are added. Each
        term of the loss should be among them, without its weight: the report of a non-finite loss
        names the term. Alarms of collapse need one or more of the statistics 'z_std_min', 'z2' and
        'z_mean2' (`objectives.regularizers.state_statistics`), or 'q_...' and 'p_...' in place of
        'z_...' for the halves of the state. Set config.checkpoint.best_mode to rank by a
        scalar whose name the package does not know.

        Args:
          params: all trained parameters by part, those of `init` among them.
          method_state: see `init_state`.
          z: [V, B, D], the config.data.num_global_views global views first; float32, or float64 in
            numerical checks.
          randomness: what `draw` returned.
          step: int32 scalar, the optimizer steps done before this one.
          axis_name: None, unless the method has `takes_shares`: then z has a share of the images,
            and every scalar must be reduced over the shares (`hjepa_jax.objectives.shares`).

        Returns:
          (scalar that is minimized, scalars by name).
        """

    def update_state(
        self,
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
        axis_name: AxisName = None,
    ) -> PyTree:
        """Returns the method state after a step, with the structure of `init_state`.

        It is not differentiated. If the loss of the step was not finite, the result is discarded.

        Args:
          method_state: the state before the step.
          z: see `loss`; computed with the parameters before the step.
          randomness: see `loss`.
          step: see `loss`.
          axis_name: see `loss`.
        """
        del z, randomness, step, axis_name
        return method_state

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the loss by name, logged when training starts."""
        return {}

    def learning_rates(self) -> dict[str, Rate]:
        """Returns the learning rates of parts of `init` that have their own rate.

        All others have config.train.lr. By default, a part 'predictor' has
        config.train.predictor_lr if that is set.
        """
        train = self.settings.train
        peak = train.predictor_lr or train.lr
        return {"predictor": Rate(peak, peak * train.min_lr_ratio)}

    def unclipped(self) -> frozenset[str]:
        """Returns the parts that config.train.grad_clip neither clips nor counts in the norm."""
        return frozenset()

    def decayed(self, params: PyTree) -> PyTree:
        """Returns a tree of bool: which parameters the weight decay applies to.

        Args:
          params: all trained parameters by part, the encoder's among them.
        """
        return jax.tree.map(lambda _: True, params)

    def targets(self) -> dict[str, float]:
        """Returns the mean square that the loss drives a part of the state to: 'q', 'p' or 'z'.

        A mean square four times larger or smaller raises an alarm. Omitted parts are not checked.
        """
        return {}

    def remedy(self, part: str, term: str) -> str:
        """Returns what to change if the state collapses, as the end of a sentence without a period.

        Args:
          part: part of the state: 'q', 'p' or 'z'.
          term: what is wrong: 'mean' (all states are nearly the same), 'logdet' (they vary in few
            directions), 'var' (a dimension hardly varies), 'budget' (the mean square, see
            `targets`) or 'pred' (the metric 'pred', the prediction error, is far above the mean
            square).
        """
        del part, term
        return "change the weights of the loss"

    def suspects(self) -> dict[str, Suspect]:
        """Returns advice for each metric and each part of the parameters that may be non-finite.

        The keys are names of metrics of `loss` and of parts of `init`. The first non-finite one, in
        the order of the mapping, is reported.
        """
        return {}


@runtime_checkable
class HasFlow(Protocol):
    """A method that predicts states from states, also through `hjepa_jax.load(...).flow`.

    Attributes:
      predictor: module (z [..., D], direction, residual_scale) -> z_hat [..., D], whose parameters
        are the part 'predictor'.
      flow_time: time over which the predictor integrates a Hamiltonian; None for other predictors.
        If it is not None, the module also has a method `energy(z, residual_scale)`.
    """

    predictor: nn.Module
    flow_time: float | None

    def residual_scale(self, step: jax.Array) -> jax.Array:
        """Returns the factor of the learned part of the energy at a step, a scalar."""
        ...


@runtime_checkable
class HasCoordinates(Protocol):
    """A method whose loss acts on transformed states.

    With config.evaluation.coordinates='sqrt_h' or 'both' the transformed states are evaluated.

    Attributes:
      coordinate_fields: prefixes of the fields that define the transform; an evaluation must have
        the same values as its run.
    """

    coordinate_fields: ClassVar[tuple[str, ...]]

    def coordinates(self, method_state: PyTree, step: jax.Array) -> PyTree:
        """Returns the arrays that define the transform at a step; arguments as in `loss`."""
        ...

    def transform(self, coordinates: PyTree, z: jax.Array) -> jax.Array:
        """Returns the transformed states of z [..., D], of the same shape."""
        ...


def linear_warmup(step: jax.Array, steps: float, stride: int = 1) -> jax.Array:
    """Returns min(1, (step + 1) / steps): a factor that grows linearly to 1 over `steps` steps.

    Args:
      step: int32 scalar.
      steps: steps until it is 1.
      stride: steps, as many as an epoch has, that share the factor of their last one.
    """
    if stride > 1:
        step = step // stride * stride + stride - 1
    return jnp.minimum(1.0, (jnp.asarray(step, jnp.result_type(float)) + 1) / steps)
