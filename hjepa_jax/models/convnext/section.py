"""The settings of ConvNeXt, and their contradictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from hjepa_jax.config import Settings
from hjepa_jax.config.fields import FREE, Condition, field

_TOKENS = Condition(
    lambda settings: settings.section(ConvNeXtSection).head == "tokens",
    "config.convnext.head='tokens'",
)
_POOLED = Condition(
    lambda settings: settings.section(ConvNeXtSection).head == "mean",
    "config.convnext.head='mean'",
)


@dataclasses.dataclass(frozen=True)
class ConvNeXtSection:
    """The ConvNeXt encoder."""

    width: int = field(
        96,
        "Channels of the first stage, doubled in each later one; 96 is that of ConvNeXt-T and S, "
        "128 of B.",
        above=0,
        at_most=8192,
        aliases="dims dim",
    )
    stage_blocks: tuple[int, int, int, int] = field(
        (3, 3, 9, 3),
        "Blocks of the four stages; (3, 3, 9, 3) is ConvNeXt-T, (3, 3, 27, 3) S and B.",
        above=0,
        at_most=256,
        hint="the blocks of each of the four stages",
        aliases="depths depth layers blocks",
    )
    patch_size: int = field(
        2,
        "Side of the patches of the stem in pixels; 4 is that of ConvNeXt.",
        above=0,
        at_most=256,
        aliases="patch",
    )
    layer_scale: float = field(
        1e-6,
        "Initial factor of each channel of a residual branch.",
        above=0,
        at_most=1.0,
        aliases="ls_init_value layer_scale_init_value",
    )
    stochastic_depth: float = field(
        0.0,
        "Probability that an image skips the last block in training, rising linearly from 0 in the "
        "first.",
        at_least=0.0,
        at_most=0.99,
        aliases="drop_path drop_path_rate",
    )
    head: Literal["tokens", "mean"] = field(
        "tokens",
        "'tokens' (feature map as tokens) or 'mean' (its average, normalized).",
        aliases="global_pool pool",
    )
    token_stage: int = field(
        3,
        "Stage whose feature map gives the tokens, 1 to 4.",
        above=0,
        at_most=4,
        used=_TOKENS,
        aliases="token_layer",
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
        "Outputs of a Linear after the pooling; None = none, the state has 8 times the width.",
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

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks of each stage that is built."""
        return self.stage_blocks if self.head == "mean" else self.stage_blocks[: self.token_stage]

    def side(self, image_size: int) -> int:
        """Returns the side of the last feature map; 0 if the images are too small."""
        return image_size // self.patch_size >> (len(self.blocks) - 1)


def section_problems(settings: Settings) -> Iterator[str]:
    """Yields a sentence for each contradiction in the section, or with the image sizes."""
    section, data = settings.section(ConvNeXtSection), settings.data
    sizes = {"image_size": data.image_size}
    if data.num_local_views:
        sizes["local_size"] = data.local_size
    for name, size in sizes.items():
        if not section.side(size):
            smallest = section.patch_size << (len(section.blocks) - 1)
            yield (
                f"config.data.{name} is {size}, but {len(section.blocks)} stages after patches of "
                f"config.convnext.patch_size={section.patch_size} need {smallest} pixels: make "
                "the images larger or the patches smaller."
            )
    if section.head != "tokens":
        return
    if settings.model.split_qp and section.token_dim % 2:
        yield (
            f"config.convnext.token_dim is {section.token_dim}: with config.model.split_qp=True "
            "it must be even, half for q and half for p."
        )
    sides = {section.side(size) for size in sizes.values()}
    if len(sides) > 1 and section.token_grid is None:
        yield (
            f"config.data.local_size ({data.local_size}) differs from config.data.image_size "
            f"({data.image_size}), so their token grids differ: set config.convnext.token_grid, or "
            "config.convnext.head='mean'."
        )
