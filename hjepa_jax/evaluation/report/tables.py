"""Output of an evaluation: a table on the terminal, and a folder of JSON, Markdown and pictures."""

from __future__ import annotations

import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from hjepa_jax.errors import UserError, first_line
from hjepa_jax.evaluation.paired.per_image import ANSWERS, Answers, packed
from hjepa_jax.evaluation.report import figures
from hjepa_jax.evaluation.report.flow import FlowPicture
from hjepa_jax.evaluation.report.folder import METRICS, report_folder
from hjepa_jax.evaluation.report.gallery import PictureInputs
from hjepa_jax.evaluation.report.plots import Metrics
from hjepa_jax.evaluation.report.summary import (
    ACCURACIES,
    FIGURES,
    headline,
    headline_intervals,
    headline_ks,
    shown_coordinates,
    shown_features,
    titles,
)
from hjepa_jax.evaluation.report.text import markdown_text
from hjepa_jax.evaluation.report.trajectories import flow_figure
from hjepa_jax.storage.files import json_text, printable, write_atomically

_CAPTIONS = {
    "spectrum.png": "Covariance spectrum of training features",
    "knn.png": "kNN accuracy over the number of neighbors",
    "cosine.png": "Cosine similarities of random pairs of test images",
    "map.png": "Test features: principal axes and t-SNE",
    "neighbors.png": "Test images and their nearest training images",
    "flow.png": "States of test images under the learned Hamiltonian flow",
}
ON_ACCURACIES = (
    "Each accuracy has its 95% Wilson interval over test images. Differences of percentages are in "
    "points."
)
ON_STATES = (
    "Effective rank and participation ratio describe the covariance of training features and are "
    "meaningless if these have nearly collapsed to a point. RankMe describes the uncentered "
    "features, and 'in mean' is the share of their energy in the mean over images. Alignment "
    "(lower: augmented views agree) and uniformity (lower: features spread more evenly) are "
    "measured on the unit sphere."
)
POSTHOC_HEADS = (
    "encoder",
    "kind of H",
    "SIGReg of z",
    "SIGReg of H^{1/2} z",
    "of a Gaussian",
    "condition number of H",
)
ON_POSTHOC = (
    "H is not that of the training; a learnable one was fitted to the training features of each "
    "encoder, and test images had no part in it. SIGReg is of features with mean 0 and mean square "
    "1, along directions that the fit did not see. An isotropic Gaussian has the value in the last "
    "column but one."
)
# Rows of differences: title -> name in metrics.json.
DIFFERENCES = {"trained - random": "trained_minus_random", "sqrt_h - raw": "sqrt_h_minus_raw"}
# Stands for a missing or meaningless value.
NOTHING = "–"


def used_k(metrics: Metrics) -> int:
    """Returns the k of the headline column."""
    return headline_ks(next(iter(metrics["encoders"].values())), metrics["headline_k"])["knn"]


# Heads of `extraction_rows`.
EXTRACTION = ("features", "images", "seconds", "images/s", "waiting for data")


def has_accuracies(metrics: Metrics) -> bool:
    """Returns whether there is an accuracy at all; a note says why if not."""
    return any("no_accuracy" not in one for one in metrics["encoders"].values())


def _columns(metrics: Metrics) -> dict[str, str]:
    """Returns the title of each column; accuracies only if there are any."""
    first = next(iter(metrics["encoders"].values()))
    found = titles(first, metrics["headline_k"], short=True)
    hidden = () if has_accuracies(metrics) else ACCURACIES
    return {name: title for name, title in found.items() if name not in hidden}


def _cell(name: str, value: float | None, signed: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return NOTHING
    figure = FIGURES[name]
    return f"{figure.factor * value:{'+' if signed else ''}.{figure.digits}f}"


def _interval(low_high: Sequence[float] | None) -> str:
    """Formats the interval of an accuracy in whole percent, rounded outward; '' for none."""
    if not low_high:
        return ""
    low, high = (100 * bound for bound in low_high)
    return f"{math.floor(low)}–{math.ceil(high)}"


def _rows(metrics: Metrics, columns: Iterable[str], pattern: str) -> list[list[str]]:
    """Returns the table's rows, the encoder's name first; `pattern` joins accuracy and interval."""
    k, rows = metrics["headline_k"], []
    for name, one in metrics["encoders"].items():
        figures, intervals = headline(one, k), headline_intervals(one, k)
        cells = []
        for column in columns:
            cell, interval = _cell(column, figures.get(column)), _interval(intervals.get(column))
            cells.append(pattern.format(cell, interval) if interval else cell)
        rows.append([name, *cells])
    for name, key in DIFFERENCES.items():
        difference = metrics.get(key)
        if difference:
            cells = [_cell(c, difference.get(c), signed=True) for c in columns]
            rows.append([name, *cells])
    return rows


def print_table(metrics: Metrics, console: Console | None = None) -> None:
    """Prints one row for each encoder, and trained minus random (percentages in points).

    Below each accuracy is its 95% interval, and below the table are the notes. Only the report has
    the participation ratio, the weighted kNN, and beside further probes the first one's top-5 and
    kNN at the first k.
    """
    encoders = metrics["encoders"]
    parts = {one["state_part"] for one in encoders.values()}
    info = metrics["info"]
    shown = [*sorted(parts), *filter(None, [shown_features(info), shown_coordinates(info)])]
    title = f"Evaluation of frozen features ({', '.join(shown)})"
    # Narrow enough for the usual 80 columns.
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=0)
    table.add_column("encoder", no_wrap=True)
    columns = _columns(metrics)
    for only_in_report in ("participation_ratio", "knn_weighted"):
        columns.pop(only_in_report, None)
    further = [name for name in ("logistic_top1", "attentive_top1") if name in columns]
    for _, gives_way in zip(further, ("probe_top5", "knn_first"), strict=False):
        columns.pop(gives_way, None)
    rows = _rows(metrics, columns, "{}\n{}")
    for number, title in enumerate(columns.values(), 1):
        lines = [line for row in rows for line in row[number].split("\n")]
        table.add_column(title, justify="right", width=max(map(len, [*title.split(), *lines])))
    for number, row in enumerate(rows, 1):
        table.add_row(*row, end_section=number == len(encoders) < len(rows))
    console = console or Console()
    console.print(table)
    for note in metrics.get("notes", ()):
        console.print(f"- {printable(note)}", markup=False, highlight=False)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table, the first column left-aligned and the others right-aligned."""
    cells = [[markdown_text(cell) for cell in line] for line in (header, *rows)]
    lines = [cells[0], ["---", *["---:"] * (len(header) - 1)], *cells[1:]]
    return [f"| {' | '.join(line)} |" for line in lines]


def _percent(value: float | None, low_high: Sequence[float] | None = None) -> str:
    """Formats an accuracy with its interval, such as '83.1 % (75–90)'."""
    if value is None or not math.isfinite(value):
        return NOTHING
    interval = _interval(low_high)
    return f"{100 * value:.1f} %" + (f" ({interval})" if interval else "")


def _accuracy(found: Metrics, top: str, position: int | None = None) -> str:
    """Formats 'top1' or 'top5' of a probe, or of kNN at a position in its k values."""
    value, interval = found[top], found.get(f"{top}_interval")
    if position is not None:
        value, interval = value[position], interval and interval[position]
    return _percent(value, interval)


def state_part_rows(metrics: Metrics) -> list[list[str]]:
    """Returns rows with kNN and probe accuracies of q, p and qp, for encoders that have them."""
    k = used_k(metrics)
    rows = []
    for name, one in metrics["encoders"].items():
        for part, found in one.get("state_parts", {}).items():
            if "no_accuracy" in found:
                continue
            position = found["knn"]["k_values"].index(k)
            linear = found["linear_probe"]
            cells = [_accuracy(found["knn"], "top1", position)]
            cells += [_accuracy(linear, top) for top in ("top1", "top5")]
            rows.append([f"{name}: {part}", *cells])
    return rows


def extra_rows(metrics: Metrics) -> list[list[str]]:
    """Returns rows with probe top-1 (and kNN, if there is one) of the optional parts."""
    rows = []
    for name, one in metrics["encoders"].items():
        for shots, found in one.get("few_shot", {}).items():
            spread = f"{_accuracy(found, 'top1')} ± {_percent(found['top1_std'])}"
            rows.append([f"{name}: {shots} images per class", "", spread])
        for kind in ("coarse", "robustness"):
            for key, found in one.get(kind, {}).items():
                if "no_accuracy" in found:
                    continue
                ks = [k for k in found["knn"]["k_values"] if k <= metrics["headline_k"]]
                accuracy = _accuracy(found["knn"], "top1", max(len(ks) - 1, 0))
                linear = _accuracy(found["linear_probe"], "top1")
                title = f"{name}: {key} labels" if kind == "coarse" else f"{name}: {key}"
                rows.append([title, accuracy, linear])
    return rows


def posthoc_rows(metrics: Metrics) -> list[list[str]]:
    """Returns rows about the post-hoc H of each encoder that has one; see `POSTHOC_HEADS`."""
    rows = []
    for name, one in metrics["encoders"].items():
        if (found := one.get("posthoc")) is None:
            continue
        numbers = [found[f"sigreg_{what}"] for what in ("raw", "sqrt_h", "gaussian")]
        condition = found.get("condition_number")
        cells = [f"{number:.3g}" for number in numbers]
        cells.append(NOTHING if condition is None else f"{condition:.3g}")
        rows.append([name, found["kind"], *cells])
    return rows


def extraction_rows(metrics: Metrics) -> list[list[str]]:
    """Returns rows with images, seconds, images/s and wait for data of each set of features."""
    return [
        [
            f"{name}: {split}",
            f"{found['images']}",
            f"{found['seconds']:.1f}",
            f"{found['images_per_second']:.0f}",
            f"{found['data_wait_share']:.0%}",
        ]
        for name, one in metrics.get("feature_extraction", {}).items()
        for split, found in one.items()
    ]


def _facts(values: Mapping[str, object], indent: str = "") -> Iterator[str]:
    """Yields the lines of a nested Markdown list."""
    for key, value in values.items():
        name = f"{indent}- {markdown_text(key)}:"
        if isinstance(value, Mapping):
            yield name
            yield from _facts(value, f"{indent}  ")
        elif isinstance(value, (list, tuple)):
            yield f"{name} {', '.join(map(markdown_text, value)) or 'none'}"
        else:
            yield f"{name} {markdown_text(value)}"


def markdown(
    metrics: Metrics,
    picture_names: Sequence[str] = (),
    failed: Mapping[str, str] | None = None,
) -> str:
    """Returns the report as Markdown, with links to the pictures in the same folder.

    Args:
      metrics: metrics of `evaluate`.
      picture_names: the pictures' files.
      failed: file name -> error, for those that could not be drawn.
    """
    lines = ["# Evaluation", ""]
    nested = {k: v for k, v in metrics["info"].items() if isinstance(v, Mapping)}
    lines += _facts({k: v for k, v in metrics["info"].items() if k not in nested})
    count, largest = metrics["num_classes"], metrics.get("largest_class_share")
    trivial = [f"chance {1 / count:.1%}"] if count else []
    trivial += [f"largest class {largest:.1%}"] if largest is not None else []
    if count:
        lines += [f"- classes: {count}" + (f" ({', '.join(trivial)})" if trivial else "")]
    lines += [""]
    lines += [f"- **{markdown_text(note)}**" for note in metrics.get("notes", ())]
    lines += [""] if metrics.get("notes") else []
    columns = _columns(metrics)
    table = _rows(metrics, columns, "{} ({})")
    lines += markdown_table(["encoder", *columns.values()], table)
    lines += ["", " ".join([ON_ACCURACIES] * has_accuracies(metrics) + [ON_STATES])]
    parts = state_part_rows(metrics)
    if parts:
        k = used_k(metrics)
        header = ["part of the state", f"kNN@{k}", "probe top-1", "probe top-5"]
        lines += ["", "## Position q, momentum p, and both", ""]
        lines += markdown_table(header, parts)
    fits = posthoc_rows(metrics)
    if fits:
        lines += ["", "## Post-hoc H", "", ON_POSTHOC, "", *markdown_table(POSTHOC_HEADS, fits)]
    extra = extra_rows(metrics)
    if extra:
        k = used_k(metrics)
        lines += ["", "## Few-shot, coarse labels, and corrupted images", ""]
        lines += markdown_table(["test", f"kNN@{k}", "probe top-1"], extra)
    for name in picture_names:
        title = _CAPTIONS[name]
        shown = f"![{title}]({name})"
        if failed and name in failed:
            shown = f"This picture could not be drawn ({markdown_text(failed[name])})."
        lines += ["", f"## {title}", "", shown]
    lines += ["", "## What was evaluated", "", *_facts(nested)] if nested else []
    if times := extraction_rows(metrics):
        lines += ["", "## Feature extraction", "", *markdown_table(EXTRACTION, times)]
    return "\n".join(lines) + "\n"


def painters(
    metrics: Metrics,
    inputs: Callable[[], PictureInputs],
    flow: Callable[[], FlowPicture] | None = None,
) -> dict[str, Callable[[], Figure]]:
    """Returns the function that draws each picture, by file name.

    Args:
      metrics: metrics of `evaluate`.
      inputs: returns the inputs of the pictures of images and features.
      flow: follows the gallery's states under the learned flow, if there is one.
    """
    drawn: dict[str, Callable[[], Figure]] = {
        "spectrum.png": lambda: figures.spectra(metrics),
        "knn.png": lambda: figures.knn_accuracy(metrics),
        "cosine.png": lambda: figures.cosine_histogram(inputs()),
        "map.png": lambda: figures.feature_map(inputs()),
        "neighbors.png": lambda: figures.neighbors(inputs()),
    }
    if not has_accuracies(metrics):
        del drawn["knn.png"]
    if flow is not None:
        drawn["flow.png"] = lambda: flow_figure(flow(), inputs())
    return drawn


def write_numbers(
    out_dir: str | os.PathLike[str], metrics: Metrics, answers: Mapping[str, Answers] | None = None
) -> pathlib.Path:
    """Writes metrics.json, report.md, and any answers.npz, atomically; see `report_folder`.

    Returns:
      The folder written to.

    Raises:
      UserError: if the folder is not writable; the metrics are then in a temporary file that the
        message names, or printed.
    """
    text = json_text(metrics)
    try:
        folder = report_folder(out_dir, metrics)
        folder.mkdir(parents=True, exist_ok=True)
        if answers:  # first, as a report with its metrics is complete
            write_atomically(folder / ANSWERS, packed(answers))
        write_atomically(folder / METRICS, text)
        write_atomically(folder / "report.md", markdown(metrics))
        return folder
    except OSError as error:
        raise UserError(f"{out_dir} cannot be written: {error}. {_rescue(text)}") from error


def _rescue(text: str) -> str:
    """Saves metrics to a temporary file, or prints them; returns a sentence that says which."""
    try:
        handle, path = tempfile.mkstemp(prefix="hjepa_jax-metrics-", suffix=".json")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        return f"The metrics are in {path} instead."
    except OSError:
        print(text)
        return "The metrics are printed above."


def write_pictures(
    folder: pathlib.Path, metrics: Metrics, drawn: Mapping[str, Callable[[], Figure]]
) -> dict[str, str]:
    """Draws every picture into the report folder; an error affects only its own picture.

    Returns:
      The error of each picture that could not be drawn, in one line, by file name; report.md has
      them too.
    """
    failed = figures.save_each(folder, drawn)
    try:
        write_atomically(folder / "report.md", markdown(metrics, tuple(drawn), failed))
    except OSError as error:  # report.md without pictures exists
        failed["report.md"] = f"{type(error).__name__}: {first_line(error)}"
    return failed
