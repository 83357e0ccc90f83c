"""The Vision Transformer, with a token head (state [q | p]) or a pooled state.

Sources: Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv 2010.11929); sizes Ti, S and B
of DeiT (arXiv 2012.12877) in the layout of timm; register tokens of Darcet et al. (arXiv
2309.16588); token head of "Beyond Isotropy in JEPAs" (arXiv 2605.20107).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.models.base import Encoder, StateShape
from hjepa_jax.models.foreign import ForeignNames
from hjepa_jax.models.layers import BatchNorm, LayerNorm, Linear, wide_dtype
from hjepa_jax.models.remat import recomputed
from hjepa_jax.models.stochastic_depth import branch_scales, drop_rates
from hjepa_jax.models.token_layers import flatten_tokens, patches, token_map, weight_normal
from hjepa_jax.models.vit.block import Block
from hjepa_jax.models.vit.foreign import resized, vit_names
from hjepa_jax.models.vit.section import ViTSection, head_count, section_problems

_tiny = nn.initializers.normal(1e-6)


class ViT(Encoder):
    """A Vision Transformer with learned positions, which other image sizes interpolate.

    Attributes:
      settings: the section `vit` of the configuration.
      image_size: side of the images, in pixels, whose patches have learned positions.
      split_qp: 'tokens' head: the state is [q | p], see `flatten_tokens`.
    """

    sections: ClassVar = {"vit": ViTSection}

    settings: ViTSection = ViTSection()
    image_size: int = 32
    split_qp: bool = True

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces patch, width, depth and tokens to the size of a smoke test."""
        vit = config.vit
        vit.update(patch_size=4, width=16, depth=2, heads=2)
        if vit.head == "tokens":
            vit.token_dim = 8
        if vit.token_grid is not None:
            vit.token_grid = 2
        if vit.embed_dim is not None:
            vit.embed_dim = 16

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        found = list(section_problems(settings))
        yield from found or super().problems(settings)

    @classmethod
    def build(cls, settings: Settings, dtype: DTypeLike, norm_groups: int) -> Self:
        """Returns the encoder described by the settings; arguments as in `Encoder.build`."""
        return cls(
            settings=settings.section(ViTSection),
            image_size=settings.data.image_size,
            split_qp=settings.model.split_qp,
            dtype=dtype,
            norm_groups=norm_groups,
        )

    @property
    def takes_keys(self) -> bool:
        """Whether paths are left out in training, see `Encoder.takes_keys`."""
        return self.settings.stochastic_depth > 0

    def shape(self, image_size: int) -> StateShape:
        """Returns the shape of the states of square images of `image_size` pixels."""
        settings = self.settings
        if settings.head != "tokens":
            return StateShape(settings.embed_dim or settings.width)
        side = settings.token_grid or image_size // settings.patch_size
        return StateShape(side * side * settings.token_dim, side, settings.token_dim)

    def foreign_names(self, found: Mapping[str, tuple[int, ...]]) -> ForeignNames:
        """Returns the places of the tensors of a transformer of timm or torchvision."""
        return vit_names(self.settings, self.image_size // self.settings.patch_size, found)

    def __call__(self, x: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """Encodes normalized images.

        Args:
          x: [N, S, S, 3], S a multiple of the patch size.
          train: whether paths are left out, and the token head uses batch statistics.
          keys: see `Encoder.takes_keys`.

        Returns:
          The states [N, D], float32, or float64 for dtype float64.

        Raises:
          ValueError: if x has another shape, a size does not divide, or keys are missing.
        """
        return self._encode(x, train, keys, head=True)

    def tokens(
        self, x: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns the normalized patch tokens [N, T, width]; arguments as in `__call__`."""
        return self._encode(x, train, keys, head=False)

    @nn.compact
    def _encode(
        self, x: jax.Array, train: bool, keys: jax.Array | None, *, head: bool
    ) -> jax.Array:
        self._check(x)
        settings = self.settings
        x = self._embed(x.astype(self.dtype))
        for number, scales in enumerate(self._branch_scales(train, keys)):
            block = Block(
                head_count(settings), settings.layer_scale, self.dtype, name=f"block{number}"
            )
            inputs = () if scales is None else (scales,)
            if settings.remat == "blocks" and train and not self.is_initializing():
                x = recomputed(block, x, *inputs)
            else:
                x = block(x, *inputs, train=train)
        wide = wide_dtype(x.dtype)
        if settings.head == "class" and head:
            _, x = LayerNorm(name="norm")(x[:, 0].astype(wide))
            return x if settings.embed_dim is None else Linear(settings.embed_dim, name="head")(x)
        before = int(settings.class_token) + settings.registers
        _, x = LayerNorm(name="norm")(x[:, before:].astype(wide))
        return self._head(x, train) if head else x

    def _check(self, x: jax.Array) -> None:
        if x.ndim != 4 or x.shape[-1] != 3 or x.shape[1] != x.shape[2]:
            raise ValueError(f"ViT takes images [N,S,S,3], not an array of shape {x.shape}.")
        settings = self.settings
        for side in (x.shape[1], self.image_size):
            if side % settings.patch_size:
                raise ValueError(f"ViT: patch_size {settings.patch_size} does not divide {side}.")
        if settings.width % head_count(settings):
            raise ValueError(f"ViT: {head_count(settings)} heads do not divide {settings.width}.")

    def _branch_scales(self, train: bool, keys: jax.Array | None) -> list[jax.Array] | list[None]:
        """Returns the factors [N, 2] of the branches of each block."""
        settings = self.settings
        if not (train and self.takes_keys) or self.is_initializing():
            return [None] * settings.depth
        if keys is None:
            raise ValueError(
                "ViT with stochastic depth draws from keys in training: pass keys=[N] typed PRNG "
                "keys, one for each image, such as jax.random.split(key, N)."
            )
        rates = drop_rates(settings.stochastic_depth, settings.depth)
        scales = branch_scales(keys, np.repeat(rates, 2))
        return jnp.split(scales, settings.depth, axis=1)

    def _embed(self, x: jax.Array) -> jax.Array:
        """Maps images to tokens: class token, registers, then patches row by row."""
        settings, patch = self.settings, self.settings.patch_size
        width, wide = settings.width, wide_dtype(self.dtype)
        images, side = x.shape[0], x.shape[1] // patch
        x = Linear(width, name="patches")(patches(x, patch).reshape(images, side * side, -1))
        grid = self.image_size // patch
        position = self.param("position", weight_normal, (grid, grid, width), wide)
        position = jnp.asarray(resized(position, side))
        x = x + position.reshape(side * side, width).astype(x.dtype)
        before = []
        if settings.class_token:
            token = self.param("class_token", _tiny, (1, width), wide)
            before.append(token + self.param("class_position", weight_normal, (1, width), wide))
        if settings.registers:
            before.append(self.param("registers", _tiny, (settings.registers, width), wide))
        if not before:
            return x
        first = jnp.concatenate(before).astype(x.dtype)
        first = jnp.broadcast_to(first, (images, *first.shape))
        return jnp.concatenate([first, x], axis=1)

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        """Maps patch tokens [N, T, C] to states by the mean, or as tokens."""
        settings = self.settings
        if settings.head == "mean":
            x = jnp.mean(x, axis=1)
            return x if settings.embed_dim is None else Linear(settings.embed_dim, name="head")(x)
        side = round(x.shape[1] ** 0.5)
        x = x.reshape(-1, side, side, x.shape[-1])
        x = token_map(x, settings.token_dim, settings.token_grid)
        norm = BatchNorm(groups=self.norm_groups, axis_name=self.axis_name, name="token_norm")
        return flatten_tokens(norm(x, train=train), self.split_qp)
