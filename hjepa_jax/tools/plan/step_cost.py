"""Estimates the cost of a training step from the compiled program, without data or accelerator.

The program is compiled for the requested number of CPU devices. Operation counts hold for any
backend. XLA counts the body of a loop once, so integration steps beyond the first are missing (1 %
of all operations with 8 steps of the default model). Bytes and memory are those of XLA's CPU
compiler, which fuses less than an accelerator's and widens bfloat16 to float32, so an accelerator
probably needs less.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from hjepa_jax.config import Settings, view_sizes
from hjepa_jax.config.data import Data
from hjepa_jax.config.parts import ENCODERS, load_part
from hjepa_jax.data.augmentation.device import ResidentImages
from hjepa_jax.data.augmentation.parameters import PACKED
from hjepa_jax.errors import ConfigError
from hjepa_jax.models.parameter_matching import count_parameters
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.devices import without_cpu_forms
from hjepa_jax.training.prepare import prepare

# Number and side of the training images of the datasets that are held in memory at one size.
_STORED = {"cifar10": (50_000, 32), "cifar100": (50_000, 32)}


class Cost(NamedTuple):
    """Cost of one step on each device.

    Attributes:
      flops: floating-point operations.
      bytes: bytes read and written by all operations.
      state: bytes of parameters, optimizer moments and batch.
      temporary: bytes of intermediate values.
      peak: bytes of peak memory.
      reduced: bytes sent for gradients, and for updates if the optimizer moments are sharded.
    """

    flops: float
    bytes: float
    state: int
    temporary: int
    peak: int
    reduced: float


class Hardware(NamedTuple):
    """Peak operations/s of one device, and bytes/s of its memory and interconnect."""

    flops: float
    memory: float
    interconnect: float


def abstract_batch(data: Data, mesh: Mesh) -> dict[str, PyTree[jax.ShapeDtypeStruct]]:
    """Returns what the step uses of a batch as shapes, split over the mesh.

    With data.backend='device' the augmentation is part of the step. It then gets what
    `data.batches.BatchMaker` makes: cropped views, whole images, or the numbers of images that stay
    on the devices.
    """
    found, count, on_device = {}, data.batch_size, data.backend == "device"
    images, side = _STORED.get(data.name, (0, 0)) if on_device else (0, 0)
    resident = images * side * side * 3 <= data.resident_mb * 2**20
    if images and resident:
        found["resident_images"] = ((images, side * side * 3), jnp.uint8)
        found["index"] = ((count,), jnp.int32)
    elif images:
        found["images"] = ((count, side, side, 3), jnp.uint8)
    for name, (views, size) in view_sizes(data).items():
        if not images:
            found[name] = ((views, count, size, size, 3), jnp.uint8)
        if on_device:
            columns = (views, count, len(PACKED))
            found[name.replace("_views", "_parameters")] = (columns, jnp.float32)
    batch: dict[str, PyTree[jax.ShapeDtypeStruct]] = {
        name: jax.ShapeDtypeStruct(shape, kind, sharding=sharding.batch_sharding(mesh, name))
        for name, (shape, kind) in found.items()
    }
    if images and resident:
        batch["resident_images"] = ResidentImages(batch["resident_images"], (side, side, 3))
    return batch


def changed(settings: Settings, **fields: object) -> Settings:
    """Returns a copy with fields set, 'section__name' as in resnet__remat='blocks'."""
    return settings.replace({path.replace("__", "."): value for path, value in fields.items()})


def step_cost(settings: Settings, mesh: Mesh) -> Cost:
    """Compiles the step of a configuration for `mesh` and returns its cost for each device.

    Raises:
      ConfigError: if the batch does not split over the devices and micro-batches.
    """
    # Optimizing the machine code changes neither operations nor buffers.
    settings = changed(settings, train__fast_compile=True)
    # XLA counts neither the native kernels nor the turns of the loops made for the CPU.
    with without_cpu_forms():
        run = prepare(settings, settings.data.batch_size, mesh)
        lowered = run.step.lower(run.abstract_state, abstract_batch(settings.data, mesh))
    compiled = lowered.compile()
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert analysis is not None
    assert memory is not None  # XLA has both on all devices
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    devices = mesh.size
    gradient = 4 * count_parameters(run.abstract_state.params)
    return Cost(
        analysis["flops"],
        analysis["bytes accessed"],
        arguments,
        temporary,
        arguments + outputs + temporary,
        # A ring sends every byte twice: to add it up, and to gather the sums, or the updates.
        2 * gradient * (devices - 1) / devices,
    )


def step_seconds(cost: Cost, hardware: Hardware, efficiency: float) -> dict[str, float]:
    """Estimates the seconds of a step: the maximum of compute and memory, plus communication.

    Args:
      cost: cost of a step on one device.
      hardware: peak rates of one device.
      efficiency: fraction of the peak that computation achieves.
    """
    compute = cost.flops / (hardware.flops * efficiency)
    memory, sent = cost.bytes / hardware.memory, cost.reduced / hardware.interconnect
    return {
        "compute": compute,
        "memory": memory,
        "communication": sent,
        "step": max(compute, memory) + sent,
    }


def options(settings: Settings, devices: int) -> dict[str, Settings]:
    """Returns the configuration as it is, and with each memory option that is still off."""
    found = {"as configured": settings}
    for name, section in load_part(ENCODERS, settings.model.encoder).sections.items():
        if getattr(settings.section(section), "remat", None) == "none":
            found[f"{name}.remat=blocks"] = settings.replace({f"{name}.remat": "blocks"})
    count = 2 * settings.train.accumulation
    if settings.data.batch_size % (devices * count) == 0:
        found[f"train.accumulation={count}"] = changed(settings, train__accumulation=count)
    if devices > 1 and not settings.train.shard_optimizer:
        found["train.shard_optimizer=True"] = changed(settings, train__shard_optimizer=True)
    return found


def _median_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    jax.block_until_ready(run())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure_machine(size: int = 1024, megabytes: int = 128) -> tuple[float, float]:
    """Measures this machine: operations/s of a float32 matrix product, bytes/s of a copy.

    Args:
      size: side of the square matrices.
      megabytes: size of the block that is copied, in units of 2**20 bytes.
    """
    matrix = jnp.ones((size, size), jnp.float32)
    block = jnp.ones((megabytes * 2**18,), jnp.float32)
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda x: x + 1)
    flops = 2 * size**3 / _median_seconds(lambda: product(matrix))
    return flops, 2 * block.nbytes / _median_seconds(lambda: copy(block))


def check_positive(values: dict[str, float | None]) -> None:
    """Raises a ConfigError if a given flag is not above 0."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"--{name} is {value}: it must be above 0.")


def report(settings: Settings, devices: int, hardware: Hardware, efficiency: float) -> str:
    """Returns the plan as text: the cost, the estimate, and a table of the memory options.

    Raises:
      ConfigError: if the batch does not split over the devices.
    """
    mesh = sharding.data_mesh(jax.devices()[:devices])
    rows, first = [], None
    for name, variant in options(settings, devices).items():
        cost = step_cost(variant, mesh)
        seconds = step_seconds(cost, hardware, efficiency)
        first = first or (cost, seconds)
        rows.append(
            f"| {name} | {cost.flops / 1e9:.3g} | {cost.bytes / 1e9:.3g} | "
            f"{cost.state / 2**20:.4g} | {cost.temporary / 2**20:.4g} | {cost.peak / 2**20:.4g} | "
            f"{cost.peak / first[0].peak - 1:+.0%} | {cost.reduced / 1e6:.3g} | "
            f"{settings.data.batch_size / seconds['step']:.0f} |"
        )
    assert first is not None
    cost, seconds = first
    bound = "compute" if seconds["compute"] >= seconds["memory"] else "memory"
    return "\n".join(
        [
            f"{devices} device(s), {settings.data.batch_size} images per step; per device:",
            f"  {hardware.flops * efficiency / 1e12:.3g} TFLOP/s sustained, "
            f"{hardware.memory / 1e9:.3g} GB/s memory, "
            f"{hardware.interconnect / 1e9:.3g} GB/s interconnect",
            f"  {cost.flops / 1e9:.3g} GFLOP per step",
            f"  compute {seconds['compute']:.3g} s, memory {seconds['memory']:.3g} s, "
            f"communication {seconds['communication']:.3g} s: {bound}-bound",
            f"expected: {settings.data.batch_size / seconds['step']:.0f} images/s, "
            f"{seconds['step']:.3g} s per step",
            "",
            "| per device | GFLOP | GB moved | state MiB | temporary MiB | peak MiB | saving "
            "| MB sent | images/s |",
            f"|---|{'---:|' * 8}",
            *rows,
        ]
    )
