"""What the benchmarks share: sides that take turns, and the machine's ceiling in the same turns."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Runner = Callable[[], Any]

# Of each in a turn: the first finds clock and caches as the side before left them.
_CEILING_RUNS = 4
# As `settle` of `take_turns`: less than any run takes.
ONE_RUN = 1e-9


class Spent(NamedTuple):
    """Medians of one side over its turns: seconds of the wall, and of processor time."""

    wall: float
    processor: float


class Ceiling(NamedTuple):
    """What the machine can do at most, per second: float32 operations and bytes copied."""

    flops: float
    bytes: float

    def __str__(self) -> str:
        return f"ceiling {self.flops / 1e9:.0f} GFLOP/s, copy {self.bytes / 1e9:.1f} GB/s"


def take_turns(
    runners: Mapping[str, Runner],
    repeats: int,
    *,
    settle: float = 0.0,
    processor: Callable[[], float] | None = None,
) -> dict[str, Spent]:
    """Runs all sides in turn (A B A B), `repeats` times, and returns the medians of each.

    Args:
      runners: each returns when its work is done; compiled before.
      repeats: turns.
      settle: seconds of untimed runs at the start of each turn, whole ones; 0 for none. A side
        finds the caches filled, and its temporaries' memory given back, by another.
      processor: returns the seconds of processor time spent so far; None = those of this process.
    """
    processor = processor or time.process_time
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, runner in runners.items():
            settled = time.perf_counter() + settle
            while time.perf_counter() < settled:
                runner()
            start, start_processor = time.perf_counter(), processor()
            runner()
            spent = time.perf_counter() - start, processor() - start_processor
            taken[name].append(spent)
    return {name: Spent(*map(statistics.median, zip(*all_))) for name, all_ in taken.items()}


def add_ceiling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --matrix and --copy-mb, the sizes of the ceiling's product and copy."""
    parser.add_argument("--matrix", type=int, default=2048, help="size of the ceiling's product")
    parser.add_argument("--copy-mb", type=int, default=256, help="size of the ceiling's copy")


@jax.jit
def _product(square: jax.Array) -> jax.Array:
    return jnp.matmul(square, square, precision=jax.lax.Precision.HIGHEST)


@jax.jit
def _copy(block: jax.Array) -> jax.Array:
    return block + 1


def ceiling_runners(args: argparse.Namespace) -> dict[str, Runner]:
    """Returns runners of matrix products and copies in float32, to take turns with the sides."""
    square = jnp.ones((args.matrix, args.matrix), jnp.float32)
    block = jnp.ones((args.copy_mb * 2**18,), jnp.float32)
    runners: dict[str, Runner] = {
        "product": lambda: [jax.block_until_ready(_product(square)) for _ in range(_CEILING_RUNS)],
        "copy": lambda: [jax.block_until_ready(_copy(block)) for _ in range(_CEILING_RUNS)],
    }
    for runner in runners.values():
        runner()
    return runners


def pop_ceiling(spent: dict[str, Spent], args: argparse.Namespace) -> Ceiling:
    """Takes the times of `ceiling_runners` out of `spent` and returns what they show."""
    return Ceiling(
        flops=_CEILING_RUNS * 2 * args.matrix**3 / spent.pop("product").wall,
        bytes=_CEILING_RUNS * 2 * args.copy_mb * 2**20 / spent.pop("copy").wall,
    )


def take_turns_to_ceiling(
    runners: Mapping[str, Runner],
    args: argparse.Namespace,
    *,
    settle: float = 0.0,
    processor: Callable[[], float] | None = None,
) -> tuple[dict[str, Spent], Ceiling]:
    """`take_turns`, args.repeats of them, and the ceiling measured in the same turns."""
    both = {**runners, **ceiling_runners(args)}
    spent = take_turns(both, args.repeats, settle=settle, processor=processor)
    ceiling = pop_ceiling(spent, args)
    return spent, ceiling
