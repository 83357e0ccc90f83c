"""Estimates memory and speed of a training step on a machine that you do not have yet.

    python scripts/step_cost.py --config=configs/cifar100.py --devices=8 \
        --peak_tflops=400 --bandwidth_gbs=2000 --interconnect_gbs=200 --efficiency=0.4

Compiles the step for that many CPU devices, from shapes alone, and prints operations, bytes,
memory, an upper bound on images/s (a roofline), and what each memory option would save. Peak,
bandwidth and interconnect are per device; without them, this machine is measured, and its rates are
divided by the number of devices.
"""

from __future__ import annotations

import sys

import jax
from absl import flags

from hjepa_jax.config.flags import define_config, run_program

_CONFIG = define_config("configs/cifar100.py", "Configuration file.")
_DEVICES = flags.DEFINE_integer("devices", 1, "Devices to split the batch over.", upper_bound=4096)
_PEAK = flags.DEFINE_float("peak_tflops", None, "Peak of one device in TFLOP/s; None = measure.")
_MEMORY = flags.DEFINE_float(
    "bandwidth_gbs", None, "Memory bandwidth of one device in GB/s; None = measure."
)
_INTERCONNECT = flags.DEFINE_float(
    "interconnect_gbs", None, "Bandwidth between devices in GB/s; None = memory bandwidth."
)
_EFFICIENCY = flags.DEFINE_float("efficiency", 1.0, "Fraction of the peak that is achieved.")


def main(argv: list[str]) -> None:
    """Prints the plan."""
    del argv
    count = _DEVICES.value
    given = {f.name: f.value for f in (_DEVICES, _PEAK, _MEMORY, _INTERCONNECT, _EFFICIENCY)}
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    from hjepa_jax.config import resolve
    from hjepa_jax.errors import UserError
    from hjepa_jax.tools import step_cost

    try:
        step_cost.check_positive(given)
        settings = resolve(_CONFIG.value)
        peak, memory = _PEAK.value, _MEMORY.value
        if peak is None or memory is None:
            flops, moved = step_cost.measure_machine()
            print(f"this machine: {flops / 1e9:.0f} GFLOP/s, {moved / 1e9:.1f} GB/s copied")
            peak = flops / count / 1e12 if peak is None else peak
            memory = moved / count / 1e9 if memory is None else memory
        between = memory if _INTERCONNECT.value is None else _INTERCONNECT.value
        hardware = step_cost.Hardware(peak * 1e12, memory * 1e9, between * 1e9)
        print(step_cost.report(settings, count, hardware, _EFFICIENCY.value))
    except UserError as error:
        sys.exit(f"step_cost: {error}")


if __name__ == "__main__":
    run_program("step_cost", main)
