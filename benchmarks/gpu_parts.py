"""The parts of benchmarks/gpu.py that are not scripts of their own: device, epoch, processes."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from startup import read_config

from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.base import DataSet, Record, describe, digest
from hjepa_jax.evaluate import evaluate
from hjepa_jax.runtime import compilation_cache, sharding
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.train import train

_CLASSES = 100


class RandomImages:
    """Images in memory: noise around the mean image of their class."""

    class_names = tuple(f"class {number}" for number in range(_CLASSES))

    def __init__(self, count: int, seed: int) -> None:
        self._seed = seed
        self._labels = (np.arange(count) % _CLASSES).astype(np.int32)
        means = np.random.default_rng(0).integers(64, 192, (_CLASSES, 32, 32, 3))
        noise = np.random.default_rng(seed).integers(-64, 64, (count, 32, 32, 3), np.int16)
        self._images = (means[self._labels] + noise).astype(np.uint8)

    @property
    def description(self) -> str:
        return describe("random images", self)

    def __len__(self) -> int:
        return len(self._labels)

    def labels(self) -> np.ndarray:
        return self._labels

    def fingerprint(self) -> str:
        return digest("random images", str(self._seed), str(len(self)))

    def record(self, index: int) -> Record:
        label = int(self._labels[index])
        return Record(None, self._images[index], label, f"random[{index}]")


class Random(DataSet):
    """The dataset `gpu_parts:Random`; the configuration takes as many images as it asks for."""

    def open(self, split: str, siblings: Sequence[str]) -> RandomImages:
        del siblings
        data = self.settings.data
        return (
            RandomImages(data.max_train_images or 50_000, 1)
            if split == data.train_split
            else RandomImages(data.max_test_images or 10_000, 2)
        )


def device() -> None:
    """Prints the device, its driver, and the versions."""
    print(f"device: {jax.devices()[0].device_kind}, {jax.device_count()} of them")
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv"]
        print(subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip())
    for name in ("jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "torch"):
        if importlib.util.find_spec(name.replace("-", "_")) is not None:
            print(f"{name} {importlib.metadata.version(name)}")


def epoch(args: argparse.Namespace) -> None:
    """Trains and evaluates as the command does; prints seconds, images/s, and the data wait."""
    config = read_config("configs/cifar100.py")
    config.data.name = "cifar100" if args.root else "gpu_parts:Random"
    config.data.root = args.root
    config.data.max_train_images = args.images
    config.data.max_test_images = args.test_images
    config.data.batch_size = args.batch
    config.train.epochs = args.epochs
    config.train.warmup_epochs = min(config.train.warmup_epochs, args.epochs / 2)
    config.resnet.width = args.width
    config.model.compute_dtype = "float32" if args.float32 else "bfloat16"
    steps = (args.images or 50_000) // args.batch
    config.log.every_steps = max(1, steps // 2)
    settings = typed(config)
    compilation_cache.enable()
    with tempfile.TemporaryDirectory() as folder:
        workdir = pathlib.Path(folder) / "run"
        seconds = {}
        start = time.perf_counter()
        train(settings, workdir)
        seconds["training, with compilation"] = time.perf_counter() - start
        start = time.perf_counter()
        metrics = evaluate(settings, workdir, pathlib.Path(folder) / "eval")
        seconds["evaluation"] = time.perf_counter() - start
        curves = read_metrics(workdir)
    rates, waits = (curves[name][1] for name in ("speed/images_per_second", "data/wait_share"))
    print(f"| {args.epochs} epochs of {steps} steps, batch {args.batch} | |\n|---|---:|")
    for name, value in seconds.items():
        print(f"| {name}, s | {value:.1f} |")
    print(f"| one epoch at the last rate, s | {steps * args.batch / rates[-1]:.2f} |")
    print(f"| images/s, last | {rates[-1]:.0f} |")
    print(f"| images/s, best | {rates.max():.0f} |")
    print(f"| share of the time waiting for data, last | {waits[-1]:.1%} |")
    trained = metrics["encoders"]["trained"]
    print(f"| kNN@{trained['knn']['k_values'][0]} | {trained['knn']['top1'][0]:.4f} |")


def processes() -> None:
    """Starts jax's distributed runtime with one process, and sums gradients over its devices."""
    start = time.perf_counter()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    jax.distributed.initialize(address, 1, 0, cluster_detection_method="deactivate")
    mesh = sharding.data_mesh()
    jax.block_until_ready(jnp.zeros(1))
    print(f"| distributed runtime of one process, s | {time.perf_counter() - start:.2f} |")
    # As many as the parameters of configs/cifar100.py.
    gradient = jnp.ones((jax.device_count(), 3_100_000), jnp.float32)
    spec = PartitionSpec(sharding.DATA_AXIS)
    total = jax.jit(
        jax.shard_map(
            lambda x: jax.lax.psum(x, sharding.DATA_AXIS),
            mesh=mesh,
            in_specs=spec,
            out_specs=PartitionSpec(),
        )
    )
    compiled = total.lower(gradient).compile()
    count = (compiled.as_text() or "").count(" all-reduce(")
    start = time.perf_counter()
    jax.block_until_ready(compiled(gradient))
    print(f"| first sum of 12.4 MB, s | {time.perf_counter() - start:.4f} |")
    start = time.perf_counter()
    jax.block_until_ready([compiled(gradient) for _ in range(20)])
    print(f"| later sums, ms | {50 * (time.perf_counter() - start):.3f} |")
    print(f"| all-reduces in the program (XLA removes those of one device) | {count} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=("device", "epoch", "processes"))
    parser.add_argument("--root", help="CIFAR-100; random images without it")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--images", type=int, help="training images")
    parser.add_argument("--test-images", type=int)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--float32", action="store_true", help="instead of bfloat16")
    args = parser.parse_args()
    if args.part == "epoch":
        epoch(args)
    else:
        {"device": device, "processes": processes}[args.part]()


if __name__ == "__main__":
    main()
