"""Compares evaluated runs in one self-contained HTML page.

python scripts/compare.py runs/a runs/b --out=compare.html

Name workdirs (whose reports are searched for in --eval_dir) or report folders. Runs that differ
only in their seed are grouped; the first group is the baseline.
"""

from __future__ import annotations

import sys

from absl import app, flags

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.compare.page import compare
from hjepa_jax.storage.files import local_path

_OUT = flags.DEFINE_string("out", "compare.html", "HTML file to write.")
_EVAL_DIR = flags.DEFINE_string("eval_dir", "eval_runs", "Folder of reports.")


def main(argv: list[str]) -> None:
    """Writes the page."""
    try:
        paths = [local_path(argument, "run") for argument in argv[1:]]
        eval_dir = local_path(_EVAL_DIR.value, "--eval_dir")
        groups = compare(paths, local_path(_OUT.value, "--out"), eval_dir)
    except UserError as error:
        sys.exit(f"compare: {error}")
    for group in groups:
        print(f"{group.name}: {', '.join(run.name for run in group.runs)}")
    print(f"page: {_OUT.value}")


if __name__ == "__main__":
    app.run(main)
