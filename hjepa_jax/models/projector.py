"""Projector between the encoder and the objective."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from hjepa_jax.models.layers import BatchNorm, Linear

KINDS = ("identity", "mlp")


class Projector(nn.Module):
    """Identity (HJEPA: q and p must keep their meaning) or Linear-BatchNorm-ReLU-Linear.

    Attributes:
      kind: 'identity' or 'mlp'.
      hidden_dim: width of the hidden layer of 'mlp'.
      output_dim: width of the output of 'mlp'.
      dtype: of the products of 'mlp'; statistics and the output are float32 or wider.
      norm_groups: runs of rows with statistics of their own, see `BatchNorm`.
    """

    kind: str = "identity"
    hidden_dim: int = 2048
    output_dim: int = 2048
    dtype: Any = jnp.float32
    norm_groups: int = 1

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        """Maps z [N,D] to [N,D] (identity, unchanged) or [N,output_dim]; ValueError if unknown."""
        if self.kind == "identity":
            return z
        if self.kind != "mlp":
            raise ValueError(f"Unknown projector '{self.kind}': use one of {', '.join(KINDS)}.")
        x = Linear(self.hidden_dim, name="hidden")(z.astype(self.dtype))
        x = BatchNorm(groups=self.norm_groups, name="norm")(x, train=train, relu=True)
        x = Linear(self.output_dim, name="output")(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))
