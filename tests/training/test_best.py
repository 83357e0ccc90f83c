"""Which checkpoint is best: the metric's own direction, and on which images it is chosen."""

import io
import shutil

import jax
import numpy as np
import pytest
from event_files import only_events
from image_files import write_folder
from PIL import Image
from random_states import random_state

from hjepa_jax import load
from hjepa_jax.config import resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.config.rules import best_direction
from hjepa_jax.data.sources.base import ArraySource
from hjepa_jax.data.sources.derived import hold_out, labeled
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import CheckpointError, ConfigError, DataError
from hjepa_jax.evaluate import _notes, evaluate, restore
from hjepa_jax.evaluation import monitor
from hjepa_jax.evaluation.report.about import holdout_notes
from hjepa_jax.interop.export_features import split_features
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.storage.checkpoint_meta import DataPosition
from hjepa_jax.train import train
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.saved_run import chosen_step, open_saved, saved_config
from hjepa_jax.training.step import train_step
from tests.evaluation.test_monitor import online_config, prepare_without_step


@pytest.mark.parametrize("variant", ["smoke", "sigreg-smoke"])
def test_every_logged_metric_has_a_direction_or_must_be_given_one(variant) -> None:
    config = quickstart.get_config(variant)
    config.evaluation.online_probe = True
    run = prepare(typed(config), 64, sharding.data_mesh(), num_classes=10)
    size, count = config.data.image_size, config.data.batch_size
    batch = {
        "global_views": jax.ShapeDtypeStruct((2, count, size, size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((count,), np.int32),
    }
    _, metrics = jax.eval_shape(
        lambda state, batch: train_step(run.setup, state, batch), run.abstract_state, batch
    )
    losses = {"total", "pred", "online/probe_loss"} & metrics.keys()
    assert losses == {"total", "pred", "online/probe_loss"}
    known = {}
    for name in metrics:
        config.checkpoint.update(keep_best=1, best_metric=name, best_mode=None)
        known[name] = best_direction(typed(config))
        if known[name] is None:
            with pytest.raises(ConfigError, match=r"set config\.checkpoint\.best_mode to"):
                resolve(config)
            config.checkpoint.best_mode = "max"
            assert best_direction(resolve(config)) == "max"
        else:
            resolve(config)
    assert {known[name] for name in losses} == {"min"}
    assert known["online/probe_top1"] == "max"
    # What is neither a loss nor an accuracy has no direction of its own.
    others = {"grad_norm", "lr", "z2", "q2", "q_pr", "V_var", "alpha"} & metrics.keys()
    assert others
    assert {known[name] for name in others} == {None}


@pytest.mark.parametrize(
    ("metric", "mode", "words"),
    [
        ("online/knn_top1", "min", "higher is better, so the worst checkpoints would be kept"),
        ("online/probe_top1", "min", "higher is better"),
        ("total", "max", "lower is better"),
        ("loss/total", "max", "lower is better"),
        ("grad_norm", None, "set config.checkpoint.best_mode to 'min' or 'max'"),
        ("totl", None, "did you mean 'total'"),
    ],
)
def test_a_contradiction_is_refused_before_the_run(metric, mode, words) -> None:
    config = online_config()
    config.evaluation.online_probe = True
    config.checkpoint.update(keep_best=1, best_metric=metric, best_mode=mode)
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(config)
    assert len(str(caught.value).splitlines()) == 1
    known = metric in ("total", "loss/total", "online/probe_top1")
    config.checkpoint.best_mode = None if known else "max"
    resolve(config)
    config.evaluation.online_probe = False
    if metric == "online/probe_top1":
        with pytest.raises(ConfigError, match="the online probe is off"):
            resolve(config)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory):
    """A run of two steps whose kNN falls from 0.9 to 0.1; the best and the last are kept."""
    workdir = tmp_path_factory.mktemp("best") / "run"
    config = online_config()
    config.checkpoint.update(every_steps=1, keep_last=1, keep_best=1, best_metric="online/knn_top1")

    def score(self, state):
        share = {1: 0.9, 2: 0.1}[int(state.step)]
        names = ("top1", "top5", "top1_low", "top1_high")
        return {f"online/knn_{n}": share for n in names}, np.eye(4, 6, dtype=np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hjepa_jax.train.prepare", prepare_without_step)
        patch.setattr(monitor.OnlineKnn, "__call__", score)
        train(config, workdir)
    return config, workdir


def test_the_best_by_accuracy_is_the_most_accurate(ranked) -> None:
    config, workdir = ranked
    checkpointer = open_saved(typed(saved_config(workdir)), workdir)
    assert checkpointer.steps() == [1, 2]
    assert chosen_step(checkpointer, "best") == 1
    checkpointer.close()
    assert [load(workdir, step=step).step for step in ("best", None, 2)] == [1, 2, 2]
    with pytest.raises(CheckpointError, match="'latest', 'best' or a step"):
        load(workdir, step="bset")
    settings = typed(config)
    run = prepare(settings, 64, sharding.data_mesh())
    assert restore(settings, run, workdir, "best").step == 1
    # The run's own choice counts, not that of the command line.
    other = quickstart.get_config("smoke")
    assert other.checkpoint.best_metric == "total"
    assert restore(typed(other), run, workdir, "best").step == 1
    assert restore(typed(other), run, workdir).step == 2


def test_a_hold_out_that_is_no_longer_the_same_is_said(ranked) -> None:
    settings = typed(ranked[0]).replace({"data.test_holdout": 8})
    trained: DataPosition = {"step": 1, "fingerprint": "x"}
    (note,) = holdout_notes(settings, settings, trained, same_listing=False)
    assert "which 8 images config.data.test_holdout draws" in note
    assert not holdout_notes(settings, settings, trained, same_listing=True)
    assert not holdout_notes(settings, settings, {"step": 1}, same_listing=False)
    # What was not trained on, or not drawn, has not changed.
    other = settings.replace({"data.root": "/elsewhere"})
    assert not holdout_notes(other, settings, trained, same_listing=False)
    whole = settings.replace({"data.test_holdout": None})
    assert not holdout_notes(whole, whole, trained, same_listing=False)


def test_a_choice_on_the_reported_images_is_said(ranked, tmp_path, capsys) -> None:
    config, workdir = ranked
    config = config.copy_and_resolve_references()
    config.evaluation.update(probe_epochs=1, random_baseline=False, all_state_parts=False)
    metrics = evaluate(config, workdir, tmp_path, "best")
    words = "chosen by online/knn_top1 on images of the test split that is reported here"
    assert words in metrics["notes"][0]
    assert metrics["info"]["best_by"] == "online/knn_top1"
    assert words in (tmp_path / "run" / "report.md").read_text()
    assert words in " ".join(capsys.readouterr().out.split())
    # Neither the newest, nor another test set, nor a hold-out, nor a loss flatters.
    saved = config.copy_and_resolve_references()
    assert _notes(typed(config), typed(saved), "best")
    assert not _notes(typed(config), typed(saved), "latest")
    config.data.test_split = "other"
    assert not _notes(typed(config), typed(saved), "best")
    # Data are known by what they list, not by how their path is written.
    config = saved.copy_and_resolve_references()
    config.data.root = "moved"
    assert _notes(typed(config), typed(saved), "best", same_listing=True)
    assert not _notes(typed(config), typed(saved), "best")
    config = saved.copy_and_resolve_references()
    saved.evaluation.online_holdout = 20
    assert not _notes(typed(config), typed(saved), "best")
    saved.evaluation.online_holdout = None
    saved.checkpoint.best_metric = "total"
    assert not _notes(typed(config), typed(saved), "best")


@pytest.mark.parametrize(("root", "told"), [("data", True), ("moved", True), ("other", False)])
def test_a_choice_on_the_reported_images_is_said_of_moved_data(
    root, told, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = {name: 25 for name in "abcdef"}
    write_folder(tmp_path / "data", {"train": counts, "test": counts})
    shutil.copytree(tmp_path / "data", tmp_path / "moved")
    write_folder(tmp_path / "other", {"train": {**counts, "a": 26}, "test": counts})
    config = online_config()
    config.data.update(name="folder", root="data")
    config.checkpoint.update(every_steps=1, keep_best=1, best_metric="online/knn_top1")
    config.evaluation.update(probe_epochs=1, random_baseline=False, all_state_parts=False)
    monkeypatch.setattr("hjepa_jax.train.prepare", prepare_without_step)
    monkeypatch.setattr("hjepa_jax.evaluate._report", lambda *_: tmp_path)
    train(config, tmp_path / "run")
    config.data.root = str(tmp_path / root)
    metrics = evaluate(config, tmp_path / "run", tmp_path / "eval", "best")
    assert any("chosen by online/knn_top1" in note for note in metrics["notes"]) == told


def _source(labels) -> ArraySource:
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 4, 4, 3), np.uint8
    )
    return ArraySource("x", images, labels, ("a", "b", "c"))


def test_unlabeled_images_are_held_out_at_random() -> None:
    source = ArraySource("x", np.zeros((30, 4, 4, 3), np.uint8), np.full(30, -1), ())
    rest, held = hold_out(source, 6, seed=3)
    assert (len(rest), len(held)) == (24, 6)
    assert not set(rest.indices) & set(held.indices)
    assert held.fingerprint() != hold_out(source, 6, seed=4)[1].fingerprint()


def test_a_hold_out_is_stratified_seeded_and_disjoint() -> None:
    labels = np.array([0] * 30 + [1] * 15 + [2] * 5 + [-1] * 10)
    source = _source(labels)
    rest, held = hold_out(source, 10, seed=3)
    assert np.bincount(held.labels()).tolist() == [6, 3, 1]
    ids = [int(s.record(i).image[0, 0, 0]) for s in (rest, held) for i in range(len(s))]
    assert sorted(ids) == list(range(60))
    assert np.count_nonzero(rest.labels() == -1) == 10
    assert hold_out(source, 10, seed=3)[1].fingerprint() == held.fingerprint()
    assert hold_out(source, 10, seed=4)[1].fingerprint() != held.fingerprint()
    assert rest.fingerprint() != source.fingerprint()
    for wrong in (0, 50, 60):
        with pytest.raises(ValueError, match="cannot be held out"):
            hold_out(source, wrong, seed=3)
    assert len(labeled(source)) == 50
    assert labeled(held) is held
    with pytest.raises(ValueError, match="No image of"):
        labeled(_source(-np.ones(4, int)))


def test_held_out_images_are_tested_and_not_trained_on(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hjepa_jax.train.prepare", prepare_without_step)
    config = online_config()
    config.evaluation.update(online_holdout=16, knn_k=(1, 5), headline_k=5)
    whole = config.copy_and_resolve_references()
    whole.evaluation.online_holdout = None
    settings = typed(config)
    every, rest, held = (
        open_split(typed(whole), "train"),
        open_split(settings, "train"),
        open_split(settings, "holdout"),
    )
    assert (len(every), len(rest), len(held)) == (64, 48, 16)
    assert (
        open_split(settings, "test").fingerprint() == open_split(typed(whole), "test").fingerprint()
    )
    run = prepare(settings, len(rest), sharding.data_mesh())
    tested = monitor.OnlineKnn(settings, run, rest)
    assert [len(s) for s in tested._sources] == [40, 16]
    images = [{s.record(i).image.tobytes() for i in range(len(s))} for s in (rest, held)]
    assert not images[0] & images[1]
    scores, states = tested(random_state(run, 0))
    assert states.shape[0] == 16
    low, top, high = (scores[f"online/knn_top1{end}"] for end in ("_low", "", "_high"))
    assert 0 <= low <= top <= high <= 1
    assert high - low > 0.2
    train(config, tmp_path)
    # A resume on other images is refused, and names the field.
    with pytest.raises(CheckpointError, match=r"evaluation.online_holdout \(16 there, None here"):
        train(whole, tmp_path)


def _online_with(labels, monkeypatch, test_labels=None, classes=10, **ranking):
    """An online kNN on 40 noise images with these labels."""
    config = online_config()
    config.evaluation.update(knn_k=(1, 5), headline_k=5)
    config.checkpoint.update(ranking)
    rng = np.random.default_rng(0)
    names = tuple(f"class {i}" for i in range(classes))
    sets = [
        ArraySource("noise", rng.integers(256, size=(40, 16, 16, 3), dtype=np.uint8), y, names)
        for y in (labels, labels if test_labels is None else test_labels)
    ]
    monkeypatch.setattr(monitor, "open_split", lambda *_: sets[1])
    settings = typed(config)
    run = prepare(settings, 40, sharding.data_mesh())
    return monitor.OnlineKnn(settings, run, sets[0]), run


def test_online_knn_leaves_out_images_without_label(monkeypatch) -> None:
    labels = np.arange(40) % 10
    labels[::4] = -1
    found, run = _online_with(labels, monkeypatch)
    assert [len(source) for source in found._sources] == [30, 30]
    assert all(source.labels().min() >= 0 for source in found._sources)
    scores, _ = found(random_state(run, 0))
    # A share of the 30 that are tested.
    assert 30 * scores["online/knn_top1"] == pytest.approx(round(30 * scores["online/knn_top1"]))
    # With five or fewer classes, top-5 accuracy is always 1.
    few, run = _online_with(np.arange(40) % 5, monkeypatch, classes=5)
    assert "online/knn_top5" not in few(random_state(run, 0))[0]
    ranking = {"keep_best": 1, "best_metric": "online/knn_top5"}
    _online_with(np.arange(40) % 6, monkeypatch, classes=6, **ranking)
    with pytest.raises(ConfigError, match="with 5 classes top-5 accuracy is always 1"):
        _online_with(np.arange(40) % 5, monkeypatch, classes=5, **ranking)


@pytest.mark.parametrize(
    ("labels", "test_labels", "words"),
    [
        (np.full(40, 3), None, r"training images are of one class \(class 3\)"),
        (np.arange(40) % 10, np.full(40, 7), "test images are of one class"),
        (np.full(40, -1), None, "No image of noise.*has a label"),
    ],
)
def test_online_accuracy_of_no_meaning_is_refused(labels, test_labels, words, monkeypatch) -> None:
    with pytest.raises(DataError, match=words):
        _online_with(labels, monkeypatch, test_labels)


def test_online_test_of_the_training_images_is_refused() -> None:
    config = online_config()
    config.data.test_split = "train"
    settings = typed(config)
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())
    with pytest.raises(DataError, match="test images are also training images"):
        monitor.OnlineKnn(settings, run, open_split(settings, "test"))


def test_an_online_probe_of_one_class_is_refused() -> None:
    config = online_config()
    config.evaluation.online_probe = True
    monitor.check_online_labels(typed(config).evaluation, _source([0, 1, 2]))
    for labels, words in (([1, 1, -1], "of one class"), ([-1, -1, -1], "no training image has")):
        with pytest.raises(DataError, match=words):
            monitor.check_online_labels(typed(config).evaluation, _source(labels))
        config.evaluation.online_probe = False
        monitor.check_online_labels(typed(config).evaluation, _source(labels))
        config.evaluation.online_probe = True


def _parquet(path, images, labels) -> None:
    """Writes images and labels (None = no label) as a Parquet file."""
    pyarrow, parquet = (pytest.importorskip(f"pyarrow{end}") for end in ("", ".parquet"))
    stored = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        stored.append(buffer.getvalue())
    table = pyarrow.table({"image": stored, "label": pyarrow.array(labels, pyarrow.int64())})
    parquet.write_table(table, path)


def test_missing_labels_from_the_file_to_the_report(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hjepa_jax.train.prepare", prepare_without_step)
    config = online_config()
    config.evaluation.update(knn_k=(1, 5), headline_k=5, probe_epochs=1, all_state_parts=False)
    config.evaluation.update(random_baseline=False, few_shot=(1,), few_shot_trials=1)
    digits, data = open_split(typed(config), "train"), tmp_path / "data"
    data.mkdir()
    images = [digits.record(i).image for i in range(64)]
    labels = [None if i % 3 == 0 else int(digits.labels()[i]) for i in range(64)]
    _parquet(data / "train.parquet", images[:48], labels[:48])
    _parquet(data / "test.parquet", images[48:], labels[48:])
    config.data.update(name="folder", root=str(data), max_train_images=None)
    source = open_split(typed(config), "train")
    assert np.count_nonzero(source.labels() == -1) == 16
    assert "nan" not in source.class_names
    workdir = tmp_path / "run"
    train(config, workdir)
    logged = {v.tag: v.simple_value for e in only_events(workdir) for v in e.summary.value}
    tested = sum(label is not None for label in labels[48:])
    share = tested * logged["online/knn_top1"]
    assert share == pytest.approx(round(share), abs=1e-4)
    metrics = evaluate(config, workdir, tmp_path / "eval")
    assert metrics["num_test_images"] == tested
    assert metrics["num_classes"] == 10
    one = metrics["encoders"]["trained"]
    share = tested * one["linear_probe"]["top1"]
    assert share == pytest.approx(round(share), abs=1e-4)
    assert one["diagnostics"]["covariance_spectrum_topq"]["num_samples"] == 48
    assert any("16 of the 48 training images have no label" in note for note in metrics["notes"])
    found, names, files = split_features(load(workdir), "test")
    assert files is None
    assert found.labels.tolist() == [-1 if label is None else label for label in labels[48:]]
    assert len(names) == 10
