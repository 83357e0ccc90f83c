"""Epochs whose last batch is smaller: its images, its step, dispatches, resumption, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ml_collections import ConfigDict

from hjepa_jax.config import steps_per_epoch
from hjepa_jax.config.checks import typed
from hjepa_jax.config.files import choose_part
from hjepa_jax.data.batches import BatchMaker, batch_indices, check_stream
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import ConfigError, UserError
from hjepa_jax.loading import load_run
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.progress import ProgressDisplay
from hjepa_jax.runtime.stop_request import RunStopped, StopRequest
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.tools.kill_test import differing_arrays, final_state
from hjepa_jax.tools.show.state import read_state
from hjepa_jax.train import train
from hjepa_jax.training.feed import dispatch_lengths, images_between, unlike_batches
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.saved_run import epoch_steps

# 40 images: batches of 16, 16, and 8.
IMAGES, BATCH, EPOCH = 40, 16, 3


def config_of(**fields: Any) -> ConfigDict:
    config = quickstart.get_config("sigreg-smoke")
    choose_part(config, "model.encoder", "tiny_encoder:Halves")
    config.data.update(drop_last=False, max_train_images=IMAGES, backend="host")
    config.train.update(epochs=2, max_steps=None, warmup_epochs=0.0)
    config.sigreg.refresh_interval = 2
    config.update_from_flattened_dict(fields)
    return config


def test_an_epoch_has_every_image_once_in_the_order_of_the_others() -> None:
    assert steps_per_epoch(IMAGES, BATCH, drop_last=False) == EPOCH
    assert steps_per_epoch(32, BATCH, drop_last=False) == 2 == steps_per_epoch(IMAGES, BATCH)
    batches = [batch_indices(7, step, IMAGES, BATCH, drop_last=False) for step in range(6)]
    assert [epoch for epoch, _ in batches] == [0, 0, 0, 1, 1, 1]
    assert [len(indices) for _, indices in batches] == [16, 16, 8, 16, 16, 8]
    for epoch in (0, 1):
        found = np.concatenate([indices for number, indices in batches if number == epoch])
        np.testing.assert_array_equal(np.sort(found), np.arange(IMAGES))
        for step in (0, 1):
            full = batch_indices(7, 2 * epoch + step, IMAGES, BATCH)
            np.testing.assert_array_equal(full[1], batches[3 * epoch + step][1])


def test_processes_share_the_last_batch() -> None:
    settings = typed(config_of())
    source = open_split(settings, "train")
    assert len(source) == IMAGES
    whole, _ = BatchMaker(settings.data, settings.seed, source)(2)
    parts = [BatchMaker(settings.data, settings.seed, source, p, 4)(2)[0] for p in range(4)]
    assert [len(part["index"]) for part in parts] == [2] * 4
    for name, values in whole.items():
        axis = 1 if "views" in name else 0
        joined = np.concatenate([part[name] for part in parts], axis)
        np.testing.assert_array_equal(joined, values)
    with pytest.raises(
        ValueError, match=r"last batch has 8 images, .* multiple of the 16 processes"
    ):
        check_stream(settings.data, source, 16)


def test_a_smaller_batch_is_dispatched_alone() -> None:
    data = typed(config_of()).data

    def lengths(first: int, most: int, skipped: int = 0) -> list[int]:
        ends = unlike_batches(data, IMAGES, skipped)
        return list(dispatch_lengths(first, 6, most, ends))

    assert lengths(0, 2) == [2, 1, 2, 1]
    assert lengths(0, 3) == [1] * 6
    assert lengths(1, 2) == [1, 1, 2, 1]
    # After a skipped batch, step 2 has the batch of number 2.
    assert lengths(0, 2, skipped=1) == [1, 1, 2, 1, 1]
    assert images_between(data, IMAGES, 0, 6) == 2 * IMAGES
    assert images_between(data, IMAGES, 2, 4) == 24
    full = typed(config_of(**{"data.drop_last": True})).data
    assert images_between(full, IMAGES, 0, 6) == 6 * BATCH
    assert list(dispatch_lengths(0, 6, 3, unlike_batches(full, IMAGES, 0))) == [3, 3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run whose encoder hardly moves."""
    workdir = tmp_path_factory.mktemp("whole")
    train(config_of(**{"train.lr": 1e-12, "train.weight_decay": 0.0}), workdir)
    return workdir


def test_a_step_of_a_smaller_batch_is_of_its_images_alone(whole: Any) -> None:
    """The mean square of the states, from the views of the batch."""
    settings = typed(config_of())
    make = BatchMaker(settings.data, settings.seed, open_split(settings, "train"))
    found = {name: values for name, (_, values) in read_metrics(whole).items()}
    expected = []
    for step in range(6):
        views = make(step)[0]["global_views"] / 255
        states = (views - settings.data.mean) / settings.data.std
        halves = states.reshape(*states.shape[:2], 2, -1, 3).mean(-2)
        expected.append(np.square(halves).mean())
    (name,) = (name for name in found if name.endswith("z_mean_square"))
    np.testing.assert_allclose(found[name], expected, rtol=1e-4)
    assert len(set(np.round(expected, 6))) == 6


def test_a_run_knows_its_epochs(whole: Any) -> None:
    run = load_run(whole)
    assert (run.step, run.run.num_steps, run.run.method.steps_per_epoch) == (6, 6, EPOCH)
    meta = {"num_images": IMAGES, "batch_size": BATCH}
    assert (epoch_steps({**meta, "drop_last": False}), epoch_steps(meta)) == (EPOCH, 2)
    state = read_state(whole)
    assert (state.step, state.total_steps, state.status) == (6, 6, "finished")
    # The length of the epochs is a part of the run.
    with pytest.raises(UserError, match=r"config.data.drop_last"):
        train(config_of(**{"data.drop_last": True}), whole)


def test_a_run_that_stops_before_its_last_batch_resumes_to_the_same_bits(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config_of(), tmp_path / "one")
    last, original = [0], ProgressDisplay.step

    def step(self: ProgressDisplay, number: int) -> None:
        last[0] = number
        original(self, number)

    together = config_of(**{"train.steps_per_dispatch": 2, "log.every_steps": 5})
    monkeypatch.setattr(ProgressDisplay, "step", step)
    monkeypatch.setattr(StopRequest, "agreed", lambda *_, **__: last[0] == 2)
    with pytest.raises(RunStopped, match=r"after step 2 of 6"):
        train(together, tmp_path / "parts")
    monkeypatch.setattr(StopRequest, "agreed", lambda *_, **__: False)
    train(together, tmp_path / "parts")
    assert differing_arrays(final_state(tmp_path / "one"), final_state(tmp_path / "parts")) == []


@pytest.mark.parametrize(
    ("fields", "images", "words"),
    [
        ({"train.accumulation": 2}, 41, "has 9 images, which do not split evenly over 1 devices"),
        ({"sigreg.subsample": 9}, 40, r"has 8 images, too few \(sigreg.subsample must lie in 1..8"),
    ],
)
def test_a_last_batch_that_cannot_be_taken_is_refused_before_the_start(
    fields: dict[str, object], images: int, words: str
) -> None:
    prepare(typed(config_of(**fields)), 48, sharding.data_mesh())
    with pytest.raises(ConfigError, match=words):
        prepare(typed(config_of(**fields)), images, sharding.data_mesh())


def test_projections_that_stay_must_fit_the_last_batch() -> None:
    config = quickstart.get_config("smoke")
    config.data.drop_last = False
    config.loss.logdet_dim = 8
    prepare(typed(config), 37, sharding.data_mesh())
    # Two views of four images span at most 7 directions.
    with pytest.raises(ConfigError, match=r"4 images, too few for the random array 'q' of shape"):
        prepare(typed(config), 36, sharding.data_mesh())
    config.loss.logdet_refresh_interval = 1
    prepare(typed(config), 36, sharding.data_mesh())
