"""Starting from another run's parameters, and choosing the checkpoint to evaluate."""

import jax
import numpy as np
import pytest

from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import CheckpointError, ConfigError
from hjepa_jax.evaluate import restore
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.tools.kill_test import final_state
from hjepa_jax.train import train
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.resume import ranking
from hjepa_jax.training.saved_run import chosen_step, initial_state, open_saved


def prepared(config):
    settings = typed(config)
    return prepare(settings, len(open_split(settings, "train")), sharding.data_mesh())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps that keeps the last checkpoint, and the one of the smallest rate."""
    workdir = tmp_path_factory.mktemp("saved") / "run"
    config = quickstart.get_config("smoke")
    # The rate rises in the warm-up, so that the first step is best.
    best = {"keep_best": 1, "best_metric": "lr", "best_mode": "min"}
    config.checkpoint.update(every_steps=1, keep_last=1, **best)
    train(config, workdir)
    return config, workdir


def equal(one, two) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, one, two))


def test_the_checkpoint_to_evaluate_can_be_chosen(trained) -> None:
    config, workdir = trained
    settings = typed(config)
    checkpointer = open_saved(settings, workdir)
    assert checkpointer.steps() == [1, 2]
    assert chosen_step(checkpointer, "latest") is None
    assert chosen_step(checkpointer, "best") == 1
    assert chosen_step(checkpointer, "2") == 2
    for wrong, words in (
        ("3", "holds no checkpoint of this step"),
        ("bset", "'latest', 'best'"),
        ("²", "'latest'"),
    ):
        with pytest.raises(CheckpointError, match=words):
            chosen_step(checkpointer, wrong)
    checkpointer.close()
    run = prepared(config)
    assert [restore(settings, run, workdir, w).step for w in ("latest", "best")] == [2, 1]
    other = config.copy_and_resolve_references()
    other.checkpoint.best_metric = "budget"
    checkpointer = open_saved(typed(other), workdir)
    with pytest.raises(CheckpointError, match=r"'budget'.*keep_best"):
        chosen_step(checkpointer, "best")
    checkpointer.close()


def test_a_ranking_by_an_unknown_metric_is_refused(trained) -> None:
    config = trained[0].copy_and_resolve_references()
    config.checkpoint.best_metric = "totl"
    with pytest.raises(ConfigError, match="did you mean 'total'"):
        ranking(typed(config).checkpoint, {"total": 1.0, "pred": 2.0}, {})
    config.checkpoint.best_metric = "failed_step"  # of the guard alone, and gone from the logs
    with pytest.raises(ConfigError, match="not one of pred, total: "):
        ranking(typed(config).checkpoint, {"total": 1.0, "pred": 2.0, "failed_step": -1.0}, {})
    config.checkpoint.best_metric = "online/knn_top1"
    assert ranking(typed(config).checkpoint, {"total": 1.0}, {}) == {}
    assert ranking(typed(config).checkpoint, {"total": 1.0}, {"online/knn_top1": 0.5}) == {
        "online/knn_top1": 0.5
    }


def test_a_run_starts_from_the_parameters_of_another(trained, tmp_path, caplog) -> None:
    config, workdir = trained
    there = final_state(workdir)
    config = config.copy_and_resolve_references()
    config.train.init_from = str(workdir)
    run = prepared(config)
    state = initial_state(typed(config), run)
    fresh = run.init()
    assert equal(state.params, there.params)
    assert equal(state.batch_stats, there.batch_stats)
    assert equal(state.opt_state, fresh.opt_state)
    assert (int(state.step), int(there.step)) == (0, 2)
    # A different predictor is initialized randomly, with a message; the encoder is restored.
    config.dynamics.hidden_dim = 24
    run = prepared(config)
    state = initial_state(typed(config), run)
    assert equal(state.params["encoder"], there.params["encoder"])
    assert equal(state.params["predictor"], run.init().params["predictor"])
    assert "a different predictor, which is initialized randomly" in caplog.text


def test_what_does_not_fit_is_a_sentence(trained, tmp_path) -> None:
    config, workdir = trained
    config = config.copy_and_resolve_references()
    config.train.init_from = str(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match=r"nothing/config\.json does not exist"):
        initial_state(typed(config), prepared(config))
    config.train.init_from = str(workdir)
    config.resnet.width = 16
    with pytest.raises(CheckpointError, match=r"config.resnet.width \(8 there, 16 here\)"):
        initial_state(typed(config), prepared(config))


def test_an_unknown_metric_is_told_at_the_first_step_not_at_the_first_save(tmp_path) -> None:
    config = quickstart.get_config("smoke")
    config.checkpoint.update(keep_best=1, best_metric="totl", best_mode="min", every_steps=2)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hjepa_jax.train.ProgressDisplay.step", lambda _, step: seen.append(step))
        with pytest.raises(ConfigError, match="did you mean 'total'"):
            train(config, tmp_path)
    assert seen == []
