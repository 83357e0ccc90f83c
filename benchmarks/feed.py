"""What a training step takes of the host: making its batch, and dispatching it.

    python benchmarks/feed.py --batch 512 --images 50000 --together 1 4 16

First, the processor time of one thread to make a batch of two views of 32 px, and the bytes that
travel to the device, for views made on the host, for views made on the device from images that are
sent, and from images that stay there. Then the processor time in which the main thread stacks,
places, and dispatches the batches of a step whose images stay on the device, for several steps in
one call of the program that accelerators get; the model (LeJEPA on the digits) is tiny, since it
does not matter here. All sides take turns; medians.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from turns import Runner, take_turns

from hjepa_jax.config import Settings
from hjepa_jax.config.checks import typed
from hjepa_jax.data.batches import Batch, BatchMaker, batch_bytes
from hjepa_jax.data.prefetch import WaitTimer
from hjepa_jax.data.sources.base import ArraySource, ImageSource
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.recipes import cifar100, quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.training.feed import dispatches, resident_images
from hjepa_jax.training.prepare import PreparedRun, prepare, train_steps
from hjepa_jax.training.state import TrainState

BACKENDS = {
    "views made on the host": {"backend": "host"},
    "images sent": {"backend": "device", "resident_mb": 0},
    "images resident": {"backend": "device"},
}


def report_batches(args: argparse.Namespace) -> None:
    """Prints a line for each place of images and augmentation."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (args.images, 32, 32, 3), np.uint8)
    source = ArraySource("random", images, np.zeros(args.images, np.int32), ["class"])
    runners: dict[str, Runner] = {}
    sent = {}
    for name, fields in BACKENDS.items():
        config = cifar100.get_config()
        config.data.update(batch_size=args.batch, **fields)
        settings = typed(config)
        runners[name] = batch_runner(settings, source, args.batches)
        # With the numbers and labels, which each batch has.
        sent[name] = batch_bytes(settings.data, source) + 2 * 4 * args.batch
        runners[name]()
    print(f"a batch of {args.batch} of {args.images} images of 32 px, one thread:\n")
    print("| backend | processor ms | bytes | images/s/core |\n|---|---:|---:|---:|")
    for name, spent in take_turns(runners, args.repeats).items():
        seconds = spent.processor / args.batches
        print(f"| {name} | {1e3 * seconds:.2f} | {sent[name]} | {args.batch / seconds:.0f} |")


def batch_runner(settings: Settings, source: ImageSource, count: int) -> Runner:
    """Returns a function that makes batches in this thread."""
    make = BatchMaker(settings.data, settings.seed, source)

    def run() -> None:
        for step in range(count):
            make(step)

    return run


def report_dispatches(args: argparse.Namespace) -> None:
    """Prints a line for each number of steps in a call."""
    config = quickstart.get_config("sigreg-smoke")
    config.data.backend = "device"
    settings = typed(config)
    source, mesh = open_split(settings, "train"), sharding.data_mesh()
    run = prepare(settings, len(source), mesh)
    make = BatchMaker(settings.data, settings.seed, source)
    batches = [make(step)[0] for step in range(args.steps)]
    # Optimized, since a CPU's convolutions are slow in a loop.
    scan = jax.jit(functools.partial(train_steps, run.setup, mesh=mesh), donate_argnums=0)
    resident, first = resident_images(settings.data, source, mesh), run.init()
    host: dict[str, list[float]] = {}
    runners: dict[str, Runner] = {}
    for together in args.together:
        name = str(together)
        host[name] = []
        program = run.step if together == 1 else scan
        feed = functools.partial(placed, batches, together, run, resident)
        state = jax.tree.map(jnp.copy, first)
        runners[name] = step_runner(state, program, feed, host[name])
        runners[name]()
        host[name].clear()
    print(f"\n{args.steps} steps on {mesh.size} x {mesh.devices.flat[0].device_kind}:\n")
    print("| steps in a call | host thread, ms a step |\n|---:|---:|")
    take_turns(runners, args.repeats)
    for name, seconds in host.items():
        print(f"| {name} | {1e3 * statistics.median(seconds) / args.steps:.3f} |")


def placed(batches: list[Batch], together: int, run: PreparedRun, resident: Any) -> Any:
    """Returns the dispatches of all batches."""
    lengths = [together] * (len(batches) // together)
    data = run.settings.data
    return dispatches(iter(batches), lengths, run.mesh, resident, data, WaitTimer())


def step_runner(
    state: TrainState, program: Callable[..., Any], feed: Callable[[], Any], host: list[float]
) -> Runner:
    """Returns a function that trains on all batches and notes the seconds of this thread."""

    def steps() -> None:
        nonlocal state
        start = time.thread_time()
        for _, batch in feed():
            state, _ = program(state, batch)
        host.append(time.thread_time() - start)
        jax.block_until_ready(state.step)

    return steps


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--batches", type=int, default=10, help="made in each turn")
    parser.add_argument("--together", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, default=64, help="taken in each turn")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    if any(args.steps % together for together in args.together):
        parser.error("--steps must be a multiple of each number of --together")
    report_batches(args)
    report_dispatches(args)


if __name__ == "__main__":
    main()
