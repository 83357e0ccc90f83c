"""An evaluation from its checks to its report: provenance, location, and failures."""

import io
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from image_files import write_folder
from pages import parse
from random_states import random_state

from hjepa_jax import main
from hjepa_jax.config import files
from hjepa_jax.config.checks import resolve, typed
from hjepa_jax.data.sources.base import ArraySource
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import CheckpointError, ConfigError, DataError, UserError
from hjepa_jax.evaluate import check_before_training, evaluate, of_run
from hjepa_jax.evaluation import ready
from hjepa_jax.evaluation.report import about
from hjepa_jax.methods.hjepa_settings import Loss
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import sharding
from hjepa_jax.runtime.checkpoint import Checkpointer
from hjepa_jax.runtime.stop_request import StopRequest
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.resume import data_identity, save
from hjepa_jax.training.saved_run import saved_config


def small(**changes):
    """The configuration of a quick evaluation."""
    config = quickstart.get_config("smoke")
    config.evaluation.update(
        {
            "probe_epochs": 1,
            "all_state_parts": False,
            "random_baseline": False,
            "alignment_samples": 8,
            **changes,
        }
    )
    return config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> pathlib.Path:
    """A run of seed 7 with checkpoints of steps 1, the best by its own metric, and 2."""
    folder = tmp_path_factory.mktemp("evaluate") / "run"
    config = small()
    config.seed = 7
    config.checkpoint.update(keep_best=1, best_metric="pred", best_mode="min")
    settings = typed(config)
    source = open_split(settings, "train")
    run = prepare(settings, len(source), sharding.data_mesh())
    checkpointer = Checkpointer(
        folder / "checkpoints", keep_best=1, best_metric="pred", best_mode="min"
    )
    files.save(settings, folder)
    for step, value in ((1, 0.1), (2, 0.9)):
        state = jax.device_put(random_state(run, step))
        identity = data_identity(settings.data, settings.seed, source)
        save(settings, identity, [], state, checkpointer, {"pred": value})
    checkpointer.close()
    return folder


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """No pictures, which take longer than everything else."""
    monkeypatch.setattr("hjepa_jax.evaluate.painters", lambda *_: {})
    monkeypatch.setattr("hjepa_jax.evaluate.evaluation_page", lambda *_: "")


def _images(tmp_path: pathlib.Path, name: str, side: int = 40):
    """The configuration of an evaluation on a small folder of two classes."""
    counts = {"train": {"cat": 6, "dog": 6}, "test": {"cat": 3, "dog": 3}}
    config = small()
    config.data.name = "folder"
    config.data.root = str(write_folder(tmp_path / name, counts, height=side))
    return config


def test_no_evaluation_of_a_run_overwrites_another(workdir, tmp_path, undrawn, capsys) -> None:
    fewer, other_data = small(), _images(tmp_path, "images")
    fewer.data.max_test_images = 20
    other_root = _images(tmp_path, "other images", side=44)
    wanted = [
        (small(), "latest"),
        (small(), "1"),
        (small(probe_epochs=2), "latest"),
        (fewer, "latest"),
        (other_data, "latest"),
        (other_root, "latest"),
    ]
    folders, texts = [], []
    for config, which in (*wanted, wanted[1]):
        evaluate(config, workdir, tmp_path / "eval", which)
        folders.append(pathlib.Path(capsys.readouterr().out.strip().rpartition(": ")[2]))
        written = json.loads((folders[-1] / "metrics.json").read_text())
        del written["feature_extraction"]  # times
        texts.append(written)
    assert folders[0] == tmp_path / "eval" / "run"
    assert len(set(folders)) == len(wanted)
    # A repeated evaluation goes to the same folder and has the same metrics.
    assert (folders[-1], texts[-1]) == (folders[1], texts[1])
    assert [f.name.rpartition("-")[0] for f in folders[1:6]] == [
        "run-step1-digits",
        "run-step2-digits",
        "run-step2-digits",
        "run-step2-folder",
        "run-step2-folder",
    ]
    assert len(list((tmp_path / "eval").iterdir())) == len(wanted)


def test_without_a_folder_for_reports_they_are_in_that_of_the_run(
    workdir, tmp_path, undrawn
) -> None:
    run = shutil.copytree(workdir, tmp_path / "run")
    metrics = evaluate(small(), run)
    assert json.loads((run / "evaluation/metrics.json").read_text()) == metrics
    assert (run / "evaluation/report.html").is_file()
    assert (run / "config.json").read_bytes() == (workdir / "config.json").read_bytes()


def test_the_report_says_what_was_evaluated(workdir, tmp_path, undrawn) -> None:
    config = _images(tmp_path, "images")
    config.data.on_corrupt = "skip"
    config.runtime.matmul_precision = "highest"
    for number in range(2):
        (tmp_path / "images/test/dog" / f"<b>{number}.jpg").write_bytes(b"\xff\xd8no image")
    info = evaluate(config, workdir, tmp_path / "eval", "best")["info"]
    assert (info["run"], info["step"], info["data"]) == ("run", 1, "folder")
    assert info["data_root"] == str(tmp_path / "images")
    assert info["trained_on"] == "digits"
    assert "best by pred" in info["checkpoint"]
    assert info["version"] == "0.1.0"
    test = info["test_images"]
    assert (test["split"], test["listed"], test["evaluated"], test["left_out"]) == ("test", 8, 6, 2)
    assert [("<b>" in name, ".jpg" in name) for name in test["corrupt"]] == [(True, True)] * 2
    assert test["fingerprint"] == open_split(typed(config), "test").fingerprint()
    assert info["train_images"]["evaluated"] == 12
    trained = saved_config(workdir)
    expected = open_split(typed(trained), "train").fingerprint()
    assert info["training_data"] == {"num_images": 64, "fingerprint": expected}
    settings = info["settings"]
    assert settings["evaluation.probe_epochs"] == 1
    assert settings["runtime.matmul_precision"] == "highest"
    assert settings["data.on_corrupt"] == "skip"
    assert settings["data.max_test_images"] == 32
    assert not {"evaluation.batch_size", "data.num_workers", "data.root"} & settings.keys()
    text = (tmp_path / "eval/run/report.md").read_text()
    assert str(tmp_path / "images") in text.replace("\\", "")
    assert "&lt;b&gt;0.jpg" in text
    assert "<b>0" not in text
    assert f"- fingerprint: {test['fingerprint']}" in text


def test_skipped_images_are_counted_and_a_limited_number_named(tmp_path) -> None:
    images = np.zeros((5, 16, 16, 3), np.uint8)
    source = ArraySource("made", images, [0, -1, 1, -1, 0], ["a", "b"])
    watched = about.Watched(typed(small()).data, source, 512)
    assert watched.facts("test")["evaluated"] is None
    assert sum(int(batch["mask"].sum()) for batch in watched()) == 5
    watched.left_out = tuple(f"{n:03d}{'x' * 500}\n" for n in range(50))
    facts = watched.facts("test")
    assert (facts["listed"], facts["evaluated"], facts["unlabeled"]) == (5, 5, 2)
    assert facts["left_out"] == 50
    assert len(facts["corrupt"]) == 21
    assert facts["corrupt"][-1] == "and 30 more"
    assert max(map(len, facts["corrupt"])) <= 200


def test_the_metric_of_the_best_checkpoint_is_that_of_the_run(workdir, tmp_path, undrawn) -> None:
    config = small()
    assert config.checkpoint.best_metric != "pred"
    assert evaluate(config, workdir, tmp_path, "best")["info"]["step"] == 1


def test_seed_and_method_are_those_of_the_run(workdir, tmp_path, undrawn, caplog) -> None:
    """Seeds of the random encoder and of subsets, and the method, despite the command."""
    found = []
    for seed in (7, 42):
        config = small(random_baseline=True)
        config.seed, config.data.max_train_images = seed, 40
        config.dynamics.dt = 0.1 if seed == 7 else 0.05
        with caplog.at_level("INFO", logger="hjepa_jax"):
            metrics = evaluate(config, workdir, tmp_path / str(seed))
        found.append((metrics["encoders"], metrics["info"]["train_images"]["fingerprint"]))
    assert found[0] == found[1]
    assert "config.seed (7 there, 42 here)" in caplog.text
    saved = small()
    saved.seed, saved.loss.p_weight, saved.evaluation.online_holdout = 7, 3.0, 8
    merged = of_run(typed(small(probe_epochs=9)), typed(saved))
    assert (merged.seed, merged.section(Loss).p_weight) == (7, 3.0)
    assert merged.evaluation.online_holdout == 8
    elsewhere = of_run(typed(_images(tmp_path, "images")), typed(saved))
    assert elsewhere.evaluation.online_holdout is None
    assert merged.evaluation.probe_epochs == 9
    assert saved.evaluation.probe_epochs == 1


def test_a_failing_picture_does_not_fail_the_evaluation(
    workdir, tmp_path, monkeypatch, capsys
) -> None:
    def fail(*_):
        raise RuntimeError("no ink")

    monkeypatch.setattr("hjepa_jax.evaluate.flow_picture", fail)
    for slow in ("feature_map", "neighbors"):
        monkeypatch.setattr(f"hjepa_jax.evaluation.report.figures.{slow}", fail)
    metrics = evaluate(small(), workdir, tmp_path)
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == metrics
    assert {p.name for p in (tmp_path / "run").glob("*.png")} == {
        "spectrum.png",
        "knn.png",
        "cosine.png",
    }
    said = capsys.readouterr().out
    for name in ("map.png", "neighbors.png", "flow.png"):
        assert f"{name} could not be drawn (RuntimeError: no ink)" in said
    page = parse((tmp_path / "run/report.html").read_text())
    assert "This cannot be drawn (RuntimeError: no ink)." in page.texts
    assert "Nearest neighbors" in page.texts


def test_a_terminal_that_cannot_show_the_table_does_no_harm(
    workdir, tmp_path, undrawn, monkeypatch
) -> None:
    for name, encoding in (("ascii", "ascii"), ("closed", "utf-8")):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        if name == "closed":
            monkeypatch.setattr(stream, "write", _broken)
        monkeypatch.setattr("sys.stdout", stream)
        metrics = evaluate(small(), workdir, tmp_path / name)
        report = tmp_path / name / "run"
        assert json.loads((report / "metrics.json").read_text()) == metrics
        assert (report / "report.md").is_file()


def _broken(_: str) -> None:
    raise BrokenPipeError(32, "Broken pipe")


def _without_test_split(config, tmp_path):
    config.data.name, config.data.root = "folder", str(tmp_path / "images")
    write_folder(tmp_path / "images", {"train": {"cat": 40, "dog": 40}})


def _with_few_images(config, tmp_path):
    counts = {"train": {"cat": 40, "dog": 40}, "test": {"cat": 1}}
    config.data.name, config.data.root = "folder", str(write_folder(tmp_path / "images", counts))


def _with_many_neighbors(config, tmp_path):
    _without_test_split(config, tmp_path)
    config.data.test_split = "train"
    config.data.max_train_images = None
    config.evaluation.update(knn_k=(81,), headline_k=81)


CASES = {
    "no test split": (_without_test_split, "latest", "test"),
    "one test image": (_with_few_images, "latest", "at least two test images"),
    "few_shot": (lambda c, _: c.evaluation.update(few_shot=(60,)), "latest", "few_shot asks for"),
    "knn_k": (_with_many_neighbors, "latest", "knn_k.* exceeds the 80 training"),
    "folds": (
        lambda c, _: c.evaluation.update(probe_folds=500, probe_lr_sweep=(0.1,)),
        "latest",
        "probe_folds is 500, but only 64",
    ),
    "batch": (lambda c, _: c.evaluation.update(batch_size=0), "latest", "evaluation.batch_size"),
    "no best": (lambda *_: None, "best", "keep_best is 0"),
    "no step": (lambda *_: None, "bset", "'latest', 'best'"),
    "no number": (lambda *_: None, "²", "'latest', 'best'"),
    "a step too late": (lambda *_: None, "99", "only 2 steps"),
}


@pytest.mark.parametrize("case", CASES)
def test_unmet_needs_of_the_evaluation_are_found_before_training(
    case, tmp_path, monkeypatch
) -> None:
    def train(*_: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("hjepa_jax.train.train", train)
    change, which, words = CASES[case]
    config = small()
    change(config, tmp_path)
    main.PROGRAM.flags.mark_as_parsed()
    monkeypatch.setattr(main.PROGRAM.flags["checkpoint"], "value", which)
    with (
        StopRequest() as stop,
        pytest.raises(UserError, match=f"(?s){words}") as refusal,
    ):
        main._stages(resolve(config), tmp_path / "run", tmp_path / "eval", stop)
    assert not (tmp_path / "run").exists()
    assert len(str(refusal.value)) < 500


def test_an_unwritable_report_folder_is_found_before_any_computation(workdir, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"--eval_dir=.*file is a file, not a folder"):
        check_before_training(typed(small()), tmp_path / "file" / "eval")
    with pytest.raises(UserError, match=r"--eval_dir=.*file is a file, not a folder"):
        evaluate(small(), workdir, tmp_path / "file")


@pytest.mark.parametrize(
    ("test", "words"),
    [
        ({"a": 3, "b": 2}, None),
        ({"a": 3}, "all labeled test images are of one class (a)"),
        ("copies", "all 9 test images are also training images"),
    ],
)
def test_a_missing_accuracy_is_told_before_training(test, words, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    counts = {"train": {"a": 5, "b": 4}}
    write_folder(tmp_path, counts if test == "copies" else counts | {"test": test})
    if test == "copies":
        shutil.copytree(tmp_path / "train", tmp_path / "test")
    config = small(few_shot=() if words is None else (4,))
    config.data.update(name="folder", root=str(tmp_path), max_train_images=None)
    config.evaluation.update(knn_k=(1, 5), headline_k=5)
    for _ in range(2):
        ready.open_sets(typed(config))
    told = [r.getMessage() for r in caplog.records if "no accuracy" in r.getMessage()]
    assert len(told) == (words is not None)
    assert words is None or words in told[0]


def test_a_missing_test_split_is_found_with_what_to_do(tmp_path) -> None:
    write_folder(tmp_path, {"train": {"a": 5, "b": 4}})
    config = small()
    config.data.update(name="folder", root=str(tmp_path), max_train_images=None)
    config.evaluation.update(knn_k=(1, 5), headline_k=5)
    words = r"no split 'test'.* held out, set config\.data\.test_holdout"
    with pytest.raises(DataError, match=words):
        ready.open_sets(typed(config))
    config.data.test_holdout = 3
    train, test = ready.open_sets(typed(config))
    assert (len(train), len(test)) == (6, 3)


def test_a_valid_evaluation_is_not_rejected(tmp_path) -> None:
    config = small()
    config.checkpoint.keep_best = 1
    for which in ("latest", "best", "2"):
        check_before_training(typed(config), tmp_path / "eval", which)
    # Without labels there is no accuracy, and its needs do not matter.
    images = np.zeros((4, 16, 16, 3), np.uint8)
    source = ArraySource("made", images, [-1] * 4, ["a"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ready, "open_split", lambda *_: source)
        assert len(ready.open_sets(typed(small(few_shot=(3,)))).train) == 4


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        (("cat", "dog"), ("cat", "emu"), "only the test images have emu.*only the training.*dog"),
        (("cat",), ("cat", "dog"), "only the test images have dog"),
        (("cat", "dog"), ("dog", "cat"), "in another order"),
        (("a",), tuple("abcdefghij"), "b, c, d, e, f and 4 more"),
    ],
)
def test_classes_that_differ_are_named(train, test, words) -> None:
    images = np.zeros((2, 8, 8, 3), np.uint8)
    sources = [ArraySource("made", images, [0, 0], names) for names in (train, test)]
    with pytest.raises(DataError, match=f"{words}.*: do something"):
        ready.check_same_classes(*sources, "do something")


def test_a_run_without_checkpoints_is_reported(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoints"):
        evaluate(small(), tmp_path / "run", tmp_path / "eval")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="probe_epochs"):
        evaluate(small(probe_epochs=0), tmp_path / "run", tmp_path / "eval")
