"""Evaluations of checkpoints on disk, and their curves: right means and bands, nothing mixed."""

import csv
import json
import math
import pathlib
import shutil

import evaluations
import numpy as np
import pytest
from pages import ink_pixels, parse, screenshot
from PIL import Image

from hjepa_jax.evaluation.checkpoint_curves import draw, stored
from hjepa_jax.evaluation.checkpoint_curves.draw import EPOCHS, STEPS, CurveGroup, series_of
from hjepa_jax.evaluation.checkpoint_curves.page import CurveRun, page, write_curves
from hjepa_jax.evaluation.page import ink

# Settings of a protocol, of which any JSON will do here.
IDENTITY = {"settings": {"evaluation.probe_epochs": 50}, "images": {"test": "a"}}
EPOCH = 10


def metrics(knn: float, *, labeled: bool = True, device: str = "cpu"):
    """Returns what a protocol returns for one encoder with a given accuracy of kNN@20."""
    found = evaluations.metrics()
    one = found["encoders"]["trained"]
    one["knn"]["top1"][-1] = knn
    one["diagnostics"]["alignment_uniformity"]["uniformity"] = -knn
    if not labeled:
        one["knn"]["top1"] = [None] * 3
        one["linear_probe"].update(top1=None, top5=None)
        one["no_accuracy"] = "no test image has a label."
    found["info"]["device"] = device
    return {**found, "encoders": {"trained": one}}


def evaluated(
    workdir: pathlib.Path, scores: dict[int, float], identity=None, **details
) -> stored.Evaluations:
    """Writes the evaluations of a run, kNN by step, and reads them again."""
    folder = stored.open_folder(workdir, identity or IDENTITY)
    for step, knn in scores.items():
        stored.write_result(folder, step, step / EPOCH, f"c{step}", metrics(knn, **details))
    found = stored.read_evaluations(folder)
    assert found is not None
    return found


def curve_run(folder: pathlib.Path, name: str, seed: int, scores, lr=0.1, **details) -> CurveRun:
    """Returns an evaluated run."""
    config = {"seed": seed, "train.lr": lr}
    return CurveRun(name, config, evaluated(folder / name, scores, **details))


def test_what_is_written_is_read_in_the_order_of_steps(tmp_path) -> None:
    found = evaluated(tmp_path, {20: 0.5, 0: 0.25, 3: math.nan})
    assert [point.step for point in found.points] == [0, 3, 20]
    assert [point.epoch for point in found.points] == [0.0, 0.3, 2.0]
    knn = [point.figures["knn"] for point in found.points]
    assert (knn[0], math.isnan(knn[1]), knn[2]) == (0.25, True, 0.5)
    assert found.titles["knn"] == "kNN@20 %"
    assert found.titles["knn_first"] == "kNN@1 %"
    assert (found.reason, found.devices) == ("", {"cpu"})
    assert found.settings == IDENTITY["settings"]
    # Every measurement is there, not only the figures that are drawn.
    whole = json.loads((found.folder / "step20.json").read_text())["metrics"]
    assert whole["encoders"]["trained"]["few_shot"]["2"]["top1"] == 0.625


def test_a_checkpoint_is_done_only_with_the_same_content(tmp_path, caplog) -> None:
    folder = evaluated(tmp_path, {4: 0.5}).folder
    assert stored.is_done(folder, 4, "c4")
    assert not stored.is_done(folder, 4, "other")
    assert not stored.is_done(folder, 5, "c4")
    (folder / "step4.json").write_text("{")
    assert not stored.is_done(folder, 4, "c4")
    assert "step4.json is not read" in caplog.text
    assert stored.read_evaluations(folder) is None


def test_another_protocol_has_its_own_folder(tmp_path) -> None:
    first = stored.open_folder(tmp_path, IDENTITY)
    assert first == tmp_path / "checkpoint_curves"
    assert stored.open_folder(tmp_path, IDENTITY) == first
    for other in ({"images": {"test": "b"}}, {"settings": {"evaluation.probe_epochs": 5}}):
        folder = stored.open_folder(tmp_path, IDENTITY | other)
        assert folder.name.startswith("checkpoint_curves-")
        assert stored.open_folder(tmp_path, IDENTITY | other) == folder
    assert len(list(tmp_path.iterdir())) == 3
    # A protocol that cannot be read is not taken for any.
    (first / "protocol.json").write_text("")
    assert stored.open_folder(tmp_path, IDENTITY) != first


def test_the_band_spans_the_seeds_at_what_all_of_them_have(tmp_path) -> None:
    one = evaluated(tmp_path / "a", {0: 0.1, 10: 0.4, 20: 0.6})
    other = evaluated(tmp_path / "b", {0: 0.3, 20: 0.8})
    group = CurveGroup("a", 0, [one, other])
    (series,) = series_of([group], "knn", EPOCHS)
    assert series.name == "a (2 seeds)"
    assert list(series.x) == [0.0, 2.0]
    np.testing.assert_allclose(series.y, [0.2, 0.7])
    assert series.low == pytest.approx([0.1, 0.6])
    assert series.high == pytest.approx([0.3, 0.8])
    (series,) = series_of([CurveGroup("a", 0, [one])], "knn", STEPS)
    assert (series.name, series.low) == ("a", None)
    assert (list(series.x), list(series.y)) == ([0, 10, 20], [0.1, 0.4, 0.6])


def test_without_labels_the_other_figures_are_drawn(tmp_path) -> None:
    run = curve_run(tmp_path, "a", 0, {0: 0.1, 10: 0.4}, labeled=False)
    titles = draw.titles_of([CurveGroup("a", 0, [run.evaluations])])
    assert [*titles][:2] == ["effective_rank", "participation_ratio"]
    assert {"rankme", "alignment", "uniformity"} < set(titles)
    shown = parse(page([run])).shown
    assert "No accuracy: no test image has a label." in shown
    assert "kNN" not in shown


def test_the_page_has_all_curves_and_says_what_differs(tmp_path) -> None:
    runs = [
        curve_run(tmp_path, "x-seed0", 0, {0: 0.1, 10: 0.4, 20: 0.5}),
        curve_run(tmp_path, "x-seed1", 1, {0: 0.2, 10: 0.3}, device="gpu"),
        curve_run(tmp_path, "<b>", 0, {10: 0.7}, lr=0.2, identity={"settings": {"e": 1}}),
    ]
    text = page(runs)
    shown = parse(text).shown
    for words in ("x (2 seeds)", "<b>", "kNN@20", "probe top-1", "RankMe", "uniformity"):
        assert words in shown
    assert "different settings: e, evaluation.probe_epochs." in shown
    assert "different devices (cpu, gpu)" in shown
    assert "x: 1 checkpoint is left out of the mean" in shown
    assert "with a band from the lowest to the highest" in shown
    assert text.count('data-x="epoch"') == text.count('data-x="step"') == 10
    assert "40.0" in shown
    alone = parse(page(runs[:1])).shown
    assert "seeds" not in alone
    assert alone.startswith("Checkpoints of x-seed0")


def test_files_hold_the_numbers(tmp_path) -> None:
    runs = [curve_run(tmp_path, f"x-seed{n}", n, {0: 0.1, 10: 0.4 + n / 10}) for n in (0, 1)]
    assert write_curves(runs, tmp_path) == {}
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["run"], row["step"], row["epoch"]) for row in rows] == [
        ("x", "x-seed0", "0", "0.0"),
        ("x", "x-seed0", "10", "1.0"),
        ("x", "x-seed1", "0", "0.0"),
        ("x", "x-seed1", "10", "1.0"),
    ]
    assert [float(row["knn"]) for row in rows] == [0.1, 0.4, 0.1, 0.5]
    found = json.loads((tmp_path / "curves.json").read_text())
    assert [one["knn"] for one in found["checkpoints"]] == [0.1, 0.4, 0.1, 0.5]
    assert found["settings"]["x-seed1"] == IDENTITY["settings"]
    with Image.open(tmp_path / "curves.png") as picture:
        assert min(picture.size) > 600
        assert ink_pixels(np.asarray(picture.convert("RGB")).astype(int), ink.COLORS[0]) > 500


def test_a_run_whose_epochs_are_unknown_is_drawn_over_steps(tmp_path) -> None:
    folder = stored.open_folder(tmp_path, IDENTITY)
    for step in (10, 20):
        stored.write_result(folder, step, None, "c", metrics(0.5))
    found = stored.read_evaluations(folder)
    assert found is not None
    text = page([CurveRun("a", {}, found)])
    assert 'data-x="epoch"' not in text
    assert text.count('data-x="step"') == 10
    assert draw.picture([CurveGroup("a", 0, [found])]).axes[0].get_xlabel() == "step"


def test_the_protocol_of_most_runs_is_compared(tmp_path) -> None:
    few = IDENTITY | {"settings": {"evaluation.probe_epochs": 5}}
    for name in ("a", "b", "c"):
        evaluated(tmp_path / name, {10: 0.5})
    for name in ("a", "b"):
        evaluated(tmp_path / name, {10: 0.6, 20: 0.7, 30: 0.8}, few)
    runs = [stored.evaluations_of(tmp_path / name) for name in ("a", "b", "c", "none")]
    assert [len(found) for found in runs] == [2, 2, 1, 0]
    chosen = stored.by_common_protocol(runs)
    assert [one and one.settings for one in chosen] == [IDENTITY["settings"]] * 3 + [None]
    # Of those that are equally common, the one with the most checkpoints.
    chosen = stored.by_common_protocol(runs[:2])
    assert [one and one.settings for one in chosen] == [few["settings"]] * 2
    assert stored.by_common_protocol([[], []]) == [None, None]


@pytest.mark.parametrize(("width", "dark"), [(400, False), (1280, True)])
def test_a_browser_shows_the_curves(tmp_path, width, dark) -> None:
    run = curve_run(tmp_path, "x", 0, {0: 0.1, 10: 0.4, 20: 0.9})
    path = tmp_path / "page.html"
    path.write_text(page([run]))
    color = (ink.DARK_COLORS if dark else ink.COLORS)[0]
    pixels = screenshot(path, width, 900, dark=dark)
    assert ink_pixels(pixels, color) > 100
    background = pixels[-1, 1].mean()
    assert background < 80 if dark else background > 200
    shutil.rmtree(tmp_path / "browser", ignore_errors=True)
