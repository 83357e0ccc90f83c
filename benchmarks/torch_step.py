"""The HJEPA training step in PyTorch, from the mathematics, for benchmarks/train_step.py alone.

ResNet-18 tokens, leapfrog on H = |p|^2/2 + base/2 |q|^2 + scale f(q), prediction in both
directions, budget, variance, log-det and mean regularizers, gradient clipping and AdamW, as
configs/cifar100.py sets them. Parameters are copied from ours so that the losses can be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import torch.distributed as dist  # pyright: ignore[reportMissingImports]
import torch.nn.functional as F  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn  # pyright: ignore[reportMissingImports]
from torch_shares import SyncBatchNorm, average_loss, gather

Config = Any
Norm = Callable[[int], nn.Module]


class Block(nn.Module):
    """Residual block of two 3x3 convolutions."""

    def __init__(self, channels: int, features: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, features, 3, stride, 1, bias=False)
        self.norm1 = norm(features)
        self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
        self.norm2 = norm(features)
        self.downsample_conv = self.downsample_norm = None
        if stride != 1 or channels != features:
            self.downsample_conv = nn.Conv2d(channels, features, 1, stride, bias=False)
            self.downsample_norm = norm(features)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(out))
        if self.downsample_conv is not None and self.downsample_norm is not None:
            x = self.downsample_norm(self.downsample_conv(x))
        return F.relu(out + x, inplace=True)


class Encoder(nn.Module):
    """Images [N,3,H,W] to states [q | p] [N,D]; the stages above the tapped one are not built."""

    def __init__(self, width: int, stages: int, token_dim: int, norm: Norm) -> None:
        super().__init__()
        self.stem_conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.stem_norm = norm(width)
        self.names = []
        channels = width
        for stage in range(stages):
            features = width * 2**stage
            for block in range(2):
                name = f"layer{stage + 1}_block{block}"
                stride = 2 if stage and block == 0 else 1
                self.add_module(name, Block(channels, features, stride, norm))
                self.names.append(name)
                channels = features
        self.token_projection = nn.Conv2d(channels, token_dim, 1, bias=False)
        self.token_norm = norm(token_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem_conv(x)), inplace=True)
        for name in self.names:
            x = getattr(self, name)(x)
        tokens = self.token_norm(self.token_projection(x).float()).permute(0, 2, 3, 1)
        return torch.cat([half.flatten(1) for half in tokens.chunk(2, -1)], -1)


def copy_encoder(encoder: Encoder, params: Any) -> None:
    """Copies our parameter tree into the module."""

    def copy(module: Any, tree: Any) -> None:
        for name, value in tree.items():
            if not hasattr(value, "shape"):
                copy(getattr(module, name), value)
            elif name == "kernel":
                module.weight.data.copy_(torch.tensor(np.asarray(value).transpose(3, 2, 0, 1)))
            else:
                target = module.weight if name == "scale" else module.bias
                target.data.copy_(torch.tensor(np.asarray(value)))

    copy(encoder, params)


class Potential(nn.Module):
    """f(q): Linear layers with exact GELU between them."""

    def __init__(self, layers: Any) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for i in range(len(layers)):
            kernel = np.asarray(layers[f"layer{i}"]["kernel"])
            linear = nn.Linear(*kernel.shape)
            linear.weight.data.copy_(torch.tensor(kernel.T.copy()))
            linear.bias.data.copy_(torch.tensor(np.asarray(layers[f"layer{i}"]["bias"])))
            self.layers.append(linear)
        # The force does not depend on it, and DistributedDataParallel waits for every gradient.
        self.layers[-1].bias.requires_grad_(False)

    def forward(self, q: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            q = F.gelu(layer(q))
        return self.layers[-1](q)


def leapfrog(f: Potential, z: Tensor, direction: int, scale: float, dynamics: Config) -> Tensor:
    """Flows z [B, 2d]; the force of each position is computed once."""
    q, p = z.chunk(2, -1)
    h = direction * dynamics.dt

    def gradient(q: Tensor) -> Tensor:
        (residual,) = torch.autograd.grad(f(q).sum(), q, create_graph=True)
        return dynamics.base_coeff * q + scale * residual

    force = gradient(q)
    for _ in range(dynamics.steps):
        p = p - 0.5 * h * force
        q = q + h * p
        force = gradient(q)
        p = p - 0.5 * h * force
    return torch.cat([q, p], -1)


def logdet_floor(
    x: Tensor,
    projection: Tensor,
    eps: float,
    floor: float,
    participation_floor: float,
    ceiling: float,
) -> Tensor:
    """The log-det, participation-ratio and largest-eigenvalue penalties of x [N, d]."""
    projected = (x - x.mean(0)) @ projection
    rank = projection.shape[1]
    covariance = projected.T @ projected / (x.shape[0] - 1) + eps * torch.eye(rank).to(x)
    logdet = 2 * torch.linalg.cholesky(covariance).diagonal().log().sum() / rank
    trace = covariance.trace()
    participation = trace.square() / (covariance.square().sum() + 1e-12) / rank
    largest = torch.linalg.eigvalsh(covariance)[-1] / (trace + 1e-12)
    return (
        F.relu(floor - logdet).square()
        + F.relu(participation_floor - participation).square()
        + F.relu(largest - ceiling).square()
    )


def hjepa_loss(
    f: Potential,
    z: Tensor,
    whole: Tensor,
    projections: dict[str, Tensor],
    scale: float,
    config: Config,
) -> Tensor:
    """The objective of states z [2, B, 2d], which are a share of the rows of `whole`."""
    loss, halves = config.loss, whole.flatten(0, 1).chunk(2, -1)
    prediction = 0.0
    for source, target, direction in ((0, 1, 1), (1, 0, -1)):
        error = leapfrog(f, z[source], direction, scale, config.dynamics) - z[target].detach()
        q_error, p_error = error.chunk(2, -1)
        prediction += 0.5 * (q_error.square().mean() + loss.p_weight * p_error.square().mean())
    total = prediction + loss.mean_weight * whole.mean((0, 1)).square().mean()
    for name, x in zip("qp", halves):
        std = (x.var(0, correction=0) + loss.std_eps).sqrt()
        floor = F.relu(loss[f"{name}_std_floor"] - std).square().mean()
        logdet = logdet_floor(
            x,
            projections[name],
            loss.logdet_eps,
            loss[f"{name}_logdet_floor"],
            loss[f"{name}_pr_floor"],
            loss[f"{name}_eigmax_ceiling"],
        )
        budget = (x.square().mean() - loss[f"{name}_target"]).square()
        total = total + loss.budget_weight * budget
        total = total + loss.var_weight * floor + loss.logdet_weight * logdet
    return total


class Objective(nn.Module):
    """Images [V * B, 3, S, S] to the loss, with the parameters of all that it calls."""

    def __init__(
        self,
        encoder: Encoder,
        potential: Potential,
        projections: dict[str, Tensor],
        scale: float,
        config: Config,
        shared: bool,
    ) -> None:
        super().__init__()
        self.encoder, self.potential = encoder, potential
        self.encode = lambda images: self.encoder(images)
        self.projections, self.scale = projections, scale
        self.config, self.shared = config, shared

    def forward(self, images: Tensor) -> Tensor:
        num_views, autocast = self.config.data.num_global_views, self.config.model.compute_dtype
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast == "bfloat16"):
            z = self.encode(images).float()
        z = z.view(num_views, len(images) // num_views, -1)
        whole = gather(z) if self.shared else z
        return hjepa_loss(self.potential, z, whole, self.projections, self.scale, self.config)


class TorchStep:
    """A training step on one fixed batch; calling it does one optimizer step.

    Within a process group, on this process's share of it, by DistributedDataParallel.
    """

    def __init__(
        self,
        config: Config,
        params: Any,
        views: np.ndarray,
        projections: dict[str, np.ndarray],
        residual_scale: float,
        *,
        channels_last: bool,
        compiled: bool = False,
    ) -> None:
        self.shared = dist.is_initialized()
        synchronized = self.shared and config.model.batch_norm == "global"
        norm: Any = SyncBatchNorm if synchronized else nn.BatchNorm2d
        device = "cuda" if torch.cuda.is_available() else "cpu"
        resnet = config.resnet
        stages = int(resnet.token_layer.removeprefix("layer"))
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        encoder = Encoder(resnet.width, stages, resnet.token_dim, norm)
        copy_encoder(encoder, params["encoder"])
        encoder.to(device, memory_format=self.format)
        potential = Potential(params["predictor"]["potential"]).to(device)
        drawn = {n: torch.tensor(np.asarray(a), device=device) for n, a in projections.items()}
        objective = Objective(encoder, potential, drawn, residual_scale, config, self.shared)
        if compiled:
            objective.encode = torch.compile(encoder)
        self.parameters = [p for p in objective.parameters() if p.requires_grad]
        self.objective: nn.Module = objective
        if self.shared:
            size, rank = views.shape[1] // dist.get_world_size(), dist.get_rank()
            views = views[:, rank * size : (rank + 1) * size]
            self.objective = nn.parallel.DistributedDataParallel(
                objective, gradient_as_bucket_view=True
            )
        self.views = torch.tensor(views, device=device)
        self.mean, self.std = (
            torch.tensor(x, device=device).view(3, 1, 1)
            for x in (config.data.mean, config.data.std)
        )
        train = config.train
        # The first step of the warm-up.
        rate = train.lr * train.warmup_init_ratio
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=rate, weight_decay=train.weight_decay, eps=train.adam_eps
        )
        self.clip = train.grad_clip

    def __call__(self, count: int = 1) -> float:
        """Does `count` steps and returns the loss of the last."""
        losses = [self._step() for _ in range(count)]
        return average_loss(losses[-1]) if self.shared else losses[-1].item()

    def _step(self) -> Tensor:
        images = self.views.flatten(0, 1).permute(0, 3, 1, 2).float().div(255)
        images = ((images - self.mean) / self.std).contiguous(memory_format=self.format)
        loss = self.objective(images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return loss.detach()
