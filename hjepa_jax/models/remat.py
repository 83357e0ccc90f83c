"""Rematerialization: activations are recomputed in the backward pass instead of stored.

Own code because XLA's CPU compiler undoes `flax.linen.remat`; see
`runtime.devices.with_dependency`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import flax.linen as nn
import jax
from jaxtyping import PyTree

from hjepa_jax.runtime.devices import with_dependency

_Variables: TypeAlias = Mapping[str, PyTree[jax.Array]]
_Arrays: TypeAlias = tuple[jax.Array, ...]
_Kept: TypeAlias = tuple[_Variables, jax.Array, _Arrays]


def recomputed(block: nn.Module, x: jax.Array, *others: jax.Array) -> jax.Array:
    """Returns block(x, *others, train=True), storing only its inputs and variables.

    Supports first-order reverse-mode differentiation only.

    Args:
      block: a module with the signature (x, *others, train), created in the calling compact method.
      x: [N, ...].
      *others: arrays of floats, such as factors that were drawn.
    """
    alone = block.clone(parent=None)

    def call(module: nn.Module, x: jax.Array, *others: jax.Array) -> jax.Array:
        return module(x, *others, train=True)

    def forward(module: nn.Module, x: jax.Array, *others: jax.Array) -> tuple[jax.Array, _Kept]:
        variables = module.variables
        return module(x, *others, train=True), (variables, x, others)

    def backward(kept: _Kept, cotangent: jax.Array) -> tuple[_Variables, *_Arrays]:
        variables, x, others = kept
        fixed = {name: tree for name, tree in variables.items() if name != "params"}
        # Depending on one entry per image is enough, and it stays on the image's device.
        x = with_dependency(x, cotangent.reshape(cotangent.shape[0], -1)[:, :1])

        def again(params: PyTree[jax.Array], x: jax.Array, *others: jax.Array) -> jax.Array:
            variables = {**fixed, "params": params}
            return alone.apply(variables, x, *others, train=True, mutable=list(fixed))[0]

        _, pull_back = jax.vjp(again, variables["params"], x, *others)
        bar_params, *bars = pull_back(cotangent)
        return {"params": bar_params}, *bars

    return nn.custom_vjp(call, forward, backward)(block, x, *others)
