"""Scores and pictures of an evaluation beside the curves of its run."""

import math

import numpy as np
import pytest
from event_files import only_events
from PIL import Image

from hjepa_jax.config.checks import typed
from hjepa_jax.evaluation.report.logged import log_evaluation, scores
from hjepa_jax.recipes import quickstart
from hjepa_jax.storage.metrics_file import read_metrics
from tests.evaluation.compare.test_compare import encoder_metrics

# Mean squares of 1/2 and 2 about a mean of zero.
STATES = np.array([[-1, 0], [1, 0], [0, -2], [0, 2]], np.float32)


@pytest.fixture
def metrics() -> dict:
    one = encoder_metrics(0.75, 0.5, np.random.default_rng(0))
    return {"info": {"step": 60}, "headline_k": 20, "encoders": {"trained": one}}


def test_scores_and_pictures_are_added_to_the_run(tmp_path, metrics) -> None:
    run, report = tmp_path / "run", tmp_path / "report"
    report.mkdir()
    Image.new("RGB", (6, 4), "red").save(report / "map.png")
    log_evaluation(run, typed(quickstart.get_config("smoke")), metrics, STATES, report, 20)
    found = read_metrics(run)
    assert {tag: column[1].item() for tag, column in found.items() if tag != "time"} == {
        "epoch": 3.0,
        "eval/knn20": 0.75,
        "eval/knn1": pytest.approx(0.65),
        "eval/probe_top1": 0.5,
        "eval/probe_top5": 0.9,
        "eval/effective_rank": 7.0,
        "eval/participation_ratio": 3.0,
        "eval/alignment": 0.5,
        "eval/uniformity": -2.0,
    }
    values = {v.tag: v for e in only_events(run) for v in e.summary.value}
    picture = values["eval/map"].image
    assert (picture.width, picture.height) == (6, 4)
    assert values["eval/std"].histo.num == 2
    assert values["eval/std"].histo.max == pytest.approx(math.sqrt(2))
    spectrum = values["eval/spectrum_log10"].histo
    assert (spectrum.min, spectrum.max) == pytest.approx((math.log10(2 / 3), math.log10(8 / 3)))


def test_missing_scores_are_left_out(metrics) -> None:
    metrics["encoders"]["trained"]["linear_probe"]["top1"] = None
    assert not {"eval/probe_top1", "eval/rankme"} & scores(metrics).keys()
    assert all(map(math.isfinite, scores(metrics).values()))


def test_figures_of_each_kind_of_h_have_their_own_tags(metrics) -> None:
    moved = encoder_metrics(0.25, 0.125, np.random.default_rng(0)) | {"coordinates": "sqrt_h"}
    metrics["encoders"]["trained sqrt_h"] = moved
    found = scores(metrics)
    assert (found["eval/knn20"], found["eval/sqrt_h/knn20"]) == (0.75, 0.25)
    moved["posthoc"] = {"kind": "chain"}
    assert scores(metrics)["eval/posthoc_chain/probe_top1"] == 0.125
    metrics["encoders"] = {"trained": moved}
    assert {tag.rpartition("/")[0] for tag in scores(metrics)} == {"eval/posthoc_chain"}


def test_an_evaluation_of_something_else_is_not(tmp_path, metrics) -> None:
    metrics["info"]["trained_on"] = "other"
    log_evaluation(tmp_path, typed(quickstart.get_config("smoke")), metrics, STATES, tmp_path, None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, metrics, caplog) -> None:
    (tmp_path / "run").write_text("a file")
    run = tmp_path / "run"
    log_evaluation(run, typed(quickstart.get_config("smoke")), metrics, STATES, tmp_path, None)
    assert "the scores are not added to" in caplog.text
