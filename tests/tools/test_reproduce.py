"""The comparison of methods: its plan, tables and pictures, and the script on smoke-sized runs."""

import json
import math
import re

import forked
import numpy as np
import pytest

from hjepa_jax.errors import UserError
from hjepa_jax.evaluation.compare.runs import paired_interval
from hjepa_jax.tools.reproduce import (
    Result,
    differences_table,
    plan_runs,
    results_table,
    state_parts_table,
    write_document,
)
from hjepa_jax.tools.reproduce_figures import knn_sweep
from hjepa_jax.tools.reproduction.recipes import METHODS, SCALES

FIGURES = (
    *("knn", "knn_first", "probe_top1", "probe_top5"),
    *("effective_rank", "participation_ratio", "rankme", "mean_share"),
)


def _row(knn: float) -> dict[str, float]:
    return {name: knn for name in FIGURES}


def test_every_method_gets_the_same_recipe_except_for_its_schedules(tmp_path) -> None:
    runs = plan_runs(
        tmp_path, methods=METHODS, seeds=(0, 1), scale="small", overrides=("log.every_steps=7",)
    )
    # Seed by seed, so that finished runs are balanced.
    assert list(runs)[:5] == [(m, 0) for m in METHODS] + [("hjepa", 1)]
    recipes = {}
    for (method, seed), run in runs.items():
        own = ("--config=", "--workdir", "--config.seed", "--config.dynamics.residual")
        own += ("--config.loss.logdet_dim",)
        recipes[method, seed] = {a for a in run.arguments if not a.startswith(own)}
        assert f"--config.seed={seed}" in run.arguments
        assert "--config.log.every_steps=7" in run.arguments
        assert {f"--config.{o}" for o in SCALES["small"]} <= recipes[method, seed]
    assert all(recipe == recipes["hjepa", 0] for recipe in recipes.values())
    with pytest.raises(UserError, match="'sigrge' is none of hjepa, sigreg"):
        plan_runs(tmp_path, methods=["sigrge"], seeds=(0,), scale="small", overrides=())


def test_paired_interval_is_for_the_mean_difference() -> None:
    rng = np.random.default_rng(1)
    sample = rng.normal(2.0, 1.0, 400)
    found = paired_interval(sample)
    assert found is not None
    half = 1.96 * sample.std() / 20
    np.testing.assert_allclose(found, [sample.mean() - half, sample.mean() + half], atol=0.02)
    assert paired_interval([1.0]) is None
    assert paired_interval([3.0, 3.0]) == (3.0, 3.0)


def test_tables_pair_by_seed_and_give_mean_and_deviation() -> None:
    rows = {
        "hjepa": {0: _row(0.50), 1: _row(0.60)},
        "sigreg": {1: _row(0.55), 0: _row(0.40), 2: _row(0.9)},
        "random": {0: _row(0.1)},
    }
    table = results_table(rows)
    assert "| HJEPA | 2 | 55.00 ± 7.07 |" in table
    assert "| random initialization | 1 | 10.00 |" in table
    differences = differences_table(rows)
    # Seeds 0 and 1 are shared: differences of 10 and 5 points.
    assert "| HJEPA − SIGReg (LeJEPA) | 2 | +7.50 [+5.00, +10.00] |" in differences
    assert "| HJEPA − random initialization | 1 | +40.00 |" in differences


def test_a_meaningless_accuracy_in_one_seed_leaves_the_mean_missing(tmp_path) -> None:
    rows = {"hjepa": {0: _row(0.5), 1: _row(math.nan)}, "sigreg": {0: _row(0.4), 1: _row(0.4)}}
    assert "| HJEPA | 2 | – |" in results_table(rows)
    assert "| HJEPA − SIGReg (LeJEPA) | 2 | – |" in differences_table(rows)
    found = {"knn": {"k_values": [20], "top1": [None]}, "linear_probe": {"top1": None}}
    known = {"knn": {"k_values": [20], "top1": [0.25]}, "linear_probe": {"top1": 0.5}}
    parts = {"q": known, "p": known, "qp": found}
    metrics = {"headline_k": 20, "encoders": {"trained": {**found, "state_parts": parts}}}
    result = Result({"hjepa": {0: metrics}}, {})
    assert "| HJEPA, trained | 25.00 | 50.00 | 25.00 | 50.00 | – | – |" in state_parts_table(result)
    knn_sweep({"hjepa": {0: metrics}}, {"hjepa": "HJEPA"}).savefig(tmp_path / "knn.png")


def test_no_finished_run_is_reported(tmp_path) -> None:
    with pytest.raises(UserError, match="nothing to report"):
        write_document(Result({}, {}), tmp_path / "R.md", command="", notes="", planned=4)


def test_script_runs_resumes_and_writes_the_document(tmp_path) -> None:
    overrides = [
        "data.name=digits",
        "data.image_size=16",
        "data.batch_size=16",
        "data.max_train_images=64",
        "data.max_test_images=32",
        "resnet.width=8",
        "resnet.token_layer=layer2",
        "resnet.token_dim=8",
        "train.max_steps=2",
        "train.epochs=1",
        "train.warmup_epochs=0.5",
        "train.fast_compile=True",
        "evaluation.batch_size=32",
        "evaluation.probe_epochs=1",
        "log.every_steps=1",
        "evaluation.online_every_epochs=0.3",
        "evaluation.online_images=32",
    ]
    best = tmp_path / "tuning" / "best" / "sigreg.flags"
    best.parent.mkdir(parents=True)
    best.write_text("# Trial 3\n--config=cifar100:sigreg\n--config.train.lr=0.02\n")
    command = [
        "scripts/reproduce.py",
        f"--out={tmp_path}/runs",
        f"--report={tmp_path}/RESULTS.md",
        "--scale=small",
        "--methods=sigreg",
        "--seeds=3",
        f"--tuned={tmp_path}/tuning",
        *(f"--override={text}" for text in overrides),
    ]
    for expected in ("running, log in", "already finished"):
        done = forked.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count(expected) == 2
    text = (tmp_path / "RESULTS.md").read_text()
    assert "2 of 2 runs finished; seeds 3" in text
    for row in ("SIGReg (LeJEPA)", "SIGReg (LeJEPA), tuned", "random initialization", "raw pixels"):
        assert re.search(rf"^\| {re.escape(row)} \| 1 \| \d", text, re.MULTILINE), row
    assert str(tmp_path) not in text
    assert "jaxlib" in text
    for name in ("knn", "spectra", "curves", "learning"):
        assert f"images/{name}.png" in text
        assert (tmp_path / f"images/{name}.png").stat().st_size > 10_000
    config = json.loads((tmp_path / "runs/runs/sigreg-tuned-seed3/config.json").read_text())
    assert config["train"]["lr"] == 0.02


def test_a_failing_picture_does_not_fail_the_document(tmp_path, monkeypatch, caplog) -> None:
    def fail(*_):
        raise RuntimeError("no ink")

    for name in ("knn_sweep", "spectra", "training_curves"):
        monkeypatch.setattr(f"hjepa_jax.tools.reproduce_figures.{name}", fail)
    monkeypatch.setattr("hjepa_jax.tools.reproduce.document", lambda *_, **__: "the tables")
    found = Result({"hjepa": {0: {}}}, {"hjepa": {0: {}}})
    write_document(found, tmp_path / "R.md", command="", notes="", planned=1)
    assert (tmp_path / "R.md").read_text() == "the tables"
    for name in ("knn", "spectra", "curves"):
        assert f"{name}.png could not be drawn (RuntimeError: no ink)" in caplog.text
