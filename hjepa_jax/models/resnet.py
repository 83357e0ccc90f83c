"""The ResNet encoder, with a token head (state [q | p]) or a global head.

Sources: He et al., "Deep Residual Learning" (arXiv 1512.03385), torchvision layout; token head of
"Beyond Isotropy in JEPAs" (arXiv 2605.20107).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from hjepa_jax.config.model import ResNet as Settings
from hjepa_jax.models.base import Encoder, StateShape
from hjepa_jax.models.layers import BatchNorm, Conv, Linear, default_uniform, kaiming_normal
from hjepa_jax.models.pooling import adaptive_average_pool, max_pool_3x3, max_pool_3x3_padded
from hjepa_jax.models.remat import recomputed

TOKEN_LAYERS = {"layer2": 2, "layer3": 3, "layer4": 4}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection.

    Attributes:
      features: output channels.
      stride: of the first convolution and of the shortcut.
      norm_groups: groups of rows with separate batch statistics, see `layers.BatchNorm`.
    """

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
    """Flattens tokens in (h, w, c) order.

    Args:
      tokens: [N, h, w, c].
      split_qp: the first half of each token's channels is q, the second half p.

    Returns:
      [N, h * w * c]; with split_qp [q | p], each half flattened separately.
    """
    if not split_qp:
        return tokens.reshape(tokens.shape[0], -1)
    halves = jnp.split(tokens, 2, axis=-1)
    return jnp.concatenate([half.reshape(half.shape[0], -1) for half in halves], axis=-1)


class ResNet(Encoder):
    """A ResNet of basic blocks. Stages above the tapped one have no effect and are not built.

    Attributes:
      settings: the section `resnet` of the configuration.
      split_qp: 'tokens' head: the state is [q | p], see `flatten_tokens`.
      stem_pool: max-pool of the ImageNet stem.
    """

    settings: Settings = Settings()
    split_qp: bool = True
    stem_pool: Callable[[jax.Array], jax.Array] = max_pool_3x3

    @property
    def num_stages(self) -> int:
        """Number of stages that are built."""
        return 4 if self.settings.head == "global" else TOKEN_LAYERS[self.settings.token_layer]

    def shape(self, image_size: int) -> StateShape:
        """Returns the shape of the states of square images of `image_size` pixels."""
        settings = self.settings
        if settings.head == "global":
            return StateShape(settings.embed_dim)
        side = settings.token_grid
        if side is None:
            side = image_size
            # Every stride-2 layer gives ceil(side / 2).
            for _ in range(self.num_stages - 1 + (2 if settings.stem == "imagenet" else 0)):
                side = (side + 1) // 2
        return StateShape(side * side * settings.token_dim, side, settings.token_dim)

    def portable(self) -> ResNet:
        """Returns the same encoder in float32, with a max-pool that ONNX converters know."""
        return self.clone(dtype=jnp.float32, stem_pool=max_pool_3x3_padded)

    def _check_fields(self, x: jax.Array) -> None:
        settings = self.settings
        for field in dataclasses.fields(settings):
            choices = field.metadata["spec"].choices
            value = getattr(settings, field.name)
            if choices and value not in choices:
                raise ValueError(
                    f"ResNet: unknown {field.name} '{value}': use one of {', '.join(choices)}."
                )
        if settings.head == "tokens" and self.split_qp and settings.token_dim % 2:
            raise ValueError(
                "ResNet: split_qp halves each token, so token_dim "
                f"{settings.token_dim} must be even."
            )
        if x.ndim != 4 or x.shape[-1] != 3:
            raise ValueError(f"ResNet takes images [N,H,W,3], not an array of shape {x.shape}.")

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Encodes normalized images.

        Args:
          x: [N, H, W, 3].
          train: whether batch statistics are used and running statistics updated.

        Returns:
          The states [N, D], float32, or float64 for dtype float64.

        Raises:
          ValueError: if a setting is unknown, token_dim is odd with split_qp, or x has another
            shape.
        """
        self._check_fields(x)
        settings = self.settings
        x = x.astype(self.dtype)
        if settings.stem == "cifar":
            x = Conv(settings.width, 3, initializer=default_uniform, name="stem_conv")(x)
        else:
            x = Conv(settings.width, 7, 2, initializer=kaiming_normal, name="stem_conv")(x)
        x = BatchNorm(groups=self.norm_groups, name="stem_norm")(x, train=train, relu=True)
        if settings.stem == "imagenet":
            x = self.stem_pool(x)
        for stage in range(1, self.num_stages + 1):
            for block in range(settings.stage_blocks[stage - 1]):
                stride = 2 if stage > 1 and block == 0 else 1
                features = settings.width * 2 ** (stage - 1)
                name = f"layer{stage}_block{block}"
                residual = BasicBlock(features, stride, self.norm_groups, name=name)
                remat = settings.remat == "blocks" and train and not self.is_initializing()
                x = recomputed(residual, x) if remat else residual(x, train=train)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        if settings.head == "global":
            return Linear(settings.embed_dim, name="head")(jnp.mean(x.astype(wide), (1, 2)))
        if settings.token_grid is not None:
            x = adaptive_average_pool(x, settings.token_grid)
        x = Conv(settings.token_dim, 1, initializer=default_uniform, name="token_projection")(x)
        x = BatchNorm(groups=self.norm_groups, name="token_norm")(x.astype(wide), train=train)
        return flatten_tokens(x, self.split_qp)
