"""Everything that only a GPU can show, in one command of under nine minutes.

    python benchmarks/gpu.py --out=gpu
    python benchmarks/gpu.py --out=gpu --only step epoch --root=cifar-100-python.tar.gz

Each part runs in its own process, so it finds the device's memory free. Its output is printed, and
written with the device's name to OUT/gpu.md. If a part fails or reaches its time limit, the others
still run, and the last line names it. PyTorch's rows are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from run_all import TINY

ROOT = pathlib.Path(__file__).resolve().parent.parent
# These tests run on whatever device JAX has; the others are about the CPU, files, and processes.
DEVICE_TESTS = (
    "tests/test_golden.py",
    "tests/dynamics",
    "tests/objectives",
    "tests/methods",
    "tests/models",
    "tests/evaluation/test_knn.py",
    "tests/evaluation/test_probe.py",
)


class Part(NamedTuple):
    """One measurement.

    Attributes:
      full: its command, for the Python interpreter.
      tiny: the same at the smallest size, which shows on a CPU that it runs.
      seconds: its time limit.
      environment: variables that it has beside those of all parts.
    """

    full: tuple[str, ...]
    tiny: tuple[str, ...]
    seconds: float
    environment: Mapping[str, str] = types.MappingProxyType({})


def _part(full: str, tiny: Sequence[str], seconds: float, **environment: str) -> Part:
    script = full.split()[0]
    return Part(tuple(full.split()), (script, *tiny), seconds, environment)


# The most important come first, in case the time runs out.
PARTS = {
    "device": _part("benchmarks/gpu_parts.py device", ["device"], 30),
    "step": _part(
        "benchmarks/train_step.py --batch=512 --dtype=bfloat16 --steps=20",
        [*TINY["train_step"], "--devices=1"],
        170,
    ),
    "epoch": _part(
        "benchmarks/gpu_parts.py epoch",
        [
            *("epoch", "--epochs=2", "--images=64", "--test-images=32"),
            *("--batch=16", "--width=8", "--float32"),
        ],
        120,
    ),
    "knn": _part(
        "benchmarks/knn.py --only hjepa_jax torch --no-peak",
        [*TINY["knn"], "--only", "hjepa_jax", "--no-peak"],
        50,
    ),
    "probe": _part(
        "benchmarks/probe.py --only hjepa_jax PyTorch",
        [*TINY["probe"], "--only", "hjepa_jax"],
        50,
    ),
    "processes": _part("benchmarks/gpu_parts.py processes", ["processes"], 30),
    "tests": _part(
        f"-m pytest -n 4 {' '.join(DEVICE_TESTS)}",
        ["pytest", "-n", "0", "tests/objectives/test_lejepa.py"],
        150,
        # The tests ask for the CPU unless told otherwise, and do not allow for TF32.
        JAX_PLATFORMS=os.environ.get("JAX_PLATFORMS", "cuda,cpu"),
        JAX_DEFAULT_MATMUL_PRECISION="highest",
    ),
}


def environment(part: Part) -> dict[str, str]:
    """Returns the environment of a part."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")]),
        # PyTorch's sides share the device with ours.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONUNBUFFERED": "1",
        **part.environment,
    }


def run(part: Part, command: list[str], seconds: float) -> tuple[str, str | None]:
    """Runs a part.

    Returns:
      (what it printed, why it did not finish or None).
    """
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment(part),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or b""
        text = printed if isinstance(printed, str) else printed.decode(errors="replace")
        return text, f"stopped after {seconds:.0f} s"
    return done.stdout, f"exit status {done.returncode}" if done.returncode else None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("gpu"), help="folder")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="run these alone")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full")
    parser.add_argument("--root", help="CIFAR-100 for the epoch; random pictures without it")
    parser.add_argument("--minutes", type=float, default=8.5, help="limit of the whole")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    end, missing = time.monotonic() + 60 * args.minutes, []
    with (args.out / "gpu.md").open("w") as report:
        for name in args.only or PARTS:
            part = PARTS[name]
            arguments = part.full if args.scale == "full" else part.tiny
            if name == "epoch" and args.root:
                arguments += (f"--root={pathlib.Path(args.root).resolve()}",)
            left, start = end - time.monotonic(), time.monotonic()
            printed, problem = "", f"not started: the {args.minutes:g} minutes are over"
            if left > 0:
                command = [sys.executable, *arguments]
                printed, problem = run(part, command, min(part.seconds, left))
            seconds = time.monotonic() - start
            text = f"## {name}\n\n`{' '.join(arguments)}` ({seconds:.0f} s)\n\n{printed}\n"
            text += f"{name}: {problem}\n" if problem else ""
            print(text, flush=True)
            print(text, file=report, flush=True)
            missing += [f"{name} ({problem})"] if problem else []
    if missing:
        sys.exit(f"these parts did not finish: {', '.join(missing)}")


if __name__ == "__main__":
    main()
