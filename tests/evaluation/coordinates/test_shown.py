"""Figures of z and H^{1/2} z are side by side wherever an evaluation is shown."""

import copy
import io
import json
import pathlib
import re

import evaluations
import numpy as np
import pytest
from rich.console import Console

from hjepa_jax.evaluation.compare import runs
from hjepa_jax.evaluation.compare.page import page, warnings
from hjepa_jax.evaluation.report import tables
from hjepa_jax.evaluation.report.summary import shown_coordinates
from hjepa_jax.evaluation.run_page.page import evaluation_page
from tests.evaluation.compare.test_compare import encoder_metrics, write_run

POSTHOC = {
    "kind": "learnable",
    "sigreg_raw": 8.125,
    "sigreg_sqrt_h": 0.625,
    "sigreg_gaussian": 0.5695,
    "condition_number": 7.389,
    "log_envelope": [0.0, 1.0, 2.0],
    "losses": [8.0, 4.0, 0.6],
}


@pytest.fixture
def metrics() -> dict:
    """Metrics in both coordinates, with a fitted H."""
    found = evaluations.metrics()
    moved = copy.deepcopy(found["encoders"]["random"])
    moved |= {"coordinates": "sqrt_h", "posthoc": POSTHOC}
    trained, *others = found["encoders"].items()
    found["encoders"] = dict([trained, ("trained sqrt_h", moved), *others])
    found["sqrt_h_minus_raw"] = {"knn": -0.22, "probe_top1": None}
    found["info"] |= {"coordinates": "both", "posthoc": "learnable"}
    return found


def test_the_table_has_both_rows_and_their_difference(metrics) -> None:
    out = io.StringIO()
    tables.print_table(metrics, Console(file=out, width=80))
    lines = out.getvalue().splitlines()
    assert "z and H^{1/2} z, post-hoc H learnable" in lines[0]
    assert any(re.match(r" *trained sqrt_h +61\.0", line) for line in lines)
    assert any(re.match(r" *sqrt_h - raw +-22\.0 +– +–", line) for line in lines)
    assert max(map(len, lines)) <= 80


def test_coordinates_are_named() -> None:
    assert shown_coordinates({}) is None
    assert shown_coordinates({"coordinates": "sqrt_h"}) == "H^{1/2} z"
    assert shown_coordinates({"coordinates": "both"}) == "z and H^{1/2} z"


def test_the_report_tells_what_was_fitted(metrics) -> None:
    text = tables.markdown(metrics)
    assert "## Post-hoc H" in text
    assert "| trained sqrt_h | learnable | 8.12 | 0.625 | 0.57 | 7.39 |" in text
    fixed = {name: POSTHOC[name] for name in POSTHOC if name.startswith("sigreg")}
    metrics["encoders"]["trained sqrt_h"]["posthoc"] = {"kind": "diag", **fixed}
    assert "| trained sqrt_h | diag | 8.12 | 0.625 | 0.57 | – |" in tables.markdown(metrics)
    assert "Post-hoc" not in tables.markdown(evaluations.metrics())


def test_the_page_draws_the_fit(metrics) -> None:
    pictures = evaluations.pictures()
    text = evaluation_page(metrics, lambda: pictures)
    section = text[text.index("<h2>Post-hoc H</h2>") :].partition("</section>")[0]
    assert 'data-y="8 4 0.6"' in section
    assert 'data-name="an isotropic Gaussian" data-x="1 3" data-y="0.5695 0.5695"' in section
    assert "trained sqrt_h: 7.389 at 3" in section
    assert "sqrt_h − raw" in text
    del metrics["encoders"]["trained sqrt_h"]["posthoc"]["losses"]
    assert "Fit of H" not in evaluation_page(metrics, lambda: pictures)


def _with_both(folder: pathlib.Path, name: str, seed: int, kind: str | None = None) -> pathlib.Path:
    workdir = write_run(folder, name, seed=seed, knn=0.5 + seed / 100)
    path = folder / "eval" / name / "metrics.json"
    metrics = json.loads(path.read_text())
    moved = encoder_metrics(0.75 + seed / 100, 0.375, np.random.default_rng(0))
    metrics["encoders"]["trained sqrt_h"] = moved | {"coordinates": "sqrt_h"}
    metrics["info"] |= {"coordinates": "both"} | ({"posthoc": kind} if kind else {})
    path.write_text(json.dumps(metrics))
    return workdir


def test_runs_are_compared_in_both(tmp_path) -> None:
    paths = [_with_both(tmp_path, f"x-seed{seed}", seed, "chain") for seed in (0, 2)]
    paths.append(write_run(tmp_path, "plain", seed=0, knn=0.4, lr=0.5))
    found = [runs.load_result(path, tmp_path / "none") for path in paths]
    groups = runs.group_runs(found)
    text = page(groups)
    section = text[text.index("z and H^{1/2} z</h2>") :].partition("</section>")[0]
    rows = re.findall("<tr>.*?</tr>", section)
    plain = [re.sub("<[^>]+>", " ", row) for row in rows]
    assert re.search(r"x\s+z\s+51\.00\s+± 1\.41", plain[1])
    assert re.search(r"x\s+H\^\{1/2\} z \(post-hoc chain\)\s+76\.00\s+± 1\.41", plain[2])
    assert len(plain) == 3
    # A report in both coordinates has the figures of raw states, too.
    assert not any("coordinates" in sentence for sentence in warnings(groups))


def test_the_report_of_raw_states_represents_a_run(tmp_path) -> None:
    _with_both(tmp_path, "x", 0)
    both = tmp_path / "eval/x"
    alone = tmp_path / "eval/x-step60-digits-01234567"
    alone.mkdir()
    metrics = json.loads((both / "metrics.json").read_text())
    metrics["info"] |= {"coordinates": "sqrt_h", "step": 90}
    (alone / "metrics.json").write_text(json.dumps(metrics))
    assert runs.load_result(tmp_path / "runs/x", tmp_path / "none").report == both
