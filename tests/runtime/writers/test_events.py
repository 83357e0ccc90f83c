"""Metrics written through clu without TensorFlow, whatever the disk does."""

import errno
import inspect
import os
import pathlib
import sys
import threading
import time

import numpy as np
import pytest
from event_files import only_events, read_events

from hjepa_jax.errors import TrainingError
from hjepa_jax.runtime.writers import records
from hjepa_jax.runtime.writers.events import event_pb2
from hjepa_jax.runtime.writers.open import create_writer, import_metric_writers
from hjepa_jax.runtime.writers.records import Sink
from hjepa_jax.storage.metrics_file import read_metrics


def test_events_hold_what_was_written(tmp_path) -> None:
    writer = create_writer(tmp_path)
    writer.write_scalars(3, {"total": np.float32(1.5)})
    writer.write_images(3, {"views": np.zeros((8, 8, 3), np.uint8)})
    writer.write_images(3, {"batch": np.zeros((2, 8, 8, 3), np.uint8)})
    writer.close()
    values = {v.tag: (e.step, v) for e in only_events(tmp_path) for v in e.summary.value}
    assert values["total"][0] == 3
    assert values["total"][1].simple_value == 1.5
    assert values["views"][1].image.height == 8
    assert values["batch"][1].image.width == 16


def test_texts_histograms_and_fields_are_what_tensorboard_shows(tmp_path) -> None:
    writer = create_writer(tmp_path)
    writer.write_texts(0, {"configuration": "seed 3"})
    writer.write_histograms(2, {"state/std": np.array([1.0, 1.0, 2.0])}, {"state/std": 2})
    writer.write_hparams({"train.lr": 0.1, "data.mean": (0.5, 0.5), "evaluation.headline_k": 5})
    writer.close()
    values = {v.tag: v for e in only_events(tmp_path) for v in e.summary.value}
    (text,) = [v for tag, v in values.items() if tag.startswith("configuration")]
    assert text.tensor.string_val == [b"seed 3"]
    histogram = values["state/std"].histo
    assert (histogram.num, histogram.min, histogram.max, histogram.sum) == (3, 1.0, 2.0, 4.0)
    experiment = str(values["_hparams_/experiment"].metadata.plugin_data.content)
    for name in ("train.lr", "data.mean", "loss/total", "eval/knn5"):
        assert name in experiment


def test_every_method_of_clu_is_there() -> None:
    interface = import_metric_writers().interface.MetricWriter
    for name in interface.__abstractmethods__:
        wanted, ours = (inspect.signature(getattr(k, name)) for k in (interface, Sink))
        assert list(wanted.parameters) == list(ours.parameters), name


def test_tensorflow_is_not_imported(tmp_path) -> None:
    create_writer(tmp_path).close()
    assert "tensorflow" not in sys.modules


def points(folder: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """Returns the scalars of both kinds of file: 'lines' and 'events' -> (step, value) of total."""
    events = [e for path in sorted(folder.glob("events.*")) for e in read_events(path)]
    found = [(e.step, v.simple_value) for e in events for v in e.summary.value if v.tag == "total"]
    lines = read_metrics(folder).get("total", ([], []))
    return {"lines": [*zip(*(np.asarray(each).tolist() for each in lines))], "events": found}


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_values_are_in_the_file_at_once(tmp_path) -> None:
    """A killed run has lost nothing that it logged, and leaves no half record."""
    writer = create_writer(tmp_path)
    writer.write_scalars(1, {"total": 1.0})
    writer.flush()
    assert points(tmp_path) == {"lines": [(1, 1.0)], "events": [(1, 1.0)]}
    writer.close()


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_is_full_for_a_moment_costs_its_values_alone(
    tmp_path, monkeypatch, caplog, failure
) -> None:
    writer = create_writer(tmp_path)
    writer.write_scalars(1, {"total": 1.0})
    writer.flush()
    original = os.write

    def half(file: int, data: bytes) -> int:
        if len(data) > 10:
            return original(file, data[:10])
        raise OSError(failure, os.strerror(failure))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        for step in (2, 3):
            writer.write_scalars(step, {"total": 2.0})
        writer.flush()
    for step in range(4, 300):
        writer.write_scalars(step, {"total": 4.0})
    writer.close()
    expected = [(1, 1.0), *((step, 4.0) for step in range(4, 300))]
    assert points(tmp_path) == {"lines": expected, "events": expected}
    said = [record.getMessage() for record in caplog.records]
    assert sum("are dropped, and training continues" in text for text in said) == 2
    assert sum("can be written to again; 2 values were dropped" in text for text in said) == 2


def test_a_disk_that_stays_full_ends_no_run(tmp_path, monkeypatch, caplog) -> None:
    writer = create_writer(tmp_path)
    monkeypatch.setattr(os, "write", no_room)
    for step in range(5):
        writer.write_scalars(step, {"total": 2.0})
    writer.close()
    writer.close()
    assert "lacks 5 values" in caplog.text
    monkeypatch.undo()
    assert points(tmp_path) == {"lines": [], "events": []}


def test_a_disk_that_does_not_answer_holds_up_neither_steps_nor_end(
    tmp_path, monkeypatch, caplog
) -> None:
    writer = create_writer(tmp_path)
    released, original = threading.Event(), os.write

    def hanging(file: int, data: bytes) -> int:
        released.wait()
        return original(file, data)

    monkeypatch.setattr(os, "write", hanging)
    monkeypatch.setattr(records, "_CLOSE_SECONDS", 0.2)
    begun = time.monotonic()
    for step in range(records._QUEUE_RECORDS + 7):
        writer.write_scalars(step, {"total": 2.0})
    writer.close()
    assert time.monotonic() - begun < 30
    assert "does not accept writes" in caplog.text
    released.set()


def test_one_value_that_cannot_be_encoded_costs_itself(tmp_path, caplog) -> None:
    writer = create_writer(tmp_path)
    writer.write_images(1, {"odd": np.zeros((2, 2, 2, 2, 2))})
    writer.write_scalars(1, {"total": 1.0})
    writer.close()
    assert "could not be encoded" in caplog.text
    assert read_metrics(tmp_path)["total"][1].tolist() == [1.0]


def test_what_a_resumed_run_logs_again_is_void_before(tmp_path) -> None:
    first = create_writer(tmp_path, purge_step=1)
    for step in range(1, 8):
        first.write_scalars(step, {"total": 1.0, "rate": 1.0})
    first.close()
    before = set(tmp_path.glob("events.*"))
    second = create_writer(tmp_path, purge_step=4)
    second.write_scalars(5, {"total": 2.0})
    second.close()
    curves = read_metrics(tmp_path)
    assert [values.tolist() for values in curves["total"]] == [[1, 2, 3, 5], [1, 1, 1, 2]]
    assert curves["rate"][0].tolist() == [1, 2, 3]
    (newest,) = set(tmp_path.glob("events.*")) - before
    assert newest.name > max(path.name for path in before)
    # What TensorBoard looks for: a start with a step, behind a version that allows it.
    starts = [
        (event.step, event.session_log.status)
        for event in read_events(newest)
        if event.HasField("session_log")
    ]
    assert starts == [(4, event_pb2.SessionLog.START)]
    assert next(read_events(newest)).file_version == "brain.Event:2"


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot be written to .*file.*--workdir"):
        create_writer(tmp_path / "file")

    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(TrainingError, match="Read-only file system"):
            create_writer(tmp_path)
    monkeypatch.setattr(os, "write", no_room)
    with pytest.raises(OSError, match="No space left"):  # the caller's sentence tells the room
        create_writer(tmp_path)
