"""Gradient of a full-batch loss with the memory of one micro-batch.

Losses that couple the images of a batch (covariances, floors, SIGReg) are not a mean over
micro-batches, so accumulating per-micro-batch gradients would train a different objective. Instead,
the states of all images are computed first, without gradient; the loss and its gradient with
respect to the states are computed for the full batch; then each micro-batch is encoded again and
backpropagates its share of that gradient to the parameters. Source: gradient caching, Gao et al.,
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983).

Everything is exact except batch normalization, which sees one micro-batch at a time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from hjepa_jax.runtime.devices import with_dependency
from hjepa_jax.runtime.sharding import VIEW_MAJOR

# (params, batch statistics, micro-batch) -> (states [V, b, D], new batch statistics, a tree of
# other states [V, b, ...] that the loss does not see)
Encode: TypeAlias = Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree, PyTree]]
# (params, states [V, B, D]) -> (loss, extras)
LossOfStates: TypeAlias = Callable[[PyTree, jax.Array], tuple[jax.Array, PyTree]]
_Carry = TypeVar("_Carry")


class CachedGradient(NamedTuple):
    """Loss and gradient of a batch, new batch statistics, the loss's extras, and all states."""

    total: jax.Array
    gradient: PyTree[jax.Array]
    batch_stats: PyTree[jax.Array]
    extras: PyTree[jax.Array]
    z: jax.Array
    others: PyTree[jax.Array]


def split_microbatches(batch: Mapping[str, jax.Array], count: int) -> dict[str, jax.Array]:
    """Splits entries [B, ...] or [V, B, ...] into micro-batches [count, ...], images b = B/count.

    Micro-batch i has the images i, i + count, i + 2*count, ... With any number of devices, each
    device then already holds its share of every micro-batch, and the micro-batches are the same.
    """

    def split(name: str, array: jax.Array) -> jax.Array:
        axis = 1 if name in VIEW_MAJOR else 0
        shape = array.shape
        parts = array.reshape(*shape[:axis], shape[axis] // count, count, *shape[axis + 1 :])
        return jnp.moveaxis(parts, axis + 1, 0)

    return {name: split(name, array) for name, array in batch.items()}


def join_states(parts: jax.Array) -> jax.Array:
    """Joins states [count, V, b, D] of micro-batches to [V, B, D] in batch order."""
    count, views, images, width = parts.shape
    return jnp.moveaxis(parts, 0, 2).reshape(views, images * count, width)


def split_states(z: jax.Array, count: int) -> jax.Array:
    """Splits states [V, B, D] into [count, V, b, D], the inverse of `join_states`."""
    return split_microbatches({"global_views": z}, count)["global_views"]


def scan_or_unroll(
    body: Callable[[_Carry, PyTree], tuple[_Carry, PyTree]], carry: _Carry, xs: PyTree[jax.Array]
) -> tuple[_Carry, PyTree[jax.Array]]:
    """`jax.lax.scan`, unrolled on CPU, where XLA's convolutions are 30 to 60 times slower in it.

    The iterations of the unrolled loop run one after the other, as in a scan.
    """
    return jax.lax.platform_dependent(
        carry,
        xs,
        cpu=functools.partial(_unroll, body),
        default=functools.partial(jax.lax.scan, body),
    )


def _unroll(
    body: Callable[[_Carry, PyTree], tuple[_Carry, PyTree]], carry: _Carry, xs: PyTree[jax.Array]
) -> tuple[_Carry, PyTree[jax.Array]]:
    results = []
    for turn in range(jax.tree.leaves(xs)[0].shape[0]):
        x = jax.tree.map(lambda array, i=turn: array[i], xs)
        if results:
            x = with_dependency(x, (carry, results[-1]))
        carry, result = body(carry, x)
        results.append(result)
    return carry, jax.tree.map(lambda *parts: jnp.stack(parts), *results)


def cached_gradient(
    encode: Encode,
    loss: LossOfStates,
    params: PyTree[jax.Array],
    batch_stats: PyTree[jax.Array],
    micro_batches: Mapping[str, jax.Array],
) -> CachedGradient:
    """Returns loss and gradient of a full batch, encoding one micro-batch at a time.

    Args:
      encode: the encoder in training mode; called twice for each micro-batch.
      loss: loss of the full batch's states; its direct gradient with respect to the parameters (of
        a predictor) is included.
      params: the parameters of both.
      batch_stats: running statistics, from which every micro-batch starts; the new ones are the
        mean over micro-batches, that is, one update with the batch's mean.
      micro_batches: from `split_microbatches`, with states in that order.
    """

    def forward(carry: None, part: Mapping[str, jax.Array]) -> tuple[None, PyTree]:
        return carry, encode(params, batch_stats, part)

    _, (parts, stats, others) = scan_or_unroll(forward, None, micro_batches)
    z = join_states(parts)
    (total, extras), (gradient, to_z) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, z)

    def backward(carry: PyTree, part: tuple[PyTree, jax.Array]) -> tuple[PyTree, None]:
        micro_batch, cotangent = part
        _, pull_back = jax.vjp(lambda p: encode(p, batch_stats, micro_batch)[0], params)
        return jax.tree.map(jnp.add, carry, pull_back(cotangent)[0]), None

    # Otherwise the compiler would merge this with the first encoding and keep all activations.
    again = with_dependency(micro_batches, to_z)
    gradient, _ = scan_or_unroll(backward, gradient, (again, split_states(to_z, parts.shape[0])))
    mean_stats = jax.tree.map(lambda each: jnp.mean(each, axis=0), stats)
    others = jax.tree.map(join_states, others)
    return CachedGradient(total, gradient, mean_stats, extras, z, others)
