"""Run or resume the comparison of HJEPA with its baselines and write docs/RESULTS.md.

    hjepa reproduce --root=/data/cifar10 --scale=small --out=runs/reproduce

--root is an image folder (or anything else that data.name=folder reads). Every method uses the same
recipe. Run the same command again after an interruption: finished runs are skipped, and an
interrupted one resumes from its checkpoint.
"""

from __future__ import annotations

import shlex
import sys

from absl import flags

from hjepa_jax.config.command_line.program import Program
from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_file, check_writable_folder, local_path

PROGRAM = Program("reproduce", __doc__)
_FLAGS = PROGRAM.flags
_ROOT = flags.DEFINE_string(
    "root", None, "Image folder with training and test images.", flag_values=_FLAGS
)
_OUT = flags.DEFINE_string("out", "runs/reproduce", "Folder of the runs.", flag_values=_FLAGS)
_REPORT = flags.DEFINE_string("report", "docs/RESULTS.md", "Document to write.", flag_values=_FLAGS)
_NOTES = flags.DEFINE_string(
    "notes", None, "Markdown file to include in the document.", flag_values=_FLAGS
)
_SCALE = flags.DEFINE_string(
    "scale",
    "full",
    "The 'full' recipe; 'middle', of all images, or 'small', for a CPU.",
    flag_values=_FLAGS,
)
_METHODS = flags.DEFINE_list(
    "methods", None, "Methods to compare; those of the scale by default.", flag_values=_FLAGS
)
_TUNED = flags.DEFINE_string(
    "tuned",
    None,
    "Folder of 'hjepa tune': also train every method with the best values found there.",
    flag_values=_FLAGS,
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Values of config.seed.", flag_values=_FLAGS)
_OVERRIDES = flags.DEFINE_multi_string(
    "override", [], "'section.field=value' for every run; may be repeated.", flag_values=_FLAGS
)
_REPORT_ONLY = flags.DEFINE_boolean(
    "report_only", False, "Only write the document.", flag_values=_FLAGS
)


def main(argv: list[str]) -> None:
    """Runs the unfinished runs, then writes the document."""
    del argv
    from hjepa_jax.tools.reproduce import gather, plan_runs, write_document
    from hjepa_jax.tools.reproduction.recipes import default_methods
    from hjepa_jax.tools.sweep import run_all

    try:
        if not all(text.isdigit() for text in _SEEDS.value):
            raise UserError(f"--seeds={','.join(_SEEDS.value)}: seeds must be integers.")
        data = [] if _ROOT.value is None else ["data.name=folder", f"data.root={_ROOT.value}"]
        out, report = local_path(_OUT.value, "--out"), local_path(_REPORT.value, "--report")
        check_writable_folder(out, "--out", checkpoints=True)
        check_writable_file(report, "--report")
        notes = local_path(_NOTES.value, "--notes").read_text() if _NOTES.value else ""
        runs = plan_runs(
            out,
            methods=_METHODS.value or default_methods(_SCALE.value),
            seeds=[int(text) for text in _SEEDS.value],
            scale=_SCALE.value,
            overrides=[*data, *_OVERRIDES.value],
            tuned=local_path(_TUNED.value, "--tuned") if _TUNED.value else None,
        )
        failed = {} if _REPORT_ONLY.value else run_all(list(runs.values()), out)
        found = gather(runs, out)
        write_document(found, report, command=_command(), notes=notes, planned=len(runs))
    except OSError as error:
        raise UserError(str(error)) from error
    except KeyboardInterrupt:
        raise UserError("interrupted; run the same command again to continue.") from None
    print(f"document: {_REPORT.value}")
    if failed:
        raise UserError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def _command() -> str:
    """Returns the command without the arguments that name local folders."""
    shared = [
        argument
        for argument in sys.argv[1:]
        if not argument.startswith(("--root", "--out", "--report", "--notes", "--tuned"))
    ]
    root = ["--root=DIR"] if _ROOT.value else []
    root += ["--tuned=TUNING"] if _TUNED.value else []
    return shlex.join(["hjepa", "reproduce", *root, *shared])


def run() -> None:
    """Entry point of `hjepa reproduce`."""
    PROGRAM.run(main)
