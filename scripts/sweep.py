"""Runs a configuration with several variants, settings and seeds, and tabulates the results.

python scripts/sweep.py --config=configs/quickstart.py --variants=hjepa,sigreg --seeds=0,1,2 \
    --setting='train.lr=1e-3' --setting='train.lr=2e-3' --out=sweeps/lr

Run the same command again after an interruption: finished runs are skipped.
"""

from __future__ import annotations

import sys

from absl import app, flags

from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_folder, local_path
from hjepa_jax.tools.sweep import plan, run_all, write_results

_CONFIG = flags.DEFINE_string("config", None, "Configuration file.", required=True)
_OUT = flags.DEFINE_string("out", None, "Folder of the sweep.", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Values of config.seed.")
_VARIANTS = flags.DEFINE_list("variants", [""], "Variants of the configuration.")
_SETTINGS = flags.DEFINE_multi_string(
    "setting", [""], "Overrides 'section.field=value ...' of one ablation; may be repeated."
)
_COMMON = flags.DEFINE_multi_string("common", [], "Override for every run; may be repeated.")


def main(argv: list[str]) -> None:
    """Runs the sweep and writes the table."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]}")
    try:
        if not all(text.lstrip("-").isdigit() for text in _SEEDS.value):
            raise UserError(f"--seeds={','.join(_SEEDS.value)}: seeds must be integers.")
        out = local_path(_OUT.value, "--out")
        check_writable_folder(out, "--out", checkpoints=True)
        runs = plan(
            _CONFIG.value,
            out,
            variants=_VARIANTS.value,
            settings=_SETTINGS.value,
            seeds=[int(text) for text in _SEEDS.value],
            common=_COMMON.value,
        )
        failed = run_all(runs, out)
        print(write_results(runs, out))
    except UserError as error:
        sys.exit(f"sweep: {error}")
    except KeyboardInterrupt:
        sys.exit("sweep: interrupted; run the same command again to continue.")
    if failed:
        sys.exit(f"sweep: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


if __name__ == "__main__":
    app.run(main)
