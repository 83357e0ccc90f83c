"""An encoder of one parameter, which compiles at once."""

from typing import Self

import flax.linen as nn
import jax
from jax.typing import DTypeLike

from hjepa_jax.config import Settings
from hjepa_jax.models.base import Encoder


class Halves(Encoder):
    """The scaled mean of each channel of the upper and of the lower half: states [N, 6]."""

    @classmethod
    def build(cls, settings: Settings, dtype: DTypeLike, norm_groups: int) -> Self:
        return cls(dtype, norm_groups)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, ())
        halves = x.reshape(len(x), 2, -1, 3).mean(2)
        return scale * halves.reshape(len(x), 6)
