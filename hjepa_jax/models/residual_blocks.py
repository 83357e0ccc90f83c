"""The residual blocks of a ResNet.

Sources: He et al., "Deep Residual Learning" (arXiv 1512.03385), with a bottleneck's stride in its
3x3 convolution, as torchvision has it (v1.5); scales that begin at 0: Goyal et al., "Accurate,
Large Minibatch SGD" (arXiv 1706.02677, section 5.1).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax

from hjepa_jax.models.layers import BatchNorm, Conv
from hjepa_jax.objectives.shares import AxisName


class Block(nn.Module):
    """A residual block; subclasses define its convolutions.

    Attributes:
      features: channels of its 3x3 convolutions; it returns `expansion` times as many.
      stride: stride of its first 3x3 convolution and of the shortcut.
      norm_groups: groups of rows with separate batch statistics, see `layers.BatchNorm`.
      axis_name: see `models.base.Encoder`.
      zero_init: whether the scale of its last batch normalization begins at 0.
    """

    # Output channels for each of `features`, and convolutions beside the shortcut's.
    expansion: ClassVar[int] = 1
    layers: ClassVar[int] = 2

    features: int
    stride: int = 1
    norm_groups: int = 1
    axis_name: AxisName = None
    zero_init: bool = False

    def _convolutions(self) -> tuple[tuple[int, int, int], ...]:
        """Returns (features, size, stride) of each convolution, in order."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps x [N,H,W,C] to [N,H/stride,W/stride,expansion*features]."""
        norm = functools.partial(BatchNorm, groups=self.norm_groups, axis_name=self.axis_name)
        out = x
        for i, (features, size, stride) in enumerate(self._convolutions(), 1):
            out = Conv(features, size, stride, name=f"conv{i}")(out)
            if i < self.layers:
                out = norm(name=f"norm{i}")(out, train=train, relu=True)
        if self.stride != 1 or x.shape[-1] != out.shape[-1]:
            x = Conv(out.shape[-1], 1, self.stride, name="downsample_conv")(x)
            x = norm(name="downsample_norm")(x, train=train)
        begin = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        last = norm(scale_init=begin, name=f"norm{self.layers}")
        return last(out, train=train, residual=x, relu=True)


class BasicBlock(Block):
    """Two 3x3 convolutions with a residual connection."""

    def _convolutions(self) -> tuple[tuple[int, int, int], ...]:
        return (self.features, 3, self.stride), (self.features, 3, 1)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions with a residual connection."""

    expansion: ClassVar[int] = 4
    layers: ClassVar[int] = 3

    def _convolutions(self) -> tuple[tuple[int, int, int], ...]:
        wide = self.features * self.expansion
        return (self.features, 1, 1), (self.features, 3, self.stride), (wide, 1, 1)


# By the names that `config.resnet.block` has for them.
BLOCKS: Mapping[str, type[Block]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
