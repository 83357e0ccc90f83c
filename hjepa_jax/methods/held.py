"""Random arrays that stay the same for several steps, which the train state keeps.

They are functions of the run's key and the step, as everything that is random, so a state without
them, of an earlier version or another step, draws the same ones in its next step.
"""

from __future__ import annotations

import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import PyTree

from hjepa_jax.methods.base import Method, Randomness

# {'number', the drawing that the arrays are of, an int32 scalar, or [G] if they are drawn at G
# different intervals; 'arrays' by name}, or {}.
Held: TypeAlias = dict[str, PyTree[jax.Array]]

_NONE = -1


def init_held(
    method: Method, key: jax.Array, *, num_rows: int, num_images: int, dtype: DTypeLike
) -> Held:
    """Returns what a state holds before its first step: zeros, which no step uses.

    Args:
      method: says which of its random arrays stay the same, see `Method.redraw`.
      key: see `Method.draw`, as the others.
      num_rows: states of a batch.
      num_images: images of a batch.
      dtype: dtype of the states.
    """
    groups = _groups(method)
    if not groups:
        return {}
    shapes = jax.eval_shape(
        functools.partial(method.draw, num_rows=num_rows, num_images=num_images, dtype=dtype),
        key,
        jnp.int32(0),
    )
    arrays = {name: shapes[name] for group in groups.values() for name in group}
    number = jax.ShapeDtypeStruct(() if len(groups) == 1 else (len(groups),), jnp.int32)
    return empty_held({"number": number, "arrays": arrays})


def empty_held(abstract: PyTree[jax.ShapeDtypeStruct]) -> Held:
    """Returns what `init_held` does, in the shapes and placement of the `abstract` one."""

    def filled(leaf: jax.ShapeDtypeStruct, value: int) -> jax.Array:
        return jnp.full(leaf.shape, value, leaf.dtype, device=leaf.sharding)

    if not abstract:
        return {}
    arrays = jax.tree.map(lambda leaf: filled(leaf, 0), abstract["arrays"])
    return {"number": filled(abstract["number"], _NONE), "arrays": arrays}


def draw(
    method: Method,
    held: Held,
    key: jax.Array,
    step: jax.Array,
    *,
    num_rows: int,
    num_images: int,
    dtype: DTypeLike,
) -> Randomness:
    """Returns `Method.draw`, with the held arrays in place of equal ones.

    Args:
      method: see `init_held`.
      held: of the step before, or of any other step.
      key: see `Method.draw`, as the others.
      step: int32 scalar.
      num_rows: states of the batch.
      num_images: images of the batch.
      dtype: dtype of the states.
    """

    def fresh() -> Randomness:
        return method.draw(key, step, num_rows=num_rows, num_images=num_images, dtype=dtype)

    if not held:
        return fresh()

    def again(arrays: Randomness) -> Randomness:
        drawn = fresh()
        return {name: drawn[name] for name in arrays}

    groups, arrays = _groups(method), {}
    numbers = [held["number"]] if len(groups) == 1 else list(held["number"])
    for number, (interval, names) in zip(numbers, groups.items(), strict=True):
        kept = {name: held["arrays"][name] for name in names}
        due = number != step // interval
        arrays |= jax.lax.cond(due, again, lambda arrays: arrays, kept)
    # The compiler drops what this draws once more and nothing uses.
    return {**fresh(), **arrays}


def hold(method: Method, held: Held, drawn: Randomness, step: jax.Array) -> Held:
    """Returns what a state holds after a step that used `drawn`."""
    if not held:
        return held
    arrays = {name: drawn[name] for name in held["arrays"]}
    numbers = [step // interval for interval in _groups(method)]
    return {"number": _joined(numbers), "arrays": arrays}


def _groups(method: Method) -> dict[int, list[str]]:
    """Returns the names of the arrays that several steps use, by the steps between new ones."""
    groups: dict[int, list[str]] = {}
    for name, interval in method.redraw().items():
        if interval > 1:
            groups.setdefault(interval, []).append(name)
    return dict(sorted(groups.items()))


def _joined(numbers: list[jax.Array]) -> jax.Array:
    """Returns a single number as it is, else an array of them."""
    return numbers[0] if len(numbers) == 1 else jnp.stack(numbers)
