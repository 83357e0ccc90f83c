"""Kill a run repeatedly, and check that it ends bit-identical to an undisturbed one.

    hjepa kill-test --kills=50 --seed=0 --out=soak --config=quickstart:smoke

Every attempt gets the overrides, and the arguments given by --override. A kill takes about half a
minute, mostly startup.
"""

from __future__ import annotations

import logging
import time

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config, resolve_arguments
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path

PROGRAM = Program(
    "kill-test", __doc__, required=("out",), example="--out=soak", level=logging.WARNING
)
_FLAGS = PROGRAM.flags
define_config("quickstart:smoke", "What to train.", values=_FLAGS)
_KILLS = flags.DEFINE_integer(
    "kills", 50, "Attempts to kill or stop.", lower_bound=1, flag_values=_FLAGS
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the kill times.", flag_values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "Empty or new folder for the runs.", flag_values=_FLAGS)
_STEPS_A_KILL = flags.DEFINE_integer(
    "steps_per_kill", 8, "Length of the run in steps, per kill.", flag_values=_FLAGS
)
_OVERRIDES = flags.DEFINE_multi_string(
    "override", [], "Argument for every attempt; may be repeated.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Runs the test and prints the summary."""
    del argv
    from hjepa_jax.tools.kill_test import soak

    steps = _STEPS_A_KILL.value * (_KILLS.value + 1)
    overrides = [
        f"--config={PROGRAM.source}",
        f"--config.train.max_steps={steps}",
        f"--config.train.epochs={steps}",
        "--config.checkpoint.every_steps=2",
        *PROGRAM.overrides(),
        *_OVERRIDES.value,
    ]
    start = time.monotonic()
    out = local_path(str(_OUT.value), "--out")
    check_writable_folder(out, "--out", checkpoints=True)
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out={out} is not empty: choose another folder.")
    resolve_arguments(overrides)
    done = soak(
        out,
        kills=_KILLS.value,
        seed=_SEED.value,
        overrides=overrides,
        log=lambda line: print(line, flush=True),
    )
    print(f"{done.summary()} {(time.monotonic() - start) / 60:.0f} minutes.")


def run() -> None:
    """Entry point of `hjepa kill-test`."""
    PROGRAM.run(main)
