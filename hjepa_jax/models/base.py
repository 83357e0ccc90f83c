"""The base class of encoders, Flax modules that map images to states."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.errors import UserError
from hjepa_jax.models.foreign import ForeignNames
from hjepa_jax.objectives.shares import AxisName


class StateShape(NamedTuple):
    """Shape of an encoder's states z [N, D].

    Attributes:
      dim: dimension D of a state.
      token_grid: side of the square grid of tokens; None for a state without tokens.
      token_dim: channels per token; None for a state without tokens.
    """

    dim: int
    token_grid: int | None = None
    token_dim: int | None = None


class Encoder(nn.Module):
    """An encoder of images; subclasses define `build` and `__call__`.

    Those that compute tokens before the state also define `tokens`, for probes that attend to them.

    Attributes:
      sections: its configuration sections by name, dataclasses of `field(...)`.
      dtype: dtype of the arithmetic. Parameters, normalization statistics and states are float32,
        or float64 for dtype float64.
      norm_groups: groups of rows with separate batch statistics, see `layers.BatchNorm`.
      axis_name: mesh axis that the rows are split over, for `layers.BatchNorm`; the train step sets
        it. Whatever else reduces over the batch must use it too.
    """

    sections: ClassVar[Mapping[str, type]] = {}

    dtype: DTypeLike = jnp.float32
    norm_groups: int = 1
    axis_name: AxisName = dataclasses.field(default=None, kw_only=True)

    @classmethod
    def build(cls, settings: Settings, dtype: DTypeLike, norm_groups: int) -> Self:
        """Returns the encoder described by the settings.

        Args:
          settings: the configuration; `settings.section` returns the encoder's own sections.
          dtype: see the attributes.
          norm_groups: see the attributes.
        """
        raise NotImplementedError

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings.

        The base class checks for states of an odd dimension that cannot be halved, and for
        different dimensions at the two view sizes; subclasses add their own checks.
        """
        data, encoder = settings.data, cls.build(settings, jnp.float32, 1)
        dim = encoder.shape(data.image_size).dim
        if settings.model.split_qp and dim % 2:
            yield (
                f"config.model.encoder is {settings.model.encoder!r}, whose states have {dim} "
                f"dimensions: with config.model.split_qp=True it must be an even number, half for "
                f"q "
                "and half for p."
            )
        if not data.num_local_views:
            return
        local = encoder.shape(data.local_size).dim
        if local != dim:
            yield (
                f"config.data.local_size is {data.local_size}, for which the states have {local} "
                f"dimensions, but {dim} for config.data.image_size={data.image_size}: make the "
                f"sizes "
                "equal."
            )

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces the encoder's sections to the size of a smoke test: a few tiny layers."""
        del config

    @property
    def takes_keys(self) -> bool:
        """Whether training draws random numbers, as stochastic depth does.

        `__call__` then also has an argument `keys`: typed PRNG keys [N], one for each row, which
        depend on seed, step, image and view alone. What a row draws from its own key is the same
        for any number of devices and micro-batches.
        """
        return False

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Encodes normalized images.

        Args:
          x: [N, S, S, 3].
          train: whether batch statistics are used and running statistics updated.

        Returns:
          The states [N, D], float32 or wider; [q | p] if config.model.split_qp.
        """
        raise NotImplementedError

    def tokens(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the tokens of normalized images, before pooling and projection.

        Args:
          x: [N, S, S, 3].
          train: as in `__call__`.

        Returns:
          [N, T, C]; tokens of a square grid are row by row.

        Raises:
          UserError: if the encoder computes none.
        """
        del x, train
        raise UserError(
            f"The encoder {type(self).__name__} has no tokens: define its method `tokens`, or "
            "choose another encoder, such as config.model.encoder='vit'."
        )

    def shape(self, image_size: int) -> StateShape:
        """Returns the shape of the states of square images.

        Args:
          image_size: side of the images in pixels.
        """
        images = jax.ShapeDtypeStruct((2, image_size, image_size, 3), jnp.float32)

        def encode(key: jax.Array, x: jax.Array) -> jax.Array:
            return self.init_with_output(key, x, train=False)[0]

        return StateShape(jax.eval_shape(encode, jax.random.key(0), images).shape[-1])

    def foreign_names(self, found: Mapping[str, tuple[int, ...]]) -> ForeignNames:
        """Returns how the tensors of a file of torchvision or timm become this encoder's variables.

        An encoder that defines it takes such files in `hjepa import-torch`.

        Args:
          found: shape of each tensor of the file by name, for encoders that other software names
            in several ways.

        Raises:
          UserError: if there is no such file for this encoder.
        """
        raise UserError(
            f"{type(self).__name__} takes no weights of other software: define foreign_names in it."
        )

    def portable(self) -> Self:
        """Returns the same encoder in float32 and with operations that all exporters support."""
        return self.clone(dtype=jnp.float32)


def applied(
    module: nn.Module,
    variables: Mapping[str, PyTree],
    *inputs: object,
    method: str | None = None,
    **options: Any,
) -> jax.Array:
    """Applies a module that returns one array, which the type of Flax's `apply` cannot say.

    Args:
      module: a Flax module.
      variables: its parameters and other collections.
      *inputs: arguments of the method.
      method: its name; None = `__call__`.
      **options: keyword arguments of the method.
    """
    return cast(jax.Array, module.apply(variables, *inputs, method=method, **options))
