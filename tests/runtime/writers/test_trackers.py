"""Weights & Biases and MLflow in their offline modes, and what is said without them."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from hjepa_jax.config import rules
from hjepa_jax.config.checks import resolve
from hjepa_jax.errors import ConfigError, TrainingError
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime.writers.open import create_writer
from hjepa_jax.runtime.writers.trackers import MLflowWriter, WandbWriter
from hjepa_jax.storage.metrics_file import read_metrics


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_a_sentence_before_the_run(monkeypatch, name) -> None:
    config = quickstart.get_config("smoke")
    config.log.writers = ("tensorboard", name)
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf"pip install 'hjepa_jax\[{name}\]'") as caught:
        resolve(config)
    assert len(str(caught.value).splitlines()) == 1
    resolve(quickstart.get_config("smoke"))
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda _: object())
    assert resolve(config).log.writers == ("tensorboard", name)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_an_evaluation_elsewhere_may_lack_the_package(tmp_path, monkeypatch, name) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "mlflow.entities", None)
    with pytest.raises(TrainingError, match=rf"pip install 'hjepa_jax\[{name}\]'"):
        create_writer(tmp_path, writers=(name,))


def test_without_tensorboard_there_are_no_events(tmp_path) -> None:
    writer = create_writer(tmp_path, writers=())
    writer.write_scalars(1, {"loss/total": 1.0})
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert read_metrics(tmp_path)["loss/total"][1].tolist() == [1.0]


class FakeRun:
    """What the writer uses of a W&B run."""

    def __init__(self, number: str):
        self.id = number
        self.logged, self.summary, self.config, self.finished = [], {}, types.SimpleNamespace(), 0
        self.config.update = lambda values, allow_val_change: self.logged.append(("config", values))

    def log(self, values, step) -> None:
        if "bad" in values:
            raise ValueError("no such thing")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def fake(monkeypatch):
    """A module `wandb` that keeps what it is given: its runs."""
    runs = []

    def init(**options) -> FakeRun:
        if options["id"] == "refused":
            raise RuntimeError("api_key not configured")
        runs.append((options, FakeRun(options["id"] or "new1")))
        return runs[-1][1]

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, dict
    module.Image = lambda array: ("image", array.shape)
    module.Histogram = lambda array, num_bins: ("histogram", len(array), num_bins)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_all_and_a_resumed_run_continues_it(tmp_path, fake, caplog) -> None:
    writer = WandbWriter(tmp_path)
    writer.write_hparams({"train.lr": 0.1})
    writer.write_scalars(3, {"loss/total": np.float32(0.5)})
    writer.write_scalars(3, {"bad": 1.0})
    writer.write_scalars(2, {"eval/knn20": 0.75})
    writer.write_images(3, {"views": np.zeros((4, 5, 3), np.uint8)})
    writer.write_histograms(3, {"state/std": np.ones(7)})
    writer.close()
    options, run = fake[0]
    assert (options["id"], options["resume"], options["name"]) == (None, "allow", tmp_path.name)
    assert run.logged == [
        ("config", {"train.lr": 0.1}),
        (3, {"loss/total": 0.5}),
        (3, {"views": ("image", (4, 5, 3))}),
        (3, {"state/std": ("histogram", 7, 64)}),
    ]
    assert (run.summary, run.finished) == ({"eval/knn20": 0.75}, 1)
    assert "W&B refuses metrics (no such thing); training continues." in caplog.text
    assert "W&B lacks 1 values." in caplog.text
    WandbWriter(tmp_path).close()
    assert fake[1][0]["id"] == "new1"


def test_a_tracker_that_cannot_start_is_a_sentence(tmp_path, fake) -> None:
    (tmp_path / "wandb_run_id").write_text("refused\n")
    with pytest.raises(TrainingError, match=r"W&B cannot start \(.*api_key.*WANDB_MODE=offline"):
        create_writer(tmp_path, writers=("wandb",))
    (tmp_path / "wandb_run_id").write_bytes(b"\xff")
    with pytest.raises(TrainingError, match="wandb_run_id cannot be read"):
        create_writer(tmp_path, writers=("wandb",))


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for step in (1, 2):
        writer = create_writer(tmp_path, purge_step=step, writers=("wandb",))
        writer.write_hparams({"train.lr": 0.1})
        writer.write_scalars(step, {"loss/total": 1.0 / step})
        writer.write_images(step, {"views": np.zeros((4, 5, 3), np.uint8)})
        writer.write_histograms(step, {"state/std": np.ones(7)})
        writer.close()
    number = (tmp_path / "wandb_run_id").read_text().strip()
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{number}/run-{number}.wandb"))
    assert len(files) >= 1
    assert all(path.stat().st_size > 0 for path in files)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")
def test_mlflow_in_the_folder_and_a_resumed_run_continues_it(tmp_path, monkeypatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for first, last in ((1, 3), (3, 5)):
        writer = create_writer(tmp_path, purge_step=first, writers=("mlflow",))
        writer.write_hparams({"train.lr": 0.1, "seed": first})
        for step in range(first, last + 1):
            writer.write_scalars(step, {"loss/total": 1.0 / step, "optim/lr": 0.1})
        writer.write_images(last, {"views": np.zeros((4, 5, 3), np.uint8)})
        writer.close()
    writer = MLflowWriter(tmp_path)
    writer.write_scalars(2, {"eval/knn20": 0.75})
    writer.close()
    client = MlflowClient((tmp_path / "mlruns").absolute().as_uri())
    number = (tmp_path / "mlflow_run_id").read_text().strip()
    history = client.get_metric_history(number, "loss/total")
    assert [(one.step, one.value) for one in history] == [(s, 1.0 / s) for s in range(1, 6)]
    run = client.get_run(number)
    assert run.data.params == {"train.lr": "0.1", "seed": "1"}
    assert run.data.metrics["eval/knn20"] == 0.75
    assert run.info.status == "FINISHED"
    assert [item.path for item in client.list_artifacts(number, "images")]
