"""Seconds of a training step: ours, ours in XLA's own operations, and PyTorch where installed.

    python benchmarks/train_step.py --batch 64 128 256 --width 64
    python benchmarks/train_step.py --batch 64 --width 64 --devices 2

The step is the jitted, donated one that training runs (encoder, predictor, losses, optimizer) on
one fixed random batch. PyTorch runs the same computation (benchmarks/torch_step.py) from the same
parameters, in its default layout, in channels-last, and compiled by torch.compile in channels-last;
the losses of the first step are compared.
All take turns (interleaved; two steps in each, of which the second counts, as in training) and
medians are printed, so that other load on the machine falls on all alike; "CPU s" is the processor
time of this process, which other load hardly changes. The ceiling is measured in the same turns: a
large matrix product and a large copy.

With `--devices 2` two CPU devices of one thread each share the batch, in one process and in two,
beside PyTorch's DistributedDataParallel over gloo in two processes (benchmarks/shares.py), with the
batch normalization of the whole batch and of each share. "CPU s" is then of all of a side's.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import shares
from startup import read_config
from turns import Spent, add_ceiling_arguments, take_turns_to_ceiling

from hjepa_jax.config.checks import typed
from hjepa_jax.kernels.build import kernels
from hjepa_jax.methods.base import HasFlow
from hjepa_jax.runtime import compilation_cache, sharding
from hjepa_jax.runtime.devices import without_cpu_forms
from hjepa_jax.training.prepare import PreparedRun, prepare


def random_views(config: Any) -> np.ndarray:
    """Returns uint8 views [V, B, S, S, 3]."""
    data = config.data
    shape = (data.num_global_views, data.batch_size, data.image_size, data.image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def our_runner(
    config: Any, views: np.ndarray, tracing: contextlib.AbstractContextManager[None]
) -> tuple[Callable[..., float], PreparedRun, float, float]:
    """Returns our step, the run, seconds of compilation, and MB of temporaries."""
    mesh = sharding.data_mesh()
    run = prepare(typed(config), 10 * config.data.batch_size, mesh)
    batch = sharding.put_batch(mesh, {"global_views": views})
    state = run.init()
    with tracing:
        start = time.perf_counter()
        compiled = run.step.lower(state, batch).compile()
        seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    assert memory is not None  # XLA has it on all devices
    temporary = memory.temp_size_in_bytes / 2**20

    def step(count: int = 1) -> float:
        nonlocal state
        for _ in range(count - 1):
            state, _ = compiled(state, batch)
        state, metrics = compiled(state, batch)
        return float(metrics["total"])

    return step, run, seconds, temporary


def torch_runners(
    config: Any, views: np.ndarray, run: PreparedRun, compiled: bool
) -> dict[str, Callable[..., float]]:
    """Returns the same functions for PyTorch's layouts; none where PyTorch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return {}
    torch_step = importlib.import_module("torch_step")
    start = torch_start(run, views)
    kinds = {"PyTorch": {"channels_last": False}, "PyTorch channels-last": {"channels_last": True}}
    if compiled:
        kinds["torch.compile channels-last"] = {"channels_last": True, "compiled": True}
    return {
        name: torch_step.TorchStep(config, views=views, **start, **options)
        for name, options in kinds.items()
    }


def torch_start(run: PreparedRun, views: np.ndarray) -> dict[str, Any]:
    """Returns what PyTorch's step takes over from ours: parameters, and what the step draws."""
    state = run.init()
    num_views, num_images = views.shape[:2]
    projections = run.method.draw(
        jax.random.wrap_key_data(state.rng),
        state.step,
        num_rows=num_views * num_images,
        num_images=num_images,
        dtype=jnp.float32,
    )
    assert isinstance(run.method, HasFlow)
    return {
        "params": jax.device_get(state.params),
        "projections": jax.device_get(projections),
        "residual_scale": float(run.method.residual_scale(state.step)),
    }


def step_flops(config: Any) -> float:
    """Returns the floating-point operations of the encoder's convolutions in one step.

    Forward, input gradient and weight gradient count the same, 2 per multiply-add; the stem has no
    input gradient. Everything else is small beside them.
    """
    resnet, data = config.resnet, config.data
    images = data.num_global_views * data.batch_size
    side, width = data.image_size, resnet.width
    total = 2 * (2 * images * side**2 * 9 * 3 * width)
    channels = width
    for stage in range(int(resnet.token_layer.removeprefix("layer"))):
        features = width * 2**stage
        side = side if stage == 0 else (side + 1) // 2
        taps = 9 * channels * features + 3 * 9 * features**2
        taps += channels * features if stage else 0
        total += 3 * 2 * images * side**2 * taps
        channels = features
    return total + 3 * 2 * images * side**2 * channels * resnet.token_dim


def measure(config: Any, args: argparse.Namespace) -> None:
    """Prints the table of one batch size."""
    views = random_views(config)
    ours, run, *our_compile = our_runner(config, views, contextlib.nullcontext())
    plain, _, *plain_compile = our_runner(config, views, without_cpu_forms())
    runners: dict[str, Callable[..., float]] = {"hjepa_jax": ours, "XLA's operations": plain}
    runners |= torch_runners(config, views, run, not args.no_compile)
    losses = {name: runner() for name, runner in runners.items()}
    print(f"warm; measuring {args.repeats} turns", file=sys.stderr, flush=True)
    # In training step follows step: a second of them, untimed, comes first.
    turns = {name: functools.partial(runner, args.steps) for name, runner in runners.items()}
    spent, ceiling = take_turns_to_ceiling(turns, args, settle=1)
    spent = {name: Spent(*(value / args.steps for value in one)) for name, one in spent.items()}
    images, flops = views.shape[1], step_flops(config)
    print(
        f"\nbatch {images}, width {config.resnet.width}, {config.model.compute_dtype}; medians of"
    )
    print(f"{args.repeats}; {ceiling}")
    columns = ("step", "seconds", "over hjepa_jax", "CPU s", "images/s", "GFLOP/s", "of ceiling")
    print(f"| {' | '.join(columns)} | first loss |\n|---|{'---:|' * len(columns)}")
    for name, (seconds, processor) in spent.items():
        rate = flops / seconds
        print(
            f"| {name} | {seconds:.3f} | {seconds / spent['hjepa_jax'].wall:.2f} "
            f"| {processor:.3f} | {images / seconds:.1f} | {rate / 1e9:.0f} "
            f"| {rate / ceiling.flops:.0%} | {losses[name]:.6f} |"
        )
    for name, (seconds, megabytes) in (("ours", our_compile), ("XLA's operations", plain_compile)):
        print(f"{name}: compiled in {seconds:.1f} s, temporaries {megabytes:.0f} MB")
    sys.stdout.flush()


def measure_shares(config: Any, args: argparse.Namespace, devices: int) -> None:
    """Prints the table of one batch size that several devices share."""
    views = random_views(config)
    run = prepare(typed(config), 10 * config.data.batch_size, sharding.data_mesh())
    one = argparse.Namespace(**{**vars(args), "batch": views.shape[1]})
    with shares.started(args.batch_norm, devices, one, torch_start(run, views)) as workers:
        print(f"warm; measuring {args.repeats} turns", file=sys.stderr, flush=True)
        turns = {name: functools.partial(side, args.steps) for name, side in workers.items()}
        spent, ceiling = take_turns_to_ceiling(
            turns,
            args,
            settle=1,
            processor=lambda: sum(side.processor() for side in workers.values()),
        )
    print(
        f"\nbatch {views.shape[1]} on {devices} devices, width {config.resnet.width}, "
        f"{config.model.compute_dtype}; medians of"
    )
    print(f"{args.repeats}; {ceiling}")
    columns = ("seconds", "over hjepa_jax", "CPU s", "images/s", "first loss")
    print(f"| step | batch norm | {' | '.join(columns)} |\n|---|---|{'---:|' * len(columns)}")
    for name, side in workers.items():
        seconds, processor = (value / args.steps for value in spent[name])
        # Of the same statistics.
        ours = spent[shares.Side("hjepa_jax", 1, side.side.batch_norm).name].wall / args.steps
        print(
            f"| {name} | {seconds:.3f} | {seconds / ours:.2f} | {processor:.3f} "
            f"| {views.shape[1] / seconds:.1f} | {side.first_loss:.6f} |"
        )
    sys.stdout.flush()


def configured(args: argparse.Namespace, batch: int) -> Any:
    """Returns the configuration that the arguments name, with this batch size."""
    config = read_config(os.path.abspath(args.config))
    config.data.batch_size = batch
    config.model.compute_dtype = args.dtype
    if args.width is not None:
        config.resnet.width = args.width
    if config.method != "hjepa" or config.resnet.head != "tokens":
        sys.exit("The comparison is written for HJEPA on tokens.")
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default="configs/cifar100.py", help="an hjepa configuration")
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--width", type=int, help="channels of the first stage")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps before the host waits")
    parser.add_argument("--no-compile", action="store_true", help="without torch.compile")
    parser.add_argument("--devices", type=int, nargs="+", default=[1], help="sharing the batch")
    parser.add_argument("--batch-norm", nargs="+", default=["global", "local"], help="of devices")
    add_ceiling_arguments(parser)
    args = parser.parse_args()
    compilation_cache.enable()
    print(f"device: {jax.devices()[0].device_kind}; jax {jax.__version__}")
    print(f"native kernels: {kernels().description}", flush=True)
    for batch in args.batch:
        config = configured(args, batch)
        for devices in args.devices:
            if devices == 1:
                measure(config, args)
            else:
                measure_shares(config, args, devices)


if __name__ == "__main__":
    main()
