"""Convolution, Linear and BatchNorm with the initialization and layout of the published code."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, variance_scaling
from jax.typing import DTypeLike

from hjepa_jax.kernels.batch_norm import finish, normalize_batch
from hjepa_jax.kernels.convolution import conv2d
from hjepa_jax.kernels.layer_norm import add_layer_norm
from hjepa_jax.objectives import shares
from hjepa_jax.objectives.shares import AxisName

# He et al. (arXiv 1502.01852), fan-out form: torchvision's convolutions.
kaiming_normal = variance_scaling(2.0, "fan_out", "normal")
# Uniform in +-1/sqrt(fan_in) (Kaiming-uniform with a = sqrt 5): the PyTorch default.
default_uniform = variance_scaling(1.0 / 3.0, "fan_in", "uniform")


def wide_dtype(dtype: DTypeLike) -> jnp.dtype:
    """Returns the dtype of parameters and statistics: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


class Conv(nn.Module):
    """2-D convolution without bias, computed in the dtype of its input.

    Parameters: `kernel` [kh, kw, in, out].

    Attributes:
      features: output channels.
      size: side of the kernel, odd.
      stride: stride in both directions.
      initializer: initializer of the kernel.
    """

    features: int
    size: int
    stride: int = 1
    initializer: Initializer = kaiming_normal

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [N,H,W,C] to [N,H',W',features], padded by (size-1)/2 on every side."""
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.initializer, shape, wide_dtype(x.dtype))
        return conv2d(x, kernel.astype(x.dtype), self.stride, (self.size - 1) // 2)


class Linear(nn.Module):
    """x @ kernel + bias, computed in the dtype of x.

    Parameters: `kernel` [in, out] and `bias` [out].

    Attributes:
      features: number of outputs.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps x [..., in] to [..., features]."""
        fan_in = x.shape[-1]
        dtype = wide_dtype(x.dtype)
        kernel = self.param("kernel", default_uniform, (fan_in, self.features), dtype)

        def bias_init(key: jax.Array) -> jax.Array:
            bound = fan_in**-0.5
            return jax.random.uniform(key, (self.features,), dtype, -bound, bound)

        bias = self.param("bias", bias_init)
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last (Ioffe & Szegedy, arXiv 1502.03167).

    Parameters: `scale` and `bias` [C]; batch_stats: `mean` and `var` [C]. Statistics are float32
    or wider for any dtype of x. Training normalizes by the biased variance and updates the running
    variance with the unbiased one: new = momentum * old + (1 - momentum) * batch. Under jit with
    the batch sharded over devices, the batch statistics are global; inside `jax.shard_map` they are
    with `axis_name`.

    Attributes:
      momentum: momentum of the running statistics.
      epsilon: added to the variance.
      groups: number of equal groups of consecutive rows, each normalized by its own statistics. The
        running statistics are updated with their mean over the groups. With one group per device,
        devices need no synchronization.
      axis_name: mesh axis that the rows are split over, see `hjepa_jax.objectives.shares`.
      scale_init: initializer of the scale.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5
    groups: int = 1
    axis_name: AxisName = None
    scale_init: Initializer = nn.initializers.ones

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool,
        residual: jax.Array | None = None,
        relu: bool = False,
    ) -> jax.Array:
        """Normalizes x, adds a residual and applies a ReLU, in one pass over memory on CPU.

        Args:
          x: [N, ..., C].
          train: whether batch statistics are used and the running ones updated.
          residual: like x, added after the normalization; None adds nothing.
          relu: whether a ReLU follows.

        Returns:
          Like x.

        Raises:
          ValueError: in training, if there is one value per channel or N is not divisible by
            `groups`.
        """
        dtype = wide_dtype(x.dtype)
        shape = (x.shape[-1],)
        scale = self.param("scale", self.scale_init, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)
        if not train:
            factor = scale * jax.lax.rsqrt(running_var.value + self.epsilon)
            out = (x.astype(dtype) - running_mean.value) * factor + bias
            added = None if residual is None else residual.astype(dtype)
            return finish(out, added, relu).astype(x.dtype)
        axis_name = None if self.is_initializing() else self.axis_name
        count = x.size // x.shape[-1] // self.groups * shares.count(axis_name)
        if count < 2:
            raise ValueError("BatchNorm cannot train on one value per channel: add images.")
        if x.shape[0] % self.groups:
            raise ValueError(f"{x.shape[0]} rows do not divide into {self.groups} groups.")
        out, means, variances = normalize_batch(
            x,
            scale,
            bias,
            residual,
            relu=relu,
            epsilon=self.epsilon,
            groups=self.groups,
            axis_name=axis_name,
            shift=running_mean.value,
        )
        if not self.is_initializing():
            keep = self.momentum
            unbiased = jnp.mean(variances, axis=0) * (count / (count - 1))
            running_mean.value = keep * running_mean.value + (1 - keep) * jnp.mean(means, axis=0)
            running_var.value = keep * running_var.value + (1 - keep) * unbiased
        return out


class LayerNorm(nn.Module):
    """Layer normalization over the last axis, after the sum of a residual branch.

    Parameters: `scale` and `bias` [C]. Statistics are float32 or wider for any dtype of x.

    Attributes:
      epsilon: added to the variance.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self, x: jax.Array, branch: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Maps x [..., C] and a branch like it, or None, to (x + branch, its normalization)."""
        dtype = wide_dtype(x.dtype)
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        # Given parameters may be NumPy's, of a dtype that JAX does not have.
        scale, bias = jnp.asarray(scale, dtype), jnp.asarray(bias, dtype)
        return add_layer_norm(x, branch, scale, bias, self.epsilon)
