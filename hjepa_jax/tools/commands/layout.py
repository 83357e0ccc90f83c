"""Check that loss and gradient do not depend on the number of devices.

    hjepa layout --config=cifar100:smoke [--devices=1,2,4,8]

Takes one step of the configuration in each layout, on virtual CPU devices unless there are GPUs,
and prints the largest relative difference from the whole batch on one device. The exit status is 1
if it exceeds --tolerance.
"""

from __future__ import annotations

import re

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config
from hjepa_jax.errors import UserError

PROGRAM = Program("layout", __doc__)
_FLAGS = PROGRAM.flags
_CONFIG = define_config("cifar100:smoke", "What to check.", values=_FLAGS)
_DEVICES = flags.DEFINE_list(
    "devices", ["1", "2", "4", "8"], "Numbers of devices.", flag_values=_FLAGS
)
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 1e-9, "Largest relative difference, in float64.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Prints the comparison."""
    del argv
    if not _DEVICES.value or not all(re.fullmatch(r"[1-9]\d{0,3}", n) for n in _DEVICES.value):
        raise UserError(f"--devices={','.join(_DEVICES.value)}: use integers from 1 to 9999.")
    counts = [int(text) for text in _DEVICES.value]
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_num_cpu_devices", max(counts))
    from hjepa_jax.tools.layout_check import compare_layouts
    from hjepa_jax.training.automatic.resolved import resolved

    worst = 0.0
    for count, differences in compare_layouts(resolved(_CONFIG.value), counts).items():
        name, value = max(differences.items(), key=lambda item: item[1])
        worst = max(worst, value)
        print(f"{count} devices: largest relative difference {value:.1e} in {name}")
    if worst > _TOLERANCE.value:
        raise UserError(f"{worst:.1e} exceeds --tolerance={_TOLERANCE.value:.1e}.")
    print(f"{len(counts)} layouts agree to {worst:.1e}")


def run() -> None:
    """Entry point of `hjepa layout`."""
    PROGRAM.run(main)
