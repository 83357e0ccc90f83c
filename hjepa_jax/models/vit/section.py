"""The settings of the Vision Transformer, and their contradictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from hjepa_jax.config import Settings
from hjepa_jax.config.fields import FREE, Condition, field

_HEAD_WIDTH = 64
_TOKENS = Condition(
    lambda settings: settings.section(ViTSection).head == "tokens", "config.vit.head='tokens'"
)
_POOLED = Condition(
    lambda settings: settings.section(ViTSection).head != "tokens",
    "config.vit.head='class' or 'mean'",
)


@dataclasses.dataclass(frozen=True)
class ViTSection:
    """The Vision Transformer encoder."""

    width: int = field(
        384,
        "Channels of each token; 192, 384 and 768 are ViT-Ti, ViT-S and ViT-B.",
        above=0,
        at_most=8192,
        aliases="hidden_size hidden_dim",
    )
    depth: int = field(
        12, "Transformer blocks.", above=0, at_most=256, aliases="num_layers layers blocks"
    )
    heads: int | None = field(
        None,
        "Heads of the attention, a divisor of the width; None = one for each 64 channels.",
        above=0,
        at_most=1024,
        aliases="num_heads",
    )
    patch_size: int = field(
        4,
        "Side of a patch in pixels, a divisor of the image size.",
        above=0,
        at_most=256,
        aliases="patch",
    )
    class_token: bool = field(
        True, "Whether a class token goes through the blocks; head='class' needs it."
    )
    registers: int = field(
        0,
        "Register tokens, which go through the blocks and are not part of the state.",
        at_least=0,
        at_most=1024,
        aliases="reg_tokens num_registers register_tokens",
    )
    layer_scale: float | None = field(
        None,
        "Initial factor of each channel of a residual branch; None = no factors.",
        above=0,
        at_most=1.0,
        aliases="init_values",
    )
    stochastic_depth: float = field(
        0.0,
        "Probability that an image skips a branch of the last block in training, rising linearly "
        "from 0 in the first.",
        at_least=0.0,
        at_most=0.99,
        aliases="drop_path drop_path_rate",
    )
    head: Literal["tokens", "class", "mean"] = field(
        "tokens",
        "'tokens' (patch tokens), 'class' (class token) or 'mean' (mean of the patch tokens).",
        aliases="global_pool pool",
    )
    token_dim: int = field(32, "Channels per token.", above=0, at_most=65536, used=_TOKENS)
    token_grid: int | None = field(
        None,
        "Side of the token grid after average pooling; None = no pooling.",
        above=0,
        at_most=256,
        used=_TOKENS,
    )
    embed_dim: int | None = field(
        None,
        "Outputs of a Linear after the pooling; None = none, the state has the width.",
        above=0,
        at_most=2**20,
        used=_POOLED,
    )
    remat: Literal["none", "blocks"] = field(
        "none",
        "'blocks' recomputes blocks in the backward pass: less memory, a third more computation.",
        resume=FREE,
        aliases="gradient_checkpointing grad_checkpointing activation_checkpointing",
    )


def head_count(section: ViTSection) -> int:
    """Returns the number of heads of the attention."""
    return section.heads or max(1, section.width // _HEAD_WIDTH)


def section_problems(settings: Settings) -> Iterator[str]:
    """Yields a sentence for each contradiction in the section, or with the image sizes."""
    vit, data = settings.section(ViTSection), settings.data
    sizes = {"image_size": data.image_size}
    if data.num_local_views:
        sizes["local_size"] = data.local_size
    for name, size in sizes.items():
        if size % vit.patch_size:
            yield (
                f"config.vit.patch_size is {vit.patch_size}, which does not divide "
                f"config.data.{name}={size}: set one so that it does."
            )
    if vit.width % head_count(vit):
        yield (
            f"config.vit.width is {vit.width}, which {head_count(vit)} heads do not divide: set "
            "config.vit.heads to a divisor."
        )
    if vit.head == "class" and not vit.class_token:
        yield (
            "config.vit.head is 'class', but config.vit.class_token is False: set it to True, or "
            "the head to 'mean'."
        )
    if vit.head != "tokens":
        return
    if settings.model.split_qp and vit.token_dim % 2:
        yield (
            f"config.vit.token_dim is {vit.token_dim}: with config.model.split_qp=True it must be "
            "even, half for q and half for p."
        )
    differs = data.num_local_views > 0 and data.local_size != data.image_size
    if differs and vit.token_grid is None:
        yield (
            f"config.data.local_size ({data.local_size}) differs from config.data.image_size "
            f"({data.image_size}), so their token grids differ: set config.vit.token_grid, or "
            "config.vit.head='mean'."
        )
