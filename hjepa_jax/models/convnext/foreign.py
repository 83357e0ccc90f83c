"""Where the tensors of a ConvNeXt of timm or torchvision go, see `models.foreign`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from hjepa_jax.models.convnext.section import ConvNeXtSection
from hjepa_jax.models.foreign import Entry, ForeignNames, convolution, linear, same


class _Names(NamedTuple):
    """How a library names the parts; those of stages and blocks have a place for their number.

    Attributes:
      stem: of the convolution, then of its normalization.
      downsample: of a stage, as the stem.
      block: what the names in a block begin with.
      others: the names in a block, by ours.
      layer_scale: the factors of a block.
      norm: normalization of the pooled features.
    """

    stem: tuple[str, str]
    downsample: tuple[str, str]
    block: str
    others: Mapping[str, str]
    layer_scale: str
    norm: str


def _names(found: Mapping[str, tuple[int, ...]]) -> tuple[_Names, list[str]]:
    """Returns the names that a file has, and what the names of each stage begin with."""
    if "features.0.0.weight" in found:
        others = {"depthwise": "block.0", "norm": "block.2", "fc1": "block.3", "fc2": "block.5"}
        return _Names(
            ("features.0.0", "features.0.1"),
            ("{}.1", "{}.0"),
            "{}.{}",
            others,
            "layer_scale",
            "classifier.0",
        ), [f"features.{2 * stage + 1}" for stage in range(4)]
    others = {"depthwise": "conv_dw", "norm": "norm", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    return _Names(
        ("stem.0", "stem.1"),
        ("{}.downsample.1", "{}.downsample.0"),
        "{}.blocks.{}",
        others,
        "gamma",
        "head.norm",
    ), [f"stages.{stage}" for stage in range(4)]


def convnext_names(section: ConvNeXtSection, found: Mapping[str, tuple[int, ...]]) -> ForeignNames:
    """Returns the places of the tensors of timm or torchvision, told apart by a name.

    Args:
      section: the encoder's settings.
      found: shapes of the tensors in the file.
    """
    names, stages = _names(found)
    torchvision = stages[0].startswith("features")
    entries = [*_patchify(names.stem[0], "stem"), *_norm(names.stem[1], "stem_norm")]
    for stage, count in enumerate(section.blocks, 1):
        theirs = stages[stage - 1]
        if stage > 1:
            source = f"features.{2 * stage - 2}" if torchvision else theirs
            kernel, norm = (name.format(source) for name in names.downsample)
            entries += [*_patchify(kernel, f"downsample{stage}")]
            entries += _norm(norm, f"downsample{stage}_norm")
        for number in range(count):
            block = names.block.format(theirs, number)
            entries += _block(names, block, f"stage{stage}_block{number}")
    left_out = {r"(head\.fc|classifier\.2)\..*": "the classifier"}
    if section.head == "mean":
        return ForeignNames(tuple([*entries, *_norm(names.norm, "norm")]), left_out, ("head",))
    left_out[rf"{names.norm}\..*".replace(".", r"\.", 1)] = "the normalization of pooled features"
    for stage in range(len(section.blocks), 4):
        above = stages[stage].replace(".", r"\.")
        left_out[rf"{above}\..*"] = "of a stage above config.convnext.token_stage"
        if torchvision:
            left_out[rf"features\.{2 * stage}\..*"] = "before a stage that is not built"
    return ForeignNames(tuple(entries), left_out, ("token_projection", "token_norm"))


def _norm(name: str, *path: str) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", "params", (*path, "scale"), same)
    yield Entry(f"{name}.bias", "params", (*path, "bias"), same)


def _patchify(name: str, path: str) -> Iterator[Entry]:
    """A convolution [C, in, p, p] is a Linear of each patch, whose pixels are in order."""

    def kernel(x: np.ndarray) -> np.ndarray:
        return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])

    yield Entry(f"{name}.weight", "params", (path, "kernel"), kernel)
    yield Entry(f"{name}.bias", "params", (path, "bias"), same)


def _block(names: _Names, theirs: str, ours: str) -> Iterator[Entry]:
    other = {name: f"{theirs}.{end}" for name, end in names.others.items()}
    yield from convolution(other["depthwise"], ours, "depthwise")
    yield Entry(f"{other['depthwise']}.bias", "params", (ours, "depthwise", "bias"), same)
    yield from _norm(other["norm"], ours, "norm")
    for layer in ("fc1", "fc2"):
        yield from linear(other[layer], ours, layer)
    factor = f"{theirs}.{names.layer_scale}"
    # torchvision's has the shape [C, 1, 1].
    yield Entry(factor, "params", (ours, "layer_scale", "scale"), lambda x: x.reshape(x.shape[0]))
