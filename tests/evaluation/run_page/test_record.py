"""The record of a run: what differs from the defaults, and the commands that repeat it."""

import json
import shlex

import numpy as np

from configs import quickstart
from hjepa_jax.config.checks import typed
from hjepa_jax.evaluation.run_page.record import record_of
from hjepa_jax.storage.metrics_file import line_of


def test_a_record_has_what_differs_and_how_to_repeat_it(tmp_path) -> None:
    saved = typed(quickstart.get_config())
    workdir = tmp_path / "a run"
    workdir.mkdir()
    (workdir / "metrics.jsonl").write_bytes(line_of(3, 0.5, 0.0, {"loss/total": 0.25}))
    settings = saved.replace({"evaluation.probe_epochs": 7, "evaluation.knn_k": (1, 5)})
    found = record_of(workdir, saved, settings, "best")
    changed = {name: (value, default) for name, value, default in found.changed}
    assert changed["data.image_size"] == (16, 32)
    assert "seed" not in changed
    assert "evaluation.probe_epochs" not in changed
    assert json.loads(found.config)["data"]["image_size"] == 16
    steps, values = found.curves["loss/total"]
    np.testing.assert_array_equal([steps, values], [[3], [0.25]])
    train, evaluate = map(shlex.split, found.commands)
    assert train[:3] == ["hjepa", "train", f"--config={workdir}/config.json"]
    own = ["--config.evaluation.knn_k=(1, 5)", "--config.evaluation.probe_epochs=7"]
    assert evaluate == ["hjepa", "eval", str(workdir), "--checkpoint=best", *own]


def test_a_run_whose_metrics_cannot_be_read_has_no_curves(tmp_path, caplog) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    saved = typed(quickstart.get_config())
    found = record_of(tmp_path, saved, saved)
    assert found.curves == {}
    assert len(found.commands[1].split()) == 3
    assert "the report has no training curves" in caplog.text
