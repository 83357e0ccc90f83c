"""Arrays of integers as pickles describe them, built only once all of their parts match."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

_INTEGERS = re.compile(r"[<>|=]?[iu][1248]")
_MODULES = ("numpy.core", "numpy._core")


class ArrayType:
    """An array's element type as described by a pickle; integers only."""

    def __init__(self, code: object, *_: object):
        code = code.decode("latin1") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not _INTEGERS.fullmatch(code):
            raise ValueError("it holds an array of non-integers")
        self.dtype = np.dtype(code)

    def build(self, state: object) -> None:
        """Sets the byte order from the pickled state; the type code determines the rest.

        Raises:
          ValueError: if the state is malformed.
        """
        order = state[1] if isinstance(state, tuple) and len(state) >= 2 else None
        order = order.decode("latin1") if isinstance(order, bytes) else order
        if order not in ("<", ">", "|", "="):
            raise ValueError("it holds a damaged array type")
        self.dtype = self.dtype.newbyteorder(order)


class Array:
    """An array as described by a pickle."""

    def __init__(self, *_: object):
        self._parts: tuple[object, object, object, object] | None = None

    def build(self, state: object) -> None:
        """Sets the pickled state (version, shape, type, Fortran order, bytes).

        Raises:
          ValueError: if the state is malformed.
        """
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError("it holds a damaged array")
        self._parts = (state[1], state[2], state[3], state[4])

    def array(self) -> npt.NDArray[np.integer]:
        """Returns the array, read-only.

        Raises:
          ValueError: if shape, type and number of bytes do not match.
        """
        shape, kind, fortran, content = self._parts or (None, None, None, None)
        if (
            not isinstance(shape, tuple)
            or len(shape) > 8
            or not all(type(length) is int and 0 <= length < 2**40 for length in shape)
            or not isinstance(kind, ArrayType)
            or not isinstance(content, bytes)
        ):
            raise ValueError("it holds a damaged array")
        if math.prod(shape) * kind.dtype.itemsize != len(content):
            raise ValueError(
                f"an array of shape {shape} and type {kind.dtype} has {len(content)} bytes"
            )
        values = np.frombuffer(content, kind.dtype)
        return values.reshape(shape, order="F" if fortran in (True, "F", b"F") else "C")


def _from_buffer(*arguments: object) -> Array:
    """Builds an array from the arguments that pickle protocol 5 stores."""
    if len(arguments) != 4:
        raise ValueError("it holds a damaged array")
    content, kind, shape, order = arguments
    array = Array()
    array.build((1, shape, kind, order, content))
    return array


ARRAYS: dict[str, Callable[..., object]] = {
    "numpy.dtype": ArrayType,
    **{f"{module}.multiarray._reconstruct": Array for module in _MODULES},
    **{f"{module}.numeric._frombuffer": _from_buffer for module in _MODULES},
}
