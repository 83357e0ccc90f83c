"""Compare evaluated runs in one self-contained HTML page.

    hjepa compare runs/a runs/b --out=compare.html

Name workdirs, whose reports are in their own folders or in --eval_dir, or report folders. Runs that
differ only in their seed are grouped; the first group is the baseline.
"""

from __future__ import annotations

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.storage.files import local_path

PROGRAM = Program(
    "compare",
    __doc__,
    arguments="RUN [RUN ...]",
    number=(1, 10_000),
    example="runs/a runs/b",
)
_FLAGS = PROGRAM.flags
_OUT = flags.DEFINE_string("out", "compare.html", "HTML file to write.", flag_values=_FLAGS)
_EVAL_DIR = flags.DEFINE_string(
    "eval_dir", None, "Folder of reports beside those in the runs' own.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Writes the page."""
    from hjepa_jax.evaluation.compare.page import compare

    paths = [local_path(argument, "run") for argument in argv[1:]]
    given = _EVAL_DIR.value
    eval_dir = None if given is None else local_path(str(given), "--eval_dir")
    for group in compare(paths, local_path(_OUT.value, "--out"), eval_dir):
        print(f"{group.name}: {', '.join(run.name for run in group.runs)}")
    print(f"page: {_OUT.value}")


def run() -> None:
    """Entry point of `hjepa compare`."""
    PROGRAM.run(main)
