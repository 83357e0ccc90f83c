"""Sizes an MLP predictor to the parameter count of a Hamiltonian predictor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
from jaxtyping import PyTree

# Largest difference of the two counts, relative to the Hamiltonian's.
TOLERANCE = 0.01


class MLPShape(NamedTuple):
    """Shape of a residual MLP.

    Attributes:
      hidden: widths of the hidden layers.
      elementwise: number of additional elementwise linear weights.
    """

    hidden: tuple[int, ...]
    elementwise: int = 0


def count_parameters(params: PyTree[jax.Array]) -> int:
    """Returns the number of scalars in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def hamiltonian_sizes(kind: str, half: int, hidden_dim: int, depth: int) -> tuple[int, ...]:
    """Returns the layer sizes of the residual f of a Hamiltonian.

    Args:
      kind: 'separable', whose f takes q, or another kind, whose f takes [q, p].
      half: dimension d of q and of p.
      hidden_dim: width of the hidden layers.
      depth: number of hidden layers.
    """
    return (half if kind == "separable" else 2 * half, *[hidden_dim] * depth, 1)


def linear_parameters(sizes: Sequence[int]) -> int:
    """Returns the number of weights and biases of Linear layers between `sizes`."""
    return sum((fan_in + 1) * fan_out for fan_in, fan_out in itertools.pairwise(sizes))


def match_mlp(width: int, depth: int, sizes: Sequence[int], *, extra: int = 0) -> MLPShape:
    """Finds an MLP from [z, direction] to z with as many parameters as Linear layers `sizes`.

    Three families are tried in turn, and the first match within 1% wins: equal hidden widths; a
    first width that differs from the others; equal widths plus at most 2 * `width` elementwise
    linear weights.

    Args:
      width: dimension 2d of a state.
      depth: hidden layers of the MLP.
      sizes: layer sizes of the Hamiltonian's f.
      extra: parameters of the Hamiltonian predictor other than f (1 for a learned dt).

    Raises:
      ValueError: if no shape is within 1%, for example because one hidden unit exceeds the count.
    """
    target = linear_parameters(sizes) + extra

    def error(shape: MLPShape) -> int:
        return abs(
            linear_parameters((width + 1, *shape.hidden, width)) + shape.elementwise - target
        )

    for shapes in (_even, _uneven, _filled):
        best = min(shapes(width, depth, target), key=error, default=None)
        if best is not None and error(best) <= TOLERANCE * target:
            return best
    raise ValueError(
        f"No MLP predictor of depth {depth} for states of dimension {width} is within 1% of the "
        f"Hamiltonian predictor's {target} parameters: change dynamics.hidden_dim."
    )


def _largest_below(width: int, depth: int, target: int, first: int | None = None) -> int:
    """Returns the largest common width of the hidden layers that stays within `target`.

    Args:
      width: dimension 2d of a state.
      depth: hidden layers.
      target: number of parameters.
      first: width of the first hidden layer; None = the common one.
    """
    free = depth if first is None else depth - 1
    head = () if first is None else (first,)
    hidden = 0
    while linear_parameters((width + 1, *head, *[hidden + 1] * free, width)) <= target:
        hidden += 1
    return hidden


def _even(width: int, depth: int, target: int) -> Iterator[MLPShape]:
    below = _largest_below(width, depth, target)
    yield from (MLPShape((hidden,) * depth) for hidden in (below, below + 1) if hidden)


def _uneven(width: int, depth: int, target: int) -> Iterator[MLPShape]:
    even = _largest_below(width, depth, target)
    for first in range(max(1, 3 * even // 4), 4 * even // 3 + 1) if depth > 1 else ():
        below = _largest_below(width, depth, target, first)
        for hidden in (below, below + 1):
            if hidden:
                yield MLPShape((first, *[hidden] * (depth - 1)))


def _filled(width: int, depth: int, target: int) -> Iterator[MLPShape]:
    below = _largest_below(width, depth, target)
    if below:
        missing = target - linear_parameters((width + 1, *[below] * depth, width))
        yield MLPShape((below,) * depth, min(missing, 2 * width))
