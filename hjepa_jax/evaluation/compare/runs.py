"""Finished runs read from disk: metrics, configuration, curves, and groups of seeds."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from hjepa_jax.config import rows
from hjepa_jax.errors import UserError, first_line
from hjepa_jax.evaluation.checkpoint_curves.stored import Evaluations, evaluations_of
from hjepa_jax.evaluation.diagnostics import MEAN_CEILING
from hjepa_jax.evaluation.report.folder import (
    METRICS,
    find_reports,
    read_metrics,
    report_name,
    reports_of,
    searched,
)
from hjepa_jax.evaluation.report.summary import headline, headline_intervals, in_sqrt_h
from hjepa_jax.storage import metrics_file
from hjepa_jax.storage.metrics_file import Curve
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
    require,
)

# Fields in which the runs of one group may differ: none of them changes what is learned.
_IGNORED = ("seed", "checkpoint.", "log.", "evaluation.online_")
_IGNORED += tuple(path for path, row in rows().items() if row.spec.own)
# What a comparison reads from metrics.json; missing values are null (NaN in older reports).
_FIGURE = Maybe(Number(finite=False))
_INTERVAL = Maybe(Items(Number(), 2, 2))
_KNN = Fields(
    {"k_values": Items(Whole(1), 1), "top1": Items(_FIGURE, 1)},
    {"top1_interval": Maybe(Items(_INTERVAL))},
)
_PROBE = Fields({"top1": _FIGURE, "top5": _FIGURE}, {f"top{k}_interval": _INTERVAL for k in (1, 5)})
_CLASSIFIED = Fields({"knn": _KNN, "linear_probe": _PROBE})
_PROBED = Fields({"linear_probe": Fields({"top1": _FIGURE})}, {"knn": _KNN})
_ENCODER = Fields(
    {
        "state_part": Text(),
        "knn": _KNN,
        "linear_probe": _PROBE,
        "diagnostics": Fields(
            {
                "covariance_spectrum_topq": Fields(
                    {
                        "eigenvalues": Items(_FIGURE),
                        "effective_rank": _FIGURE,
                        "participation_ratio": _FIGURE,
                    },
                    {"rankme": _FIGURE, "mean_share": _FIGURE},
                ),
                "alignment_uniformity": Fields({"alignment": _FIGURE, "uniformity": _FIGURE}),
            }
        ),
    },
    {
        "state_parts": Table(_CLASSIFIED),
        "few_shot": Table(Fields({"top1": _FIGURE})),
        "coarse": Table(_PROBED),
        "robustness": Table(_PROBED),
        "knn_weighted": _KNN,
        **dict.fromkeys(
            ("logistic", "attentive"), Fields({"top1": _FIGURE}, {"top1_interval": _INTERVAL})
        ),
        "coordinates": Text(),
    },
)
_OTHERS = ("random", "pixels", *map(in_sqrt_h, ("trained", "random")))
_EVALUATION = Fields(
    {
        "info": Fields(
            {},
            {
                "step": Whole(),
                "data": Text(),
                "run": Text(),
                "coordinates": Text(),
                "settings": Table(Anything()),
                "test_images": Fields({}, {"fingerprint": Text()}),
            },
        ),
        "headline_k": Whole(1),
        "encoders": Fields({"trained": _ENCODER}, dict.fromkeys(_OTHERS, _ENCODER)),
    },
    {"notes": Items(Text()), "schema_version": Whole()},
)


@dataclasses.dataclass(frozen=True)
class RunResult:
    """One evaluated run.

    Attributes:
      name: name of its folder.
      report: folder of metrics.json and the pictures.
      metrics: content of metrics.json.
      config: flat configuration, dotted name -> value; {} if the workdir was not found.
      curves: tag -> (steps, values); {} without `metrics.jsonl`.
      checkpoints: evaluations of its checkpoints, one for each protocol.
    """

    name: str
    report: pathlib.Path
    metrics: dict[str, Any]
    config: dict[str, object]
    curves: dict[str, Curve]
    checkpoints: Sequence[Evaluations] = ()

    def figures(self, encoder: str = "trained") -> dict[str, float]:
        """Returns the headline figures of one encoder."""
        return headline(self.metrics["encoders"][encoder], self.metrics["headline_k"])

    def intervals(self) -> dict[str, tuple[float, float] | None]:
        """Returns the 95% intervals over test images of the trained encoder's accuracies."""
        return headline_intervals(self.metrics["encoders"]["trained"], self.metrics["headline_k"])

    def is_one_point(self) -> bool:
        """Returns whether the trained encoder's state has nearly collapsed to a point."""
        return self.figures()["mean_share"] > MEAN_CEILING


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed."""

    name: str
    runs: tuple[RunResult, ...]


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _neighbor_votes(one: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yields the kNN of an encoder's metrics, the weighted one, and those nested in them."""
    yield from (one[name] for name in ("knn", "knn_weighted") if name in one)
    for part in ("state_parts", "coarse", "robustness"):
        yield from (found["knn"] for found in one.get(part, {}).values() if "knn" in found)


def _is_older_layout(metrics: Mapping[str, object]) -> bool:
    """Returns whether a report calls the evaluated part of the state `variant` (version 2)."""
    encoders = metrics.get("encoders")
    trained = encoders.get("trained") if isinstance(encoders, Mapping) else None
    return isinstance(trained, Mapping) and "variant" in trained and "state_part" not in trained


def load_metrics(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the metrics of a report, with NaN for missing values.

    Raises:
      UserError: not an evaluation of a trained run, or a damaged one.
    """
    path = folder / METRICS
    try:
        metrics = read_metrics(folder)
        if _is_older_layout(metrics):
            raise UserError(
                f"{path} was written by an earlier version, in another layout: evaluate the run "
                "again with --mode=eval."
            )
        metrics = require(metrics, _EVALUATION, path)
        for one in metrics["encoders"].values():
            for found in _neighbor_votes(one):
                ks, top1 = found["k_values"], found["top1"]
                if len(ks) != len(top1) or ks != sorted(set(ks)):
                    raise ValueError(
                        f"{path} is damaged: a kNN has {len(top1)} accuracies for k={ks}."
                    )
        return {**metrics, "encoders": _with_nan(metrics["encoders"])}
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not an evaluation of a trained run: {first_line(error)}"
        ) from error


def _with_nan(value: Any) -> Any:
    """Returns metrics with NaN for missing values, which are null in JSON."""
    if isinstance(value, dict):
        intervals = {name: one for name, one in value.items() if name.endswith("_interval")}
        return {name: _with_nan(one) for name, one in value.items()} | intervals
    if isinstance(value, list):
        return [_with_nan(one) for one in value]
    return math.nan if value is None else value


def _find_report(path: pathlib.Path, eval_dir: pathlib.Path | None) -> pathlib.Path:
    """Returns the report folder of a run: the one with the most steps, or the first of several.

    Reports on data that the run was not trained on, or in other coordinates alone, rank last.
    """
    if (path / METRICS).is_file():
        return path
    of_sweep = path.parent.parent / "eval"
    own = reports_of(path, eval_dir) + find_reports(of_sweep, report_name(path))
    known = {folder: load_metrics(folder) for folder in own}
    if not own:
        raise UserError(
            f"{path} has no evaluation in its own folder, {searched(eval_dir)} or {of_sweep}: "
            "evaluate it with 'hjepa eval', or name the folder with --eval_dir."
        )

    def rank(folder: pathlib.Path) -> tuple[bool, int]:
        info = known[folder]["info"]
        # These are compared if they are named by their folder.
        special = "trained_on" in info or info.get("coordinates") == "sqrt_h"
        special |= info.get("features") == "projector"
        return not special, info.get("step", 0)

    return max(own, key=rank)


def load_result(path: pathlib.Path, eval_dir: pathlib.Path | None = None) -> RunResult:
    """Reads one run.

    Args:
      path: its workdir, whose report is searched for in itself, in `eval_dir`, and in `../../eval`
        relative to it (where a sweep puts it); or a report folder, which has no curves.
      eval_dir: another folder of reports, see `reports_of`.

    Raises:
      UserError: no report, or files that cannot be read.
    """
    report = _find_report(path, eval_dir)
    config, curves = flat_config(path), metrics_file.read_metrics(path)
    checkpoints = evaluations_of(path)
    return RunResult(path.name, report, load_metrics(report), config, curves, checkpoints)


def flat_config(path: pathlib.Path) -> dict[str, object]:
    """Returns the configuration of a run by dotted name; {} if it has none.

    Raises:
      UserError: if it cannot be read.
    """
    if not os.path.lexists(path / "config.json"):
        return {}
    try:
        return dict(_flat(read_json(path / "config.json", Fields(), constants=True)))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}/config.json cannot be read: {error}") from error


class Configured(Protocol):
    """A run's name and flat configuration."""

    @property
    def name(self) -> str:
        """Name of its folder."""
        ...

    @property
    def config(self) -> Mapping[str, object]:
        """Configuration, dotted name -> value; {} if unknown."""
        ...


_Run = TypeVar("_Run", bound=Configured)


def by_seed(results: Sequence[_Run]) -> dict[str, list[_Run]]:
    """Groups runs that differ only in their seed, in the order of each group's first run.

    A run with an unknown configuration forms its own group. A group is named after its runs: by
    the part before 'seed<n>', or by the name of the first one.
    """
    members: dict[str, list[_Run]] = {}
    for position, result in enumerate(results):
        fixed = [(k, v) for k, v in sorted(result.config.items()) if not k.startswith(_IGNORED)]
        key = json.dumps(fixed) if fixed else f"run {position}"
        members.setdefault(key, []).append(result)
    groups: dict[str, list[_Run]] = {}
    for runs in members.values():
        stems = {re.sub(r"[-_.]?seed-?\d+$", "", run.name) for run in runs}
        name = stems.pop() if len(stems) == 1 and len(runs) > 1 else runs[0].name
        unique = next(
            n for n in (name, *(f"{name} ({i})" for i in range(2, 10**6))) if n not in groups
        )
        groups[unique] = runs
    return groups


def group_runs(results: Sequence[RunResult]) -> list[Group]:
    """Returns the groups of `by_seed`."""
    return [Group(name, tuple(runs)) for name, runs in by_seed(results).items()]


def differing_fields(groups: Sequence[Group]) -> dict[str, list[object]]:
    """Returns the configuration fields that differ between groups: name -> value in each."""
    configs = [group.runs[0].config for group in groups]
    names = sorted({name for config in configs for name in config if not name.startswith(_IGNORED)})
    values = {name: [config.get(name) for config in configs] for name in names}
    return {name: v for name, v in values.items() if any(one != v[0] for one in v)}


def bootstrap_difference(
    values: npt.ArrayLike,
    baseline: npt.ArrayLike,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, tuple[float, float] | None]:
    """Returns mean(values) - mean(baseline) and its percentile bootstrap interval over seeds.

    Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13: both groups are
    resampled with replacement, independently. With fewer than about five seeds the interval is
    too narrow; with one seed in either group it is None.
    """
    ours, theirs = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    difference = float(ours.mean() - theirs.mean())
    if min(len(ours), len(theirs)) < 2:
        return difference, None
    rng = np.random.default_rng(seed)
    means = _resampled_means(ours, resamples, rng) - _resampled_means(theirs, resamples, rng)
    return difference, _percentile_interval(means, confidence)


def paired_interval(
    differences: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float] | None:
    """Returns the percentile bootstrap interval of the mean of paired differences [n].

    Like `bootstrap_difference`, but the pairs are resampled. None for fewer than two pairs; with
    three it is too narrow.
    """
    sample = np.asarray(differences, np.float64)
    if len(sample) < 2:
        return None
    means = _resampled_means(sample, resamples, np.random.default_rng(seed))
    return _percentile_interval(means, confidence)


def _resampled_means(
    sample: npt.NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    return sample[rng.integers(len(sample), size=(resamples, len(sample)))].mean(axis=1)


def _percentile_interval(means: npt.NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)
