r"""Tune methods by random search, each with the same number of trials, on held-out training images.

    hjepa tune --config=cifar100 --out=tuning --trials=30 --methods=hjepa,sigreg,lejepa \
        --config.data.max_train_images=20000 --config.train.epochs=6
    hjepa train --flagfile=tuning/best/hjepa.flags --workdir=runs/tuned

Trials with a poor kNN are stopped early, by the same rule for all methods. Run the same command
again after an interruption: what is trained is kept. A field that is set is not drawn.
"""

from __future__ import annotations

import shlex
import sys

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path

PROGRAM = Program(
    "tune", __doc__, required=("config", "out"), example="--config=quickstart --out=tuning"
)
_FLAGS = PROGRAM.flags
define_config(None, "What to tune; overrides hold for every trial.", values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "Folder of the search.", flag_values=_FLAGS)
_METHODS = flags.DEFINE_list(
    "methods", ["hjepa", "sigreg", "lejepa"], "Methods to tune.", flag_values=_FLAGS
)
_RANGES = flags.DEFINE_string(
    "ranges",
    None,
    "YAML file with methods and ranges that replace or extend those of the package.",
    flag_values=_FLAGS,
)
_TRIALS = flags.DEFINE_integer(
    "trials",
    20,
    "Trials of each method; the first is the configuration itself.",
    lower_bound=1,
    upper_bound=999,
    flag_values=_FLAGS,
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the draws.", lower_bound=0, flag_values=_FLAGS)
_FACTOR = flags.DEFINE_integer(
    "factor",
    3,
    "One trial in this many goes on to this many times the steps.",
    lower_bound=2,
    flag_values=_FLAGS,
)
_RUNGS = flags.DEFINE_integer(
    "rungs",
    2,
    "Comparisons before the end; 0 = every trial is trained to the end.",
    lower_bound=0,
    upper_bound=10,
    flag_values=_FLAGS,
)
_HOLDOUT = flags.DEFINE_integer(
    "holdout",
    None,
    "Training images to hold out and test on; by default config.evaluation.online_holdout, or a "
    "tenth.",
    lower_bound=1,
    flag_values=_FLAGS,
)


def main(argv: list[str]) -> None:
    """Runs the search and writes the results."""
    del argv
    from hjepa_jax.runtime.workdir_lock import WorkdirLock
    from hjepa_jax.tools.tuning.ranges import SPACES, chosen_spaces, read_spaces
    from hjepa_jax.tools.tuning.report import write_search
    from hjepa_jax.tools.tuning.trials import Rules, plan_method, run_search

    out = local_path(str(_OUT.value), "--out")
    file = _RANGES.value
    known = SPACES if file is None else read_spaces(local_path(file, "--ranges"))
    spaces = chosen_spaces(_METHODS.value, known, [path for path, _ in PROGRAM.given])
    check_writable_folder(out, "--out", checkpoints=True)
    rules = Rules(_SEED.value, _TRIALS.value, _FACTOR.value, _RUNGS.value, _HOLDOUT.value)
    command = shlex.join(["hjepa", "tune", *sys.argv[1:]])
    config, common = str(PROGRAM.source), PROGRAM.overrides()
    with WorkdirLock(out):
        plans = [
            plan_method(config, out, name, space, common, rules) for name, space in spaces.items()
        ]
        try:
            outcomes = run_search(
                plans,
                out,
                rules.factor,
                report=lambda known: write_search(plans, known, rules, out, command),
            )
        except KeyboardInterrupt:
            raise UserError("interrupted; run the same command again to continue.") from None
    print(write_search(plans, outcomes, rules, out, command))
    lost = [plan.method for plan in plans if outcomes[plan.method].best(plan.steps[-1]) is None]
    if lost:
        reasons = outcomes[lost[0]].failed
        raise UserError(
            f"no trial of {', '.join(lost)} reached the end: {next(iter(reasons.values()), '')}"
        )


def run() -> None:
    """Entry point of `hjepa tune`."""
    PROGRAM.run(main)
