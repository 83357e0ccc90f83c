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


def recomputed(block: nn.Module, x: jax.Array) -> jax.Array:
    """Returns block(x, train=True), storing only variables and x for the backward pass.

    Supports first-order reverse-mode differentiation only.

    Args:
      block: a module with the signature (x, *, train), created in the calling compact method.
      x: [N, ...].
    """
    alone = block.clone(parent=None)

    def call(module: nn.Module, x: jax.Array) -> jax.Array:
        return module(x, train=True)

    def forward(module: nn.Module, x: jax.Array) -> tuple[jax.Array, tuple[_Variables, jax.Array]]:
        variables = module.variables
        return module(x, train=True), (variables, x)

    def backward(
        kept: tuple[_Variables, jax.Array], cotangent: jax.Array
    ) -> tuple[_Variables, jax.Array]:
        variables, x = kept
        fixed = {name: tree for name, tree in variables.items() if name != "params"}
        # Depending on one entry per image is enough, and it stays on the image's device.
        x = with_dependency(x, cotangent.reshape(cotangent.shape[0], -1)[:, :1])

        def again(params: PyTree[jax.Array], x: jax.Array) -> jax.Array:
            return alone.apply({**fixed, "params": params}, x, train=True, mutable=list(fixed))[0]

        _, pull_back = jax.vjp(again, variables["params"], x)
        bar_params, bar_x = pull_back(cotangent)
        return {"params": bar_params}, bar_x

    return nn.custom_vjp(call, forward, backward)(block, x)
