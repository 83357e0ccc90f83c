"""The projector between encoder and loss."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hjepa_jax.models.layers import BatchNorm, Linear
from hjepa_jax.objectives.shares import AxisName

KINDS = ("identity", "mlp")


class Projector(nn.Module):
    """Identity (HJEPA: q and p must keep their meaning) or Linear-BatchNorm-ReLU-Linear.

    Attributes:
      kind: 'identity' or 'mlp'.
      hidden_dim: hidden units of 'mlp'.
      output_dim: outputs of 'mlp'.
      dtype: dtype of the matrix products of 'mlp'; statistics and outputs are float32 or wider.
      norm_groups: groups of rows with separate batch statistics, see `layers.BatchNorm`.
      axis_name: see `models.base.Encoder`.
    """

    kind: str = "identity"
    hidden_dim: int = 2048
    output_dim: int = 2048
    dtype: DTypeLike = jnp.float32
    norm_groups: int = 1
    axis_name: AxisName = None

    @nn.compact
    def __call__(self, z: jax.Array, *, train: bool) -> jax.Array:
        """Projects states.

        Args:
          z: [N, D].
          train: whether batch statistics are used and running statistics updated.

        Returns:
          z itself for 'identity'; [N, output_dim] for 'mlp'.

        Raises:
          ValueError: if the kind is unknown.
        """
        if self.kind == "identity":
            return z
        if self.kind != "mlp":
            raise ValueError(f"Unknown projector '{self.kind}': use one of {', '.join(KINDS)}.")
        x = Linear(self.hidden_dim, name="hidden")(z.astype(self.dtype))
        norm = BatchNorm(groups=self.norm_groups, axis_name=self.axis_name, name="norm")
        x = norm(x, train=train, relu=True)
        x = Linear(self.output_dim, name="output")(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))
