"""`hjepa checkpoints`: the numbers of `hjepa eval`, nothing done twice, nothing lost."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from odd_files import flip
from pages import parse
from random_states import random_state

import hjepa_jax.tools.checkpoints.evaluations
from hjepa_jax.config import base_config, files
from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import UserError
from hjepa_jax.evaluate import evaluate
from hjepa_jax.evaluation.features import Extracted, Features
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.stop_request import StoppedAtOnce
from hjepa_jax.tools.checkpoints import command, evaluations
from hjepa_jax.tools.checkpoints.kept_features import FeatureStore
from hjepa_jax.training.prepare import make_encode, prepare
from hjepa_jax.training.resume import data_identity, open_checkpoints, save

STEPS = (2, 4, 8)
EPOCH = 4


def small(**changes):
    """The configuration of a run that is evaluated fast."""
    config = quickstart.get_config("smoke")
    config.model.encoder, config.resnet = "tiny_encoder:Halves", base_config().resnet
    config.checkpoint.keep_every_steps = 2
    config.evaluation.update(
        {"probe_epochs": 1, "all_state_parts": False, "alignment_samples": 8, **changes}
    )
    return config


def write_run(folder: pathlib.Path, seed: int) -> pathlib.Path:
    """Writes a run with checkpoints of random states."""
    config = small()
    config.seed = seed
    settings = typed(config)
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())
    checkpointer = open_checkpoints(settings, folder, EPOCH)
    identity = data_identity(settings.data, settings.seed, source)
    for step in STEPS:
        save(settings, identity, [], jax.device_put(random_state(run, step, seed)), checkpointer)
    checkpointer.close()
    files.save(settings, folder)
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> pathlib.Path:
    """Two seeds of a run."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        write_run(folder / f"x-seed{seed}", seed)
    return folder


@pytest.fixture
def run(originals, tmp_path) -> pathlib.Path:
    """A copy of the first run."""
    return shutil.copytree(originals / "x-seed0", tmp_path / "x-seed0")


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """No picture, which takes longer than everything else."""
    monkeypatch.setattr(
        "hjepa_jax.evaluation.checkpoint_curves.draw.picture", lambda _: b"no picture"
    )


@pytest.fixture
def encoded(monkeypatch) -> list[int]:
    """Returns the list to which every evaluated batch adds its number of images."""
    found: list[int] = []

    def counted(*arguments):
        encode = make_encode(*arguments)

        def watch(images):
            found.append(len(images))
            return encode(images)

        return watch

    monkeypatch.setattr("hjepa_jax.evaluation.probes.tokens.make_encode", counted)
    return found


def main(*arguments: str | pathlib.Path) -> None:
    """Runs the command in this process."""
    command.main(command.PROGRAM.parse(["checkpoints", *map(str, arguments)]))


def results(folder: pathlib.Path) -> dict[int, dict]:
    """Returns the results in a folder by step."""
    found = [json.loads(path.read_text()) for path in folder.glob("step*.json")]
    return {one["step"]: one for one in found}


def test_the_figures_are_those_of_an_evaluation_of_that_step(run, monkeypatch, capsys) -> None:
    monkeypatch.setattr("hjepa_jax.evaluate.painters", lambda *_: {})
    monkeypatch.setattr("hjepa_jax.evaluate.evaluation_page", lambda *_: "")
    main(run)
    told = capsys.readouterr().out
    assert f"{run} step 4, epoch 1: kNN@20 " in told
    found = results(run / "checkpoint_curves")
    assert sorted(found) == [0, *STEPS]
    for step in (4, 8):
        metrics = evaluate(files.read(run / "config.json"), run, run.parent / "eval", f"{step}")
        assert found[step]["metrics"]["encoders"]["trained"] == metrics["encoders"]["trained"]
        assert found[step]["metrics"]["info"]["step"] == step
        # The random encoder, with which the run began, is the same whatever the checkpoint.
        assert found[0]["metrics"]["encoders"]["random"] == metrics["encoders"]["random"]
    assert [found[step]["epoch"] for step in (0, *STEPS)] == [0.0, 0.5, 1.0, 2.0]
    page = parse((run / "checkpoint_curves" / "curves.html").read_text())
    assert "Checkpoints of x-seed0" in page.shown
    for name in ("curves.png", "curves.csv", "curves.json"):
        assert (run / "checkpoint_curves" / name).stat().st_size > 100


def test_nothing_is_encoded_or_evaluated_twice(run, undrawn, encoded, capsys) -> None:
    main(run)
    assert encoded
    texts = {path: path.read_text() for path in run.glob("checkpoint_curves/step*.json")}
    encoded.clear()
    main(run)
    assert "4 of 4 are evaluated already" in capsys.readouterr().out
    assert encoded == []
    # Another protocol has other results, of the same features.
    main(run, "--config.evaluation.headline_k=5", "--config.evaluation.probe_epochs=2")
    assert encoded == []
    (other,) = run.glob("checkpoint_curves-*")
    assert sorted(results(other)) == [0, *STEPS]
    assert results(other)[4]["headline_k"] == 5
    assert {path: path.read_text() for path in texts} == texts
    # Kept features give the very figures of fresh ones.
    shutil.rmtree(other)
    for path in texts:
        path.unlink()
    main(run)
    assert encoded == []
    assert {path: path.read_text() for path in texts} == texts
    # Features of other views, or of other arithmetic, do not serve.
    for other in ("evaluation.alignment_samples=4", "runtime.matmul_precision=highest"):
        encoded.clear()
        main(run, f"--config.{other}")
        assert encoded, other


def test_an_interrupted_evaluation_goes_on(run, undrawn, monkeypatch, capsys) -> None:
    measure, done = evaluations.measure, list[int]()

    def interrupted(*arguments):
        if len(done) == 2:
            raise StoppedAtOnce("SIGTERM stopped the evaluation")
        done.append(arguments[2].step)
        return measure(*arguments)

    monkeypatch.setattr(hjepa_jax.tools.checkpoints.evaluations, "measure", interrupted)
    main(run)
    assert "SIGTERM stopped the evaluation: what is evaluated is kept" in capsys.readouterr().out
    assert sorted(results(run / "checkpoint_curves")) == done == [0, 2]
    assert not (run / "checkpoint_curves" / "curves.html").exists()
    monkeypatch.setattr(
        hjepa_jax.tools.checkpoints.evaluations,
        "measure",
        lambda *arguments: done.append(arguments[2].step) or measure(*arguments),
    )
    main(run)
    assert done == [0, 2, 4, 8]
    assert (run / "checkpoint_curves" / "curves.html").is_file()


def test_what_cannot_be_read_is_named_and_the_rest_is_drawn(run, undrawn) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "2" / "checksums.json").write_text("{}")
    flip(max((checkpoints / "4" / "state").rglob("*"), key=lambda path: path.stat().st_size), 20)
    with pytest.raises(UserError) as refused:
        main(run)
    told = str(refused.value)
    assert told.startswith("2 could not be evaluated and are left out: ")
    assert re.search(rf"{run} step 2: [^;]*checksums\.json", told)
    assert f"{run} step 4: " in told
    assert "altered" in told
    assert sorted(results(run / "checkpoint_curves")) == [0, 8]
    assert (run / "checkpoint_curves" / "curves.html").is_file()


def test_a_checkpoint_that_was_replaced_is_evaluated_anew(run, originals, undrawn) -> None:
    main(run)
    before = results(run / "checkpoint_curves")
    for step in (4, 8):
        shutil.rmtree(run / "checkpoints" / str(step))
    settings = typed(small())
    settings = settings.replace({"seed": 0})
    source = open_split(settings, "train")
    prepared = prepare(settings, len(source), sharding.data_mesh())
    checkpointer = open_checkpoints(settings, run, EPOCH)
    identity = data_identity(settings.data, settings.seed, source)
    save(settings, identity, [], jax.device_put(random_state(prepared, 4, 9)), checkpointer)
    checkpointer.close()
    main(run)
    after = results(run / "checkpoint_curves")
    assert after[4]["figures"] != before[4]["figures"]
    assert after[2] == before[2]
    # What the training has removed since stays in the curve.
    assert after[8] == before[8]


def test_seeds_are_one_curve_with_a_band(originals, tmp_path, undrawn, monkeypatch) -> None:
    shutil.copytree(originals, tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    # A folder stands for the runs in it; a run without its data does not stop the others.
    lost = shutil.copytree(originals / "x-seed0", tmp_path / "lost")
    config = json.loads((lost / "config.json").read_text())
    config["data"].update(name="folder", root="/nowhere")
    (lost / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"1 could not be evaluated.*lost: .*nowhere"):
        main("runs", "lost", "--out=curves", "--features_gb=0")
    shown = parse((tmp_path / "curves" / "curves.html").read_text()).shown
    assert "x (2 seeds)" in shown
    assert not list(tmp_path.rglob("checkpoint_features"))
    found = json.loads((tmp_path / "curves" / "curves.json").read_text())["checkpoints"]
    assert [(one["run"], one["step"]) for one in found] == [
        (name, step) for name in ("x-seed0", "x-seed1") for step in (0, *STEPS)
    ]


def test_mistakes_are_sentences_before_the_work(run, tmp_path) -> None:
    with pytest.raises(UserError, match="is no run, and holds none"):
        main(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"evaluation\.headline_k.*above 0"):
        main(run, "--config.evaluation.headline_k=0")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--out=.*is a file"):
        main(run, f"--out={tmp_path}/file")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="holds no checkpoints"):
        main(run)
    assert not list(run.glob("checkpoint_*"))


def extracted(value: float, rows: int = 10) -> Extracted:
    """Returns features of 8 columns."""
    array, labels = np.full((rows, 8), value, np.float32), np.arange(rows, dtype=np.int32)
    sets = Features(array, labels)
    return Extracted(sets, sets, (array, array), 3)


# Bytes of `extracted`: four arrays of 320, two of 40.
SIZE = 1360


def test_kept_features_are_those_of_the_checkpoint(tmp_path, caplog) -> None:
    store = FeatureStore(tmp_path, "images", 10**5)
    calls = []

    def get(step: int, checkpoint: str, value: float) -> float:
        def extract() -> Extracted:
            calls.append(step)
            return extracted(value)

        found = store.of(step, checkpoint)("trained", extract)
        assert found.shared == 3
        assert found.train.labels.tolist() == list(range(10))
        return float(found.views[1][0, 0])

    assert (get(1, "a", 0.5), get(1, "a", 0.25)) == (0.5, 0.5)
    assert (get(1, "b", 0.75), get(2, "a", 2.0)) == (0.75, 2.0)
    assert calls == [1, 1, 2]
    flip(tmp_path / "checkpoint_features" / "images" / "step1.npz", 200)
    assert get(1, "b", 0.75) == 0.75
    assert calls == [1, 1, 2, 1]
    assert "is damaged" in caplog.text
    caplog.clear()
    assert get(1, "b", 4.0) == 0.75
    assert caplog.text == ""


def test_kept_features_are_bounded(tmp_path, caplog) -> None:
    def names() -> list[str]:
        return sorted(
            str(path.relative_to(tmp_path / "checkpoint_features"))
            for path in tmp_path.rglob("*.npz")
        )

    # A file has a header for each array.
    limit = 3 * (SIZE + 4096)
    for images in ("old", "new"):
        store = FeatureStore(tmp_path, images, limit)
        for step in range(5):
            store.of(step, "a")("trained", lambda: extracted(0.1))
            used = sum(path.stat().st_size for path in tmp_path.rglob("*.npz"))
            assert used <= limit
        # Those of other images gave way.
        assert names()
        assert {name.partition("/")[0] for name in names()} == {images}
    told = [r.getMessage() for r in caplog.records if "not kept" in r.getMessage()]
    assert len(told) == 2
    shutil.rmtree(tmp_path / "checkpoint_features")
    FeatureStore(tmp_path, "images", 0).of(1, "a")("trained", lambda: extracted(0.1))
    assert not (tmp_path / "checkpoint_features").exists()
