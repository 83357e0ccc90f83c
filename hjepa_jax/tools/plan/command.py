"""`hjepa plan`: memory and speed of a training step on a machine that you do not have yet.

    hjepa plan --config=cifar100 --topology=h100:8
    hjepa plan --config=cifar100 --devices=8 --peak_tflops=400 --bandwidth_gbs=2000 \
        --interconnect_gbs=200 --efficiency=0.4

With --topology, such as v5e:4x4 or h100:8, the compiler of that accelerator compiles the step from
shapes alone; the accelerator is not needed, but its compiler is (pip install 'hjepa_jax[tpu]' or
'hjepa_jax[cuda]'). It takes some minutes. Prints memory, operations, traffic, kernels, collectives,
and an upper bound on images/s.

Without it, XLA's CPU compiler compiles the step for --devices, and the table also shows what each
memory option would save. Peak, bandwidth and interconnect are per device; without them, this
machine is measured, and its rates are divided by the number of devices.
"""

from __future__ import annotations

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config

PROGRAM = Program("plan", __doc__)
_FLAGS = PROGRAM.flags
_CONFIG = define_config("cifar100", "What to plan.", values=_FLAGS)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Accelerators, such as v5e:4x4 or h100:8.", flag_values=_FLAGS
)
_HLO = flags.DEFINE_string(
    "hlo", None, "File for the program compiled for --topology.", flag_values=_FLAGS
)
_DEVICES = flags.DEFINE_integer(
    "devices", 1, "Devices to split the batch over.", upper_bound=4096, flag_values=_FLAGS
)
_PEAK = flags.DEFINE_float(
    "peak_tflops", None, "Peak of one device in TFLOP/s; None = measure.", flag_values=_FLAGS
)
_MEMORY = flags.DEFINE_float(
    "bandwidth_gbs",
    None,
    "Memory bandwidth of one device in GB/s; None = measure.",
    flag_values=_FLAGS,
)
_INTERCONNECT = flags.DEFINE_float(
    "interconnect_gbs", None, "GB/s between devices; None = memory bandwidth.", flag_values=_FLAGS
)
_EFFICIENCY = flags.DEFINE_float(
    "efficiency", 1.0, "Fraction of the peak that is achieved.", flag_values=_FLAGS
)
_OF_THE_ESTIMATE = (_DEVICES, _PEAK, _MEMORY, _INTERCONNECT, _EFFICIENCY)


def main(argv: list[str]) -> None:
    """Prints the plan."""
    del argv
    import jax

    jax.config.update("jax_platforms", "cpu")
    if _TOPOLOGY.value is None:
        jax.config.update("jax_num_cpu_devices", _DEVICES.value)
    print(_estimate() if _TOPOLOGY.value is None else _compiled(_TOPOLOGY.value))


def _compiled(name: str) -> str:
    """Returns the plan for a topology."""
    from hjepa_jax.errors import UserError
    from hjepa_jax.storage.files import local_path
    from hjepa_jax.tools.plan import compiled_step, topologies
    from hjepa_jax.training.automatic.resolved import resolved

    for flag in _OF_THE_ESTIMATE:
        if flag.present:
            raise UserError(f"--{flag.name} is not used with --topology={name}: leave it out.")
    topology = topologies.parse_topology(name)
    topologies.compiler_version(topology)
    settings = resolved(_CONFIG.value)
    path = None if _HLO.value is None else local_path(_HLO.value, "--hlo")
    if path is not None and not path.parent.is_dir():
        raise UserError(f"--hlo={path}: the folder {path.parent} does not exist.")
    step = compiled_step.compile_step(settings, topology)
    if path is not None:
        path.write_text(step.text)
    return compiled_step.report(step)


def _estimate() -> str:
    """Returns the plan by the CPU's compiler."""
    from hjepa_jax.errors import UserError
    from hjepa_jax.tools.plan import step_cost
    from hjepa_jax.training.automatic.resolved import resolved

    if _HLO.value is not None:
        raise UserError("--hlo needs --topology.")
    step_cost.check_positive({flag.name: flag.value for flag in _OF_THE_ESTIMATE})
    settings, count = resolved(_CONFIG.value), _DEVICES.value
    peak, memory, lines = _PEAK.value, _MEMORY.value, []
    if peak is None or memory is None:
        flops, moved = step_cost.measure_machine()
        lines = [f"this machine: {flops / 1e9:.0f} GFLOP/s, {moved / 1e9:.1f} GB/s copied"]
        peak = flops / count / 1e12 if peak is None else peak
        memory = moved / count / 1e9 if memory is None else memory
    between = memory if _INTERCONNECT.value is None else _INTERCONNECT.value
    hardware = step_cost.Hardware(peak * 1e12, memory * 1e9, between * 1e9)
    return "\n".join([*lines, step_cost.report(settings, count, hardware, _EFFICIENCY.value)])


def run() -> None:
    """Entry point of `hjepa plan`."""
    PROGRAM.run(main)


if __name__ == "__main__":
    run()
