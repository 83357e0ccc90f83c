"""The ResNet encoder: states of tokens [q | p], pooled features, or an embedding of these.

Sources: He et al., "Deep Residual Learning" (arXiv 1512.03385), torchvision layout; token head of
"Beyond Isotropy in JEPAs" (arXiv 2605.20107).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
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
from hjepa_jax.models.foreign import ForeignNames, batch_norm, convolution
from hjepa_jax.models.layers import BatchNorm, Conv, Linear, default_uniform, kaiming_normal
from hjepa_jax.models.pooling import max_pool_3x3_padded
from hjepa_jax.models.remat import recomputed
from hjepa_jax.models.residual_blocks import BLOCKS
from hjepa_jax.models.token_layers import flatten_tokens, token_map

TOKEN_LAYERS = {"layer2": 2, "layer3": 3, "layer4": 4}
# Kind and number of the blocks of each depth: table 1 of the paper.
PUBLISHED = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}
_TOKENS = Condition(
    lambda settings: settings.section(ResNetSection).head == "tokens", "config.resnet.head='tokens'"
)
_DEPTHS = f"use one of {', '.join(map(str, PUBLISHED))}, or None with block and stage_blocks."
_OWN = Condition(
    lambda settings: settings.section(ResNetSection).depth is None, "config.resnet.depth=None"
)
_GLOBAL = Condition(
    lambda settings: settings.section(ResNetSection).head == "global", "config.resnet.head='global'"
)


@dataclasses.dataclass(frozen=True)
class ResNetSection:
    """The ResNet encoder."""

    width: int = field(
        64,
        "Channels of the first stage, doubled in each later one; 64 is that of the published ones. "
        "Bottlenecks return four times as many.",
        above=0,
        at_most=8192,
        auto=True,
        aliases="base_width",
    )
    depth: int | None = field(
        None,
        "Layers of a published ResNet: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks); None "
        "= as block and stage_blocks say.",
        above=0,
        aliases="layers num_layers",
    )
    block: Literal["basic", "bottleneck"] = field(
        "basic",
        "'basic' (two 3x3 convolutions) or 'bottleneck' (1x1, 3x3, which has the stride, and 1x1).",
        used=_OWN,
        aliases="block_type",
    )
    stage_blocks: tuple[int, int, int, int] = field(
        (2, 2, 2, 2),
        "Residual blocks of the four stages; (2, 2, 2, 2) is ResNet-18.",
        above=0,
        at_most=256,
        hint="the blocks of each of the four stages",
        used=_OWN,
        aliases="blocks",
    )
    zero_init: bool = field(
        False,
        "Begin with a scale of 0 in the last batch normalization of each block, which is then its "
        "shortcut alone.",
        aliases="zero_init_residual zero_init_last",
    )
    stem: Literal["cifar", "imagenet"] = field(
        "cifar",
        "'cifar' (3x3, stride 1) or 'imagenet' (7x7, stride 2, max-pool).",
        auto=True,
    )
    head: Literal["tokens", "global", "pooled"] = field(
        "tokens",
        "'tokens' (feature map as tokens), 'global' (average pool, then Linear), or 'pooled' "
        "(average pool alone, as torchvision's features).",
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

    @property
    def layout(self) -> tuple[str, tuple[int, int, int, int]]:
        """The kind of block, and the number of blocks in each stage."""
        return (self.block, self.stage_blocks) if self.depth is None else PUBLISHED[self.depth]

    @property
    def stages(self) -> int:
        """Number of stages that are built."""
        return TOKEN_LAYERS[self.token_layer] if self.head == "tokens" else 4

    @property
    def features(self) -> int:
        """Channels of the last stage that is built."""
        return self.width * 2 ** (self.stages - 1) * BLOCKS[self.layout[0]].expansion


class ResNet(Encoder):
    """A ResNet. Stages above the tapped one have no effect and are not built.

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
        if resnet.depth is not None:
            resnet.update(block=PUBLISHED[resnet.depth][0], depth=None)
        resnet.update(width=8, stage_blocks=(1, 1, 1, 1))
        if resnet.head != "tokens":
            return
        resnet.update(token_layer="layer2", token_dim=8)
        if resnet.token_grid is not None:
            resnet.token_grid = 2

    @classmethod
    def problems(cls, settings: Settings) -> Iterator[str]:
        """Yields a sentence for each contradiction in the settings."""
        resnet, data = settings.section(ResNetSection), settings.data
        if resnet.depth not in (None, *PUBLISHED):
            yield f"config.resnet.depth is {resnet.depth}: {_DEPTHS}"
            return
        width_field = "token_dim" if resnet.head == "tokens" else "embed_dim"
        # Pooled features have a multiple of eight dimensions.
        halved = settings.model.split_qp and resnet.head != "pooled"
        if halved and getattr(resnet, width_field) % 2:
            yield (
                f"config.resnet.{width_field} is {getattr(resnet, width_field)}: with "
                "config.model.split_qp=True it must be even, half for q and half for p."
            )
        pooled = resnet.head != "tokens" or resnet.token_grid is not None
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

    def shape(self, image_size: int) -> StateShape:
        """Returns the shape of the states of square images of `image_size` pixels."""
        settings = self.settings
        if settings.head != "tokens":
            return StateShape(
                settings.embed_dim if settings.head == "global" else settings.features
            )
        side = settings.token_grid
        if side is None:
            side = image_size
            # Every stride-2 layer gives ceil(side / 2).
            for _ in range(settings.stages - 1 + (2 if settings.stem == "imagenet" else 0)):
                side = (side + 1) // 2
        return StateShape(side * side * settings.token_dim, side, settings.token_dim)

    def foreign_names(self, found: Mapping[str, tuple[int, ...]]) -> ForeignNames:
        """Returns the places of the tensors of a ResNet of torchvision or timm, which agree."""
        del found
        settings = self.settings
        kind, counts = settings.layout
        entries = [*convolution("conv1", "stem_conv"), *batch_norm("bn1", "stem_norm")]
        for stage, count in enumerate(counts[: settings.stages], 1):
            for block in range(count):
                theirs, ours = f"layer{stage}.{block}", f"layer{stage}_block{block}"
                for i in range(1, BLOCKS[kind].layers + 1):
                    entries += convolution(f"{theirs}.conv{i}", ours, f"conv{i}")
                    entries += batch_norm(f"{theirs}.bn{i}", ours, f"norm{i}")
                # As in `residual_blocks.Block`.
                if block == 0 and (stage > 1 or BLOCKS[kind].expansion > 1):
                    entries += convolution(f"{theirs}.downsample.0", ours, "downsample_conv")
                    entries += batch_norm(f"{theirs}.downsample.1", ours, "downsample_norm")
        left_out = {
            r"fc\..*": "the classifier",
            r".*\.num_batches_tracked": "a counter",
        }
        above = "".join(str(stage) for stage in range(settings.stages + 1, 5))
        if above:
            left_out[rf"layer[{above}]\..*"] = "of a stage above config.resnet.token_layer"
        own = {"tokens": ("token_projection", "token_norm"), "global": ("head",), "pooled": ()}
        return ForeignNames(tuple(entries), left_out, own[settings.head])

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
        if settings.depth not in (None, *PUBLISHED):
            raise ValueError(f"ResNet: depth is {settings.depth}: {_DEPTHS}")
        if settings.head == "tokens" and self.split_qp and settings.token_dim % 2:
            raise ValueError(
                "ResNet: split_qp halves each token, so token_dim "
                f"{settings.token_dim} must be even."
            )
        if x.ndim != 4 or x.shape[-1] != 3:
            raise ValueError(f"ResNet takes images [N,H,W,3], not an array of shape {x.shape}.")

    def _stages(self, x: jax.Array, train: bool) -> jax.Array:
        """Applies the residual blocks to what the stem returns."""
        settings = self.settings
        kind, counts = settings.layout
        remat = settings.remat == "blocks" and train and not self.is_initializing()
        for stage, count in enumerate(counts[: settings.stages], 1):
            for block in range(count):
                residual = BLOCKS[kind](
                    settings.width * 2 ** (stage - 1),
                    2 if stage > 1 and block == 0 else 1,
                    self.norm_groups,
                    self.axis_name,
                    settings.zero_init,
                    name=f"layer{stage}_block{block}",
                )
                x = recomputed(residual, x) if remat else residual(x, train=train)
        return x

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
        return self._encode(x, train, head=True)

    def tokens(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the feature map of the last stage that is built, as tokens [N, h * w, C]."""
        x = self._encode(x, train, head=False)
        return x.reshape(x.shape[0], -1, x.shape[-1])

    @nn.compact
    def _encode(self, x: jax.Array, train: bool, *, head: bool) -> jax.Array:
        """Returns the states, or without the head the feature map in float32 or wider."""
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
        x = self._stages(x, train)
        wide = jnp.promote_types(self.dtype, jnp.float32)
        if not head:
            return x.astype(wide)
        if settings.head != "tokens":
            x = jnp.mean(x.astype(wide), (1, 2))
            return x if settings.head == "pooled" else Linear(settings.embed_dim, name="head")(x)
        x = token_map(x, settings.token_dim, settings.token_grid)
        return flatten_tokens(norm(name="token_norm")(x, train=train), self.split_qp)
