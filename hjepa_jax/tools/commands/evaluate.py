"""Evaluate a run: kNN, probes, diagnostics, pictures, and a report.

    hjepa eval runs/x
    hjepa eval runs/x --checkpoint=best --config.evaluation.robustness=gray,blur

The run's own config.json is the configuration; overrides change it.
"""

from __future__ import annotations

import sys

from hjepa_jax import main as training
from hjepa_jax.config.command_line.program import Program
from hjepa_jax.errors import UserError

PROGRAM = Program("eval", __doc__, arguments="RUN", number=(1, 1), example="runs/x")
_OF_TRAINING_ALONE = ("mode", "resume", "workdir")
for _name in training.PROGRAM.flags:
    if _name not in _OF_TRAINING_ALONE:
        PROGRAM.flags[_name] = training.PROGRAM.flags[_name]


def as_training(argv: list[str]) -> list[str]:
    """Returns the command line of `hjepa train` that does the same.

    Raises:
      UserError: if no run is named first.
    """
    if len(argv) < 2 or argv[1].startswith("-"):
        raise UserError("the folder of a run comes first, for example hjepa eval runs/x.")
    run_folder, rest = argv[1], argv[2:]
    return [argv[0], "--mode=eval", f"--config={run_folder}", f"--workdir={run_folder}", *rest]


def run() -> None:
    """Entry point of `hjepa eval`."""
    if PROGRAM.asks_for_help(sys.argv):
        PROGRAM.parse(sys.argv)
    training.run(as_training)
