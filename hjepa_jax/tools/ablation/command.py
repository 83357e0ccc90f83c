r"""Train and evaluate every combination of some parts of HJEPA, and tabulate what each brings.

    hjepa ablation --config=cifar100 --out=ablation --seeds=0,1
    hjepa ablation --config=cifar100 --out=width --axes=predictor \
        --level='width narrow resnet.width=16' --level='width wide resnet.width=32'

Run the same command again after an interruption: finished runs are skipped. A level's fields, and
overrides of all runs, count where they have an effect.
"""

from __future__ import annotations

import shlex
import sys

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path
from hjepa_jax.tools.ablation.axes import AXES, arms_of, chosen_axes

PROGRAM = Program(
    "ablation", __doc__, required=("config", "out"), example="--config=quickstart --out=ablation"
)
_FLAGS = PROGRAM.flags
define_config(None, "What to train; overrides hold for every run.", values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "Folder of the ablation.", flag_values=_FLAGS)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Values of config.seed.", flag_values=_FLAGS)
_AXES = flags.DEFINE_list("axes", list(AXES), "Axes to combine.", flag_values=_FLAGS)
_LEVELS = flags.DEFINE_multi_string(
    "level",
    [],
    "Another level, or another axis: 'AXIS LEVEL section.field=value ...'; may be repeated.",
    flag_values=_FLAGS,
)


def main(argv: list[str]) -> None:
    """Runs the ablation and writes the table."""
    del argv
    from hjepa_jax.tools.ablation.report import write_ablation
    from hjepa_jax.tools.sweep import plan_run, run_all, seeds_of, with_effect

    seeds = list(dict.fromkeys(seeds_of(_SEEDS.value)))
    out = local_path(str(_OUT.value), "--out")
    axes = chosen_axes(_AXES.value, _LEVELS.value)
    config, arms = str(PROGRAM.source), arms_of(axes)
    check_writable_folder(out, "--out", checkpoints=True)
    common = PROGRAM.overrides()
    effective = {arm.name: with_effect(config, (*common, *arm.overrides)) for arm in arms}
    # Seed by seed, so that an interrupted ablation is balanced.
    runs = {
        (arm, seed): plan_run(config, out, arm, overrides, seed)
        for seed in seeds
        for arm, overrides in effective.items()
    }
    try:
        failed = run_all(list(runs.values()), out)
    except KeyboardInterrupt:
        raise UserError("interrupted; run the same command again to continue.") from None
    print(write_ablation(axes, arms, runs, out, shlex.join(["hjepa", "ablation", *sys.argv[1:]])))
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def run() -> None:
    """Entry point of `hjepa ablation`."""
    PROGRAM.run(main)
