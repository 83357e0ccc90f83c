"""The train step of a configuration, compiled for an accelerator that is not at hand."""

from __future__ import annotations

import collections
import importlib.metadata
from typing import NamedTuple

from hjepa_jax.config import Settings
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.devices import without_cpu_forms
from hjepa_jax.tools.plan.operations import operations
from hjepa_jax.tools.plan.program_text import Counts, count_program, sent_bytes
from hjepa_jax.tools.plan.step_cost import abstract_batch, changed
from hjepa_jax.tools.plan.topologies import Topology, compiler_version, devices
from hjepa_jax.training.prepare import prepare

# Which of a GPU's algorithms is the fastest can only be measured on it: XLA then takes its default.
_OPTIONS = {"cuda": {"xla_gpu_autotune_level": 0}, "tpu": {}}


class CompiledStep(NamedTuple):
    """What one step takes on each device.

    Attributes:
      topology: what it is compiled for.
      compiler: package and version of the compiler.
      device: the compiler's name of a device.
      devices: how many there are; a TPU v4 counts as two.
      images: images of a step, on all devices together.
      arguments: bytes of state and batch.
      temporary: bytes of intermediate values.
      peak: bytes of all that is in memory together.
      operations: in matrix products and convolutions.
      counts: kernels, traffic, and collectives.
      text: the compiled program.
    """

    topology: Topology
    compiler: str
    device: str
    devices: int
    images: int
    arguments: int
    temporary: int
    peak: int
    operations: int
    counts: Counts
    text: str


def compile_step(settings: Settings, topology: Topology) -> CompiledStep:
    """Compiles the step of a configuration for a topology, from shapes alone.

    With data.backend='auto' the augmentation is on the device, as it would be there.

    Raises:
      UserError: if the compiler is not installed.
      ConfigError: if the batch does not split over the devices.
    """
    compiler = compiler_version(topology)
    found = devices(topology)
    mesh = sharding.data_mesh(found)
    if settings.data.backend == "auto":
        settings = changed(settings, data__backend="device")
    with without_cpu_forms():
        run = prepare(settings, settings.data.batch_size, mesh)
        traced = run.step.trace(run.abstract_state, abstract_batch(settings.data, mesh))
        lowered = traced.lower()
    compiled = lowered.compile(compiler_options=_OPTIONS[topology.chip.platform])
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None  # XLA has both for every device
    assert text is not None
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return CompiledStep(
        topology,
        compiler,
        found[0].device_kind,
        len(found),
        settings.data.batch_size,
        arguments,
        temporary,
        arguments + outputs + temporary,
        operations(traced.jaxpr.jaxpr),
        count_program(text),
        text,
    )


class Bound(NamedTuple):
    """What one resource allows: an amount per step, over its peak rate."""

    resource: str
    amount: float
    unit: str
    rate: float

    @property
    def seconds(self) -> float:
        """The least time of a step."""
        return self.amount / self.rate


def bounds(step: CompiledStep) -> list[Bound]:
    """Returns what compute, memory, and communication allow on each device."""
    chip = step.topology.chip
    share = step.topology.chips / step.devices
    return [
        Bound("compute", step.operations, "FLOP", chip.flops * share),
        Bound("memory", step.counts.traffic, "B", chip.memory * share),
        Bound(
            "communication", sent_bytes(step.counts, step.devices), "B", chip.interconnect * share
        ),
    ]


def report(step: CompiledStep) -> str:
    """Returns the plan as text."""
    topology, counts = step.topology, step.counts
    capacity = topology.chip.capacity * topology.chips / step.devices
    shown = counts.kernels.most_common(6)
    others = counts.kernels.total() - sum(number for _, number in shown)
    kernels = ", ".join(
        [f"{number} {kind}" for kind, number in shown] + ([f"{others} others"] if others else [])
    )
    found = bounds(step)
    least = max(found, key=lambda bound: bound.seconds)
    lines = [
        f"{topology.name}: {step.devices} x {step.device}, {step.images} images per step; compiled "
        f"by {step.compiler} with jax {importlib.metadata.version('jax')}, not run; per device:",
        f"  memory: arguments {_binary(step.arguments)}, temporaries {_binary(step.temporary)}, "
        f"peak {_binary(step.peak)} of {_binary(capacity)}",
        f"  {_decimal(step.operations)}FLOP in matrix products and convolutions, "
        f"{_decimal(counts.traffic)}B read and written",
        f"  {counts.kernels.total()} kernels: {kernels}",
    ]
    if counts.endless:
        lines.append(f"  loops of unknown length, counted as one turn: {counts.endless}")
    lines += ["", "| collective | count | bytes given | bytes sent |", "|---|---:|---:|---:|"]
    for kind, number in counts.collectives.items():
        alone = Counts(reduced=collections.Counter({kind: counts.reduced[kind]}))
        lines.append(
            f"| {kind} | {number} | {_decimal(counts.reduced[kind])}B | "
            f"{_decimal(sent_bytes(alone, step.devices))}B |"
        )
    if not counts.collectives:
        lines.append("| none | 0 | 0 B | 0 B |")
    lines += ["", "| bound by | per step | peak rate | ms | images/s |", f"|---|{'---:|' * 4}"]
    lines += [
        f"| {bound.resource} | {_decimal(bound.amount)}{bound.unit} | "
        f"{_decimal(bound.rate)}{bound.unit}/s | {1e3 * bound.seconds:.3g} | "
        f"{_images(step, bound)} |"
        for bound in found
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"at most {_images(step, least)} images/s, by {least.resource}: a bound, no forecast. "
            "Each resource works at its published peak beside the others, and no input is waited "
            "for; a run exceeds this only where a cache serves what counts as traffic here.",
            f"peak rates: {topology.chip.source}.",
        ]
    )


def _images(step: CompiledStep, bound: Bound) -> str:
    return f"{step.images / bound.seconds:.0f}" if bound.seconds else "unbounded"


def _binary(number: float) -> str:
    """Returns a number of bytes in MiB or GiB."""
    return f"{number / 2**20:.4g} MiB" if number < 2**30 else f"{number / 2**30:.4g} GiB"


def _decimal(number: float) -> str:
    """Returns a number and the prefix of its unit, such as '2.41 T'."""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 10**power:
            return f"{number / 10**power:.4g} {prefix}"
    return f"{number:.4g} "
