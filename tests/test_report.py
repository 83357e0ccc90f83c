"""The report: table, Markdown, pictures, and never losing an earlier evaluation."""

import copy
import dataclasses
import io
import json
import math
import pathlib

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from test_protocol import full_evaluation

from hjepa_jax.evaluation import pictures, report
from hjepa_jax.files import write_atomically


def _printed(metrics, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    report.print_table(metrics, console)
    return console.file.getvalue()


def test_table_fits_80_columns_and_shows_every_row() -> None:
    metrics = full_evaluation().metrics
    text = _printed(metrics)
    assert "…" not in text
    figures = metrics["encoders"]["trained"]
    row = next(line for line in text.splitlines() if line.strip().startswith("trained "))
    for value in (
        100 * figures["knn"]["top1"][2],
        100 * figures["linear_probe"]["top5"],
        figures["diagnostics"]["covariance_spectrum_topq"]["effective_rank"],
    ):
        assert f"{value:.1f}" in row
    assert f"{figures['diagnostics']['alignment_uniformity']['uniformity']:.3f}" in row
    assert "trained - random" in text
    assert "pixels" in text
    assert "kNN@20" in text
    covariance = figures["diagnostics"]["covariance_spectrum_topq"]
    assert f" {covariance['rankme']:.1f}" in row
    assert f" {100 * covariance['mean_share']:.1f}" in row
    low, high = figures["knn"]["top1_interval"][2]
    assert f"{math.floor(100 * low)}–{math.ceil(100 * high)}" in text


def test_table_names_the_k_that_was_used() -> None:
    metrics = copy.deepcopy(full_evaluation().metrics)
    metrics["headline_k"] = 7
    assert "kNN@5" in _printed(metrics)
    metrics["headline_k"] = 1
    assert _printed(metrics).count("kNN@") == 1


def test_folder_holds_json_markdown_and_pictures(tmp_path: pathlib.Path) -> None:
    found = full_evaluation()
    folder = report.write_report(tmp_path / "run", found.metrics, found.pictures)
    assert folder == tmp_path / "run"
    assert json.loads((folder / "metrics.json").read_text()) == found.metrics
    text = (folder / "report.md").read_text()
    names = {path.name for path in folder.iterdir()}
    drawn = {"spectrum.png", "knn.png", "cosine.png", "map.png", "neighbours.png"}
    assert names == {"metrics.json", "report.md"} | drawn
    for name in sorted(drawn):
        assert f"]({name})" in text
        image = np.asarray(Image.open(folder / name).convert("RGB"))
        assert min(image.shape[:2]) > 300
        assert image.std() > 5
    assert "| trained: p |" in text
    assert "trained: 2 images per class" in text
    assert "trained: parity labels" in text


def test_same_evaluation_is_replaced_another_is_kept(tmp_path: pathlib.Path) -> None:
    metrics = full_evaluation().metrics
    out = tmp_path / "run"
    first = report.write_report(out, metrics)
    assert report.write_report(out, copy.deepcopy(metrics)) == first
    later = {**metrics, "info": {"step": 8}}
    second = report.write_report(out, later)
    assert second == tmp_path / "run-2"
    assert report.write_report(out, later) == second
    assert json.loads((out / "metrics.json").read_text())["info"] == {"step": 7}
    other = copy.deepcopy(metrics)
    other["encoders"]["trained"]["variant"] = "p"
    assert report.write_report(out, other) == tmp_path / "run-3"


def test_files_of_others_are_never_touched(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    assert report.report_folder(out, full_evaluation().metrics) == out
    (out / "metrics.json").write_text("not ours")
    assert report.report_folder(out, full_evaluation().metrics) == tmp_path / "run-2"
    (tmp_path / "run-2").write_text("a file")
    assert report.report_folder(out, full_evaluation().metrics) == tmp_path / "run-3"


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "metrics.json"
    write_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "new \ud800")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]


def test_map_and_gallery_allow_many_classes_and_long_names() -> None:
    found = full_evaluation()
    inputs = found.pictures
    rng = np.random.default_rng(0)
    one = inputs.encoders["trained"]
    labels = rng.integers(100, size=len(one.labels))
    encoders = {"trained": dataclasses.replace(one, labels=labels)}
    names = tuple(f"a class with a long name {i}" for i in range(100))
    changed = pictures.PictureInputs(
        encoders, inputs.queries, inputs.test_images, inputs.train_images, names
    )
    legend = pictures.feature_map(changed).legends[0]
    assert len(legend.get_texts()) == 11
    captions = [text.get_text() for text in pictures.neighbours(changed).axes[0].texts]
    assert max(map(len, captions)) <= 15


def test_collapsed_features_can_still_be_drawn() -> None:
    found = full_evaluation()
    metrics = copy.deepcopy(found.metrics)
    covariance = metrics["encoders"]["random"]["diagnostics"]["covariance_spectrum_topq"]
    covariance["eigenvalues"] = [0.0] * 12
    pictures.spectra(metrics).savefig(io.BytesIO())
    one = found.pictures.encoders["random"]
    encoders = {
        "random": dataclasses.replace(
            one, cosine=np.ones_like(one.cosine), features=np.zeros_like(one.features)
        )
    }
    inputs = found.pictures
    collapsed = pictures.PictureInputs(
        encoders, inputs.queries, inputs.test_images, inputs.train_images, inputs.class_names
    )
    pictures.cosine_histogram(collapsed).savefig(io.BytesIO())
    pictures.feature_map(collapsed).savefig(io.BytesIO())
