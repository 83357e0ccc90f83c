"""The page of an evaluation: everything that was measured, nothing else, and no name runs."""

import dataclasses
import functools
import math
import pathlib
import re

import evaluations
import numpy as np
import pytest
from pages import ink_pixels, parse, screenshot

from hjepa_jax.evaluation.checkpoint_curves.stored import Evaluations, Point
from hjepa_jax.evaluation.page import ink
from hjepa_jax.evaluation.report.flow import FlowPicture, HalfPicture
from hjepa_jax.evaluation.run_page.page import evaluation_page
from hjepa_jax.evaluation.run_page.record import Record

_CURVE = (np.array([1, 2, 3]), np.array([3.0, 2.0, 1.0]))
_RECORD = Record(
    [("train.lr", 0.125, 0.0005), ("data.root", "<script>x</script>", None)],
    '{\n  "train": "<script>"\n}',
    {"loss/total": _CURVE, "method/own": _CURVE, "epoch": _CURVE},
    None,
    ["hjepa train --config=a/config.json", "hjepa eval a"],
)


def _half() -> HalfPicture:
    rng = np.random.default_rng(0)
    return HalfPicture(rng.normal(size=(5, 6, 2)), rng.normal(size=(30, 2)), np.array([0.5, 0.25]))


@functools.cache
def _flow() -> FlowPicture:
    times = np.linspace(-1, 1, 5)
    energies = np.stack([1 + i * times**2 / 1000 for i in range(6)], axis=1)
    return FlowPicture(times, energies, _half(), _half())


def _page(metrics=None, inputs=None, flow=_flow, record=_RECORD) -> str:
    given = evaluations.pictures() if inputs is None else inputs
    return evaluation_page(metrics or evaluations.metrics(), lambda: given, flow, record)


def _titles(text: str) -> list[str]:
    return re.findall("<h2>(.*?)</h2>", text)


def test_every_measurement_has_a_section() -> None:
    metrics = evaluations.metrics()
    text = _page()
    assert _titles(text) == [
        "Results",
        "Position q, momentum p, and both",
        "Few-shot, coarse labels, and corrupted images",
        "Features",
        "Training",
        "Distribution of states",
        "Map of test features",
        "Nearest neighbors",
        "Learned Hamiltonian flow",
        "Settings that differ from the defaults",
        "What was evaluated",
        "How to reproduce",
    ]
    assert len(text) < 1_000_000
    parser = parse(text)
    shown = parser.shown
    assert "cannot be drawn" not in shown
    assert "nan" not in shown
    for one in metrics["encoders"].values():
        accuracy, (low, high) = one["knn"]["top1"][2], one["knn"]["top1_interval"][2]
        assert f"{100 * accuracy:.1f}" in parser.texts
        assert f"{math.floor(100 * low)}–{math.ceil(100 * high)}" in parser.texts
    difference = f"{100 * metrics['trained_minus_random']['knn']:+.1f}".replace("-", "−")
    assert difference in parser.texts
    for words in (
        "pixels",
        "random",
        "trained: p",
        "2 images per class",
        "gray",
        "parity",
        "0.125",
        "feature extraction",
        "trained: test",
    ):
        assert words in shown, words
    # Images, seconds, images/s, and waiting for data.
    cells = "".join(f"<td>{cell}</td>" for cell in ("100", "0.8", "125", "25%"))
    assert cells in text
    # Three encoders with six queries of eight neighbors, and the queries beside the flow.
    assert sum(link.startswith("data:image/png") for link in parser.links) == 3 * 6 * 9 + 6
    charts = re.findall('<svg class="chart.*?</svg>', text)
    assert [re.findall('aria-label="(.*?) over', chart)[0] for chart in charts] == [
        "k-nearest-neighbor accuracy",
        "Covariance spectrum of training features",
        "Random pairs of test images",
        "Total loss",
        "method/own",
        "Random directions",
        "Random directions, mean 0 and variance 1",
        "Norms of the position q",
        "Norms of the momentum p",
        "Norms of the state z",
        "Energy along the flow",
    ]
    assert 'data-name="chance" data-x="1 20" data-y="0.1 0.1"' in charts[0]
    assert text.count('<svg class="plane"') == 2 * 3 + 2


def _unlabeled():
    """Metrics and pictures as of images without labels."""
    metrics, reason = evaluations.metrics(), "the images have no labels."
    for one in metrics["encoders"].values():
        for part in ("state_parts", "few_shot", "coarse", "robustness"):
            one.pop(part, None)
        one["knn"] |= {"top1": [None] * 3, "top1_interval": [None] * 3}
        one["linear_probe"] = dict.fromkeys(("top1", "top5", "top1_interval", "top5_interval"))
        one["no_accuracy"] = reason
    none = dict.fromkeys(metrics["trained_minus_random"])
    kept = {"effective_rank": metrics["trained_minus_random"]["effective_rank"]}
    metrics |= {"num_classes": 0, "notes": [f"No accuracy: {reason}"]}
    metrics["trained_minus_random"] = none | kept
    inputs = evaluations.pictures()
    encoders = {
        name: dataclasses.replace(one, labels=np.full_like(one.labels, -1))
        for name, one in inputs.encoders.items()
    }
    images = [
        {i: (image, -1) for i, (image, _) in some.items()}
        for some in (inputs.test_images, inputs.train_images)
    ]
    return metrics, dataclasses.replace(
        inputs, encoders=encoders, test_images=images[0], train_images=images[1], class_names=()
    )


def test_without_labels_the_page_has_what_needs_none_and_says_why() -> None:
    metrics, inputs = _unlabeled()
    text = _page(metrics, inputs, None, None)
    parser = parse(text)
    assert "No accuracy: the images have no labels." in parser.texts
    titles = [
        "Results",
        "Features",
        "Distribution of states",
        "Map of test features",
        "Nearest neighbors",
    ]
    assert _titles(text) == [*titles, "What was evaluated"]
    for absent in ("kNN", "probe", "Wilson", "top-1", "✓", "✗", "chance", "cannot be drawn"):
        assert absent not in parser.shown, absent
    assert "no label" not in parser.texts
    for present in ("effective rank", "uniformity"):
        assert present in parser.shown
    assert "Covariance spectrum" in parser.shown
    assert text.count('<svg class="plane"') == 2 * 3


ODD_NAMES = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</svg></style></script>",
    "a & b",
    "\u202eright to left\n",
    "x" * 5000,
    "",
    "\udcff",
    "'",
    "plain",
)


def test_names_from_files_are_text() -> None:
    metrics = evaluations.metrics()
    script = "<script>alert(1)</script>"
    metrics["info"] = {"run": script, "data": script, "train_images": {"corrupt": [script]}}
    metrics["info"]["settings"] = {script: script}
    metrics["notes"] = [script]
    metrics["encoders"][script] = metrics["encoders"].pop("pixels")
    inputs = dataclasses.replace(evaluations.pictures(), class_names=ODD_NAMES)
    encoders = dict(inputs.encoders)
    encoders[script] = encoders.pop("pixels")
    text = _page(metrics, dataclasses.replace(inputs, encoders=encoders))
    parser = parse(text)
    assert "cannot be drawn" not in parser.shown
    assert text.count("<script>") == 1
    assert "<img src=x" not in text
    for name in (f"Evaluation of {script}", "<script>alert(1)</script>", "a & b", "(no name)"):
        assert name in parser.shown
    assert "x" * 100 not in text
    text.encode()


def test_images_that_cannot_be_read_again_lose_no_numbers() -> None:
    def gone():
        raise OSError(5, "Input/output error")

    text = evaluation_page(evaluations.metrics(), gone, _flow, _RECORD)
    assert "The images cannot be read again" in parse(text).shown
    assert "Input/output error" in text
    titles = _titles(text)
    assert "Results" in titles
    assert "Training" in titles
    assert "Nearest neighbors" not in titles


def test_a_section_that_fails_affects_no_other() -> None:
    def fail():
        raise RuntimeError("<b>no</b> flow")

    text = _page(flow=fail)
    assert "This cannot be drawn (RuntimeError: <b>no</b> flow)." in parse(text).texts
    assert text.count('<svg class="plane"') == 2 * 3
    assert "Learned Hamiltonian flow" in _titles(text)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, True)])
def test_a_browser_shows_the_page_in_its_width(width, dark, tmp_path) -> None:
    path = tmp_path / "report.html"
    path.write_text(_page())
    pixels = screenshot(path, width, 3000, dark=dark)
    assert (pixels[0, 0].max() < 40) == dark
    colors = ink.DARK_COLORS if dark else ink.COLORS
    for style in range(3):
        assert ink_pixels(pixels, colors[style]) > 80
    # Nothing extends beyond the page's column.
    assert (pixels[:, -8:] == pixels[0, 0]).all()


def test_the_curves_of_the_checkpoints_are_shown_with_what_differs() -> None:
    points = [Point(step, step / 4, {"knn": step / 10, "rankme": 3.0}) for step in (0, 4, 8)]
    checkpoints = Evaluations(
        pathlib.Path("runs/x/checkpoint_curves"),
        {"evaluation.probe_epochs": 5, "evaluation.headline_k": 20},
        points,
        {"knn": "kNN@20 %", "rankme": "RankMe", "alignment": "alignment"},
        "",
        frozenset({"cpu"}),
    )
    metrics = evaluations.metrics()
    metrics["info"]["settings"] = {
        "evaluation.probe_epochs": 50,
        "evaluation.headline_k": 20,
        "seed": 3,
    }
    record = dataclasses.replace(_RECORD, checkpoints=checkpoints)
    text = _page(metrics, record=record)
    titles = _titles(text)
    assert titles[titles.index("Training") + 1] == "Checkpoints"
    section = text[text.index('<section id="checkpoints">') :].partition("</section>")[0]
    assert "differ from those of this page: evaluation.probe_epochs." in section
    assert "runs/x/checkpoint_curves" in section
    assert section.count('data-x="epoch"') == section.count('data-x="step"') == 2
    assert 'data-y="0 0.4 0.8"' in section
    parse(text)
