"""Comparison of runs as one self-contained HTML page.

Runs that differ only in their seed form a group; the first group is the baseline for the others.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.compare import sections as parts
from hjepa_jax.evaluation.compare.runs import Group, RunResult, group_runs, load_result
from hjepa_jax.evaluation.page.document import Section, document, warning
from hjepa_jax.evaluation.page.text import escape
from hjepa_jax.storage.files import check_writable_file, local_path, write_atomically

# Settings that may differ, or have a warning of their own.
_NOT_COMPARED = {
    "seed",
    "evaluation.reference_evaluation",
    "evaluation.headline_k",
    "evaluation.state_part",
    "evaluation.coordinates",
}


def _nested(run: RunResult, part: str) -> Mapping[str, object]:
    """Returns a part of a report's `info`; {} if it is missing, as in older reports."""
    value = run.metrics["info"].get(part)
    return value if isinstance(value, Mapping) else {}


def warnings(groups: Sequence[Group]) -> list[str]:
    """Returns warnings about what makes the runs hard to compare."""
    runs = [run for group in groups for run in group.runs]
    found = []
    fields = {
        "data": ("datasets", "unknown"),
        "step": ("numbers of steps", "unknown"),
        "coordinates": ("coordinates", "raw"),
    }
    for field, (what, default) in fields.items():
        values = {str(run.metrics["info"].get(field, default)) for run in runs}
        if field == "coordinates":  # a report in both has the raw states' figures
            values = {"raw" if value == "both" else value for value in values}
        if len(values) > 1:
            found.append(f"These runs have different {what}: {', '.join(sorted(values))}.")
    tested = {_nested(run, "test_images").get("fingerprint", "unknown") for run in runs}
    if len(tested) > 1:
        found.append("These runs were tested on different images.")
    settings = [_nested(run, "settings") for run in runs]
    names = sorted({name for one in settings if one for name in one} - _NOT_COMPARED)
    differing = [n for n in names if len({json.dumps(one.get(n)) for one in settings if one}) > 1]
    if differing:
        found.append(f"These runs were evaluated with different settings: {', '.join(differing)}.")
    state_parts = sorted({run.metrics["encoders"]["trained"]["state_part"] for run in runs})
    if len(state_parts) > 1:
        found.append(f"Different parts of the state were evaluated: {', '.join(state_parts)}.")
    if len({run.metrics["headline_k"] for run in runs}) > 1:
        found.append("The headline k of kNN differs between runs; each row uses its own k.")
    if len({bool(one.get("evaluation.reference_evaluation")) for one in settings}) > 1:
        found.append(
            "Some runs count votes and pairs as published (evaluation.reference_evaluation)."
        )
    if len({run.metrics.get("schema_version") for run in runs}) > 1:
        found.append(
            "These reports come from different versions, which compute kNN ties and top-5, cosine "
            "similarities and uniformity differently: evaluate the older runs again."
        )
    names_by_note: dict[str, list[str]] = {}
    for run in runs:
        for note in run.metrics.get("notes", ()):
            names_by_note.setdefault(str(note), []).append(run.name)
    found += [f"{note} ({', '.join(names)})" for note, names in names_by_note.items()]
    single = [group.name for group in groups if len(group.runs) < 2]
    if single:
        found.append(
            f"Only one run of {', '.join(single)}: differences that involve it have no interval "
            "and may be due to the seed."
        )
    elif len(groups) > 1 and min(len(group.runs) for group in groups) < 5:
        found.append("With fewer than five seeds, bootstrap intervals are too narrow.")
    return found


def page(groups: Sequence[Group], title: str = "Comparison of runs") -> str:
    """Returns the page as HTML."""
    baseline = groups[0].name
    sections = [
        Section("Summary", parts.summary_table(groups)),
        Section("Differences", parts.intervals(groups)),
        Section("Neighbors and spectra", parts.knn_and_spectra(groups)),
        Section("Training", parts.training_curves(groups)),
        Section("Checkpoints", parts.checkpoint_curves(groups)),
        Section("Position q, momentum p, and both", parts.state_parts_table(groups)),
        Section("Coordinates z and H^{1/2} z", parts.coordinates_table(groups)),
        Section("Few-shot, coarse labels, and corrupted images", parts.extra_table(groups)),
        Section("Configuration differences", parts.configuration_table(groups)),
        Section("Runs", parts.runs_table(groups)),
        Section("Pictures", parts.galleries(groups)),
    ]
    count = sum(len(group.runs) for group in groups)
    note = (
        f"{count} runs in {len(groups)} groups; runs of a group differ only in their seed. "
        "Values are means ± standard deviations over seeds; bands span the lowest to the highest "
        f"run. Small numbers are differences from {baseline} with 95 % bootstrap intervals "
        "over seeds, colored if the interval excludes zero. Losses of different methods are not "
        "comparable."
    )
    intro = f'<p class="note">{escape(note)}</p>{"".join(map(warning, warnings(groups)))}'
    return document(title, intro, sections)


def compare(
    paths: Sequence[pathlib.Path], out: pathlib.Path, eval_dir: pathlib.Path | None = None
) -> list[Group]:
    """Reads runs, groups them and writes the page to `out`; see `load_result` for the paths.

    Raises:
      UserError: no runs, a run named twice, one without a report, or an `out` that is not
        writable.
    """
    if not paths:
        raise UserError("There is nothing to compare: name one or more runs.")
    out = local_path(out, "--out")
    check_writable_file(out, "--out")
    resolved = [path.resolve() for path in paths]
    repeated = sorted({str(p) for p, r in zip(paths, resolved) if resolved.count(r) > 1})
    if repeated:
        raise UserError(f"{', '.join(repeated)} is named more than once.")
    groups = group_runs([load_result(path, eval_dir) for path in resolved])
    try:
        write_atomically(out, page(groups))
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error}.") from error
    return groups
