"""Where tensors of torchvision and timm go in an encoder, see `models.base.Encoder.foreign_names`.

Their convolutions are [out, in, kh, kw], ours [kh, kw, in, out]; their Linear weights are
[out, in], ours [in, out].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np


class Entry(NamedTuple):
    """The place of a tensor; several entries may share one tensor.

    Attributes:
      name: its name in the file.
      collection: 'params' or 'batch_stats'.
      path: of the variable in the collection.
      layout: makes the variable of the tensor.
    """

    name: str
    collection: str
    path: tuple[str, ...]
    layout: Callable[[np.ndarray], np.ndarray]


class ForeignNames(NamedTuple):
    """What becomes of the tensors of a file of other software.

    Attributes:
      entries: the places of those that the encoder takes, all of which the file must have.
      left_out: reason for each regular expression of whole names that it has no use for.
      own: first names of variables that such files do not have; they keep their initial values.
    """

    entries: tuple[Entry, ...]
    left_out: Mapping[str, str]
    own: tuple[str, ...] = ()


def same(x: np.ndarray) -> np.ndarray:
    """Returns x: a layout."""
    return x


def convolution(name: str, *path: str) -> Iterator[Entry]:
    """Yields the entry of a convolution without bias."""
    yield Entry(f"{name}.weight", "params", (*path, "kernel"), lambda x: x.transpose(2, 3, 1, 0))


def linear(name: str, *path: str) -> Iterator[Entry]:
    """Yields the entries of a Linear layer."""
    yield Entry(f"{name}.weight", "params", (*path, "kernel"), lambda x: x.transpose(1, 0))
    yield Entry(f"{name}.bias", "params", (*path, "bias"), same)


def batch_norm(name: str, *path: str) -> Iterator[Entry]:
    """Yields the entries of a batch normalization."""
    yield Entry(f"{name}.weight", "params", (*path, "scale"), same)
    yield Entry(f"{name}.bias", "params", (*path, "bias"), same)
    yield Entry(f"{name}.running_mean", "batch_stats", (*path, "mean"), same)
    yield Entry(f"{name}.running_var", "batch_stats", (*path, "var"), same)
