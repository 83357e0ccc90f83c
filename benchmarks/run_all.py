"""Every benchmark in turn, each in a process of its own, in one command.

    python benchmarks/run_all.py --scale small
    python benchmarks/run_all.py --scale full --only train_step sigreg --repeats 3

On two cores with AVX-512 `tiny` shows in a minute that all run, `small` takes six minutes, and
`full`, with the sizes of the recipes and `--repeats 3`, half an hour. What a benchmark compares
with (torch, torchvision, faiss) is left out where it is not installed: pip install -e '.[bench]'.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys
import time

FOLDER = pathlib.Path(__file__).resolve().parent
TINY = {
    "train_step": [
        "--batch=4",
        "--width=8",
        "--steps=2",
        "--repeats=1",
        "--matrix=256",
        "--copy-mb=1",
        *("--devices", "1", "2"),
        "--batch-norm=global",
        "--no-compile",
    ],
    "encoders": [
        *("--batch=2", "--size=32", "--width=8", "--depth=1", "--repeats=1"),
        *("--matrix=256", "--copy-mb=1"),
    ],
    "convolutions": ["--images=2", "--group=2", "--shapes=8x16", "--repeats=1", "--matrix=256"],
    "method_levers": ["--images=2", "--width=8", "--rank=16", "--repeats=1"],
    "sigreg": ["--n=64", "--d=32", "--k=16", "--repeats=1", "--matrix=256", "--copy-mb=1"],
    "leapfrog": [
        *("--batch=8", "--dim=16", "--hidden=16", "--steps", "1", "4", "--repeats=1"),
        *("--recipe=quickstart:smoke", "--step_flows", "16"),
    ],
    "knn": ["--train=2000", "--test=200", "--dim=32", "--k=20", "--repeats=1"],
    "probe": ["--train=500", "--test=100", "--dim=32", "--classes=5", "--epochs=2", "--repeats=1"],
    "startup": ["--batch=4", "--width=8", "--repeats=1"],
    "input_pipeline": ["--sizes", "32", "80", "--images=4", "--repeats=1"],
    "feed": [
        *("--batch=8", "--images=64", "--batches=2", "--repeats=1"),
        *("--together", "1", "4", "--steps=4"),
    ],
}
SMALL = {
    "train_step": ["--batch=64", "--width=64", "--repeats=3", "--devices", "1", "2"],
    "encoders": ["--batch=8", "--repeats=3"],
    "convolutions": ["--images=32", "--repeats=3"],
    "method_levers": ["--images=32", "--repeats=3"],
    "sigreg": ["--n=1024", "--d=512", "--k=256", "--repeats=3"],
    "leapfrog": ["--batch=128", "--dim=512", "--repeats=3", "--step_flows", "2", "64"],
    "knn": ["--train=10000", "--test=2000", "--dim=1024", "--repeats=3"],
    "probe": ["--train=10000", "--test=2000", "--epochs=10"],
    "startup": ["--batch=16", "--width=8", "--repeats=1"],
    "input_pipeline": ["--repeats=3"],
    "feed": ["--repeats=3"],
}
FULL = {
    "train_step": ["--batch", "64", "128", "256", "--width=64", "--devices", "1", "2"],
    "encoders": ["--batch", "16", "64"],
    "convolutions": ["--images=128"],
    "method_levers": ["--images=128"],
    "sigreg": ["--n=4096", "--d=2048", "--k=1024", "--scaling"],
    "leapfrog": [],
    "knn": [],
    "probe": [],
    "startup": ["--batch=64"],
    "input_pipeline": [],
    "feed": [],
}
SCALES = {"tiny": TINY, "small": SMALL, "full": FULL}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scale", choices=list(SCALES), default="small")
    parser.add_argument("--only", nargs="+", choices=list(FULL), help="run these alone")
    parser.add_argument("--repeats", type=int, help="turns of each, instead of its own number")
    args = parser.parse_args()
    failed = []
    for name, arguments in SCALES[args.scale].items():
        if args.only and name not in args.only:
            continue
        if args.repeats is not None:
            arguments = [*arguments, f"--repeats={args.repeats}"]
        print(f"\n## {name} {' '.join(arguments)}\n", flush=True)
        start = time.perf_counter()
        command = [sys.executable, str(FOLDER / f"{name}.py"), *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"\n({name}: {time.perf_counter() - start:.0f} s)", flush=True)
    if failed:
        sys.exit(f"these benchmarks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
