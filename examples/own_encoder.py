"""An encoder of your own: small MLPs mix patches, without convolution or attention.

hjepa train --config=quickstart --workdir=runs/own_encoder \
    --config.model.encoder=examples.own_encoder:PatchMixer --config.mixer.blocks=4

Source: Tolstikhin et al., "MLP-Mixer: An all-MLP Architecture for Vision" (arXiv 2105.01601).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hjepa_jax.config import Settings
from hjepa_jax.config.fields import field
from hjepa_jax.models.base import Encoder, StateShape
from hjepa_jax.models.token_layers import flatten_tokens


@dataclasses.dataclass(frozen=True)
class Mixer:
    """The MLP-Mixer encoder."""

    patch: int = field(4, "Side of a patch in pixels.", above=0, at_most=256)
    width: int = field(64, "Channels of each patch.", above=0, at_most=8192)
    blocks: int = field(2, "Blocks that mix patches, then channels.", above=0, at_most=256)
    token_dim: int = field(16, "Channels per token of the state.", above=0, at_most=65536)


def mlp(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    hidden = nn.gelu(nn.Dense(2 * x.shape[-1], dtype=dtype)(x))
    return nn.Dense(x.shape[-1], dtype=dtype)(hidden)


class PatchMixer(Encoder):
    """The encoder, selected by `config.model.encoder`."""

    sections: ClassVar = {"mixer": Mixer}
    mixer: Mixer = Mixer()
    split_qp: bool = True

    @classmethod
    def build(cls, settings: Settings, dtype: DTypeLike, norm_groups: int) -> Self:
        return cls(dtype, norm_groups, settings.section(Mixer), settings.model.split_qp)

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        patch, size = settings.section(Mixer).patch, settings.data.image_size
        if size % patch:
            yield (
                f"config.mixer.patch is {patch}, which does not divide config.data.image_size="
                f"{size}: set it to a divisor."
            )
        else:
            yield from super().problems(settings)

    def shape(self, image_size: int) -> StateShape:
        side = image_size // self.mixer.patch
        return StateShape(side * side * self.mixer.token_dim, side, self.mixer.token_dim)

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        del train  # layer normalization has no running statistics
        patch, width = self.mixer.patch, self.mixer.width
        number, side = x.shape[0], x.shape[1] // patch
        x = x.reshape(number, side, patch, side, patch, 3).swapaxes(2, 3)
        x = nn.Dense(width, dtype=self.dtype)(x.reshape(number, side * side, patch * patch * 3))
        for _ in range(self.mixer.blocks):
            tokens = nn.LayerNorm(dtype=self.dtype)(x).swapaxes(1, 2)
            x = x + mlp(tokens, self.dtype).swapaxes(1, 2)
            x = x + mlp(nn.LayerNorm(dtype=self.dtype)(x), self.dtype)
        tokens = nn.Dense(self.mixer.token_dim)(nn.LayerNorm()(x.astype(jnp.float32)))
        return flatten_tokens(tokens.reshape(number, side, side, -1), self.split_qp)
