"""The published figures of HJEPA and its baselines, and a table of them beside one's own.

Source: "Beyond Isotropy in JEPAs", arXiv 2605.20107: ResNet-18 tokens of the third stage, no
projector, AdamW; features of the frozen encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from hjepa_jax.evaluation.report.tables import NOTHING, markdown_table


class Scores(NamedTuple):
    """Test accuracies in percent: kNN@20, and top-1 of the linear probe."""

    knn: float
    probe: float


# Method, and part of its state.
Row: TypeAlias = tuple[str, str]
# Mean over seeds on CIFAR-100, one seed on ImageNet-100.
SETTINGS = ("CIFAR-100, 30 epochs", "CIFAR-100, 80 epochs", "ImageNet-100, 45 epochs")
PUBLISHED: dict[Row, tuple[Scores | None, Scores | None, Scores | None]] = {
    ("sigreg", "qp"): (Scores(26.56, 30.43), Scores(27.98, 33.95), Scores(20.10, 24.40)),
    ("mlp", "q"): (None, Scores(28.10, 42.26), None),
    ("hjepa", "q"): (Scores(31.45, 33.95), Scores(34.43, 44.59), Scores(24.92, 31.92)),
    ("hjepa", "p"): (Scores(29.71, 33.07), Scores(32.96, 44.44), Scores(24.72, 32.08)),
    ("hjepa", "qp"): (Scores(30.88, 34.18), Scores(33.66, 44.52), Scores(24.64, 32.04)),
}
_TITLES: dict[Row, str] = {
    ("sigreg", "qp"): "SIGReg (LeJEPA), the whole state",
    ("mlp", "q"): "matched MLP predictor, q",
    ("hjepa", "q"): "HJEPA, q",
    ("hjepa", "p"): "HJEPA, p",
    ("hjepa", "qp"): "HJEPA, q and p",
}


def _cell(scores: Scores | None) -> str:
    return NOTHING if scores is None else f"{scores.knn:.2f} / {scores.probe:.2f}"


def _ahead(of: Row, setting: int) -> Scores:
    """Returns by how many points a row is ahead of SIGReg."""
    first, second = PUBLISHED[of][setting], PUBLISHED["sigreg", "qp"][setting]
    assert first is not None
    assert second is not None
    return Scores(first.knn - second.knn, first.probe - second.probe)


def section(ours: Mapping[Row, Scores]) -> str:
    """Returns a section in Markdown: the published figures, one's own, and what they show.

    Args:
      ours: mean scores of one's own runs; rows may be missing.
    """
    rows = [
        [title, *map(_cell, PUBLISHED[row]), _cell(ours.get(row))] for row, title in _TITLES.items()
    ]
    table = "\n".join(markdown_table(["kNN@20 / probe top-1 %", *SETTINGS, "runs above"], rows))
    margins = [_ahead(("hjepa", "q"), number) for number in range(len(SETTINGS))]
    listed = ", ".join(f"{one.knn:.2f} / {one.probe:.2f}" for one in margins)
    flow, mlp = margins[1], _ahead(("mlp", "q"), 1)
    return f"""## Published figures

From "Beyond Isotropy in JEPAs" (arXiv 2605.20107): ResNet-18 tokens of the third stage, no
projector, AdamW. CIFAR-100 is the mean over seeds, ImageNet-100 a single seed.

{table}

The last column has the runs of this page. Where their images, width, or length differ from the
published ones, the order of the methods can be compared, and the numbers cannot.

- **What they show**: the position q of HJEPA is ahead of SIGReg in all three settings, by
  {listed} points (kNN@20 / probe).
- **What they do not show**: that it is the flow that helps the probe. At 80 epochs the matched MLP
  already takes {mlp.probe:.1f} of the {flow.probe:.1f} points of the probe, so most of them need no
  Hamiltonian; of kNN@20 it takes {mlp.knn:.2f} of {flow.knn:.2f}. The other settings have no MLP.
- **The baseline** is headless: SIGReg acts on the encoder's tokens themselves, without the
  projector that LeJEPA has. How HJEPA compares with LeJEPA and its projector remains open.
- **ImageNet-100** is one seed, without a spread: a difference of tenths, as between q, p, and both,
  says nothing there."""
