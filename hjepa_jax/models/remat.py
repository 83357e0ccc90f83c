"""Rematerialization: activations are recomputed in the backward pass instead of stored.

Our own code because XLA's CPU compiler undoes `flax.linen.remat` (see `ordering`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from hjepa_jax.runtime.devices import with_dependency


def recomputed(block: nn.Module, x: jax.Array) -> jax.Array:
    """Returns block(x, train=True), storing only variables and x for the backward pass.

    Supports first-order reverse-mode differentiation only.

    Args:
      block: a module with the signature (x, *, train), created in the calling compact method.
      x: [N, ...].
    """
    alone = block.clone(parent=None)

    def call(module: Any, x: jax.Array) -> jax.Array:
        return module(x, train=True)

    def forward(module: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        variables = module.variables
        return module(x, train=True), (variables, x)

    def backward(kept: Any, cotangent: jax.Array) -> tuple[Any, jax.Array]:
        variables, x = kept
        fixed = {name: tree for name, tree in variables.items() if name != "params"}
        # One entry per image is enough to wait for, and stays on the image's device.
        x = with_dependency(x, cotangent.reshape(cotangent.shape[0], -1)[:, :1])

        def again(params: Any, x: jax.Array) -> Any:
            return alone.apply({**fixed, "params": params}, x, train=True, mutable=list(fixed))[0]

        _, pull_back = jax.vjp(again, variables["params"], x)
        bar_params, bar_x = pull_back(cotangent)
        return {"params": bar_params}, bar_x

    return nn.custom_vjp(call, forward, backward)(block, x)
