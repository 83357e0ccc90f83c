r"""Run a configuration with several variants, settings and seeds, and tabulate the results.

    hjepa sweep --config=quickstart --variants=hjepa,sigreg --seeds=0,1,2 \
        --setting='train.lr=1e-3' --setting='train.lr=2e-3' --out=sweeps/lr

Run the same command again after an interruption: finished runs are skipped.
"""

from __future__ import annotations

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.config.flags import define_config
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path

PROGRAM = Program(
    "sweep", __doc__, required=("config", "out"), example="--config=quickstart --out=sweeps/seeds"
)
_FLAGS = PROGRAM.flags
define_config(None, "What to train; overrides hold for every run.", values=_FLAGS)
_OUT = flags.DEFINE_string("out", None, "Folder of the sweep.", flag_values=_FLAGS)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Values of config.seed.", flag_values=_FLAGS)
_VARIANTS = flags.DEFINE_list(
    "variants", [""], "Variants of the configuration.", flag_values=_FLAGS
)
_SETTINGS = flags.DEFINE_multi_string(
    "setting",
    [""],
    "Overrides 'section.field=value ...' of one ablation; may be repeated.",
    flag_values=_FLAGS,
)
_COMMON = flags.DEFINE_multi_string(
    "common", [], "Override for every run; may be repeated.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Runs the sweep and writes the table."""
    del argv
    from hjepa_jax.tools.sweep import plan, run_all, seeds_of, write_results

    seeds = seeds_of(_SEEDS.value)
    out = local_path(str(_OUT.value), "--out")
    check_writable_folder(out, "--out", checkpoints=True)
    try:
        runs = plan(
            str(PROGRAM.source),
            out,
            variants=_VARIANTS.value,
            settings=_SETTINGS.value,
            seeds=seeds,
            common=[*_COMMON.value, *PROGRAM.overrides()],
        )
        failed = run_all(runs, out)
    except KeyboardInterrupt:
        raise UserError("interrupted; run the same command again to continue.") from None
    print(write_results(runs, out))
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def run() -> None:
    """Entry point of `hjepa sweep`."""
    PROGRAM.run(main)
