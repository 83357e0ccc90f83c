"""Seconds of a training step: ours, ours in XLA's own operations, and PyTorch where installed.

    python benchmarks/train_step.py --batch 64 128 256 --width 64

The step is the jitted, donated one that training runs (encoder, predictor, losses, optimizer) on
one fixed random batch. PyTorch runs the same computation (benchmarks/torch_step.py) from the same
parameters, in its default layout and in channels-last; the losses of the first step are compared.
All take turns (interleaved; two steps in each, of which the second counts, as in training) and
medians are printed, so that other load on the machine falls on all alike; "CPU s" is the processor
time of this process, which other load hardly changes. The ceiling is measured in the same turns: a
large matrix product and a large copy.
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
    scale = float(run.method.residual_scale(state.step))
    kinds = {"PyTorch": {"channels_last": False}, "PyTorch channels-last": {"channels_last": True}}
    if compiled:
        kinds["torch.compile channels-last"] = {"channels_last": True, "compiled": True}
    return {
        name: torch_step.TorchStep(config, state.params, views, projections, scale, **options)
        for name, options in kinds.items()
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
    runners |= torch_runners(config, views, run, args.compile)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default="configs/cifar100.py", help="an hjepa configuration")
    parser.add_argument("--batch", type=int, nargs="+", default=[64])
    parser.add_argument("--width", type=int, help="channels of the first stage")
    parser.add_argument("--dtype", default="float32", help="float32 or bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps before the host waits")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    add_ceiling_arguments(parser)
    args = parser.parse_args()
    compilation_cache.enable()
    print(f"device: {jax.devices()[0].device_kind}; jax {jax.__version__}")
    print(f"native kernels: {kernels().description}", flush=True)
    for batch in args.batch:
        config = read_config(os.path.abspath(args.config))
        config.data.batch_size = batch
        config.model.compute_dtype = args.dtype
        if args.width is not None:
            config.resnet.width = args.width
        if config.method != "hjepa" or config.resnet.head != "tokens":
            sys.exit("The comparison is written for HJEPA on tokens.")
        measure(config, args)


if __name__ == "__main__":
    main()
