"""ResNet encoder of basic blocks with a token head (state [q | p]) or a global head.

Sources: He et al., "Deep Residual Learning" (arXiv 1512.03385), torchvision layout; token head of
"Beyond Isotropy in JEPAs" (arXiv 2605.20107).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hjepa_jax.models.layers import BatchNorm, Conv, Linear, default_uniform, kaiming_normal
from hjepa_jax.models.pooling import adaptive_average_pool, max_pool_3x3
from hjepa_jax.models.remat import recomputed

STEMS = ("cifar", "imagenet")
MODES = ("tokens", "global")
TOKEN_LAYERS = {"layer2": 2, "layer3": 3, "layer4": 4}
REMAT = ("none", "blocks")
CHOICES = {"stem": STEMS, "mode": MODES, "token_layer": tuple(TOKEN_LAYERS), "remat": REMAT}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection."""

    features: int
    stride: int = 1
    norm_groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x [N,H,W,C] to [N,H/stride,W/stride,features]."""
        norm = functools.partial(BatchNorm, groups=self.norm_groups)
        out = Conv(self.features, 3, self.stride, name="conv1")(x)
        out = norm(name="norm1")(out, train=train, relu=True)
        out = Conv(self.features, 3, name="conv2")(out)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_norm")(x, train=train)
        return norm(name="norm2")(out, train=train, residual=x, relu=True)


def flatten_tokens(tokens: jax.Array, split_qp: bool) -> jax.Array:
    """Flattens tokens [N,h,w,c] to [N,h*w*c] in (h, w, c) order.

    With split_qp the first half of every token's channels is q and the second p: the result is
    [q | p], each flattened on its own.
    """
    if not split_qp:
        return tokens.reshape(tokens.shape[0], -1)
    halves = jnp.split(tokens, 2, axis=-1)
    return jnp.concatenate([half.reshape(half.shape[0], -1) for half in halves], axis=-1)


class ResNet(nn.Module):
    """Images to states. Stages above the tapped one are not built: they have no influence.

    Attributes:
      stem: 'cifar' (3x3, stride 1) or 'imagenet' (7x7, stride 2, then 3x3 max-pool, stride 2).
      mode: 'tokens' (feature map as tokens) or 'global' (average pool, then Linear).
      token_layer: tokens: stage tapped, 'layer2', 'layer3' or 'layer4'.
      token_dim: tokens: channels per token.
      token_hw: tokens: side of the token grid after adaptive average pooling; None = no pooling.
      split_qp: tokens: z = [q | p], see `flatten_tokens`.
      embed_dim: global: width of the embedding.
      width: channels of the first stage; 64 as published, the stages have 1, 2, 4, 8 times this.
      stage_blocks: residual blocks of each stage; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3)
        ResNet-34.
      stem_pool: max-pool of the ImageNet stem; exporters replace it by an equal one.
      dtype: of convolutions and activations. Parameters, normalization statistics and the output
        are float32, or float64 for dtype float64.
      remat: 'blocks' computes each residual block again in the backward pass; 'none' does not.
      norm_groups: runs of rows with statistics of their own, see `BatchNorm`.
    """

    stem: str = "cifar"
    mode: str = "tokens"
    token_layer: str = "layer3"
    token_dim: int = 32
    token_hw: int | None = None
    split_qp: bool = True
    embed_dim: int = 2048
    width: int = 64
    stage_blocks: tuple[int, ...] = (2, 2, 2, 2)
    stem_pool: Callable[[jax.Array], jax.Array] = max_pool_3x3
    dtype: Any = jnp.float32
    remat: str = "none"
    norm_groups: int = 1

    @property
    def num_stages(self) -> int:
        """Stages that are built."""
        return 4 if self.mode == "global" else TOKEN_LAYERS[self.token_layer]

    def output_dim(self, image_size: int) -> int:
        """Returns the width D of z for square images of `image_size` pixels."""
        if self.mode == "global":
            return self.embed_dim
        return self.token_grid(image_size) ** 2 * self.token_dim

    def token_grid(self, image_size: int) -> int:
        """Returns the side of the token grid for square images of `image_size` pixels."""
        if self.token_hw is not None:
            return self.token_hw
        side = image_size
        # Every stride-2 layer gives ceil(side / 2).
        for _ in range(self.num_stages - 1 + (2 if self.stem == "imagenet" else 0)):
            side = (side + 1) // 2
        return side

    def _check_fields(self, x: jax.Array) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"ResNet: unknown {name} '{getattr(self, name)}': use one of "
                    f"{', '.join(allowed)}."
                )
        if self.mode == "tokens" and self.split_qp and self.token_dim % 2:
            raise ValueError(
                f"ResNet: split_qp halves each token, so token_dim {self.token_dim} must be even."
            )
        if x.ndim != 4 or x.shape[-1] != 3:
            raise ValueError(f"ResNet takes images [N,H,W,3], not an array of shape {x.shape}.")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Encodes normalized images [N,H,W,3] to z [N,D], float32 (float64 for dtype float64).

        Raises:
          ValueError: unknown stem, mode or token_layer; odd token_dim with split_qp; wrong rank.
        """
        self._check_fields(x)
        x = x.astype(self.dtype)
        if self.stem == "cifar":
            x = Conv(self.width, 3, initializer=default_uniform, name="stem_conv")(x)
        else:
            x = Conv(self.width, 7, 2, initializer=kaiming_normal, name="stem_conv")(x)
        x = BatchNorm(groups=self.norm_groups, name="stem_norm")(x, train=train, relu=True)
        if self.stem == "imagenet":
            x = self.stem_pool(x)
        for stage in range(1, self.num_stages + 1):
            for block in range(self.stage_blocks[stage - 1]):
                stride = 2 if stage > 1 and block == 0 else 1
                features = self.width * 2 ** (stage - 1)
                name = f"layer{stage}_block{block}"
                residual = BasicBlock(features, stride, self.norm_groups, name=name)
                again = self.remat == "blocks" and train and not self.is_initializing()
                x = recomputed(residual, x) if again else residual(x, train=train)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        if self.mode == "global":
            return Linear(self.embed_dim, name="head")(jnp.mean(x.astype(wide), (1, 2)))
        if self.token_hw is not None:
            x = adaptive_average_pool(x, self.token_hw)
        x = Conv(self.token_dim, 1, initializer=default_uniform, name="token_projection")(x)
        x = BatchNorm(groups=self.norm_groups, name="token_norm")(x.astype(wide), train=train)
        return flatten_tokens(x, self.split_qp)
