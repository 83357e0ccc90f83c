"""ConvNeXt, with a token head (state [q | p]) or a pooled state.

Sources: Liu et al., "A ConvNet for the 2020s" (arXiv 2201.03545), in the layout of timm; token head
of "Beyond Isotropy in JEPAs" (arXiv 2605.20107).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.models.base import Encoder, StateShape
from hjepa_jax.models.convnext.foreign import convnext_names
from hjepa_jax.models.convnext.section import ConvNeXtSection, section_problems
from hjepa_jax.models.foreign import ForeignNames
from hjepa_jax.models.layers import BatchNorm, Linear, wide_dtype
from hjepa_jax.models.remat import recomputed
from hjepa_jax.models.stochastic_depth import branch_scales, drop_rates, scaled
from hjepa_jax.models.token_layers import (
    LayerScale,
    dense,
    flatten_tokens,
    layer_norm,
    patches,
    token_map,
    weight_normal,
)

_MLP_RATIO = 4


class Block(nn.Module):
    """x + scale * mlp(norm(depthwise 7x7 convolution of x)).

    Attributes:
      layer_scale: initial factor of each channel of the branch.
      dtype: dtype of the arithmetic; the normalization is float32 or wider inside.
    """

    layer_scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: jax.Array, scale: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """Maps x [N, H, W, C] to [N, H, W, C].

        Args:
          x: the feature map.
          scale: [N], factor of the branch, see `stochastic_depth`; None = 1.
          train: has no effect.
        """
        del train
        channels = x.shape[-1]
        out = nn.Conv(
            channels,
            (7, 7),
            padding=3,
            feature_group_count=channels,
            dtype=self.dtype,
            param_dtype=wide_dtype(self.dtype),
            kernel_init=weight_normal,
            name="depthwise",
        )(x)
        out = layer_norm(self.dtype, "norm")(out)
        out = dense(_MLP_RATIO * channels, self.dtype, "fc1")(out)
        out = dense(channels, self.dtype, "fc2")(jax.nn.gelu(out, approximate=False))
        return x + scaled(LayerScale(self.layer_scale, name="layer_scale")(out), scale)


class ConvNeXt(Encoder):
    """A ConvNeXt. Stages above the tapped one have no effect and are not built.

    Attributes:
      settings: the section `convnext` of the configuration.
      split_qp: 'tokens' head: the state is [q | p], see `flatten_tokens`.
    """

    sections: ClassVar = {"convnext": ConvNeXtSection}

    settings: ConvNeXtSection = ConvNeXtSection()
    split_qp: bool = True

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces patch, width, depth and tokens to the size of a smoke test."""
        convnext = config.convnext
        convnext.update(width=8, stage_blocks=(1, 1, 1, 1), patch_size=2)
        if convnext.head != "tokens":
            return
        convnext.update(token_stage=2, token_dim=8)
        if convnext.token_grid is not None:
            convnext.token_grid = 2

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        found = list(section_problems(settings))
        yield from found or super().problems(settings)

    @classmethod
    def build(cls, settings: Settings, dtype: DTypeLike, norm_groups: int) -> Self:
        """Returns the encoder described by the settings; arguments as in `Encoder.build`."""
        return cls(
            settings=settings.section(ConvNeXtSection),
            split_qp=settings.model.split_qp,
            dtype=dtype,
            norm_groups=norm_groups,
        )

    @property
    def takes_keys(self) -> bool:
        """Whether blocks are left out in training, see `Encoder.takes_keys`."""
        return self.settings.stochastic_depth > 0

    def shape(self, image_size: int) -> StateShape:
        """Returns the shape of the states of square images of `image_size` pixels."""
        settings = self.settings
        if settings.head == "mean":
            return StateShape(settings.embed_dim or settings.width * 2**3)
        side = settings.token_grid or settings.side(image_size)
        return StateShape(side * side * settings.token_dim, side, settings.token_dim)

    def foreign_names(self, found: Mapping[str, tuple[int, ...]]) -> ForeignNames:
        """Returns the places of the tensors of a ConvNeXt of timm or torchvision."""
        return convnext_names(self.settings, found)

    def __call__(self, x: jax.Array, *, train: bool, keys: jax.Array | None = None) -> jax.Array:
        """Encodes normalized images.

        Args:
          x: [N, H, W, 3].
          train: whether blocks are left out, and the token head uses batch statistics.
          keys: see `Encoder.takes_keys`.

        Returns:
          The states [N, D], float32, or float64 for dtype float64.

        Raises:
          ValueError: if x has another shape, is too small, or keys are missing.
        """
        return self._encode(x, train, keys, head=True)

    def tokens(
        self, x: jax.Array, *, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Returns the feature map of the last stage that is built, as tokens [N, h * w, C]."""
        x = self._encode(x, train, keys, head=False)
        return x.reshape(x.shape[0], -1, x.shape[-1])

    @nn.compact
    def _encode(
        self, x: jax.Array, train: bool, keys: jax.Array | None, *, head: bool
    ) -> jax.Array:
        """Returns the states, or without the head the feature map in float32 or wider."""
        settings = self.settings
        if x.ndim != 4 or x.shape[-1] != 3 or not settings.side(min(x.shape[1:3])):
            raise ValueError(f"ConvNeXt takes larger images [N,H,W,3] than of shape {x.shape}.")
        x = dense(settings.width, self.dtype, "stem")(
            patches(x.astype(self.dtype), settings.patch_size)
        )
        x = layer_norm(self.dtype, "stem_norm")(x)
        scales = iter(self._scales(train, keys))
        for stage, count in enumerate(settings.blocks, 1):
            if stage > 1:
                x = layer_norm(self.dtype, f"downsample{stage}_norm")(x)
                x = dense(2 * x.shape[-1], self.dtype, f"downsample{stage}")(patches(x, 2))
            for number in range(count):
                block = Block(settings.layer_scale, self.dtype, name=f"stage{stage}_block{number}")
                scale = next(scales)
                inputs = () if scale is None else (scale,)
                if settings.remat == "blocks" and train and not self.is_initializing():
                    x = recomputed(block, x, *inputs)
                else:
                    x = block(x, *inputs, train=train)
        x = x.astype(wide_dtype(self.dtype))
        return self._head(x, train) if head else x

    def _scales(self, train: bool, keys: jax.Array | None) -> list[jax.Array] | list[None]:
        """Returns the factors [N] of each block."""
        depth = sum(self.settings.blocks)
        if not (train and self.takes_keys) or self.is_initializing():
            return [None] * depth
        if keys is None:
            raise ValueError(
                "ConvNeXt with stochastic depth draws from keys in training: pass keys=[N] typed "
                "PRNG keys, one for each image, such as jax.random.split(key, N)."
            )
        return list(branch_scales(keys, drop_rates(self.settings.stochastic_depth, depth)).T)

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        settings = self.settings
        if settings.head == "mean":
            x = layer_norm(x.dtype, "norm")(jnp.mean(x, axis=(1, 2)))
            return x if settings.embed_dim is None else Linear(settings.embed_dim, name="head")(x)
        x = token_map(x, settings.token_dim, settings.token_grid)
        norm = BatchNorm(groups=self.norm_groups, axis_name=self.axis_name, name="token_norm")
        return flatten_tokens(norm(x, train=train), self.split_qp)
