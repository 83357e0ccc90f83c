"""What benchmarks/torch_step.py needs where several processes share a batch, in PyTorch.

PyTorch's SyncBatchNorm refuses CPUs, so this is one for them, by its own kernels: the statistics of
a share, its normalization with given ones, and the gradient of that.
"""

from __future__ import annotations

from typing import Any

import torch  # pyright: ignore[reportMissingImports]
import torch.distributed as dist  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]


def _average(tensor: Tensor) -> Tensor:
    dist.all_reduce(tensor)
    return tensor / dist.get_world_size()


class _Normalization(torch.autograd.Function):
    """Normalization by the statistics of all shares, with one collective in each direction."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        own_mean, own_var = torch.batch_norm_update_stats(x, None, None, 0.0)
        mean, square = _average(torch.stack([own_mean, own_var + own_mean.square()]))
        var = (square - mean.square()).clamp_min(0)
        ctx.save_for_backward(x, weight, mean, var)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps), mean, var

    @staticmethod
    def backward(ctx: Any, bar: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, var = ctx.saved_tensors
        to_x, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            bar, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        rows = x.numel() / weight.numel()
        average_weight, average_bias = _average(torch.stack([to_weight, to_bias])) / rows
        inverse = (var + ctx.eps).rsqrt()
        slope = -weight * inverse.square() * average_weight
        offset = -weight * inverse * average_bias - mean * slope
        slope, offset = slope.view(1, -1, 1, 1), offset.view(1, -1, 1, 1)
        return to_x.addcmul_(x, slope).add_(offset), to_weight, to_bias, None


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch normalization in training over the rows of all processes."""

    def forward(self, x: Tensor) -> Tensor:
        y, mean, var = _Normalization.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            rows = x.numel() / mean.numel() * dist.get_world_size()
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (rows / (rows - 1)), self.momentum)
        return y


class _Gather(torch.autograd.Function):
    """The states [V, B, D] of all shares, of which each process has the gradient by its own.

    DistributedDataParallel averages over processes what has to be added, hence the factor.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.size = z.shape[1]
        parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, z.contiguous())
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Tensor:
        own = bar[:, dist.get_rank() * ctx.size :][:, : ctx.size]
        return own * dist.get_world_size()


def gather(z: Tensor) -> Tensor:
    """Returns the states [V, B, D] of all processes from this one's share of the rows."""
    return _Gather.apply(z)


def average_loss(loss: Tensor) -> float:
    """Returns the mean over processes."""
    return _average(loss.clone()).item()
