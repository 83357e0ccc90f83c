"""Monitoring of training: views, alarms and kNN."""

import io
import logging
import pathlib
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from event_files import only_events
from PIL import Image
from random_states import random_state

from hjepa_jax.config import resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.data.contact_sheet import contact_sheet
from hjepa_jax.data.named.cifar import CIFAR100_SUPERCLASSES
from hjepa_jax.data.pipeline import eval_batches, train_batches
from hjepa_jax.data.sources.base import ArraySource
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import ConfigError, DataError
from hjepa_jax.evaluation import monitor
from hjepa_jax.evaluation.features import extract_features
from hjepa_jax.evaluation.knn import knn_accuracy
from hjepa_jax.evaluation.ready import Sets
from hjepa_jax.evaluation.report.about import evaluation_sources, watch
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.train import train
from hjepa_jax.training.feed import resident_images
from hjepa_jax.training.prepare import make_encode, prepare


def online_config():
    """The smoke run with kNN after each of two steps."""
    config = quickstart.get_config("smoke")
    config.evaluation.update(online_every_epochs=0.25, online_images=40)
    return config


def prepare_without_step(*arguments):
    """A prepared run with a random state instead of a compiled step, and collapsed metrics."""
    run = prepare(*arguments)

    def step(state, batch):
        del batch
        number = int(state.step) + 1
        metrics = {"total": 1.0, "failed_step": -1, "q_pr": 0.01 / number, "p_pr": 0.5}
        return jax.device_put(random_state(run, number)), jax.tree.map(np.asarray, metrics)

    return run._replace(step=step, init=lambda: random_state(run, 0))


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A run's workdir, its log and its events."""
    folder = tmp_path_factory.mktemp("online")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("hjepa_jax")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hjepa_jax.train.prepare", prepare_without_step)
            train(online_config(), folder)
    finally:
        logger.removeHandler(handler)
    values = [(e.step, v) for e in only_events(folder) for v in e.summary.value]
    return folder, lines, values


def test_knn_is_logged_when_due_and_right(watched) -> None:
    folder, lines, values = watched
    top1 = {step: v.simple_value for step, v in values if v.tag == "online/knn_top1"}
    assert sorted(top1) == [1, 2]
    assert {step for step, v in values if v.tag == "online/knn_top5"} == {1, 2}
    assert any(line.startswith("step 2: kNN top-1") for line in lines)

    settings = typed(online_config())
    train_set, test_set = open_split(settings, "train"), open_split(settings, "test")
    run = prepare(settings, len(train_set), sharding.data_mesh())
    state, _ = Checkpointer(folder / "checkpoints", read_only=True).restore(run.abstract_state)
    encode = make_encode(run, state.params, state.batch_stats)
    fewer = monitor.subset(train_set, 40, settings.evaluation.seed)
    sets = [extract_features(encode, eval_batches(settings.data, s, 32)) for s in (fewer, test_set)]
    (q, labels), (test_q, test_labels) = ((x[:, : x.shape[1] // 2], y) for x, y in sets)
    assert len(q) == 40
    expected = knn_accuracy(q, labels, test_q, test_labels, ks=(20,), num_classes=10)["top1"][0]
    assert top1[2] == pytest.approx(expected, abs=1e-6)


def test_first_views_are_in_tensorboard(watched) -> None:
    _, _, values = watched
    (picture,) = [(step, v.image) for step, v in values if v.tag == "data/views"]
    settings = typed(online_config()).replace({"data.backend": "host"})
    source = open_split(settings, "train")
    with train_batches(settings.data, settings.seed, source, num_steps=1) as stream:
        batch = next(stream)
    # Each original, twice as large as the 32 x 32 pixels that are stored, is beside its views.
    originals = [Image.fromarray(source.record(int(n)).image) for n in batch["index"]]
    large = [np.asarray(one.resize((64, 64), Image.Resampling.BICUBIC)) for one in originals]
    expected = contact_sheet({**batch, "image": np.stack(large)}, 12)
    assert picture[0] == 1
    assert (picture[1].height, picture[1].width) == expected.shape[:2]
    decoded = np.asarray(Image.open(io.BytesIO(picture[1].encoded_image_string)))
    np.testing.assert_array_equal(decoded, expected)


def photographs(root: pathlib.Path) -> str:
    """Writes images of two shapes and returns their folder."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(16):
            file = root / split / f"class{i % 2}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (40 + i % 2, 40, 3), np.uint8)
            Image.fromarray(pixels).save(file)
    return str(root)


@pytest.mark.parametrize("placed", ["resident", "sent", "cropped on the host"])
def test_views_that_the_device_makes_are_shown_beside_their_originals(placed, tmp_path) -> None:
    fields: dict = {"data.backend": "device", "data.batch_size": 16, "data.num_local_views": 1}
    fields |= {"data.local_size": 16}
    if placed == "sent":
        fields["data.resident_mb"] = 0.0
    settings = typed(online_config()).replace(fields)
    if placed == "cropped on the host":
        files = {"data.name": "folder", "data.root": photographs(tmp_path)}
        settings = settings.replace(files)
    source, mesh = open_split(settings, "train"), sharding.data_mesh()
    batches = []
    for backend in ("device", "host"):
        data = settings.replace({"data.backend": backend}).data
        with train_batches(data, settings.seed, source, num_steps=1) as stream:
            batches.append(next(stream))
    resident = resident_images(settings.data, source, mesh)
    assert bool(resident) == (placed == "resident")
    run: Any = SimpleNamespace(method=SimpleNamespace(targets=dict, remedy=None))
    offline = settings.replace({"evaluation.online_every_epochs": None})
    written: dict[int, dict] = {}
    writer: Any = SimpleNamespace(write_images=written.__setitem__)
    watching = monitor.TrainingMonitor(offline, run, source, writer)
    watching.show_views(1, sharding.put_batch(mesh, batches[0]) | resident)
    numbers = batches[1]["index"]
    originals = [monitor._original(source, int(n), 64) for n in numbers]
    expected = contact_sheet({**batches[1], "image": np.stack(originals)}, 12)
    found = written[1]["data/views"]
    assert found.shape == expected.shape == (12 * 66 + 2, 4 * 66 + 2, 3)
    np.testing.assert_array_equal(found[:, :67], expected[:, :67])
    # Device and host round differently.
    assert np.abs(found.astype(int) - expected).max() <= 3


def test_histograms_and_the_configuration_are_in_tensorboard(watched) -> None:
    _, _, values = watched
    found = [(step, v.tag, v.histo) for step, v in values if v.HasField("histo")]
    assert [each[:2] for each in found] == [
        (step, tag) for step in (1, 2) for tag in ("state/std", "state/spectrum_log10")
    ]
    assert all(histogram.num > 0 and histogram.min < histogram.max for *_, histogram in found)
    (text,) = [v.tensor.string_val[0] for _, v in values if v.tag.startswith("configuration")]
    assert b'"online_images": 40' in text
    assert any(v.tag == "_hparams_/session_start_info" for _, v in values)


def test_the_smallest_eigenvalues_are_logged_with_the_knn_and_right(watched) -> None:
    folder, _, values = watched
    for part in ("q", "p", "z"):
        found = [step for step, v in values if v.tag == f"state/{part}_eigenvalue_min"]
        assert found == [1, 2]
    assert "state/q_eigenvalue_min" in read_metrics(folder)
    states = np.random.default_rng(0).normal(size=(50, 6)) * [1, 2, 3, 4, 5, 6]
    own = monitor.smallest_eigenvalues(states.astype(np.float32), True)
    for name, part in (("q", states[:, :3]), ("p", states[:, 3:]), ("z", states)):
        expected = np.linalg.eigvalsh(np.cov(part.T))[0]
        np.testing.assert_allclose(own[f"state/{name}_eigenvalue_min"], expected, rtol=1e-4)
    assert list(monitor.smallest_eigenvalues(states, False)) == ["state/z_eigenvalue_min"]
    assert monitor.smallest_eigenvalues(states[:1], True) == {}


def test_a_corrupt_original_is_a_white_tile() -> None:
    source = ArraySource("x", np.zeros((1, 4, 2, 3), np.uint8), np.zeros(1, int), ["a"])
    tile = monitor._original(source, 0, 8)
    assert (tile[:, 2:6] == 0).all()
    assert (tile[:, [0, 1, 6, 7]] == 255).all()

    class Corrupt:
        def record(self, number: int):
            raise DataError("cannot be decoded")

    assert (monitor._original(Corrupt(), 0, 8) == 255).all()


def test_alarm_is_logged_once_in_plain_words(watched) -> None:
    _, lines, values = watched
    assert {step for step, v in values if v.tag == "state/q_participation_ratio"} == {1, 2}
    told = [line for line in lines if "varies in few directions" in line]
    assert told == [
        "step 1: The position q varies in few directions (participation ratio 0.010 of its "
        "maximum, alarm below 0.03): raise loss.logdet_weight or loss.q_logdet_floor."
    ]


def test_kinds_of_alarms_are_distinguished() -> None:
    log = monitor.AlarmLog({"q": 1.0, "p": 1.0})
    assert log.new({"q_pr": 0.5}) == []
    assert len(log.new({"q_pr": 0.012})) == 1
    assert log.new({"q_pr": 0.0000013}) == []
    assert len(log.new({"q_pr": 0.011, "p_pr": 0.01})) == 1
    assert len(log.new({"q2": 100.0})) == 1
    assert len(log.new({"q2": 0.0001})) == 1
    assert log.new({"q2": 2e-7, "p_pr": 1e-9}) == []


def _make(config):
    settings = typed(config)
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())
    return monitor.OnlineKnn(settings, run, source)


def test_mismatches_are_reported_in_one_sentence() -> None:
    config = online_config()
    assert _make(config).every_steps == 1
    config.evaluation.online_every_epochs = 3.0
    assert _make(config).every_steps == 12
    config.evaluation.online_every_epochs = 0.001
    assert _make(config).every_steps == 1
    settings = typed(config)
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())

    class OtherClasses:
        class_names = ("a", "b")
        description = "other: 2 classes"

    with pytest.raises(DataError, match=r"other: 2 classes.*online_every_epochs=None"):
        monitor.OnlineKnn(settings, run, OtherClasses())


def test_online_fields_are_checked() -> None:
    config = quickstart.get_config("smoke")
    config.evaluation.online_images = 7
    with pytest.raises(ConfigError, match="online_images is set to 7 but has no effect"):
        resolve(config)
    config.evaluation.online_every_epochs = 0.0
    with pytest.raises(ConfigError, match=r"online_every_epochs is 0\.0: it must be above 0"):
        resolve(config)


def test_cifar100_config_uses_the_online_fields() -> None:
    fine = sorted(name for five in CIFAR100_SUPERCLASSES.values() for name in five)
    images = np.zeros((100, 32, 32, 3), np.uint8)
    source = ArraySource("cifar100", images, np.arange(100), fine)
    config = quickstart.get_config()
    config.data.name = "cifar100"
    sets = watch(typed(config).data, Sets(source, source), 32)
    (mapping,) = evaluation_sources(typed(config), *sets).label_maps.values()
    assert mapping[fine.index("maple_tree")] == 17
    config.data.name = "digits"
    assert evaluation_sources(typed(config), *sets).label_maps == {}
