"""Where the tensors of a Vision Transformer of timm or torchvision go, see `models.foreign`."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from hjepa_jax.errors import UserError
from hjepa_jax.models.foreign import Entry, ForeignNames, linear, same
from hjepa_jax.models.vit.section import ViTSection

_LEFT_OUT = {
    r"(head|heads|head_dist)\..*": "the classifier",
    r"mask_token": "a token that stands for hidden patches in training",
}


class _Names(NamedTuple):
    """How a library names the parts of a transformer; those of a block have a place for its number.

    Attributes:
      patches, class_token, position, norm: outside the blocks.
      block: what the names in a block begin with.
      qkv: weight and bias of queries, keys and values.
      others: other names in a block, by ours.
    """

    patches: str
    class_token: str
    position: str
    norm: str
    block: str
    qkv: tuple[str, str]
    others: Mapping[str, str]


_TIMM = _Names(
    "patch_embed.proj",
    "cls_token",
    "pos_embed",
    "norm",
    "blocks.{}",
    ("attn.qkv.weight", "attn.qkv.bias"),
    {
        "norm1": "norm1",
        "norm2": "norm2",
        "projection": "attn.proj",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    },
)
_TORCHVISION = _Names(
    "conv_proj",
    "class_token",
    "encoder.pos_embedding",
    "encoder.ln",
    "encoder.layers.encoder_layer_{}",
    ("self_attention.in_proj_weight", "self_attention.in_proj_bias"),
    {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "projection": "self_attention.out_proj",
        "fc1": "mlp.0",
        "fc2": "mlp.3",
    },
)


def resized(position: jax.Array | np.ndarray, side: int) -> jax.Array | np.ndarray:
    """Interpolates the positions of a grid [g, g, C] to [side, side, C] by cubic convolution."""
    if position.shape[0] == side:
        return position
    return jax.image.resize(position, (side, side, position.shape[-1]), "cubic")


def vit_names(section: ViTSection, grid: int, found: Mapping[str, tuple[int, ...]]) -> ForeignNames:
    """Returns the places of the tensors of timm or torchvision, told apart by a name.

    Args:
      section: the encoder's settings.
      grid: side of the grid of its positions; that of the file is interpolated to it.
      found: shapes of the tensors in the file.

    Raises:
      UserError: if the file has positions for register tokens.
    """
    names = _TORCHVISION if "conv_proj.weight" in found else _TIMM
    entries = [*_patches(names), *_prefix(section, names, grid, found)]
    for number in range(section.depth):
        entries += _block(section, names, number)
    entries += _norm(names.norm, "norm")
    head = ("token_projection", "token_norm") if section.head == "tokens" else ("head",)
    return ForeignNames(tuple(entries), _LEFT_OUT, head)


def _norm(name: str, *path: str) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", "params", (*path, "scale"), same)
    yield Entry(f"{name}.bias", "params", (*path, "bias"), same)


def _patches(names: _Names) -> Iterator[Entry]:
    """The convolution [C, 3, p, p] is a Linear of each patch, whose pixels are in order."""

    def kernel(x: np.ndarray) -> np.ndarray:
        return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    yield Entry(f"{names.patches}.weight", "params", ("patches", "kernel"), kernel)
    yield Entry(f"{names.patches}.bias", "params", ("patches", "bias"), same)


def _prefix(
    section: ViTSection, names: _Names, grid: int, found: Mapping[str, tuple[int, ...]]
) -> Iterator[Entry]:
    """Yields the entries of the positions, and of the tokens before the patches."""
    number = found[names.position][1] if len(found.get(names.position, ())) == 3 else 0
    # Some models have no positions for the tokens before the patches.
    before = 0 if math.isqrt(number) ** 2 == number else int(section.class_token)
    if before and section.registers and math.isqrt(number - before) ** 2 != number - before:
        raise UserError(
            f"The file has {number} positions, some of them for its register tokens, which the "
            "encoder 'vit' does not have: take weights without them."
        )

    def position(x: np.ndarray) -> np.ndarray:
        side = math.isqrt(x.shape[1] - before)
        return np.asarray(resized(x[0, before:].reshape(side, side, -1), grid))

    def class_position(x: np.ndarray) -> np.ndarray:
        return x[0, :1] if before else np.zeros_like(x[0])

    yield Entry(names.position, "params", ("position",), position)
    if section.class_token:
        yield Entry(names.class_token, "params", ("class_token",), lambda x: x[0])
        source = names.position if before else names.class_token
        yield Entry(source, "params", ("class_position",), class_position)
    if section.registers:
        yield Entry("reg_token", "params", ("registers",), lambda x: x[0])


def _block(section: ViTSection, names: _Names, number: int) -> Iterator[Entry]:
    theirs, ours = names.block.format(number), f"block{number}"
    other = functools.partial("{}.{}".format, theirs)
    weight, bias = names.qkv
    for norm in ("norm1", "norm2"):
        yield from _norm(other(names.others[norm]), ours, norm)
    attention = (ours, "attention")
    yield Entry(other(weight), "params", (*attention, "qkv", "kernel"), lambda x: x.transpose(1, 0))
    yield Entry(other(bias), "params", (*attention, "qkv", "bias"), same)
    yield from linear(other(names.others["projection"]), *attention, "projection")
    for layer in ("fc1", "fc2"):
        yield from linear(other(names.others[layer]), ours, layer)
    if section.layer_scale is not None:
        for i in (1, 2):
            yield Entry(other(f"ls{i}.gamma"), "params", (ours, f"layer_scale{i}", "scale"), same)
