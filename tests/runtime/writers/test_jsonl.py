"""The writer of metrics.jsonl: what it adds to a file that is there."""

import json

import pytest

from hjepa_jax.errors import TrainingError
from hjepa_jax.runtime.writers.jsonl import MetricsFileWriter
from hjepa_jax.runtime.writers.open import create_writer
from hjepa_jax.storage.metrics_file import METRICS_FILE, line_of, read_metrics


def test_each_call_is_a_line_with_its_epoch(tmp_path) -> None:
    writer = MetricsFileWriter(tmp_path, purge_step=1, epoch_steps=8)
    writer.write_scalars(4, {"a": 1.0, "b": 2})
    writer.write_scalars(4, {"online/knn_top1": 0.5})
    writer.write_images(4, {"views": 0})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    assert [line.pop("time") > 1e9 for line in lines] == [True, True]
    assert lines == [
        {"step": 4, "epoch": 0.5, "a": 1.0, "b": 2.0},
        {"step": 4, "epoch": 0.5, "online/knn_top1": 0.5},
    ]


def test_an_evaluation_adds_to_a_file_that_a_crash_or_a_run_left(tmp_path) -> None:
    """It removes nothing: a run may be writing there."""
    running = MetricsFileWriter(tmp_path, purge_step=1)
    running.write_scalars(1, {"a": 1.0})
    running.flush()
    with (tmp_path / METRICS_FILE).open("ab") as file:
        file.write(line_of(2, None, 0.0, {"a": 2.0})[:9])
    other = MetricsFileWriter(tmp_path)
    other.write_scalars(3, {"eval/knn20": 0.75})
    other.close()
    running.write_scalars(4, {"a": 4.0})
    running.close()
    found = read_metrics(tmp_path)
    assert found["a"][0].tolist() == [1, 4]
    assert found["eval/knn20"][1].tolist() == [0.75]


def test_a_link_in_its_place_is_not_followed(tmp_path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    (tmp_path / METRICS_FILE).symlink_to(precious)
    with pytest.raises(TrainingError, match="metrics cannot be written to"):
        create_writer(tmp_path, purge_step=1)
    assert precious.read_text() == ""
