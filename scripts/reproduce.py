"""Runs or resumes the comparison of HJEPA with its baselines and writes docs/RESULTS.md.

python scripts/reproduce.py --root=/data/cifar10 --scale=small --out=runs/reproduce

`--root` is an image folder (or what else data.name=folder reads). Every method gets the same
recipe; start the same command again after an interruption: finished runs are not run again, and
an interrupted one goes on from its checkpoint.
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
_REPORT_ONLY = flags.DEFINE_boolean("report_only", False, "Write the document of what is finished.")


def main(argv: list[str]) -> None:
    """Runs what is missing, then writes the document."""
    try:
        if argv[1:]:
            raise UserError(f"{argv[1]!r} is an unexpected argument.")
        if not all(text.isdigit() for text in _SEEDS.value):
            raise UserError(f"--seeds={','.join(_SEEDS.value)}: seeds are whole numbers.")
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
        sys.exit("reproduce: interrupted; start the same command again to go on.")
    print(f"document: {_REPORT.value}")
    if failed:
        sys.exit(f"reproduce: {len(failed)} of {len(runs)} runs failed: {', '.join(failed)}")


def _command() -> str:
    """Returns the command without what names this machine's folders."""
    kept = [
        argument
        for argument in sys.argv[1:]
        if not argument.startswith(("--root", "--out", "--report", "--notes"))
    ]
    root = ["--root=DIR"] if _ROOT.value else []
    return shlex.join(["python", "scripts/reproduce.py", *root, *kept])


if __name__ == "__main__":
    app.run(main)
