"""Resumable sweeps over variants, settings and seeds, each run in a separate process.

A sweep's folder holds `runs/<name>` (workdirs), `eval/<name>` (reports), `logs/<name>.txt`, the
commands in `commands.json`, and the results in `results.json` and `results.md`. A run is finished
when its report's `metrics.json` exists; an interrupted one resumes from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hjepa_jax.config.checks import typed, unused, with_defaults
from hjepa_jax.config.flags import config_of_arguments, resolve_arguments
from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.compare.runs import load_metrics
from hjepa_jax.evaluation.report.folder import METRICS, find_reports, report_name
from hjepa_jax.evaluation.report.summary import headline
from hjepa_jax.evaluation.report.tables import NOTHING, markdown_table
from hjepa_jax.storage.files import json_text, open_log, write_atomically
from hjepa_jax.storage.schema import Items, Table, Text, read_json

# The command that runs each process.
MAIN = (sys.executable, "-m", "hjepa_jax.main")
# Columns of the table that some run has: figure of `headline` -> (title, factor, digits).
COLUMNS = {
    "knn": ("kNN %", 100, 2),
    "probe_top1": ("probe top-1 %", 100, 2),
    "probe_top5": ("probe top-5 %", 100, 2),
    "logistic_top1": ("logistic top-1 %", 100, 2),
    "effective_rank": ("eff. rank", 1, 1),
    "participation_ratio": ("particip. ratio", 1, 1),
    "rankme": ("RankMe", 1, 1),
    "mean_share": ("in mean %", 100, 1),
}


@dataclasses.dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Attributes:
      name: unique name, also that of its folders.
      group: the name without the seed; runs of a group differ only in their seed.
      arguments: command-line arguments of `python -m hjepa_jax.main`.
    """

    name: str
    group: str
    arguments: tuple[str, ...]


def _slug(text: str) -> str:
    """Returns a setting as part of a file name: 'train.lr=1e-3' -> 'train.lr=1e-3'."""
    return re.sub(r"[^\w.=+-]+", "_", text).strip("_")


def override_flag(text: str) -> str:
    """Returns 'train.lr=1e-3' as '--config.train.lr=1e-3'."""
    name, equals, value = text.removeprefix("--").removeprefix("config.").partition("=")
    if not (name and equals):
        raise UserError(f"{text!r} is not an override: write 'section.field=value'.")
    return f"--config.{name}={value}"


def seeds_of(texts: Sequence[str]) -> list[int]:
    """Returns the values of --seeds as integers.

    Raises:
      UserError: if one is no integer.
    """
    if not all(text.lstrip("-").isdigit() for text in texts):
        raise UserError(f"--seeds={','.join(texts)}: seeds must be integers.")
    return [int(text) for text in texts]


def plan_run(
    config: str, out: pathlib.Path, group: str, overrides: Sequence[str], seed: int
) -> SweepRun:
    """Returns the run of a group with a seed.

    Args:
      config: configuration, optionally with ':variant'.
      out: the sweep's folder.
      group: its name, part of those of files.
      overrides: 'section.field=value'.
      seed: value of config.seed.

    Raises:
      UserError: for a malformed override or an invalid configuration.
    """
    name = f"{group}-seed{seed}"
    arguments = (
        f"--config={config}",
        f"--workdir={out / 'runs' / name}",
        f"--eval_dir={out / 'eval'}",
        *map(override_flag, (*overrides, f"seed={seed}")),
    )
    resolve_arguments(list(arguments))
    return SweepRun(name, group, arguments)


def with_effect(config: str, overrides: Sequence[str]) -> tuple[str, ...]:
    """Returns overrides that also bring fields without effect back to their defaults.

    A configuration sets fields of its own method, which would be errors in an arm without it.

    Args:
      config: configuration, optionally with ':variant'.
      overrides: 'section.field=value'.

    Raises:
      UserError: for a malformed override or an unknown configuration.
    """
    found = tuple(overrides)
    while True:
        arguments = [f"--config={config}", *map(override_flag, found)]
        settings = typed(with_defaults(config_of_arguments(arguments))[0])
        idle = {row.path: row.default for row, _ in unused(settings)}
        if not idle:
            return found
        found += tuple(f"{path}={_text(value)}" for path, value in idle.items())


def _text(value: object) -> str:
    """Returns a value as the command line takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def plan(
    config: str,
    out: pathlib.Path,
    *,
    variants: Sequence[str] = ("",),
    settings: Sequence[str] = ("",),
    seeds: Sequence[int],
    common: Sequence[str] = (),
) -> list[SweepRun]:
    """Returns the runs of a sweep: every variant under every setting with every seed.

    Args:
      config: configuration file, optionally with ':variant' if there are no `variants`.
      out: the sweep's folder.
      variants: variants of the file, as after its ':'; '' = the default.
      settings: overrides 'section.field=value', several separated by spaces; '' = none.
      seeds: values of config.seed.
      common: overrides for every run.

    Raises:
      UserError: for repeated names, a malformed override or an invalid configuration.
    """
    if ":" in config and any(variants):
        raise UserError(f"--config={config} names a variant: leave it out, or give no variants.")
    runs = []
    stem = pathlib.Path(config.partition(":")[0]).stem
    given = config.partition(":")[2]
    for variant, setting, seed in itertools.product(variants, settings, seeds):
        parts = [variant or given or stem, *map(_slug, setting.split())]
        source = f"{config}{f':{variant}' if variant else ''}"
        overrides = (*common, *setting.split())
        runs.append(plan_run(source, out, "-".join(parts), overrides, seed))
    names = [run.name for run in runs]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"The sweep has duplicate runs: {', '.join(repeated)}. Name each once.")
    return runs


def check_commands(runs: Sequence[SweepRun], out: pathlib.Path) -> None:
    """Records the runs' commands, and refuses a folder in which a run had a different command.

    Raises:
      UserError: if a run had a different command, naming what differs.
    """
    path = out / "commands.json"
    known: dict[str, list[str]] = {}
    if os.path.lexists(path):
        try:
            known = read_json(path, Table(Items(Text())))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read ({error}): choose another --out.") from error
    for run in runs:
        before = known.get(run.name, list(run.arguments))
        differing = sorted(set(before) ^ set(run.arguments))
        if differing:
            raise UserError(
                f"{out} has a run {run.name} with a different command (differing: "
                f"{' '.join(differing)}): choose another --out."
            )
    out.mkdir(parents=True, exist_ok=True)
    known |= {run.name: list(run.arguments) for run in runs}
    write_atomically(path, json.dumps(known, indent=2) + "\n")


def report_of(run: SweepRun, out: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder with the report of a finished run, else None."""
    found = find_reports(out / "eval", report_name(pathlib.Path(run.name)))
    return next(iter(found), None)


def metrics_of(run: SweepRun, out: pathlib.Path) -> dict[str, Any] | None:
    """Returns the metrics of a finished run, else None.

    Raises:
      UserError: if its `metrics.json` is damaged.
    """
    folder = report_of(run, out)
    if folder is not None:
        try:
            return load_metrics(folder)
        except UserError as error:
            raise UserError(
                f"{folder / METRICS} cannot be read ({error}): delete it and run the sweep again."
            ) from error
    return None


def execute(run: SweepRun, out: pathlib.Path, command: Sequence[str] = MAIN) -> str | None:
    """Runs one process; returns None, or one line about its failure."""
    log = out / "logs" / f"{run.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with open_log(log) as file:
        done = subprocess.run(
            [*command, *run.arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode == 0:
        return None
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1] if lines else 'no output'} (exit status {done.returncode}, {log})"


def run_all(
    runs: Sequence[SweepRun],
    out: pathlib.Path,
    log: Callable[[str], None] = print,
    command: Sequence[str] = MAIN,
) -> dict[str, str]:
    """Runs all unfinished runs, one after another; a failure does not stop the others.

    Args:
      runs: the runs of the sweep.
      out: the sweep's folder.
      log: called with a line about each run and each failure.
      command: program and arguments that precede those of a run.

    Returns:
      The failure of each failed run, by name.
    """
    check_commands(runs, out)
    failed: dict[str, str] = {}
    for number, run in enumerate(runs, 1):
        label = f"[{number}/{len(runs)}] {run.name}"
        if metrics_of(run, out) is not None:
            log(f"{label}: already finished")
            continue
        log(f"{label}: running, log in {out / 'logs' / run.name}.txt")
        error = execute(run, out, command)
        if error is None and metrics_of(run, out) is None:
            error = f"it ended without {out / 'eval' / run.name}/metrics.json"
        if error:
            failed[run.name] = error
            log(f"{label}: failed: {error}")
    return failed


def results(runs: Sequence[SweepRun], out: pathlib.Path) -> dict[str, Any]:
    """Gathers the finished runs by group, with mean and std (n - 1) of each metric."""
    groups: dict[str, Any] = {}
    for run in runs:
        metrics = metrics_of(run, out)
        if metrics is None:
            continue
        figures = headline(metrics["encoders"]["trained"], metrics["headline_k"])
        group = groups.setdefault(run.group, {"k": metrics["headline_k"], "runs": {}})
        group["runs"][run.name] = figures
    for group in groups.values():
        every = group["runs"].values()
        names = [name for name in COLUMNS if any(name in figures for figures in every)]
        values = {name: [f.get(name, math.nan) for f in every] for name in names}
        group["mean"] = {name: float(np.mean(v)) for name, v in values.items()}
        # The spread of one run is unknown: None, not 0.
        group["std"] = {
            name: float(np.std(v, ddof=1)) if len(v) > 1 else None for name, v in values.items()
        }
    return {"schema_version": 1, "planned": [run.name for run in runs], "groups": groups}


def mean_and_deviation(mean: float, std: float | None, factor: float, digits: int) -> str:
    """Formats 'mean ± std', both times `factor`; only the mean if `std` is None."""
    if not math.isfinite(mean):
        return NOTHING  # a run lacks this value
    spread = "" if std is None else f" ± {factor * std:.{digits}f}"
    return f"{factor * mean:.{digits}f}{spread}"


def _cells(group: dict[str, Any], columns: Mapping[str, tuple[str, int, int]]) -> Iterator[str]:
    for name, (_, factor, digits) in columns.items():
        mean, std = group["mean"].get(name, math.nan), group["std"].get(name)
        yield mean_and_deviation(mean, std, factor, digits)


def markdown(found: dict[str, Any], title: str = "Sweep") -> str:
    """Returns a Markdown table of `results`: mean ± standard deviation over seeds."""
    known = {name for group in found["groups"].values() for name in group["mean"]}
    columns = {name: column for name, column in COLUMNS.items() if name in known}
    header = ["runs", "n", *(title for title, _, _ in columns.values())]
    rows = [
        [name, str(len(group["runs"])), *_cells(group, columns)]
        for name, group in found["groups"].items()
    ]
    done = sum(len(group["runs"]) for group in found["groups"].values())
    text = "\n".join(markdown_table(header, rows))
    ks = sorted({group["k"] for group in found["groups"].values()})
    note = (
        f"{done} of {len(found['planned'])} runs finished. Mean ± standard deviation over the n "
        f"seeds; kNN at k = {', '.join(map(str, ks))}."
    )
    return f"# {title}\n\n{text}\n\n{note}\n"


def write_results(runs: Sequence[SweepRun], out: pathlib.Path) -> str:
    """Writes `results.json` and `results.md`, and returns the text of the latter."""
    found = results(runs, out)
    text = markdown(found)
    write_atomically(out / "results.json", json_text(found))
    write_atomically(out / "results.md", text)
    return text
