"""Where the report of an evaluation goes, and where those of a run are found again.

The first evaluation of a run goes to `<eval_dir>/<run>`. One that differs in anything (checkpoint,
data, number of images, settings, versions) goes to `<run>-step<N>-<data>-<digest>`, so that none
overwrites another, and the same evaluation lands in the same place again.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from hjepa_jax.storage.files import json_text
from hjepa_jax.storage.schema import Fields, read_json

METRICS = "metrics.json"
# A file name has at most 255 bytes, of which what follows the run's name needs some.
_NAME_BYTES = 160


def report_name(workdir: pathlib.Path) -> str:
    """Returns the name of a run, and of the folder of its first report: its workdir's, cut."""
    name = os.path.basename(os.path.abspath(workdir)) or "run"
    encoded = name.encode()
    if len(encoded) <= _NAME_BYTES:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:8]
    return f"{encoded[:_NAME_BYTES].decode(errors='ignore')}-{digest}"


def _identity(metrics: Mapping[str, Any]) -> str:
    """What makes two evaluations the same one: `info`, and the evaluated parts of the states."""
    parts = {name: one["state_part"] for name, one in metrics["encoders"].items()}
    # As JSON, so that tuples and lists are alike.
    return json.dumps(json.loads(json_text([metrics["info"], parts])), sort_keys=True)


def read_metrics(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the metrics of a report.

    Raises:
      OSError, ValueError: no such file, or no JSON object; the message is a sentence.
    """
    return read_json(folder / METRICS, Fields(), constants=True)


def _is_free(folder: pathlib.Path, identity: str) -> bool:
    """Whether a report may go there: nothing is there, or an earlier run of this evaluation."""
    if not os.path.lexists(folder):
        return True
    if not folder.is_dir():
        return False
    # A write that was cut off leaves nothing but a temporary file.
    if all(entry.name.startswith(f".{METRICS}.") for entry in folder.iterdir()):
        return True
    try:
        return _identity(read_metrics(folder)) == identity
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def report_folder(out_dir: str | os.PathLike[str], metrics: Mapping[str, Any]) -> pathlib.Path:
    """Returns the folder that a report goes to, without ever losing another one.

    That is `out_dir` if it is absent, empty, or holds an earlier run of the same evaluation (the
    same `info`, encoders and parts of the state), which is replaced; otherwise
    `out_dir-step<N>-<data>-<digest>` of this evaluation, with a number if that is taken by others.
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


def find_reports(eval_dir: pathlib.Path, run: str) -> list[pathlib.Path]:
    """Returns the folders in `eval_dir` with an evaluation of a run, its first one first.

    Reports that do not name their run belong to it where their folder's name is its, perhaps with a
    number after it; so do those that cannot be read.
    """
    if not eval_dir.is_dir():
        return []
    # Of an earlier version the second report of a run is `<run>-2`.
    plain = re.compile(re.escape(run) + r"(-\d+)?")
    digested = re.compile(re.escape(run) + r"-(.+-)?[0-9a-f]{8}(-\d+)?")
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
