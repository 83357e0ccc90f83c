"""The ResNet encoder, with a token head (state [q | p]) or a global head.

Sources: He et al., "Deep Residual Learning" (arXiv 1512.03385), torchvision layout; token head of
"Beyond Isotropy in JEPAs" (arXiv 2605.20107).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from hjepa_jax.config import Settings
from hjepa_jax.config.fields import FREE, Condition, field, walk
from hjepa_jax.kernels.max_pool import max_pool_3x3
from hjepa_jax.models.base import Encoder, StateShape
from hjepa_jax.models.layers import BatchNorm, Conv, Linear, default_uniform, kaiming_normal
from hjepa_jax.models.pooling import adaptive_average_pool, max_pool_3x3_padded
from hjepa_jax.models.remat import recomputed
from hjepa_jax.objectives.shares import AxisName

TOKEN_LAYERS = {"layer2": 2, "layer3": 3, "layer4": 4}
_TOKENS = Condition(
    lambda settings: settings.section(ResNetSection).head == "tokens", "config.resnet.head='tokens'"
)
_GLOBAL = Condition(
    lambda settings: settings.section(ResNetSection).head == "global", "config.resnet.head='global'"
)


@dataclasses.dataclass(frozen=True)
class ResNetSection:
    """The ResNet encoder of basic blocks."""

    width: int = field(
        64,
        "Channels of the first stage, doubled in each later one; 64 is ResNet-18.",
        above=0,
        at_most=8192,
        auto=True,
        aliases="base_width",
    )
    stage_blocks: tuple[int, int, int, int] = field(
        (2, 2, 2, 2),
        "Residual blocks of the four stages; (2, 2, 2, 2) is ResNet-18.",
        above=0,
        at_most=256,
        hint="the blocks of each of the four stages",
        aliases="depth layers blocks",
    )
    stem: Literal["cifar", "imagenet"] = field(
        "cifar",
        "'cifar' (3x3, stride 1) or 'imagenet' (7x7, stride 2, max-pool).",
        auto=True,
    )
    head: Literal["tokens", "global"] = field(
        "tokens",
        "'tokens' (feature map as tokens) or 'global' (average pool, then Linear).",
    )
    token_layer: Literal["layer2", "layer3", "layer4"] = field(
        "layer3",
        "Stage whose feature map gives the tokens.",
        used=_TOKENS,
    )
    token_dim: int = field(
        32, "Channels per token.", above=0, at_most=65536, used=_TOKENS, auto=True
    )
    token_grid: int | None = field(
        None,
        "Side of the token grid after average pooling; None = no pooling.",
        above=0,
        at_most=256,
        used=_TOKENS,
        auto=True,
    )
    embed_dim: int = field(
        2048,
        "Dimension of the embedding.",
        above=0,
        at_most=2**20,
        used=_GLOBAL,
        aliases="embedding_dim feature_dim feat_dim",
    )
    remat: Literal["none", "blocks"] = field(
        "none",
        "'blocks' recomputes residual blocks in the backward pass: less memory, a third more "
        "computation.",
        resume=FREE,
        aliases="gradient_checkpointing grad_checkpointing activation_checkpointing",
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection.

    Attributes:
      features: output channels.
      stride: stride of the first convolution and of the shortcut.
      norm_groups: groups of rows with separate batch statistics, see `layers.BatchNorm`.
      axis_name: see `models.base.Encoder`.
    """

    features: int
    stride: int = 1
    norm_groups: int = 1
    axis_name: AxisName = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x [N,H,W,C] to [N,H/stride,W/stride,features]."""
        norm = functools.partial(BatchNorm, groups=self.norm_groups, axis_name=self.axis_name)
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
      stem_pool: max-pooling function of the ImageNet stem.
    """

    sections: ClassVar = {"resnet": ResNetSection}

    settings: ResNetSection = ResNetSection()
    split_qp: bool = True
    stem_pool: Callable[[jax.Array], jax.Array] = max_pool_3x3

    @classmethod
    def shrink(cls, config: ConfigDict) -> None:
        """Reduces width, depth and tokens to the size of a smoke test; the stem is unchanged."""
        resnet = config.resnet
        if resnet.stem == "imagenet":
            config.data.image_size = 64
        resnet.update(width=8, stage_blocks=(1, 1, 1, 1), token_layer="layer2", token_dim=8)
        if resnet.token_grid is not None:
            resnet.token_grid = 2

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        resnet, data = settings.section(ResNetSection), settings.data
        width_field = "token_dim" if resnet.head == "tokens" else "embed_dim"
        if settings.model.split_qp and getattr(resnet, width_field) % 2:
            yield (
                f"config.resnet.{width_field} is {getattr(resnet, width_field)}: with "
                "config.model.split_qp=True it must be even, half for q and half for p."
            )
        pooled = resnet.head == "global" or resnet.token_grid is not None
        if data.num_local_views > 0 and data.local_size != data.image_size and not pooled:
            yield (
                f"config.data.local_size ({data.local_size}) differs from config.data.image_size "
                f"({data.image_size}), so their token grids differ: set config.resnet.token_grid."
            )

    @classmethod
    def build(cls, settings: Settings, dtype: DTypeLike, norm_groups: int) -> Self:
        """Returns the encoder described by the settings; arguments as in `Encoder.build`."""
        return cls(
            settings=settings.section(ResNetSection),
            split_qp=settings.model.split_qp,
            dtype=dtype,
            norm_groups=norm_groups,
        )

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
        """Returns the same encoder in float32, with a max-pool that ONNX converters support."""
        return self.clone(dtype=jnp.float32, stem_pool=max_pool_3x3_padded)

    def _check_fields(self, x: jax.Array) -> None:
        settings = self.settings
        for row in walk(ResNetSection):
            value = getattr(settings, row.path)
            if row.choices and value not in row.choices:
                raise ValueError(
                    f"ResNet: unknown {row.path} '{value}': use one of {', '.join(row.choices)}."
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
        norm = functools.partial(BatchNorm, groups=self.norm_groups, axis_name=self.axis_name)
        x = norm(name="stem_norm")(x, train=train, relu=True)
        if settings.stem == "imagenet":
            x = self.stem_pool(x)
        for stage in range(1, self.num_stages + 1):
            for block in range(settings.stage_blocks[stage - 1]):
                stride = 2 if stage > 1 and block == 0 else 1
                features = settings.width * 2 ** (stage - 1)
                name = f"layer{stage}_block{block}"
                residual = BasicBlock(features, stride, self.norm_groups, self.axis_name, name=name)
                remat = settings.remat == "blocks" and train and not self.is_initializing()
                x = recomputed(residual, x) if remat else residual(x, train=train)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        if settings.head == "global":
            return Linear(settings.embed_dim, name="head")(jnp.mean(x.astype(wide), (1, 2)))
        if settings.token_grid is not None:
            x = adaptive_average_pool(x, settings.token_grid)
        x = Conv(settings.token_dim, 1, initializer=default_uniform, name="token_projection")(x)
        x = norm(name="token_norm")(x.astype(wide), train=train)
        return flatten_tokens(x, self.split_qp)
