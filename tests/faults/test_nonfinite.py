"""A loss that is not finite is explained; a skipped batch is as if it had never been there."""

import json
import math

import jax
import numpy as np
import pytest

import hjepa_jax.train
from configs import quickstart
from hjepa_jax import sharding
from hjepa_jax.data.batches import batch_indices
from hjepa_jax.errors import TrainingError
from hjepa_jax.run import open_split, prepare
from hjepa_jax.soak import differing_arrays, final_state
from hjepa_jax.stop_request import RunStopped, StopRequest
from hjepa_jax.train import open_stream, train
from hjepa_jax.writers import ProgressDisplay

# Two in a row, then one more: the limit below is two in a row.
BAD = (2, 3, 5)


class Poisoned:
    """A stream in which the views of some batches are NaN."""

    def __init__(self, stream, first: int, bad: tuple[int, ...]):
        self._stream, self._number, self._bad = stream, first, bad
        self.corrupt_count = 0

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._stream.close()

    def __iter__(self):
        return self

    def __next__(self):
        batch = next(self._stream)
        # Float views pass into the encoder unchanged; the same type for all, so one compilation.
        views = batch["global_views"].astype(np.float32) / 255
        if self._number in self._bad:
            views[0, 5] = np.nan
        self._number += 1
        return {**batch, "global_views": views}


@pytest.fixture
def poison(monkeypatch):
    """Returns a function that makes batches of these numbers NaN."""

    def install(*bad: int) -> None:
        def opened(config, source, first, count):
            return Poisoned(open_stream(config, source, first, count), first, bad)

        monkeypatch.setattr(hjepa_jax.train, "open_stream", opened)
        monkeypatch.setattr(hjepa_jax.train.TrainingMonitor, "show_views", lambda *_: None)

    return install


def skipping_config():
    config = quickstart.get_config("smoke")
    config.train.update(max_steps=6, epochs=2, on_nonfinite="skip", max_skips_in_a_row=2)
    config.checkpoint.every_steps = 3
    return config


@pytest.fixture(scope="module")
def expected():
    """The state after the run's steps over all batches but the bad ones, by hand."""
    config = skipping_config()
    source = open_split(config, "train")
    run = prepare(config, len(source), sharding.data_mesh())
    state = run.init()
    numbers = [number for number in range(6 + len(BAD)) if number not in BAD]
    for number in numbers:
        with Poisoned(open_stream(config, source, number, 1), number, ()) as stream:
            state, _ = run.step(state, sharding.put_batch(run.mesh, next(stream)))
    return jax.device_get(state)


def test_skipped_batches_are_left_out_exactly(tmp_path, poison, expected) -> None:
    config = skipping_config()
    config.log.every_steps = 100  # So that failures are seen late, where a checkpoint is due.
    poison(*BAD)
    train(config, tmp_path)
    assert differing_arrays(expected, final_state(tmp_path)) == []
    report = json.loads((tmp_path / "failure.json").read_text())
    assert report["step"] == 3
    assert report["batch"] == 5
    assert report["epoch"] == 1
    assert report["skipped_before"] == [2, 3]
    assert report["checkpoints"] == [3]
    assert report["action"] == "skip"
    assert report["reproduced"]
    assert report["loss_terms"]["total"] == "nan"
    assert report["images"] == batch_indices(config.seed, 5, 64, 16)[1].tolist()
    assert math.isnan(float(next(iter(report["gradient_norms"].values()))))


def test_a_run_resumes_behind_the_batches_it_skipped(
    tmp_path, poison, monkeypatch, expected
) -> None:
    config = skipping_config()
    config.checkpoint.every_steps = 6
    poison(*BAD)

    # Asked to stop in the step that fails on batch 5: three good steps are there to be saved.
    def agreed(self: StopRequest, together: bool) -> bool:
        return ProgressDisplay.last == 4

    def step(self: ProgressDisplay, number: int) -> None:
        ProgressDisplay.last = number

    with monkeypatch.context() as patch:
        patch.setattr(ProgressDisplay, "last", 0, raising=False)
        patch.setattr(ProgressDisplay, "step", step)
        patch.setattr(StopRequest, "agreed", agreed)
        with pytest.raises(RunStopped, match="after step 3 of 6"):
            train(config, tmp_path)
    assert (tmp_path / "checkpoints" / "3").is_dir()
    poison()  # What was skipped is not met again.
    train(config, tmp_path)
    assert differing_arrays(expected, final_state(tmp_path)) == []


def test_too_many_bad_batches_in_a_row_stop_the_run(tmp_path, poison) -> None:
    poison(2, 3, 4)
    with pytest.raises(TrainingError, match=r"step 2 for the 3 batches up to number 4 .*max_skips"):
        train(skipping_config(), tmp_path)
