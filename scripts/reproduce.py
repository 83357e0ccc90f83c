"""Runs or resumes the comparison of HJEPA with its baselines and writes docs/RESULTS.md.

python scripts/reproduce.py --root=/data/cifar10 --scale=small --out=runs/reproduce

`--root` is an image folder (or anything else that data.name=folder reads). Every method uses the
same recipe. Run the same command again after an interruption: finished runs are skipped, and an
interrupted one resumes from its checkpoint.
"""

from __future__ import annotations

import shlex
import sys

from absl import app, flags

from hjepa_jax.errors import UserError
from hjepa_jax.storage.files import check_writable_file, check_writable_folder, local_path
from hjepa_jax.tools.reproduce import METHODS, SCALES, gather, plan_runs, write_document
from hjepa_jax.tools.sweep import run_all

_ROOT = flags.DEFINE_string("root", None, "Image folder with training and test images.")
_OUT = flags.DEFINE_string("out", "runs/reproduce", "Folder of the runs.")
_REPORT = flags.DEFINE_string("report", "docs/RESULTS.md", "Document to write.")
_NOTES = flags.DEFINE_string("notes", None, "Markdown file to include in the document.")
_SCALE = flags.DEFINE_enum("scale", "full", list(SCALES), "The full recipe, or one for a CPU.")
_METHODS = flags.DEFINE_list("methods", list(METHODS), "Variants of configs/cifar100.py.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Values of config.seed.")
_OVERRIDES = flags.DEFINE_multi_string(
    "override", [], "'section.field=value' for every run; may be repeated."
)
_REPORT_ONLY = flags.DEFINE_boolean("report_only", False, "Only write the document.")


def main(argv: list[str]) -> None:
    """Runs the unfinished runs, then writes the document."""
    try:
        if argv[1:]:
            raise UserError(f"{argv[1]!r} is an unexpected argument.")
        if not all(text.isdigit() for text in _SEEDS.value):
            raise UserError(f"--seeds={','.join(_SEEDS.value)}: seeds must be integers.")
        data = [] if _ROOT.value is None else ["data.name=folder", f"data.root={_ROOT.value}"]
        out, report = local_path(_OUT.value, "--out"), local_path(_REPORT.value, "--report")
        check_writable_folder(out, "--out", checkpoints=True)
        check_writable_file(report, "--report")
        notes = local_path(_NOTES.value, "--notes").read_text() if _NOTES.value else ""
        runs = plan_runs(
            out,
            methods=_METHODS.value,
            seeds=[int(text) for text in _SEEDS.value],
            scale=_SCALE.value,
            overrides=[*data, *_OVERRIDES.value],
        )
        failed = {} if _REPORT_ONLY.value else run_all(list(runs.values()), out)
        write_document(
            gather(runs, out),
            report,
            command=_command(),
            notes=notes,
            planned=len(runs),
        )
    except (UserError, OSError) as error:
        sys.exit(f"reproduce: {error}")
    except KeyboardInterrupt:
        sys.exit("reproduce: interrupted; run the same command again to continue.")
    print(f"document: {_REPORT.value}")
    if failed:
        sys.exit(f"reproduce: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def _command() -> str:
    """Returns the command without the arguments that name local folders."""
    shared = [
        argument
        for argument in sys.argv[1:]
        if not argument.startswith(("--root", "--out", "--report", "--notes"))
    ]
    root = ["--root=DIR"] if _ROOT.value else []
    return shlex.join(["python", "scripts/reproduce.py", *root, *shared])


if __name__ == "__main__":
    app.run(main)
