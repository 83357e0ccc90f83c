"""Kills a run repeatedly, and checks that it ends bit-identical to an undisturbed one.

python scripts/kill_test.py --kills=50 --seed=0 --out=soak --config=configs/quickstart.py:smoke

Every attempt gets the arguments given by `--override='--config.section.field=value'`. A kill takes
about half a minute, mostly startup.
"""

from __future__ import annotations

import sys
import time

from absl import app, flags
from absl import logging as absl_logging

from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path
from hjepa_jax.tools.kill_test import soak

_KILLS = flags.DEFINE_integer("kills", 50, "Attempts to kill or stop.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the kill times.")
_OUT = flags.DEFINE_string("out", None, "Empty or new folder for the runs.", required=True)
_CONFIG = flags.DEFINE_string("config", "configs/quickstart.py:smoke", "Configuration file.")
_STEPS_A_KILL = flags.DEFINE_integer("steps_per_kill", 8, "Length of the run in steps, per kill.")
_OVERRIDES = flags.DEFINE_multi_string("override", [], "Argument for every attempt; repeatable.")


def main(argv: list[str]) -> None:
    """Runs the test and prints the summary."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    absl_logging.set_verbosity(absl_logging.WARNING)
    steps = _STEPS_A_KILL.value * (_KILLS.value + 1)
    overrides = [
        f"--config={_CONFIG.value}",
        f"--config.train.max_steps={steps}",
        f"--config.train.epochs={steps}",
        "--config.checkpoint.every_steps=2",
        *_OVERRIDES.value,
    ]
    start = time.monotonic()
    try:
        out = local_path(_OUT.value, "--out")
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
    except UserError as error:
        sys.exit(f"kill_test: {error}")
    print(f"{done.summary()} {(time.monotonic() - start) / 60:.0f} minutes.")


if __name__ == "__main__":
    app.run(main)
