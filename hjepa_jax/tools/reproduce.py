"""Compares methods over seeds on one dataset and writes the results as a document.

The runs are a sweep (`hjepa_jax.tools.sweep`) and therefore resumable; this module plans them,
gathers their evaluations, and writes the document and its figures.
"""

from __future__ import annotations

import dataclasses
import logging
import pathlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.compare.runs import flat_config, paired_interval
from hjepa_jax.evaluation.paired.per_image import ANSWERS, Answers, read_answers
from hjepa_jax.evaluation.report.figures import save_each
from hjepa_jax.evaluation.report.summary import headline, headline_position
from hjepa_jax.evaluation.report.tables import NOTHING, markdown_table
from hjepa_jax.storage.files import write_atomically
from hjepa_jax.storage.metrics_file import Curve, read_metrics
from hjepa_jax.tools.published_figures import PUBLISHED, Row, Scores, section
from hjepa_jax.tools.reproduce_figures import painters
from hjepa_jax.tools.reproduction.by_image import image_differences
from hjepa_jax.tools.reproduction.learning import has_scores, learning_curves
from hjepa_jax.tools.reproduction.recipes import TITLES, recipes
from hjepa_jax.tools.sweep import (
    SweepRun,
    mean_and_deviation,
    metrics_of,
    plan_run,
    report_of,
)

_log = logging.getLogger(__name__)
# Figures of the table that some run has: name in `headline` -> (title, factor, digits).
FIGURES = {
    "knn": ("kNN@20 %", 100, 2),
    "knn_first": ("kNN@1 %", 100, 2),
    "probe_top1": ("probe top-1 %", 100, 2),
    "probe_top5": ("probe top-5 %", 100, 2),
    "logistic_top1": ("logistic top-1 %", 100, 2),
    "effective_rank": ("effective rank", 1, 1),
    "participation_ratio": ("participation ratio", 1, 1),
    "rankme": ("RankMe", 1, 1),
    "mean_share": ("energy in mean %", 100, 1),
}
_ON_IMAGES = (
    "Paired by seed and test image, with 95 % percentile bootstrap intervals over the test images; "
    "these do not contain the spread over seeds:"
)
_PACKAGES = ("hjepa_jax", "jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True)
class Result:
    """The finished runs of the comparison.

    Attributes:
      metrics: method -> seed -> content of metrics.json.
      curves: method -> seed -> tag -> (steps, values).
      answers: row -> seed -> answers for each test image; also of the references.
      batch_sizes: method -> images of a step.
    """

    metrics: dict[str, dict[int, dict[str, Any]]]
    curves: dict[str, dict[int, dict[str, Curve]]]
    answers: dict[str, dict[int, Answers]] = dataclasses.field(default_factory=dict)
    batch_sizes: dict[str, int] = dataclasses.field(default_factory=dict)


def plan_runs(
    out: pathlib.Path,
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    scale: str,
    overrides: Sequence[str],
    tuned: pathlib.Path | None = None,
) -> dict[tuple[str, int], SweepRun]:
    """Returns the run of each (method, seed), seed by seed, so that any prefix is balanced.

    Raises:
      UserError: see `recipes`.
    """
    chosen = recipes(methods, scale, tuned, overrides)
    return {
        (name, seed): plan_run(recipe.source, out, name, recipe.overrides, seed)
        for seed in seeds
        for name, recipe in chosen.items()
    }


def gather(runs: Mapping[tuple[str, int], SweepRun], out: pathlib.Path) -> Result:
    """Reads the evaluations and curves of the finished runs."""
    found = Result({}, {})
    for (method, seed), run in runs.items():
        metrics = metrics_of(run, out)
        if metrics is not None:
            found.metrics.setdefault(method, {})[seed] = metrics
            workdir, report = out / "runs" / run.name, report_of(run, out)
            found.curves.setdefault(method, {})[seed] = read_metrics(workdir)
            batch = flat_config(workdir).get("data.batch_size")
            if batch:
                found.batch_sizes[method] = int(str(batch))
            assert report is not None
            if (report / ANSWERS).is_file():  # reports of earlier versions have none
                found.answers.setdefault(method, {})[seed] = read_answers(report)
                if method == next(iter(found.metrics)):
                    for name in {"random", "pixels"} & metrics["encoders"].keys():
                        found.answers.setdefault(name, {})[seed] = read_answers(report, name)
    return found


def figures(result: Result) -> dict[str, dict[int, dict[str, float]]]:
    """Returns row -> seed -> headline figures: the methods, then 'random' and 'pixels'.

    Both references are taken from the first method's runs: they depend only on the seed.
    """
    rows = {
        method: {s: headline(m["encoders"]["trained"], m["headline_k"]) for s, m in by.items()}
        for method, by in result.metrics.items()
    }
    for name in ("random", "pixels"):
        first = next(iter(result.metrics.values()))
        rows[name] = {
            s: headline(m["encoders"][name], m["headline_k"])
            for s, m in first.items()
            if name in m["encoders"]
        }
    return {name: by_seed for name, by_seed in rows.items() if by_seed}


def results_table(rows: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Returns a Markdown table of mean ± standard deviation (n - 1) over seeds."""
    lines = []
    known = {name for by_seed in rows.values() for found in by_seed.values() for name in found}
    figures = {name: column for name, column in FIGURES.items() if name in known}
    for name, by_seed in rows.items():
        cells = []
        for figure, (_, factor, digits) in figures.items():
            values = np.array([found.get(figure, np.nan) for found in by_seed.values()])
            std = values.std(ddof=1) if len(values) > 1 else None
            cells.append(mean_and_deviation(values.mean(), std, factor, digits))
        lines.append([TITLES[name], str(len(by_seed)), *cells])
    return "\n".join(
        markdown_table(["", "seeds", *(title for title, _, _ in figures.values())], lines)
    )


def differences_table(
    rows: Mapping[str, Mapping[int, Mapping[str, float]]], of: str = "hjepa"
) -> str:
    """Returns a Markdown table of `of` minus every other row, paired, with 95% intervals."""
    lines = []
    for name, by_seed in rows.items():
        shared = sorted(by_seed.keys() & rows.get(of, {}).keys())
        if name == of or not shared:
            continue
        cells = []
        for figure in ("knn", "knn_first", "probe_top1", "probe_top5"):
            values = [100 * (rows[of][s][figure] - by_seed[s][figure]) for s in shared]
            if not np.all(np.isfinite(values)):
                cells.append(NOTHING)
                continue
            interval = paired_interval(values)
            text = "" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]"
            cells.append(f"{np.mean(values):+.2f}{text}")
        lines.append([f"{TITLES[of]} − {TITLES[name]}", str(len(shared)), *cells])
    titles = ("kNN@20", "kNN@1", "probe top-1", "probe top-5")
    return "\n".join(markdown_table(["difference in points", "pairs", *titles], lines))


def state_parts_table(result: Result) -> str:
    """Returns kNN@20 and probe of q, p and [q | p], means over seeds, in Markdown."""
    lines = []
    for method, by_seed in result.metrics.items():
        for encoder in ("trained", "random"):
            every = [m["encoders"].get(encoder, {}) for m in by_seed.values()]
            found = [one.get("state_parts") for one in every]
            if not all(found):
                continue
            k = next(iter(by_seed.values()))["headline_k"]
            cells = []
            for part in ("q", "p", "qp"):
                ones = [one[part] for one in found]
                position = ones[0]["knn"]["k_values"].index(k)
                columns = (
                    [one["knn"]["top1"][position] for one in ones],
                    [one["linear_probe"]["top1"] for one in ones],
                )
                means = [float(np.mean(np.array(column, float))) for column in columns]
                cells += [mean_and_deviation(mean, None, 100, 2) for mean in means]
            lines.append([f"{TITLES[method]}, {encoder}", *cells])
    header = [f"{part} {what} %" for part in ("q", "p", "q and p") for what in ("kNN", "probe")]
    return "\n".join(markdown_table(["", *header], lines))


def published_rows(result: Result) -> dict[Row, Scores]:
    """Returns the runs' mean scores in percent, in the rows of the published figures."""
    found = {}
    for row in PUBLISHED:
        method, part = row
        scores = []
        for metrics in result.metrics.get(method, {}).values():
            trained = metrics["encoders"]["trained"]
            own = {trained.get("state_part"): trained}
            one = own.get(part) or trained.get("state_parts", {}).get(part)
            if one is not None:
                position = headline_position(one, metrics["headline_k"])
                scores.append([one["knn"]["top1"][position], one["linear_probe"]["top1"]])
        means = 100 * np.mean(np.array(scores, float), axis=0) if scores else np.array(np.nan)
        if np.all(np.isfinite(means)):
            found[row] = Scores(*means.tolist())
    return found


def machine() -> str:
    """Describes processor, accelerator and versions in one line."""
    import jax

    processor = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        if names:
            processor = f"{len(names)} x {names[0].partition(':')[2].strip()}"
    devices = jax.devices()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in _PACKAGES)
    kind = f"{len(devices)} x {devices[0].device_kind}"
    return f"{processor}; {kind}; Python {platform.python_version()}, {versions}"


def document(result: Result, *, command: str, notes: str, planned: int, images: str) -> str:
    """Returns the document in Markdown.

    Args:
      result: the finished runs.
      command: the command that produced it.
      notes: Markdown appended after the tables, such as an interpretation.
      planned: number of planned runs.
      images: folder of the figures, relative to the document.
    """
    rows = figures(result)
    done = sum(len(by_seed) for by_seed in result.metrics.values())
    seeds = sorted({seed for by_seed in result.metrics.values() for seed in by_seed})
    by_image = image_differences(result.answers)
    pictures = ["knn", "spectra", "curves", *(["learning"] if has_scores(result.curves) else [])]
    sections = [
        "# Results",
        f"{done} of {planned} runs finished; seeds {', '.join(map(str, seeds))}. Mean ± standard "
        "deviation over the seeds; features are from the frozen encoder (q for the predictor "
        "methods, the full state for SIGReg, as in the published protocol).",
        results_table(rows),
        "Paired by seed, with 95 % percentile bootstrap intervals over the pairs:",
        differences_table(rows),
        *([_ON_IMAGES, by_image] if by_image else []),
        "Parts of the state (kNN@20 and linear probe):",
        state_parts_table(result),
        section(published_rows(result)),
        *(f"![{name}]({images}/{name}.png)" for name in pictures),
        notes.strip(),
        f"## How to reproduce\n\n```bash\n{command}\n```\n\nMachine and versions: {machine()}.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def write_document(result: Result, report: pathlib.Path, **parts: Any) -> None:
    """Writes the document and its figures.

    Args:
      result: the finished runs.
      report: path of the document.
      **parts: further arguments of `document`.

    Raises:
      UserError: if no run has finished.
    """
    if not result.metrics:
        raise UserError("no run has finished: there is nothing to report yet.")
    images = report.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    write_atomically(report, document(result, images=images.name, **parts))
    drawn = painters(result.metrics, result.curves, TITLES)
    if has_scores(result.curves):
        sizes = result.batch_sizes
        drawn["learning.png"] = lambda: learning_curves(result.curves, TITLES, sizes)
    for name, reason in save_each(images, drawn).items():
        _log.warning("%s could not be drawn (%s); the document is written.", images / name, reason)
