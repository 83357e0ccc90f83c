"""Seconds from the start of the interpreter to the first training step, cold and from the cache.

    python benchmarks/startup.py --config configs/cifar100.py --batch 64 --width 16

Every start is a process of its own, with compilation_cache.enable() as the command line has it, in
a cache folder that is empty for the first start and kept for the second. The stages of a start:
import of the package, preparation and initial state, compilation (or loading) of the step, and the
first step itself. Random images of the configuration's size take the place of the dataset.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
STAGES = ("import", "initial state", "compilation", "first step", "whole process")


def child(config_file: str, batch: int, width: int | None, dtype: str) -> None:
    """One start; prints the seconds of its stages as JSON."""
    begin = time.perf_counter()
    marks = []

    import jax
    import numpy as np

    import hjepa_jax.config.flags
    import hjepa_jax.train  # noqa: F401
    from hjepa_jax.config.checks import typed
    from hjepa_jax.runtime import compilation_cache, sharding
    from hjepa_jax.training.prepare import prepare

    marks.append(time.perf_counter())
    compilation_cache.enable()
    config = read_config(config_file)
    config.data.batch_size = batch
    config.model.compute_dtype = dtype
    if width is not None:
        config.resnet.width = width
    mesh = sharding.data_mesh()
    run = prepare(typed(config), 10 * batch, mesh)
    state = jax.block_until_ready(run.init())
    marks.append(time.perf_counter())
    side = config.data.image_size
    views = np.random.default_rng(0).integers(
        0, 256, (config.data.num_global_views, batch, side, side, 3), np.uint8
    )
    placed = sharding.put_batch(mesh, {"global_views": views})
    compiled = run.step.lower(state, placed).compile()
    marks.append(time.perf_counter())
    jax.block_until_ready(compiled(state, placed))
    marks.append(time.perf_counter())
    print(json.dumps([after - before for before, after in zip([begin, *marks], marks)]))


def read_config(file_and_variant: str) -> Any:
    """Returns the configuration of 'file.py' or 'file.py:variant'."""
    from hjepa_jax.config.load import load_config

    return load_config(str(ROOT / file_and_variant))


def start(arguments: list[str], cache: str) -> list[float]:
    """Returns the seconds of each stage of one start, the whole process last."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": cache}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    whole = time.perf_counter() - begin
    return [*json.loads(done.stdout.splitlines()[-1]), whole]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default="configs/cifar100.py")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--width", type=int, help="channels of the first stage")
    parser.add_argument("--dtype", default="float32", help="model.compute_dtype")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of starts")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.config, args.batch, args.width, args.dtype)
        return
    arguments = ["--config", args.config, "--batch", str(args.batch), "--dtype", args.dtype]
    if args.width is not None:
        arguments += ["--width", str(args.width)]
    first, second = [], []
    for _ in range(args.repeats):
        with tempfile.TemporaryDirectory() as cache:
            first.append(start(arguments, cache))
            second.append(start(arguments, cache))
    print(f"{' '.join(arguments)}; medians of {args.repeats}, in seconds")
    print("| stage | first start | second start | ratio |")
    print("|-------|------------:|-------------:|------:|")
    for stage, *rows in zip(STAGES, zip(*first), zip(*second)):
        cold, warm = (statistics.median(row) for row in rows)
        print(f"| {stage} | {cold:.2f} | {warm:.2f} | {warm / cold:.2f} |")


if __name__ == "__main__":
    main()
