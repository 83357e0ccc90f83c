"""Evaluation before and after the projector: of checkpoints, online, and in what is reported."""

import numpy as np
import pytest

import hjepa_jax
from hjepa_jax.config import files, resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.base import decode
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import ConfigError
from hjepa_jax.evaluate import evaluate
from hjepa_jax.evaluation.monitor import OnlineKnn
from hjepa_jax.evaluation.report.tables import print_table
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.resume import data_identity, save


def configured(projector: str, method: str = "sigreg", **evaluation):
    config = quickstart.get_config(f"{method}-smoke")
    config.model.update(projector=projector, projector_widths=(12, 10))
    config.evaluation.update(
        probe_epochs=1, random_baseline=False, alignment_samples=8, knn_k=(1, 5), headline_k=5
    )
    config.evaluation.update(evaluation)
    return config


def saved(config, folder):
    """Writes a run that is only initialized, with a checkpoint of step 2."""
    settings = typed(config)
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())
    files.save(settings, folder)
    state = run.init()
    state = state.replace(step=state.step + 2)
    checkpointer = Checkpointer(folder / "checkpoints")
    save(settings, data_identity(settings.data, settings.seed, source), [], state, checkpointer)
    checkpointer.close()


def nearest_accuracy(known, labels, asked, truth, k: int) -> float:
    """The share of images whose k nearest by cosine vote for their class, the closer of equals."""
    known, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (known, asked))
    similar = asked @ known.T
    right = 0
    for row, label in zip(similar, truth):
        near = np.argsort(-row)[:k]
        votes, sums = np.zeros(10), np.zeros(10)
        np.add.at(votes, labels[near], 1)
        np.add.at(sums, labels[near], row[near])
        right += max(range(10), key=lambda c: (votes[c], sums[c])) == label
    return right / len(truth)


@pytest.mark.parametrize("projector", ["mlp", "halves"])
def test_both_sides_of_the_projector_are_evaluated_and_named(
    projector, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("hjepa_jax.evaluate.painters", lambda *_: {})
    config = configured(projector, state_part="qp")
    saved(config, tmp_path / "run")
    run = hjepa_jax.load(tmp_path / "run")
    settings = typed(config)
    sets = [open_split(settings, split) for split in ("train", "test")]
    images = [[decode(s.record(i)) for i in range(len(s))] for s in sets]
    states = [run.encode(one) for one in images]
    for features, word in (("encoder", "before"), ("projector", "after")):
        config.evaluation.features = features
        metrics = evaluate(config, tmp_path / "run")
        assert metrics["info"]["features"] == features
        one = metrics["encoders"]["trained"]
        seen = states if features == "encoder" else [run.project(z) for z in states]
        assert one["feature_dim"] == seen[0].shape[1]
        assert one["feature_dim"] == (512 if features == "encoder" else 10)
        # The projector 'mlp' leaves no q and p to tell apart.
        assert ("state_parts" in one) == (features == "encoder" or projector == "halves")
        expected = nearest_accuracy(seen[0], sets[0].labels(), seen[1], sets[1].labels(), 5)
        assert one["knn"]["top1"][1] == pytest.approx(expected, abs=1e-6)
        assert f"{word} the projector" in " ".join(capsys.readouterr().out.split())
        print_table(metrics)
        tag = "eval/knn5" if features == "encoder" else "eval/projector/knn5"
        logged = read_metrics(tmp_path / "run")
        assert logged[tag][1][-1] == pytest.approx(expected)
        weighted = one["knn_weighted"]["top1"][1]
        assert logged[f"{tag}_weighted"][1][-1] == pytest.approx(weighted)
    folders = sorted(path.name for path in (tmp_path / "run").glob("evaluation*"))
    assert len(folders) == 2
    # A shared encoder has no projector, so its card has the scores before it alone.
    assert len(run._evaluations(None)) == 1
    assert run._evaluations(None)[0]["info"]["features"] == "encoder"


def test_online_knn_sees_the_chosen_side(tmp_path) -> None:
    found = {}
    for features in ("encoder", "projector"):
        config = configured("mlp", state_part="qp", features=features, online_every_epochs=1.0)
        settings = resolve(config)
        source = open_split(settings, "train")
        run = prepare(settings, len(source), sharding.data_mesh())
        _, found[features] = OnlineKnn(settings, run, source)(run.init())
    assert found["encoder"].shape[1:] == (512,)
    assert found["projector"].shape[1:] == (10,)
    assert np.std(found["projector"]) > 0


@pytest.mark.parametrize(
    ("projector", "fields", "words"),
    [
        ("identity", {"features": "projector"}, ["config.evaluation.features", "no effect"]),
        ("mlp", {"features": "projector", "state_part": "q"}, ["mixes q and p", "'qp'"]),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(projector, fields, words) -> None:
    config = configured(projector, **fields)
    if projector == "identity":
        config.model.projector_widths = ()
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    assert all(word in str(caught.value) for word in words)
    assert len(str(caught.value).splitlines()) == 1
