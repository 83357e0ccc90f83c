"""Operations of a traced program: its matrix products and convolutions.

These are what the peak rate of an accelerator is about. All else (elementwise operations,
eigendecompositions, solves) is left out, so the count is a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def operations(program: Jaxpr) -> int:
    """Returns the operations of a program, a multiplication and an addition counting as two.

    Loops of known length count in full, others as one turn, and a conditional as its cheapest
    branch. Inside `jax.shard_map` the operations are those of one device.
    """
    return sum(_operations(equation) for equation in program.eqns)


def _operations(equation: JaxprEqn) -> int:
    parameters = equation.params
    match equation.primitive.name:
        case "dot_general":
            ((contracted, _), _) = parameters["dimension_numbers"]
            sides = equation.invars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]
            return 2 * math.prod(_result(equation)) * math.prod(sides[i] for i in contracted)
        case "conv_general_dilated":
            return _convolution(equation)
        case "cond":
            return min(operations(branch.jaxpr) for branch in parameters["branches"])
        case "scan":
            return parameters["length"] * operations(parameters["jaxpr"].jaxpr)
    return sum(operations(inner) for inner in _programs(parameters.values()))


def _programs(values: Any) -> Iterator[Jaxpr]:
    """Returns the programs among the parameters of an operation."""
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _programs(value)


def _result(equation: JaxprEqn) -> Sequence[int]:
    return equation.outvars[0].aval.shape  # pyright: ignore[reportAttributeAccessIssue]


def _convolution(equation: JaxprEqn) -> int:
    """Returns the operations of a convolution, without products with padding or holes."""
    parameters = equation.params
    image, kernel = (
        variable.aval.shape  # pyright: ignore[reportAttributeAccessIssue]
        for variable in equation.invars
    )
    image_axes, kernel_axes, result_axes = parameters["dimension_numbers"]
    result = _result(equation)
    pairs = 1
    for place, (x, w, y) in enumerate(
        zip(image_axes[2:], kernel_axes[2:], result_axes[2:], strict=True)
    ):
        pairs *= _pairs(
            image[x],
            kernel[w],
            result[y],
            stride=parameters["window_strides"][place],
            before=parameters["padding"][place][0],
            spread=parameters["lhs_dilation"][place],
            dilation=parameters["rhs_dilation"][place],
        )
    # The kernel holds the inputs of one group only.
    inputs, outputs = kernel[kernel_axes[1]], result[result_axes[1]]
    images = image[image_axes[0]] // parameters["batch_group_count"]
    return 2 * images * inputs * outputs * pairs


def _pairs(
    size: int, kernel: int, result: int, *, stride: int, before: int, spread: int, dilation: int
) -> int:
    """Returns how many pairs of an output and a kernel entry read an entry of the input."""
    entries = range(0, (size - 1) * spread + 1, spread)
    return sum(
        at * stride + offset * dilation - before in entries
        for at in range(result)
        for offset in range(kernel)
    )
