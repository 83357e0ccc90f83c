"""The evaluations of a run's checkpoints on disk.

Those of the first protocol are in `checkpoint_curves` in the run's folder, those of another (other
settings, images, or version) in `checkpoint_curves-<digest>`: `protocol.json` says which it is, and
`step<N>.json` has the metrics of a checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import hjepa_jax
from hjepa_jax.config import Settings, may_change_on_resume, may_differ_between_processes
from hjepa_jax.errors import UserError, first_line
from hjepa_jax.evaluation.protocol import SCHEMA_VERSION
from hjepa_jax.evaluation.report.about import Watched, settings_of
from hjepa_jax.evaluation.report.plots import Metrics
from hjepa_jax.evaluation.report.summary import headline, headline_ks, titles_at
from hjepa_jax.storage.files import json_ready, json_text, write_atomically
from hjepa_jax.storage.schema import (
    Anything,
    Fields,
    Items,
    Maybe,
    Number,
    Table,
    Text,
    Whole,
    read_json,
)

_log = logging.getLogger(__name__)
FOLDER = "checkpoint_curves"
# Rows of a report that are not of a checkpoint.
BASELINES: tuple[str, ...] = ("evaluation.random_baseline", "evaluation.pixel_baseline")
_PROTOCOL = "protocol.json"
_RESULT_NAME = re.compile(r"step(0|[1-9][0-9]{0,17})\.json")
_PROTOCOL_SCHEMA = Fields({"identity": Fields({"settings": Table(Anything())})})
_RESULT = Fields(
    {
        "step": Whole(0),
        "epoch": Maybe(Number()),
        "checkpoint": Text(),
        "device": Text(),
        "figures": Table(Maybe(Number())),
        "k_values": Items(Whole(1), 1),
        "headline_k": Whole(1),
        "no_accuracy": Maybe(Text()),
    }
)


class Point(NamedTuple):
    """One evaluated checkpoint.

    Attributes:
      step: steps done; 0 = the random initialization.
      epoch: epochs done; None = unknown.
      figures: headline figures; missing values are NaN.
    """

    step: int
    epoch: float | None
    figures: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Evaluations:
    """The evaluated checkpoints of a run by one protocol.

    Attributes:
      folder: where they are.
      settings: the protocol: the settings that affect the results, without the seed.
      points: the checkpoints, by step.
      titles: title of each figure.
      reason: why there is no accuracy; '' if there is one.
      devices: kinds of devices that they were evaluated on.
    """

    folder: pathlib.Path
    settings: Mapping[str, object]
    points: Sequence[Point]
    titles: Mapping[str, str]
    reason: str
    devices: frozenset[str]


def digest(value: object) -> str:
    """Returns a short digest of a value that JSON can hold."""
    text = json.dumps(json_ready(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def identity_of(
    settings: Settings, saved: Settings, train: Watched, test: Watched
) -> dict[str, Any]:
    """Returns what identifies a protocol and the training that it is applied to.

    Args:
      settings: those of the evaluation.
      saved: the run's settings.
      train: the training images.
      test: the test images.
    """
    values = {
        name: value
        for name, value in settings_of(settings).items()
        if name not in ("seed", *BASELINES)
    }
    found = {
        "settings": values,
        "images": {
            name: one.source.fingerprint() for name, one in zip(("train", "test"), (train, test))
        },
        "training": {
            path: value
            for path, value in saved.values().items()
            if not may_change_on_resume(path, saved)
            and not may_differ_between_processes(path, saved)
        },
        "version": hjepa_jax.__version__,
        "schema_version": SCHEMA_VERSION,
    }
    # As JSON, in which tuples and lists are equal.
    return json.loads(json_text(found))


def _identity_in(folder: pathlib.Path) -> dict[str, Any] | None:
    """Returns the identity of a folder's protocol; None if there is none that can be read."""
    try:
        return read_json(folder / _PROTOCOL, _PROTOCOL_SCHEMA)["identity"]
    except (OSError, ValueError):
        return None


def open_folder(workdir: pathlib.Path, identity: Mapping[str, Any]) -> pathlib.Path:
    """Returns the folder of a protocol's results, which it creates, with `protocol.json`.

    Raises:
      UserError: if it cannot be written.
    """
    folder = workdir / FOLDER
    if folder.exists() and _identity_in(folder) != identity:
        folder = workdir / f"{FOLDER}-{digest(identity)}"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if _identity_in(folder) != identity:
            write_atomically(folder / _PROTOCOL, json_text({"identity": identity}))
    return folder


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """Raises a UserError that names the folder if something in it cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}.") from error


def write_result(
    folder: pathlib.Path, step: int, epoch: float | None, checkpoint: str, metrics: Metrics
) -> None:
    """Writes the evaluation of a checkpoint atomically.

    Args:
      folder: from `open_folder`.
      step: its step; 0 = the random initialization.
      epoch: epochs done; None = unknown.
      checkpoint: digest of its content.
      metrics: metrics of `run_protocol`; the figures are those of the first row.

    Raises:
      UserError: if it cannot be written.
    """
    one = next(iter(metrics["encoders"].values()))
    content = {
        "step": step,
        "epoch": epoch,
        "checkpoint": checkpoint,
        "device": str(metrics["info"]["device"]),
        # Missing values are null here, and listed in the metrics.
        "figures": {
            name: value if math.isfinite(value) else None
            for name, value in headline(one, metrics["headline_k"]).items()
        },
        "k_values": one["knn"]["k_values"],
        "headline_k": metrics["headline_k"],
        "no_accuracy": one.get("no_accuracy"),
        # Times say nothing of the checkpoint, and kept features have none.
        "metrics": json_ready({n: v for n, v in metrics.items() if n != "feature_extraction"}),
    }
    with _writing(folder):
        write_atomically(folder / f"step{step}.json", json_text(content))


def is_done(folder: pathlib.Path, step: int, checkpoint: str) -> bool:
    """Returns whether a folder has the evaluation of a checkpoint with this content."""
    path = folder / f"step{step}.json"
    return path.exists() and (_read_result(path) or {}).get("checkpoint") == checkpoint


def _read_result(path: pathlib.Path) -> dict[str, Any] | None:
    """Returns a result; None if it cannot be read, which is told."""
    try:
        return read_json(path, _RESULT)
    except (OSError, ValueError) as error:
        _log.warning("%s is not read: %s", path, first_line(error))
        return None


def read_evaluations(folder: pathlib.Path) -> Evaluations | None:
    """Returns the evaluations in a folder; None if there are none that can be read."""
    identity = _identity_in(folder)
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    read = (_read_result(folder / name) for name in names if _RESULT_NAME.fullmatch(name))
    results = sorted((one for one in read if one is not None), key=lambda one: one["step"])
    if identity is None or not results:
        return None
    points = [
        Point(
            one["step"],
            one["epoch"],
            {name: math.nan if x is None else x for name, x in one["figures"].items()},
        )
        for one in results
    ]
    last = results[-1]
    return Evaluations(
        folder,
        identity["settings"],
        points,
        titles_at(headline_ks({"knn": last}, last["headline_k"]), last["figures"]),
        last["no_accuracy"] or "",
        frozenset(one["device"] for one in results),
    )


def evaluations_of(workdir: pathlib.Path) -> list[Evaluations]:
    """Returns the evaluations of a run's checkpoints, one for each protocol."""
    folders = sorted(workdir.glob(f"{FOLDER}*")) if workdir.is_dir() else []
    return [one for folder in folders if (one := read_evaluations(folder)) is not None]


def by_common_protocol(runs: Sequence[Sequence[Evaluations]]) -> list[Evaluations | None]:
    """Chooses the protocol that most runs have, of several the one with most checkpoints.

    Args:
      runs: for each run its evaluations by each protocol.

    Returns:
      The chosen evaluations of each run; None if it has none by this protocol.
    """

    def key(one: Evaluations) -> str:
        return digest(one.settings)

    counts: dict[str, tuple[int, int]] = {}
    for found in runs:
        for one in found:
            having, points = counts.get(key(one), (0, 0))
            counts[key(one)] = having + 1, points + len(one.points)
    if not counts:
        return [None for _ in runs]
    best = max(counts, key=lambda name: counts[name])
    return [next((one for one in found if key(one) == best), None) for found in runs]
