"""The report: table, Markdown, pictures, and no loss of earlier evaluations."""

import copy
import dataclasses
import io
import json
import math
import os
import pathlib
import re

import numpy as np
import pytest
from matplotlib import cbook
from PIL import Image
from reports import write_report
from rich.console import Console

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.report import figures, gallery, tables
from hjepa_jax.evaluation.report.folder import (
    find_reports,
    first_report,
    newest_beside,
    report_name,
    reports_of,
)
from hjepa_jax.evaluation.report.text import NO_NAME, markdown_text, plot_text
from hjepa_jax.storage.files import write_atomically
from tests.evaluation.test_protocol import full_evaluation


def _printed(metrics, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    tables.print_table(metrics, console)
    return console.file.getvalue()


def test_table_fits_80_columns_and_shows_every_row() -> None:
    metrics = full_evaluation().metrics
    text = _printed(metrics)
    assert "…" not in text
    figures = metrics["encoders"]["trained"]
    row = next(line for line in text.splitlines() if line.strip().startswith("trained "))
    for value in (
        100 * figures["knn"]["top1"][2],
        100 * figures["linear_probe"]["top1"],
        100 * figures["logistic"]["top1"],
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


def test_top5_is_in_the_table_unless_another_probe_takes_its_place() -> None:
    metrics = copy.deepcopy(full_evaluation().metrics)
    assert "top-5" not in _printed(metrics)
    assert "probe top-5 %" in tables.markdown(metrics)
    for one in metrics["encoders"].values():
        for name in ("logistic", "attentive"):
            one.pop(name, None)
    text = _printed(metrics)
    assert "top-5" in text
    assert "…" not in text
    assert f"{100 * metrics['encoders']['trained']['linear_probe']['top5']:.1f}" in text


def test_table_names_the_k_that_was_used() -> None:
    metrics = copy.deepcopy(full_evaluation().metrics)
    metrics["headline_k"] = 7
    assert "kNN@5" in _printed(metrics)
    metrics["headline_k"] = 1
    assert _printed(metrics).count("kNN@") == 1


def test_folder_holds_json_markdown_and_pictures(tmp_path: pathlib.Path) -> None:
    found = full_evaluation()
    folder = write_report(tmp_path / "run", found.metrics, found.pictures)
    assert folder == tmp_path / "run"
    assert json.loads((folder / "metrics.json").read_text()) == found.metrics
    text = (folder / "report.md").read_text()
    names = {path.name for path in folder.iterdir()}
    drawn = {"spectrum.png", "knn.png", "cosine.png", "map.png", "neighbors.png"}
    assert names == {"metrics.json", "report.md"} | drawn
    for name in sorted(drawn):
        assert f"]({name})" in text
        image = np.asarray(Image.open(folder / name).convert("RGB"))
        assert min(image.shape[:2]) > 300
        assert image.std() > 5
    assert "| trained: p |" in text
    # The accuracy, its interval over test images, and its spread over draws.
    assert re.search(r"trained: 2 images per class \|  \| [\d.]+ % \(\d+–\d+\) ± [\d.]+ %", text)
    assert "trained: parity labels" in text
    assert "| features | images | seconds | images/s | waiting for data |" in text
    assert re.search(r"\| pixels: test \| 100 \| \d+\.\d \| \d+ \| \d+% \|", text)


def test_the_same_evaluation_is_replaced_and_a_different_one_kept(tmp_path: pathlib.Path) -> None:
    metrics = full_evaluation().metrics
    out = tmp_path / "run"
    first = write_report(out, metrics)
    assert write_report(out, copy.deepcopy(metrics)) == first
    later = {**metrics, "info": {"step": 8}}
    second = write_report(out, later)
    assert re.fullmatch(r"run-step8-[0-9a-f]{8}", second.name)
    assert write_report(out, later) == second
    assert json.loads((out / "metrics.json").read_text())["info"] == {"step": 7}
    other = copy.deepcopy(metrics)
    other["encoders"]["trained"]["state_part"] = "p"
    third = write_report(out, other)
    assert re.fullmatch(r"run-step7-[0-9a-f]{8}", third.name)
    assert len({first, second, third}) == 3
    assert find_reports(tmp_path, "run") == [out]  # the others do not name 'run'


def test_reports_of_a_run_are_found_in_its_own_folder_and_elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "runs" / "x"
    assert reports_of(workdir, None) == []
    metrics = full_evaluation().metrics
    inside = first_report(workdir, None)
    assert inside == workdir / "evaluation"
    own = [write_report(inside, {**metrics, "info": {"run": "renamed", "step": s}}) for s in (7, 8)]
    assert re.fullmatch(r"evaluation-step8-[0-9a-f]{8}", own[1].name)
    (workdir / "evaluation-notes").mkdir()
    (workdir / "evaluation-0123abcd").mkdir()
    given = tmp_path / "given"
    for eval_dir, places in ((None, tmp_path / "eval_runs"), (given, given)):
        other = write_report(first_report(workdir, places), {**metrics, "info": {"run": "x"}})
        assert other == places / "x"
        assert [f.absolute() for f in reports_of(workdir, eval_dir)] == [*own, other]


def test_the_newest_evaluated_run_beside_a_run_is_found(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = {name: tmp_path / "runs" / name for name in ("here", "older", "newer", "bare", "notes")}
    for name, run in runs.items():
        run.mkdir(parents=True)
        if name != "notes":
            (run / "config.json").write_text("{}")
    assert newest_beside(runs["here"], None) is None
    for at, name in ((300, "here"), (100, "older"), (200, "newer"), (400, "notes")):
        file = first_report(runs[name], None) / "metrics.json"
        file.parent.mkdir()
        file.write_text("{}")
        os.utime(file, (at, at))
    assert newest_beside(runs["here"], None) == runs["newer"]
    assert newest_beside(runs["newer"], None) == runs["here"]
    assert newest_beside(tmp_path / "gone" / "x", None) is None


def test_files_of_others_are_never_touched(tmp_path: pathlib.Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    assert tables.report_folder(out, full_evaluation().metrics) == out
    (out / "metrics.json").write_text("not ours")
    other = tables.report_folder(out, full_evaluation().metrics)
    assert other.name.startswith("run-step7-")
    other.write_text("a file")
    third = tables.report_folder(out, full_evaluation().metrics)
    assert third.name == f"{other.name}-2"
    assert (out / "metrics.json").read_text() == "not ours"


@pytest.mark.parametrize("content", ["[]", "{}", '{"info": 3}', "[" * 10**5, '{"info": {}}', "\0"])
def test_a_foreign_report_is_not_overwritten(content, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.json").write_text(content)
    folder = write_report(tmp_path / "run", full_evaluation().metrics)
    assert folder.name.startswith("run-step7-")
    assert (tmp_path / "run" / "metrics.json").read_text() == content


def test_an_interrupted_write_does_not_occupy_the_folder(tmp_path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".metrics.json.abc").write_text("{")
    assert write_report(tmp_path / "run", full_evaluation().metrics) == tmp_path / "run"


def test_a_long_run_name_leaves_room_for_a_suffix(tmp_path) -> None:
    workdir = tmp_path / ("ü" * 127)
    workdir.mkdir()
    for step in (7, 8):
        metrics = {**full_evaluation().metrics, "info": {"step": step, "data": "x" * 200}}
        assert write_report(tmp_path / report_name(workdir), metrics).is_dir()
    assert report_name(pathlib.Path(".")) == pathlib.Path.cwd().name


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
    changed = figures.PictureInputs(
        encoders, inputs.queries, inputs.test_images, inputs.train_images, names
    )
    legend = figures.feature_map(changed).legends[0]
    assert len(legend.get_texts()) == 11
    captions = [text.get_text() for text in figures.neighbors(changed).axes[0].texts]
    assert max(map(len, captions)) <= 15


def test_collapsed_features_can_still_be_drawn() -> None:
    found = full_evaluation()
    metrics = copy.deepcopy(found.metrics)
    covariance = metrics["encoders"]["random"]["diagnostics"]["covariance_spectrum_topq"]
    covariance["eigenvalues"] = [0.0] * 12
    figures.spectra(metrics).savefig(io.BytesIO())
    one = found.pictures.encoders["random"]
    encoders = {
        "random": dataclasses.replace(
            one, cosine=np.ones_like(one.cosine), features=np.zeros_like(one.features)
        )
    }
    inputs = found.pictures
    collapsed = figures.PictureInputs(
        encoders, inputs.queries, inputs.test_images, inputs.train_images, inputs.class_names
    )
    figures.cosine_histogram(collapsed).savefig(io.BytesIO())
    figures.feature_map(collapsed).savefig(io.BytesIO())


# Names that break mathtext, vanish from legends, cannot be printed, or are empty.
ODD_NAMES = (
    "$_$",
    "_hidden",
    "$\\frac{1}$ and $x",
    "a\tb\nc\x1b[31m",
    "\u202eright to left",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u732b",
    "x" * 5000,
    "",
    "\udcff",
)


def _with_names(names: tuple[str, ...]) -> gallery.PictureInputs:
    return dataclasses.replace(full_evaluation().pictures, class_names=names)


def test_odd_class_names_are_drawn_literally(tmp_path) -> None:
    metrics = full_evaluation().metrics
    folder = write_report(tmp_path / "run", metrics, _with_names(ODD_NAMES))
    assert "could not be drawn" not in (folder / "report.md").read_text()
    assert len(list(folder.glob("*.png"))) == 5
    figure = figures.feature_map(_with_names(ODD_NAMES))
    shown = [text.get_text() for text in figure.legends[0].get_texts()]
    # All are in the legend, and all are distinct.
    assert len(set(shown)) == 10
    assert " _hidden" in shown
    assert r"\$_\$" in shown
    assert NO_NAME in shown
    assert max(map(len, shown)) <= 26
    # A long name does not shrink the maps.
    figure.draw_without_rendering()
    width = figure.get_size_inches()[0] * figure.dpi
    for axes in figure.axes:
        assert axes.get_window_extent().width > 0.2 * width


def test_picture_text_is_never_a_formula() -> None:
    for name in ODD_NAMES:
        shown = plot_text(name)
        assert cbook.is_math_text(shown) is False
        assert not shown.startswith("_")
        assert shown.isprintable()
    assert plot_text("plain name") == "plain name"


@pytest.mark.parametrize("name", ["spectrum.png", "cosine.png", "map.png", "neighbors.png"])
def test_a_failing_picture_is_reported_and_affects_no_other(name, tmp_path, monkeypatch) -> None:
    found = full_evaluation()
    first = tables.write_numbers(tmp_path / "run", found.metrics)
    (first / name).write_text("of an earlier run of this evaluation")
    function = {"spectrum": "spectra", "cosine": "cosine_histogram", "map": "feature_map"}
    for slow in ("feature_map", "neighbors"):
        monkeypatch.setattr(figures, slow, lambda _: figures.new_figure(1, 1))

    def fail(*_):
        raise RuntimeError("<b>no</b> ink\nmore")

    monkeypatch.setattr(figures, function.get(name[:-4], name[:-4]), fail)
    numbers = tables.write_numbers(tmp_path / "run", found.metrics)
    assert numbers == first
    drawn = tables.painters(found.metrics, lambda: found.pictures)
    failed = tables.write_pictures(numbers, found.metrics, drawn)
    assert failed == {name: "RuntimeError: <b>no</b> ink"}
    # The old picture would pass for the new one.
    assert sorted(path.name for path in numbers.glob("*.png")) == sorted(set(drawn) - {name})
    assert json.loads((numbers / "metrics.json").read_text()) == found.metrics
    text = (numbers / "report.md").read_text()
    assert "could not be drawn (RuntimeError: &lt;b&gt;no&lt;/b&gt; ink)" in text
    assert text.count("![") == 4


def test_unreadable_data_affects_only_the_pictures_of_images(tmp_path) -> None:
    found = full_evaluation()

    def gone() -> gallery.PictureInputs:
        raise OSError(5, "Input/output error")

    folder = tables.write_numbers(tmp_path / "run", found.metrics)
    failed = tables.write_pictures(folder, found.metrics, tables.painters(found.metrics, gone))
    assert set(failed) == {"cosine.png", "map.png", "neighbors.png"}
    assert {path.name for path in folder.glob("*.png")} == {"spectrum.png", "knn.png"}


def test_missing_numbers_are_null_with_a_reason(tmp_path) -> None:
    metrics = json.loads(json.dumps(full_evaluation().metrics))
    one = metrics["encoders"]["trained"]
    one["linear_probe"]["top1"] = math.nan
    one["linear_probe"]["train_loss"] = math.inf
    one["diagnostics"]["alignment_uniformity"]["uniformity"] = -math.inf
    one["knn"]["top1"] = [None, math.nan, np.float32(0.5)]
    folder = tables.write_numbers(tmp_path / "run", metrics)

    def refuse(text: str):
        raise AssertionError(f"{text} is not JSON")

    read = json.loads((folder / "metrics.json").read_text(), parse_constant=refuse)
    prefix = "encoders.trained."
    assert read["not_finite"] == {
        f"{prefix}knn.top1.1": "nan",
        f"{prefix}linear_probe.top1": "nan",
        f"{prefix}linear_probe.train_loss": "inf",
        f"{prefix}diagnostics.alignment_uniformity.uniformity": "-inf",
    }
    assert read["encoders"]["trained"]["linear_probe"]["top1"] is None
    assert read["encoders"]["trained"]["knn"]["top1"] == [None, None, 0.5]
    assert "nan" not in (folder / "report.md").read_text()
    assert "nan" not in _printed(metrics)
    # Read again, the table is the same.
    assert tables.markdown(read) == tables.markdown(metrics)
    drawn = tables.painters(metrics, lambda: full_evaluation().pictures)
    for name in ("spectrum.png", "knn.png"):
        drawn[name]().savefig(io.BytesIO())


def test_names_are_escaped_in_the_report() -> None:
    metrics = copy.deepcopy(full_evaluation().metrics)
    metrics["info"] = {
        "run": "<img src=x onerror=alert(1)>",
        "data": {"root": "a|b", "left out": ["![x](http://x/y.png)", "*bold*\n# Title", "`code`"]},
    }
    metrics["encoders"]["<script>|"] = metrics["encoders"].pop("pixels")
    text = tables.markdown(metrics)
    assert not re.search(r"<(img|script)", text)
    assert "![x](" not in text
    assert "\n# Title" not in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in table[:6]}
    assert len(columns) == 1, table
    assert markdown_text("cifar_100 a-b=1.5 (x)") == "cifar_100 a-b=1.5 (x)"
    assert markdown_text("_a_ [b](c)") == r"\_a\_ [b\](c)"


def test_a_folder_that_fills_up_during_the_evaluation_loses_no_numbers(
    tmp_path, monkeypatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tables.tempfile, "tempdir", None)
    with pytest.raises(UserError, match=r"cannot be written.*The metrics are in .*json") as refusal:
        tables.write_numbers(tmp_path / "file" / "run", full_evaluation().metrics)
    (rescued,) = tmp_path.glob("hjepa_jax-metrics-*.json")
    assert str(rescued) in str(refusal.value)
    assert json.loads(rescued.read_text()) == full_evaluation().metrics


def test_metrics_that_cannot_be_written_are_printed(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("x")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tables.tempfile, "mkstemp", full)
    with pytest.raises(UserError, match="printed above"):
        tables.write_numbers(tmp_path / "file" / "run", full_evaluation().metrics)
    assert json.loads(capsys.readouterr().out) == full_evaluation().metrics


def test_a_disk_that_fills_up_after_the_numbers_loses_only_pictures(tmp_path, monkeypatch) -> None:
    found = full_evaluation()
    folder = tables.write_numbers(tmp_path / "run", found.metrics)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures, "write_atomically", full)
    monkeypatch.setattr(tables, "write_atomically", full)
    drawn = {"knn.png": lambda: figures.knn_accuracy(found.metrics)}
    failed = tables.write_pictures(folder, found.metrics, drawn)
    assert set(failed) == {"knn.png", "report.md"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
