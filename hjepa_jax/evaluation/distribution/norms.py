"""Norms of states beside those of a standard Gaussian, which follow the chi distribution."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

PART_NAMES = {"q": "position q", "p": "momentum p", "z": "state z"}
_BINS = 40
# The chi distribution of d dimensions, over sqrt(d), has a deviation near 1/sqrt(2 d).
_DEVIATIONS = 4.0


@dataclasses.dataclass(frozen=True)
class NormHistogram:
    """The norms of one part of the states, over the square root of its dimension d.

    Attributes:
      dim: d.
      edges: of the bins, [B + 1].
      density: share of the states per unit of the axis, [B].
      x: where the reference is given, [M].
      chi: density there of |g|/sqrt(d) with g from N(0, I), [M].
      mean: of the states' |x|/sqrt(d).
      deviation: theirs.
    """

    dim: int
    edges: np.ndarray
    density: np.ndarray
    x: np.ndarray
    chi: np.ndarray
    mean: float
    deviation: float


def chi_density(x: np.ndarray, dim: int) -> np.ndarray:
    """Returns the density at x >= 0 [...] of |g|/sqrt(dim) for g from N(0, I), of width dim."""
    radius = math.sqrt(dim) * np.maximum(x, np.finfo(np.float64).tiny)
    log = (1 - dim / 2) * math.log(2) - math.lgamma(dim / 2)
    log = log + (dim - 1) * np.log(radius) - 0.5 * np.square(radius)
    return math.sqrt(dim) * np.exp(log)


def parts_of(states: np.ndarray, split_qp: bool) -> dict[str, np.ndarray]:
    """Returns the states [N, D] as 'z', after their halves 'q' and 'p' if they have any."""
    half = states.shape[1] // 2
    halves = {"q": states[:, :half], "p": states[:, half:]} if split_qp else {}
    return {**halves, "z": states}


def norm_histogram(part: np.ndarray) -> NormHistogram:
    """Returns the histogram of the norms of one part of the states, [N, d].

    Raises:
      ValueError: no states, or norms that are not finite.
    """
    dim = part.shape[1]
    norms = np.linalg.norm(part.astype(np.float64), axis=1) / math.sqrt(dim)
    if not len(norms) or not np.isfinite(norms).all():
        raise ValueError("norms need states, all of them finite")
    width = _DEVIATIONS / math.sqrt(2 * dim)
    low = max(0.0, min(norms.min(), 1 - width))
    high = max(norms.max(), 1 + width)
    # Bins as wide as the states need, however far from 1 they are.
    room = max(np.ptp(norms), width / 4)
    start = max(0.0, norms.min() - 0.1 * room)
    density, edges = np.histogram(norms, _BINS, (start, norms.max() + 0.1 * room), density=True)
    near = np.linspace(max(0.0, 1 - width), 1 + width, 201)
    x = np.unique(np.concatenate([[low], near, [high]]))
    return NormHistogram(
        dim, edges, density, x, chi_density(x, dim), float(norms.mean()), float(norms.std())
    )


def norm_histograms(states: np.ndarray, split_qp: bool) -> Mapping[str, NormHistogram]:
    """Returns `norm_histogram` of the parts of states [N, D], see `parts_of`."""
    return {name: norm_histogram(part) for name, part in parts_of(states, split_qp).items()}
