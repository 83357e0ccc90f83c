"""Evaluate a run: kNN, probes, diagnostics, pictures, and a report.

    hjepa eval runs/x
    hjepa eval runs/x --checkpoint=best --config.evaluation.robustness=gray,blur
    hjepa eval runs/x --coord=both --config.evaluation.posthoc=learnable

The run's own config.json is the configuration; overrides change it.
"""

from __future__ import annotations

import sys

from absl import flags

from hjepa_jax import main as training
from hjepa_jax.config.command_line.program import Program
from hjepa_jax.errors import UserError

PROGRAM = Program("eval", __doc__, arguments="RUN", number=(1, 1), example="runs/x")
_OF_TRAINING_ALONE = ("mode", "resume", "stop_after", "workdir")
for _name in training.PROGRAM.flags:
    if _name not in _OF_TRAINING_ALONE:
        PROGRAM.flags[_name] = training.PROGRAM.flags[_name]
# Its value -> that of the field.
_COORDINATES = {"raw": "raw", "ham": "sqrt_h", "sqrt_h": "sqrt_h", "both": "both"}
flags.DEFINE_enum(
    "coord",
    None,
    list(_COORDINATES),
    "Coordinates: the state z as encoded ('raw'), H^{1/2} z ('ham' or 'sqrt_h'), or 'both', as "
    "--config.evaluation.coordinates.",
    flag_values=PROGRAM.flags,
)


def as_training(argv: list[str]) -> list[str]:
    """Returns the command line of `hjepa train` that does the same.

    Raises:
      UserError: if no run is named first, or --coord has no known value.
    """
    if len(argv) < 2 or argv[1].startswith("-"):
        raise UserError("the folder of a run comes first, for example hjepa eval runs/x.")
    run_folder, rest = argv[1], _with_coordinates(argv[2:])
    return [argv[0], "--mode=eval", f"--config={run_folder}", f"--workdir={run_folder}", *rest]


def _with_coordinates(arguments: list[str]) -> list[str]:
    """Returns arguments with `--coord=VALUE` or `--coord VALUE` replaced by the field."""
    found, rest = [], iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name not in ("--coord", "-coord"):
            found.append(argument)
            continue
        value = value if equals else next(rest, "")
        if value not in _COORDINATES:
            raise UserError(f"--coord is {value!r}: it must be one of {', '.join(_COORDINATES)}.")
        found.append(f"--config.evaluation.coordinates={_COORDINATES[value]}")
    return found


def run() -> None:
    """Entry point of `hjepa eval`."""
    if PROGRAM.asks_for_help(sys.argv):
        PROGRAM.parse(sys.argv)
    training.run(as_training)
