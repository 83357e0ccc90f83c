"""The file of metrics: what is read back, and what a crash or a resumed run leaves."""

import json
import math

import numpy as np
import pytest
from odd_files import replace

from hjepa_jax.errors import UserError
from hjepa_jax.storage.metrics_file import METRICS_FILE, cut_metrics, line_of, read_metrics


def write(folder, *lines: bytes) -> None:
    (folder / METRICS_FILE).write_bytes(b"".join(lines))


def test_a_line_has_step_epoch_and_time_first_and_every_float32_exactly() -> None:
    values = {"loss/total": float(np.float32(0.1)), "odd": math.nan, "large": math.inf}
    line = line_of(40, 1.25, 1767225600.1234, values)
    assert line.endswith(b"}\n")
    found = json.loads(line)
    assert list(found) == ["step", "epoch", "time", "loss/total", "odd", "large"]
    assert (found["step"], found["epoch"], found["time"]) == (40, 1.25, 1767225600.123)
    assert np.float32(found["loss/total"]) == np.float32(0.1)
    assert (found["odd"], found["large"]) == (None, None)
    floats = np.random.default_rng(0).integers(0, 2**31 - 2**23, 1000, np.uint32).view(np.float32)
    for value in floats:
        back = json.loads(line_of(1, None, 0.0, {"x": float(value)}))["x"]
        assert np.float32(back) == value


def test_columns_are_by_tag_and_later_lines_win(tmp_path) -> None:
    assert read_metrics(tmp_path) == {}
    values = [(1, {"a": 1.0}), (2, {"a": 2.0, "b": math.nan}), (2, {"a": 3.0}), (1, {"c": 4.0})]
    write(tmp_path, *(line_of(step, step / 2, 9.0, found) for step, found in values))
    columns = read_metrics(tmp_path)
    assert set(columns) == {"epoch", "time", "a", "b", "c"}
    assert [each.tolist() for each in columns["a"]] == [[1, 2], [1.0, 3.0]]
    assert [each.tolist() for each in columns["epoch"]] == [[1, 2], [0.5, 1.0]]
    assert columns["b"][0].tolist() == [2]
    assert math.isnan(columns["b"][1][0])
    assert [each.tolist() for each in columns["c"]] == [[1], [4.0]]


def test_what_a_crash_cut_short_is_absent_and_damage_is_told(tmp_path, caplog) -> None:
    whole = [line_of(step, None, 0.0, {"a": float(step)}) for step in (1, 2, 3)]
    for length in range(len(whole[2])):
        write(tmp_path, *whole[:2], whole[2][:length])
        assert read_metrics(tmp_path)["a"][0].tolist() == [1, 2]
    assert caplog.text == ""
    write(tmp_path, whole[0], b"\0\0\0\n", b'{"step": -1}\n', b'{"a": 1}\n', b"\n", whole[2])
    assert read_metrics(tmp_path)["a"][0].tolist() == [1, 3]
    assert "has 3 damaged lines" in caplog.text


@pytest.mark.parametrize("first", [1, 2, 3, 4])
def test_a_resumed_run_keeps_the_lines_before_it(tmp_path, first) -> None:
    lines = [line_of(step, None, 0.0, {"a": float(step)}) for step in (1, 3, 2)]
    write(tmp_path, *lines, lines[0][:5])
    cut_metrics(tmp_path, first)
    kept = [line for line, step in zip(lines, (1, 3, 2)) if step < first]
    assert (tmp_path / METRICS_FILE).read_bytes() == b"".join(kept)
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


@pytest.mark.parametrize("kind", ["folder", "pipe", "broken link", "device"])
def test_something_else_in_its_place_is_a_sentence(tmp_path, kind) -> None:
    (tmp_path / METRICS_FILE).touch()
    replace(tmp_path / METRICS_FILE, kind)
    for read in (read_metrics, lambda run: cut_metrics(run, 1)):
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be read"):
            read(tmp_path)
