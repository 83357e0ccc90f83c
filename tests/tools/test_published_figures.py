"""The published figures: their table, what is said of them, and that docs/RESULTS.md has both."""

import pathlib
import re

import numpy as np
import pytest

from hjepa_jax.tools.published_figures import PUBLISHED, SETTINGS, Scores, section
from hjepa_jax.tools.reproduce import Result, published_rows

RESULTS = pathlib.Path(__file__).resolve().parents[2] / "docs/RESULTS.md"
CELLS = {"HJEPA, trained": "hjepa", "matched MLP predictor, trained": "mlp"}


def test_every_figure_is_in_the_table_beside_ones_own() -> None:
    text = section({("hjepa", "p"): Scores(12.345, 67.0)})
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(PUBLISHED)
    assert "| HJEPA, p | 29.71 / 33.07 | 32.96 / 44.44 | 24.72 / 32.08 | 12.35 / 67.00 |" in rows
    assert "| matched MLP predictor, q | – | 28.10 / 42.26 | – | – |" in rows
    assert all(setting in rows[0] for setting in SETTINGS)


def test_the_margins_are_those_of_the_figures() -> None:
    text = " ".join(section({}).split())
    assert "by 4.89 / 3.52, 6.45 / 10.64, 4.82 / 7.52 points" in text
    assert "takes 8.3 of the 10.6 points of the probe" in text
    assert "of kNN@20 it takes 0.12 of 6.45" in text
    assert "headless" in text


def _metrics(state_part: str, knn: float, probe: float | None, **parts: float) -> dict:
    def one(knn: float, probe: float | None) -> dict:
        return {"knn": {"k_values": [1, 20], "top1": [0.9, knn]}, "linear_probe": {"top1": probe}}

    trained = {"state_part": state_part, **one(knn, probe)}
    trained["state_parts"] = {name: one(value, value / 2) for name, value in parts.items()}
    return {"headline_k": 20, "encoders": {"trained": trained}}


def test_ones_own_are_means_over_seeds_of_the_same_parts() -> None:
    found = published_rows(
        Result(
            {
                "hjepa": {seed: _metrics("q", 0.2 + seed / 10, 0.5, p=0.4) for seed in (0, 1)},
                "sigreg": {0: _metrics("qp", 0.125, 0.25)},
                "mlp": {0: _metrics("q", 0.125, None)},
                "identity": {0: _metrics("q", 0.5, 0.5)},
            },
            {},
        )
    )
    assert set(found) == {("hjepa", "q"), ("hjepa", "p"), ("sigreg", "qp")}
    assert found["hjepa", "q"] == pytest.approx((25.0, 50.0))
    assert found["hjepa", "p"] == pytest.approx((40.0, 20.0))
    assert found["sigreg", "qp"] == (12.5, 25.0)
    assert published_rows(Result({}, {})) == {}


def test_the_page_of_results_has_them_beside_its_own() -> None:
    text = RESULTS.read_text()
    ours = {}
    for title, method in CELLS.items():
        (row,) = re.findall(rf"^\| {title} \| (.*) \|$", text, re.M)
        numbers = np.array(row.split(" | "), float).reshape(3, 2)
        parts = zip(("q", "p", "qp"), numbers.tolist(), strict=True)
        ours |= {(method, part): Scores(*pair) for part, pair in parts}
    (row,) = re.findall(r"^\| SIGReg \(LeJEPA\) \| 3 \| (.*) \|$", text, re.M)
    means = [float(cell.split(" ± ")[0]) for cell in row.split(" | ")]
    ours["sigreg", "qp"] = Scores(means[0], means[2])
    assert section(ours) in text
