"""Folders of evaluation reports: where a report is written, and how those of a run are found.

The first evaluation of a run goes to `evaluation` in its own folder, or to `<eval_dir>/<run>`. A
different one (in checkpoint, data, number of images, settings, or versions) goes beside it, to
`evaluation-step<N>-<data>-<digest>` or `<run>-step<N>-<data>-<digest>`, so that none overwrites
another; a repeated evaluation goes to the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from typing import Any

from hjepa_jax.evaluation.paired.per_image import ANSWERS
from hjepa_jax.evaluation.report.plots import Metrics
from hjepa_jax.storage.files import json_text
from hjepa_jax.storage.schema import Fields, read_json

METRICS = "metrics.json"
# The first report in a run's own folder.
_INSIDE = "evaluation"
# Where earlier versions put reports unless told otherwise.
_EARLIER = pathlib.Path("eval_runs")
# What follows the name of the first report in those of others.
_DIGEST = r"-(.+-)?[0-9a-f]{8}(-\d+)?"
# A file name has at most 255 bytes; some are needed for the suffix after the run's name.
_NAME_BYTES = 160


def report_name(workdir: pathlib.Path) -> str:
    """Returns the name of a run and its first report folder: its workdir's name, truncated."""
    name = os.path.basename(os.path.abspath(workdir)) or "run"
    encoded = name.encode()
    if len(encoded) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[:_NAME_BYTES].decode(errors='ignore')}-{digest}"


def first_report(workdir: pathlib.Path, eval_dir: pathlib.Path | None) -> pathlib.Path:
    """Returns the folder of a run's first report; None = in the run's own folder."""
    return workdir / _INSIDE if eval_dir is None else eval_dir / report_name(workdir)


def _identity(metrics: Metrics) -> str:
    """Returns what identifies an evaluation: `info`, and the evaluated parts of the states."""
    parts = {name: one["state_part"] for name, one in metrics["encoders"].items()}
    # As JSON, in which tuples and lists are equal.
    return json.dumps(json.loads(json_text([metrics["info"], parts])), sort_keys=True)


def read_metrics(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the metrics of a report.

    Raises:
      OSError, ValueError: no such file, or not a JSON object.
    """
    return read_json(folder / METRICS, Fields(), constants=True)


def _is_free(folder: pathlib.Path, identity: str) -> bool:
    """Returns whether a report may go there: it is free, or has the same evaluation."""
    if not os.path.lexists(folder):
        return True
    if not folder.is_dir():
        return False
    # An interrupted write leaves only temporary files and what is written first.
    partial = (ANSWERS, f".{ANSWERS}.", f".{METRICS}.")
    if all(entry.name.startswith(partial) for entry in folder.iterdir()):
        return True
    try:
        return _identity(read_metrics(folder)) == identity
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def report_folder(out_dir: str | os.PathLike[str], metrics: Metrics) -> pathlib.Path:
    """Returns the folder that a report goes to, which never has a different report.

    It is `out_dir` if that is absent, empty, or has a report of the same evaluation (the same
    `info`, encoders and parts of the state), which is replaced; otherwise
    `out_dir-step<N>-<data>-<digest>`, with a number if that is taken.
    """
    base, identity = pathlib.Path(out_dir), _identity(metrics)
    if _is_free(base, identity):
        return base
    info = metrics["info"]
    parts = [f"step{info['step']}"] if "step" in info else []
    parts += [re.sub(r"[^\w.+-]+", "_", str(info["data"]))[:32]] if "data" in info else []
    parts.append(hashlib.sha256(identity.encode()).hexdigest()[:8])
    own = base.with_name("-".join([base.name, *parts]))
    folder, number = own, 1
    while not _is_free(folder, identity):
        number += 1
        folder = own.with_name(f"{own.name}-{number}")
    return folder


def searched(eval_dir: pathlib.Path | None) -> pathlib.Path:
    """Returns the folder in which reports outside a run's own are looked for, see `reports_of`."""
    return _EARLIER if eval_dir is None else eval_dir


def reports_of(workdir: pathlib.Path, eval_dir: pathlib.Path | None) -> list[pathlib.Path]:
    """Returns the folders with an evaluation of a run, those in its own folder first.

    Args:
      workdir: the run.
      eval_dir: another folder of reports; None = that of earlier versions, 'eval_runs'.
    """
    pattern = re.compile(f"{_INSIDE}({_DIGEST})?")
    folders = sorted(workdir.iterdir()) if workdir.is_dir() else []
    inside = [f for f in folders if pattern.fullmatch(f.name) and (f / METRICS).is_file()]
    return inside + find_reports(searched(eval_dir), report_name(workdir))


def newest_beside(workdir: pathlib.Path, eval_dir: pathlib.Path | None) -> pathlib.Path | None:
    """Returns the run beside `workdir` that was evaluated last; None if none was.

    Args:
      workdir: a run.
      eval_dir: another folder of reports, see `reports_of`.
    """
    evaluated = dict[pathlib.Path, float]()
    try:
        for folder in workdir.parent.iterdir():
            if folder.name == workdir.name or not (folder / "config.json").is_file():
                continue
            times = [(report / METRICS).stat().st_mtime for report in reports_of(folder, eval_dir)]
            if times:
                evaluated[folder] = max(times)
    except OSError:  # it is only a suggestion
        return None
    return max(evaluated, key=lambda folder: evaluated[folder], default=None)


def find_reports(eval_dir: pathlib.Path, run: str) -> list[pathlib.Path]:
    """Returns the folders in `eval_dir` with an evaluation of a run, the first one first.

    Reports that do not name their run, or cannot be read, belong to it if the name of their folder
    is that of the run, optionally with a number.
    """
    if not eval_dir.is_dir():
        return []
    # Earlier versions named the second report of a run `<run>-2`.
    plain = re.compile(re.escape(run) + r"(-\d+)?")
    digested = re.compile(re.escape(run) + _DIGEST)
    found = []
    for folder in sorted(eval_dir.iterdir()):
        first = plain.fullmatch(folder.name)
        if not (first or digested.fullmatch(folder.name)) or not (folder / METRICS).is_file():
            continue
        try:
            owner = read_metrics(folder)["info"].get("run")
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            owner = None
        if owner == run or (owner is None and first):
            found.append(folder)
    return found
