"""Sums, means, and variances of a batch whose rows are split over devices.

Inside `jax.shard_map` a device holds a share of the rows, all shares being equal in size. Each
function takes `axis_name`, the mesh axis that they are split over; with None the array is whole,
and the function is plain `jnp`.
"""

from typing import TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

AxisName: TypeAlias = str | None
_Tree = TypeVar("_Tree")


def count(axis_name: AxisName) -> int:
    """Returns the number of shares."""
    return 1 if axis_name is None else jax.lax.axis_size(axis_name)


def sum_shares(tree: _Tree, axis_name: AxisName) -> _Tree:
    """Returns the sum over shares of each array."""
    return tree if axis_name is None else jax.lax.psum(tree, axis_name)


def mean_shares(tree: _Tree, axis_name: AxisName) -> _Tree:
    """Returns the mean over shares of each array."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def mean(x: Float[Array, "*shape"], axis_name: AxisName) -> Float[Array, ""]:
    """Returns the mean over all entries of all shares."""
    return mean_shares(jnp.mean(x), axis_name)


def row_mean(x: Float[Array, "*batch d"], axis_name: AxisName) -> Float[Array, " d"]:
    """Returns the mean over the leading axes of x [..., d], of all shares."""
    return mean_shares(jnp.mean(x, axis=tuple(range(x.ndim - 1))), axis_name)


def centered(x: Float[Array, "*batch d"], axis_name: AxisName) -> Float[Array, "*batch d"]:
    """Returns x [..., d] minus the mean of its rows in all shares.

    For split rows the gradient does not go through the mean. That of a variance or covariance does
    not need it, since the centered rows add up to zero, and a second collective is saved.
    """
    middle = row_mean(x, axis_name)
    return x - (middle if axis_name is None else jax.lax.stop_gradient(middle))


def variance(x: Float[Array, "*batch d"], axis_name: AxisName) -> Float[Array, " d"]:
    """Returns the biased variance over the leading axes of x [..., d], of all shares.

    It takes two passes, so that nothing cancels where the mean is large.
    """
    if axis_name is None:
        return jnp.var(x, axis=tuple(range(x.ndim - 1)))
    return row_mean(jnp.square(centered(x, axis_name)), axis_name)


def own(tree: _Tree, axis_name: AxisName) -> _Tree:
    """Marks replicated arrays as each device's own, so that their gradients stay its share's."""
    if axis_name is None:
        return tree
    return jax.tree.map(lambda x: jax.lax.pcast(x, axis_name, to="varying"), tree)


def gather(x: Num[Array, "..."], axis_name: AxisName, *, axis: int) -> Num[Array, "..."]:
    """Returns the rows of all shares, in order along `axis`."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, axis=axis, tiled=True)


def agreed(tree: _Tree, axis_name: AxisName) -> _Tree:
    """Returns arrays that all devices computed alike, marked as being the same on all."""
    if axis_name is None:
        return tree
    first = jax.lax.axis_index(axis_name) == 0

    def one(x: Array) -> Array:
        number = x.astype(jnp.int32) if x.dtype == bool else x
        return jax.lax.psum(jnp.where(first, number, 0), axis_name).astype(x.dtype)

    return jax.tree.map(one, tree)
