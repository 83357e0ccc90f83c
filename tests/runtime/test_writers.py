"""TensorBoard events through clu without TensorFlow, and the progress display."""

import errno
import io
import os
import sys
import threading
import time

import numpy as np
import pytest

from hjepa_jax.errors import TrainingError
from hjepa_jax.evaluation.compare.runs import read_curves
from hjepa_jax.runtime import progress, writers


def _events(folder):
    """Reads the only event file of a folder."""
    (path,) = folder.glob("events.out.tfevents.*")
    return read_events(path)


def read_events(path):
    """Reads an event file's records: length, checksum, payload, checksum."""
    data, position = path.read_bytes(), 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 8], "little")
        event = writers.event_pb2.Event()
        event.ParseFromString(data[position + 12 : position + 12 + length])
        yield event
        position += 12 + length + 4


def test_events_hold_what_was_written(tmp_path) -> None:
    writer = writers.create_writer(tmp_path)
    writer.write_scalars(3, {"total": np.float32(1.5)})
    writer.write_images(3, {"views": np.zeros((8, 8, 3), np.uint8)})
    writer.write_images(3, {"batch": np.zeros((2, 8, 8, 3), np.uint8)})
    writer.close()
    values = {v.tag: (e.step, v) for e in _events(tmp_path) for v in e.summary.value}
    assert values["total"][0] == 3
    assert values["total"][1].simple_value == 1.5
    assert values["views"][1].image.height == 8
    assert values["batch"][1].image.width == 16


def test_tensorflow_is_not_imported(tmp_path) -> None:
    writers.create_writer(tmp_path).close()
    assert "tensorflow" not in sys.modules


def test_progress_lines_show_loss_rate_and_time_left(capsys) -> None:
    display = progress.ProgressDisplay(total_steps=10, first_step=0)
    display.step(1)
    display.show(2, 0.5, 123.4)
    display.close()
    line = capsys.readouterr().err
    assert "step 2/10" in line
    assert "loss 0.5000" in line
    assert "123 images/s" in line
    assert "time left 0:0" in line


def no_room(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_values_are_in_the_file_at_once(tmp_path) -> None:
    """A killed run has lost nothing that it logged, and leaves no half record."""
    writer = writers.create_writer(tmp_path)
    writer.write_scalars(1, {"total": 1.0})
    writer.flush()
    assert read_curves(tmp_path)["total"][1].tolist() == [1.0]
    writer.close()


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_is_full_for_a_moment_costs_its_values_alone(
    tmp_path, monkeypatch, caplog, failure
) -> None:
    writer = writers.create_writer(tmp_path)
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
    steps, _ = read_curves(tmp_path)["total"]
    assert steps.tolist() == [1, *range(4, 300)]
    said = [record.getMessage() for record in caplog.records]
    assert sum("are dropped, and training continues" in text for text in said) == 1
    assert sum("can be written to again; 2 values were dropped" in text for text in said) == 1


def test_a_disk_that_stays_full_ends_no_run(tmp_path, monkeypatch, caplog) -> None:
    writer = writers.create_writer(tmp_path)
    monkeypatch.setattr(os, "write", no_room)
    for step in range(5):
        writer.write_scalars(step, {"total": 2.0})
    writer.close()
    writer.close()
    assert "lacks 5 values" in caplog.text
    monkeypatch.undo()
    assert read_curves(tmp_path) == {}


def test_a_disk_that_does_not_answer_holds_up_neither_steps_nor_end(
    tmp_path, monkeypatch, caplog
) -> None:
    writer = writers.create_writer(tmp_path)
    released, original = threading.Event(), os.write

    def hanging(file: int, data: bytes) -> int:
        released.wait()
        return original(file, data)

    monkeypatch.setattr(os, "write", hanging)
    monkeypatch.setattr(writers, "_CLOSE_SECONDS", 0.2)
    begun = time.monotonic()
    for step in range(writers._QUEUE_EVENTS + 7):
        writer.write_scalars(step, {"total": 2.0})
    writer.close()
    assert time.monotonic() - begun < 30
    assert "does not accept writes" in caplog.text
    released.set()


def test_one_value_that_cannot_be_encoded_costs_itself(tmp_path, caplog) -> None:
    writer = writers.create_writer(tmp_path)
    writer.write_images(1, {"odd": np.zeros((2, 2, 2, 2, 2))})
    writer.write_scalars(1, {"total": 1.0})
    writer.close()
    assert "could not be encoded" in caplog.text
    assert read_curves(tmp_path)["total"][1].tolist() == [1.0]


def test_what_a_resumed_run_logs_again_is_void_before(tmp_path) -> None:
    first = writers.create_writer(tmp_path, purge_step=1)
    for step in range(1, 8):
        first.write_scalars(step, {"total": 1.0, "rate": 1.0})
    first.close()
    before = set(tmp_path.iterdir())
    second = writers.create_writer(tmp_path, purge_step=4)
    second.write_scalars(5, {"total": 2.0})
    second.close()
    curves = read_curves(tmp_path)
    assert [values.tolist() for values in curves["total"]] == [[1, 2, 3, 5], [1, 1, 1, 2]]
    assert curves["rate"][0].tolist() == [1, 2, 3]
    (newest,) = set(tmp_path.iterdir()) - before
    assert newest.name > max(path.name for path in before)
    # What TensorBoard looks for: a start with a step, behind a version that allows it.
    starts = [
        (event.step, event.session_log.status)
        for event in read_events(newest)
        if event.HasField("session_log")
    ]
    assert starts == [(4, writers.event_pb2.SessionLog.START)]
    assert next(read_events(newest)).file_version == "brain.Event:2"


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot be written to .*file.*--workdir"):
        writers.create_writer(tmp_path / "file")

    def read_only(*_: object) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", read_only)
        with pytest.raises(TrainingError, match="Read-only file system"):
            writers.create_writer(tmp_path)
    monkeypatch.setattr(os, "write", no_room)
    with pytest.raises(OSError, match="No space left"):  # the caller's sentence tells the room
        writers.create_writer(tmp_path)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "gone"), BrokenPipeError(errno.EPIPE, "x")])
@pytest.mark.parametrize("terminal", [False, True])
def test_a_terminal_that_is_gone_ends_no_run(monkeypatch, error, terminal) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise error

        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, "stderr", Gone())
    monkeypatch.setenv("TERM", "xterm")
    display = progress.ProgressDisplay(total_steps=10, first_step=0)
    display.step(1)
    display.show(2, 0.5, 123.4)
    display.show(3, 0.5, 123.4)
    display.close()
