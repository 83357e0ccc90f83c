"""What a method is: the loss of the states of a batch, and all that belongs to it.

The train step, the loop, the evaluation and the configuration know this class and no method's name.
A method is one subclass of `Method` in a file of its own, here or in a user's project.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.models.base import StateShape

PyTree: TypeAlias = Any
Metrics: TypeAlias = dict[str, jax.Array]
Randomness: TypeAlias = dict[str, jax.Array]


class Rate(NamedTuple):
    """The learning rate of a parameter group: `peak` after the warm-up, `floor` at the end."""

    peak: float
    floor: float


class Suspect(NamedTuple):
    """What is not finite, for a sentence, and the fields of the configuration to look at."""

    what: str
    fields: tuple[str, ...]


class Method(abc.ABC):
    """A method, built from the configuration; it holds no arrays.

    Subclasses define `loss`; everything else has a default.

    Attributes:
      sections: the sections of the configuration that the method adds, by name.
      coordinate_fields: see `HasCoordinates`; () = the loss acts on the states as they are.
      settings: the run's configuration.
      shape: of the states that the loss receives.
      steps_per_epoch: for schedules that count in epochs.
    """

    sections: ClassVar[Mapping[str, type]] = {}
    coordinate_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, settings: Settings, shape: StateShape, steps_per_epoch: int):
        """Takes a checked configuration and what follows from encoder and data."""
        self.settings = settings
        self.shape = shape
        self.steps_per_epoch = steps_per_epoch

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction of the settings."""
        del settings
        yield from ()

    @classmethod
    def unfinished(cls, settings: Settings, epochs: float) -> Iterator[tuple[str, float]]:
        """Yields (field, value) of each warm-up or ramp that does not end within the epochs."""
        del settings, epochs
        yield from ()

    @classmethod
    def trains_predictor(cls, settings: Settings) -> bool:
        """Returns whether `init` has a part 'predictor', trained at config.train.predictor_lr."""
        del settings
        return False

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces the method's sections to the size of a smoke test: a few steps of tiny states."""
        del config

    def warnings(self) -> Iterator[str]:
        """Yields a sentence for each setting that is allowed but likely a mistake."""
        yield from ()

    def init(self, key: jax.Array, z: jax.Array) -> dict[str, PyTree]:
        """Returns the parameters that the main optimizer trains beside the encoder, by part.

        Args:
          key: typed PRNG key.
          z: zeros [2, D] of the shape and dtype of the states.
        """
        del key, z
        return {}

    def init_state(self) -> PyTree:
        """Returns the initial method state: what the method itself updates after each step."""
        return {}

    def draw(
        self, key: jax.Array, step: jax.Array, *, num_rows: int, num_images: int, dtype: Any
    ) -> Randomness:
        """Draws what is random in the loss of a step: a function of key and step alone.

        Args:
          key: typed PRNG key of the run.
          step: int32 scalar.
          num_rows: V*B states over all devices.
          num_images: B images over all devices.
          dtype: of the states.
        """
        del key, step, num_rows, num_images, dtype
        return {}

    @abc.abstractmethod
    def loss(
        self,
        params: Mapping[str, PyTree],
        method_state: PyTree,
        z: jax.Array,
        randomness: Randomness,
        step: jax.Array,
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss of the states of a whole batch, and scalars to log.

        Args:
          params: trained parameters by part; those of `init` among them.
          method_state: see `init_state`.
          z: [V, B, D], global views first; float32, or float64 in numerical checks.
          randomness: of `draw`.
          step: int32 scalar, the optimizer steps done before this one.
        """

    def update_state(
        self, method_state: PyTree, z: jax.Array, randomness: Randomness, step: jax.Array
    ) -> PyTree:
        """Returns the method state after a step; arguments as in `loss`."""
        del z, randomness, step
        return method_state

    def weights(self) -> dict[str, float]:
        """Returns the factor of each term in the total loss, for printing."""
        return {}

    def learning_rates(self) -> dict[str, Rate]:
        """Returns the rates of the parts of `init` that do not follow the main learning rate.

        By default that is a part 'predictor', whose rate is config.train.predictor_lr if set.
        """
        train = self.settings.train
        peak = train.predictor_lr or train.lr
        return {"predictor": Rate(peak, peak * train.min_lr_ratio)}

    def unclipped(self) -> frozenset[str]:
        """Returns the parts whose gradient is neither clipped nor counted in the norm."""
        return frozenset()

    def decayed(self, params: PyTree) -> PyTree:
        """Returns a tree of bool: which parameters the weight decay applies to."""
        return jax.tree.map(lambda _: True, params)

    def targets(self) -> dict[str, float]:
        """Returns the mean square that the loss asks of the parts of the state: 'q', 'p' or 'z'."""
        return {}

    def remedy(self, part: str, term: str) -> str:
        """Returns what to change when the state collapses, for the end of a sentence.

        Args:
          part: of the state, 'q', 'p' or 'z'.
          term: what is wrong: 'mean', 'logdet' (few directions), 'var' (a flat dimension),
            'budget' (the mean square) or 'pred' (the prediction error).
        """
        del part, term
        return "change the weights of the loss"

    def suspects(self) -> dict[str, Suspect]:
        """Returns by loss term and parameter part what to look at when it is not finite.

        The first that is not finite is reported.
        """
        return {}


@runtime_checkable
class HasFlow(Protocol):
    """A method that predicts states from states.

    Attributes:
      predictor: module (z [..., D], direction, residual_scale) -> z_hat [..., D].
      flow_time: time that the predictor flows for, None where it is no flow of a Hamiltonian. With
        a time it has `energy(z, residual_scale)` as well.
    """

    predictor: nn.Module
    flow_time: float | None

    def residual_scale(self, step: jax.Array) -> jax.Array:
        """Returns the potential's residual scale at a step."""
        ...


@runtime_checkable
class HasCoordinates(Protocol):
    """A method whose loss acts on transformed states, in which they can be evaluated as well.

    Attributes:
      coordinate_fields: beginnings of the fields that define the transform.
    """

    coordinate_fields: ClassVar[tuple[str, ...]]

    def coordinates(self, method_state: PyTree, step: jax.Array) -> PyTree:
        """Returns the arrays that define the transform at a step."""
        ...

    def transform(self, coordinates: PyTree, z: jax.Array) -> jax.Array:
        """Returns the states z [..., D] in the coordinates."""
        ...


def linear_warmup(step: jax.Array, steps: float) -> jax.Array:
    """Returns the share of a linear warm-up over `steps` steps that a step has, at most 1."""
    return jnp.minimum(1.0, (jnp.asarray(step, jnp.result_type(float)) + 1) / steps)
