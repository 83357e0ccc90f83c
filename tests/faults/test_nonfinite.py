"""A loss that is not finite is explained; a skipped batch is as if it had never been there."""

import json
import math

import jax
import numpy as np
import optax
import pytest
from random_states import random_state

import hjepa_jax.train
import hjepa_jax.training.setup
from hjepa_jax.config import files
from hjepa_jax.config.checks import typed
from hjepa_jax.data.batches import batch_indices
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import CheckpointError, TrainingError
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.runtime.checkpoint_arrays import not_finite
from hjepa_jax.runtime.progress import ProgressDisplay
from hjepa_jax.runtime.stop_request import RunStopped, StopRequest
from hjepa_jax.tools.kill_test import differing_arrays, final_state
from hjepa_jax.train import open_stream, train
from hjepa_jax.training.nonfinite import diagnosis
from hjepa_jax.training.optimizer import make_optimizer
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.resume import data_identity, save
from hjepa_jax.training.setup import build_method

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
        def opened(config, source, first, count, stop=None):
            return Poisoned(open_stream(typed(config), source, first, count), first, bad)

        monkeypatch.setattr(hjepa_jax.train, "open_stream", opened)
        monkeypatch.setattr(hjepa_jax.train.TrainingMonitor, "show_views", lambda *_: None)

    return install


def skipping_config():
    config = quickstart.get_config("smoke")
    config.train.update(max_steps=6, epochs=2, on_nonfinite="skip", max_skips_in_a_row=2)
    config.data.backend = "host"
    config.checkpoint.every_steps = 3
    return config


def prepared_run(config):
    settings = typed(config)
    return prepare(settings, len(open_split(settings, "train")), sharding.data_mesh())


@pytest.fixture(scope="module")
def expected():
    """The state after the run's steps over all batches but the bad ones, by hand."""
    config = skipping_config()
    settings = typed(config)
    source, run = open_split(settings, "train"), prepared_run(config)
    state = run.init()
    numbers = [number for number in range(6 + len(BAD)) if number not in BAD]
    for number in numbers:
        with Poisoned(open_stream(settings, source, number, 1), number, ()) as stream:
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


def test_parameters_that_an_update_made_infinite_are_never_saved(tmp_path, monkeypatch) -> None:
    """The loss and gradient of that step are finite, so that only the state itself shows it."""

    def overflowing(*arguments):
        return optax.chain(make_optimizer(*arguments), optax.scale(np.inf))

    monkeypatch.setattr(hjepa_jax.training.setup, "make_optimizer", overflowing)
    config = quickstart.get_config("smoke")
    config.train.on_nonfinite = "skip"
    config.checkpoint.every_steps = 1
    words = r"after step 1 params/.*train\.lr \(0.002\).*train\.b2 \(0.999\)"
    with pytest.raises(TrainingError, match=words) as failure:
        train(config, tmp_path)
    assert "none was saved yet" in str(failure.value)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    report = json.loads((tmp_path / "failure.json").read_text())
    assert report["step"] == 1
    assert any(name.startswith("params/encoder/") for name in report["not_finite"])


def test_an_infinite_prediction_before_any_update_is_no_matter_of_the_learning_rate(
    tmp_path, monkeypatch
) -> None:
    # The rules of `resolved` foresee this case.
    monkeypatch.setattr("hjepa_jax.train.resolved", lambda config, workdir: typed(config))
    config = quickstart.get_config("smoke")
    config.dynamics.update(dt=100.0, steps=24)
    with pytest.raises(TrainingError, match=r"at step 0 .*the prediction by the flow") as failure:
        train(config, tmp_path)
    message = str(failure.value)
    for words in ("config.dynamics.dt (100.0)", "dynamics.steps (24)", "dynamics.base_coeff (0."):
        assert words in message
    assert "it is not the learning rate" in message
    assert "train.lr" not in message
    assert "skip" not in message
    report = json.loads((tmp_path / "failure.json").read_text())
    assert "the prediction by the flow" in report["advice"]


FINE = {"pred": 1.0, "var": 0.5, "q2": 1.0, "total": 2.0}


@pytest.mark.parametrize(
    ("terms", "norms", "updated", "what", "named"),
    [
        ({"q2": "nan", "pred": "nan"}, {}, False, "encoder's output", ("data.mean", "data.std")),
        ({"pred": "inf"}, {}, True, "by the flow", ("train.lr", "grad_clip", "dynamics.dt")),
        ({"var": "nan"}, {}, False, "the loss term var", ("loss.std_eps",)),
        ({"total": "inf"}, {}, True, "but its terms are", ("train.lr",)),
        ({"V_var": "inf", "total": "inf"}, {}, True, "the metric V_var is not", ("train.lr",)),
        ({}, {"predictor/x": "nan"}, False, "(predictor/x)", ("dynamics.base_coeff",)),
        ({}, {"encoder/y": "inf"}, True, "(encoder/y)", ("train.lr", "data.std")),
    ],
)
def test_the_advice_fits_what_is_not_finite(terms, norms, updated, what, named) -> None:
    config = quickstart.get_config("smoke")
    report = {"not_finite": [], "loss_terms": FINE | terms, "gradient_norms": {"a": 1.0} | norms}
    settings = typed(config)
    method = build_method(settings, 4)
    found, fields = diagnosis(settings, method, report, updated=updated)
    assert what in found
    assert all(name in fields for name in named)
    assert ("train.lr" in fields) == updated
    assert "predictor_lr" not in fields
    config.train.predictor_lr = 1e20
    assert (
        "train.predictor_lr" in diagnosis(typed(config), method, report, updated=updated)[1]
    ) == updated
    sigreg = quickstart.get_config("sigreg-smoke")
    told = diagnosis(typed(sigreg), build_method(typed(sigreg), 4), report, updated=updated)[1]
    assert "dynamics" not in told


def test_a_state_of_an_earlier_version_with_a_nan_is_not_gone_on_from(tmp_path) -> None:
    config, workdir = quickstart.get_config("smoke"), tmp_path / "run"
    settings = typed(config)
    run, source = prepared_run(config), open_split(settings, "train")
    state = jax.device_put(random_state(run, 1))
    bad = state.replace(params=jax.tree.map(lambda x: x.at[..., 0].set(np.inf), state.params))
    assert not_finite(state) == []
    for field in ("params", "batch_stats", "opt_state"):
        part = jax.tree.map(lambda x: x * np.nan, getattr(state, field))
        names = not_finite(state.replace(**{field: part}))
        assert names, field
        assert all(name.startswith(f"{field}/") for name in names)
    assert len(not_finite(bad)) == len(jax.tree.leaves(bad.params))
    checkpointer = Checkpointer(workdir / "checkpoints")
    identity = data_identity(settings.data, settings.seed, source)
    save(settings, identity, [], bad, checkpointer)
    checkpointer.close()
    files.save(settings, workdir)
    with pytest.raises(CheckpointError, match=r"are NaN or infinite \(params/encoder"):
        train(config, workdir)
    config.train.init_from = str(workdir)
    with pytest.raises(CheckpointError, match="are NaN or infinite"):
        train(config, tmp_path / "other")
