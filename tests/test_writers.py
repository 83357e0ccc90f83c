"""TensorBoard events through clu without TensorFlow, and the progress display."""

import sys

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from hjepa_jax import writers


def _events(folder):
    """Reads the only event file of a folder."""
    (path,) = folder.glob("events.out.tfevents.*")
    return read_events(path)


def read_events(path):
    """Reads an event file's records: length, checksum, payload, checksum."""
    data, position = path.read_bytes(), 0
    while position < len(data):
        length = int.from_bytes(data[position : position + 8], "little")
        event = event_pb2.Event()
        event.ParseFromString(data[position + 12 : position + 12 + length])
        yield event
        position += 12 + length + 4


def test_events_hold_what_was_written(tmp_path) -> None:
    writer = writers.create_writer(tmp_path)
    writer.write_scalars(3, {"total": np.float32(1.5)})
    writer.write_images(3, {"views": np.zeros((8, 8, 3), np.uint8)})
    writer.write_images(3, {"batch": np.zeros((2, 8, 8, 3), np.uint8)})
    writer.write_texts(3, {"config": "seed: 1"})
    writer.close()
    values = {v.tag: (e.step, v) for e in _events(tmp_path) for v in e.summary.value}
    assert values["total"][0] == 3
    assert values["total"][1].simple_value == 1.5
    assert values["views"][1].image.height == 8
    assert values["batch"][1].image.width == 16
    assert any("config" in tag for tag in values)


def test_tensorflow_is_not_imported(tmp_path) -> None:
    writers.create_writer(tmp_path).close()
    assert "tensorflow" not in sys.modules


def test_what_needs_tensorflow_says_so(tmp_path) -> None:
    writer = writers.TensorboardXWriter(str(tmp_path))
    with pytest.raises(NotImplementedError, match="video summaries need TensorFlow"):
        writer.write_videos(1, {})
    writer.close()


def test_progress_lines_show_loss_rate_and_time_left(capsys) -> None:
    display = writers.ProgressDisplay(total_steps=10, first_step=0, batch_size=4)
    display.step(1)
    display.show(2, 0.5, 123.4)
    display.close()
    line = capsys.readouterr().err
    assert "step 2/10" in line
    assert "loss 0.5000" in line
    assert "123 images/s" in line
    assert "time left 0:0" in line
