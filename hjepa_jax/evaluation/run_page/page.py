"""The page of one evaluation, from its metrics, pictures and record."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping

from hjepa_jax.errors import first_line
from hjepa_jax.evaluation.checkpoint_curves.draw import CurveGroup, curves_over_training
from hjepa_jax.evaluation.checkpoint_curves.stored import BASELINES
from hjepa_jax.evaluation.page.curves import Curves, training_curves
from hjepa_jax.evaluation.page.document import Section, document, warning
from hjepa_jax.evaluation.page.ink import breakable
from hjepa_jax.evaluation.page.tables import Row, facts, table
from hjepa_jax.evaluation.page.text import escape
from hjepa_jax.evaluation.report.flow import FlowPicture
from hjepa_jax.evaluation.report.gallery import PictureInputs
from hjepa_jax.evaluation.report.plots import Metrics
from hjepa_jax.evaluation.report.summary import shown_coordinates, shown_features
from hjepa_jax.evaluation.run_page import pictures, results
from hjepa_jax.evaluation.run_page.distribution import distribution
from hjepa_jax.evaluation.run_page.record import Record

PAGE = "report.html"
_log = logging.getLogger(__name__)


def _guarded(draw: Callable[[], str]) -> str:
    """Returns a section that shows images, or the reason why it cannot be drawn."""
    try:
        return draw()
    except Exception as error:  # data that is read again, ...
        _log.debug("a section cannot be drawn", exc_info=True)
        return warning(f"This cannot be drawn ({type(error).__name__}: {first_line(error)}).")


def _intro(metrics: Metrics) -> str:
    """Returns a line about what was evaluated, and the notes."""
    info = metrics["info"]
    parts = [str(info[name]) for name in ("method",) if name in info]
    if "data" in info:
        trained = f", trained on {info['trained_on']}" if "trained_on" in info else ""
        parts.append(f"{info['data']}{trained}")
    if "step" in info:
        chosen = f" ({info['checkpoint']} checkpoint)" if "checkpoint" in info else ""
        parts.append(f"step {info['step']}{chosen}")
    images = [
        f"{found['evaluated']} {kind} images"
        for key, kind in (("train_images", "training"), ("test_images", "test"))
        if isinstance(found := info.get(key), Mapping) and "evaluated" in found
    ]
    parts += [", ".join(images)] if images else []
    state = sorted({one["state_part"] for one in metrics["encoders"].values()})
    shown = ", ".join([*state, *filter(None, [shown_features(info), shown_coordinates(info)])])
    parts.append(f"frozen features ({shown})")
    notes = "".join(warning(str(note)) for note in metrics.get("notes", ()))
    return f'<p class="note">{escape(" · ".join(parts))}</p>{notes}'


def _checkpoints(name: str, metrics: Metrics, record: Record) -> str:
    """Returns the curves of the run's evaluated checkpoints, and what differs from this one."""
    found = record.checkpoints
    if found is None:
        return ""
    here = metrics["info"].get("settings", {})
    differing = [
        path
        for path in sorted({*found.settings} & {*here})
        if path not in BASELINES and json.dumps(found.settings[path]) != json.dumps(here[path])
    ]
    note = f"All checkpoints, evaluated alike; the numbers are in {found.folder}."
    if differing:
        note += f" These settings differ from those of this page: {', '.join(differing)}."
    curves = curves_over_training([CurveGroup(name, 0, [found])])
    return f'<p class="note">{escape(note)}</p>{curves}'


def _settings(record: Record) -> str:
    rows = [
        Row(f"<code>{breakable(path)}</code>", [f"<code>{escape(one)}</code>" for one in values])
        for path, *values in record.changed
    ]
    return table("Settings", ["field", "this run", "default"], rows, narrow=True)


def _evaluated(metrics: Metrics) -> str:
    info = metrics["info"]
    flat = {name: value for name, value in info.items() if not isinstance(value, Mapping)}
    if metrics["num_classes"]:
        flat["classes"] = f"{metrics['num_classes']} (chance {1 / metrics['num_classes']:.1%})"
    parts = [facts(flat)]
    for name, value in info.items():
        if isinstance(value, Mapping) and value:
            title = escape(name.replace("_", " "))
            inner = facts(value)
            # Dozens of settings are for those who look for them.
            folded = f"<details><summary>{title}</summary>{inner}</details>"
            parts.append(folded if name == "settings" else f"<h3>{title}</h3>{inner}")
    times = results.extraction(metrics)
    return "".join([*parts, *([f"<h3>feature extraction</h3>{times}"] if times else [])])


def _reproduce(metrics: Metrics, record: Record) -> str:
    info = metrics["info"]
    versions = [
        f"{name} {info[key]}"
        for name, key in (("hjepa_jax", "version"), ("jax", "jax"))
        if key in info
    ]
    where = f" on {info['device']}" if "device" in info else ""
    note = f"With {', '.join(versions)}{where}:" if versions else ""
    lines = "\n".join(record.commands)
    return (
        f'<p>{escape(note)}</p><pre tabindex="0">{_text(lines)}</pre>'
        "<details><summary>config.json of this run</summary>"
        f'<pre tabindex="0">{_text(record.config)}</pre></details>'
    )


def _text(lines: str) -> str:
    """Returns text of several lines, escaped."""
    return "\n".join(map(escape, lines.splitlines()))


def evaluation_page(
    metrics: Metrics,
    inputs: Callable[[], PictureInputs],
    flow: Callable[[], FlowPicture] | None = None,
    record: Record | None = None,
) -> str:
    """Returns the page as HTML.

    Args:
      metrics: metrics of `evaluate`.
      inputs: returns the inputs of the pictures; if it raises, the page has the numbers alone.
      flow: returns the trajectories of the gallery's states, if there is a learned flow.
      record: settings, curves and commands of the run, if known.
    """
    name = str(metrics["info"].get("run", "a run"))
    found = []
    try:
        given = inputs()
    except Exception as error:
        given = None
        found.append(warning(f"The images cannot be read again ({first_line(error)})."))
    sections = [
        Section("Results", results.results(metrics)),
        Section("Position q, momentum p, and both", results.state_parts(metrics)),
        Section("Post-hoc H", results.posthoc(metrics)),
        Section("Few-shot, coarse labels, and corrupted images", results.extra(metrics)),
        Section("Features", _guarded(lambda: results.features(metrics, given))),
    ]
    if record is not None:
        curves = training_curves([Curves(name, 0, [record.curves])], rest=True)
        sections.append(Section("Training", curves))
        sections.append(Section("Checkpoints", _checkpoints(name, metrics, record)))
    if given is not None:
        sections += [
            Section("Distribution of states", _guarded(lambda: distribution(metrics, given))),
            Section("Map of test features", _guarded(lambda: pictures.maps(given))),
            Section("Nearest neighbors", _guarded(lambda: pictures.neighbors(given))),
        ]
        if flow is not None:
            drawn = _guarded(lambda: pictures.flow(flow(), given))
            sections.append(Section("Learned Hamiltonian flow", drawn))
    if record is not None:
        sections.append(Section("Settings that differ from the defaults", _settings(record)))
    sections.append(Section("What was evaluated", _evaluated(metrics)))
    if record is not None:
        sections.append(Section("How to reproduce", _reproduce(metrics, record)))
    return document(f"Evaluation of {name}", _intro(metrics) + "".join(found), sections)
