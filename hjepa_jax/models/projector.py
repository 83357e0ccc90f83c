"""The projector between encoder and loss."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hjepa_jax.models.layers import BatchNorm, Linear
from hjepa_jax.objectives.shares import AxisName

KINDS = ("identity", "mlp", "halves")


class Projector(nn.Module):
    """Identity, an MLP with BatchNorm and ReLU between its layers, or one MLP for each of q and p.

    Attributes:
      kind: 'identity'; 'mlp', which mixes q and p; or 'halves', whose output [q' | p'] has q'
        of q alone and p' of p alone.
      widths: outputs of each Linear layer; of 'halves', those of both MLPs together.
      dtype: dtype of the matrix products; statistics and outputs are float32 or wider.
      norm_groups: groups of rows with separate batch statistics, see `layers.BatchNorm`.
      axis_name: see `models.base.Encoder`.
    """

    kind: str = "identity"
    widths: tuple[int, ...] = (2048, 2048)
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
          z itself for 'identity', else [N, widths[-1]].

        Raises:
          ValueError: if the kind is unknown, or 'halves' cannot halve D or a width.
        """
        if self.kind == "identity":
            return z
        if self.kind == "halves":
            return self._halves(z, train)
        if self.kind != "mlp":
            raise ValueError(f"Unknown projector '{self.kind}': use one of {', '.join(KINDS)}.")
        x = z.astype(self.dtype)
        for layer, width in enumerate(self.widths[:-1], 1):
            # The first has no number, as in checkpoints of the two-layer MLP.
            number = "" if layer == 1 else str(layer)
            x = Linear(width, name=f"hidden{number}")(x)
            norm = BatchNorm(
                groups=self.norm_groups, axis_name=self.axis_name, name=f"norm{number}"
            )
            x = norm(x, train=train, relu=True)
        x = Linear(self.widths[-1], name="output")(x)
        return x.astype(jnp.promote_types(self.dtype, jnp.float32))

    def _halves(self, z: jax.Array, train: bool) -> jax.Array:
        """Projects q and p, each by its own MLP of half the widths."""
        if z.shape[-1] % 2 or any(width % 2 for width in self.widths):
            raise ValueError(
                f"The projector 'halves' takes even widths, not {z.shape[-1]} -> {self.widths}."
            )
        widths = tuple(width // 2 for width in self.widths)
        projected = [
            self.clone(kind="mlp", widths=widths, name=name, parent=self)(half, train=train)
            for name, half in zip(("q", "p"), jnp.split(z, 2, axis=-1))
        ]
        return jnp.concatenate(projected, axis=-1)
