"""The command line: modes, overrides, and errors that are sentences."""

import json
import pathlib
import re
import shlex
import shutil
import subprocess

import forked
import pytest
from pages import parse

from hjepa_jax import main
from hjepa_jax.evaluation.report.folder import first_report, report_folder

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(*arguments: str, module: str = "hjepa_jax.main", cwd: pathlib.Path = ROOT):
    """Runs a module's command line."""
    return forked.run("-m", module, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[pathlib.Path, subprocess.CompletedProcess]:
    """A finished smoke run with its evaluation."""
    folder = tmp_path_factory.mktemp("main")
    done = run(
        "--config=configs/quickstart.py:smoke",
        f"--workdir={folder}/run",
        f"--eval_dir={folder}/eval",
        "--config.seed=7",
    )
    assert done.returncode == 0, done.stderr
    return folder, done


def test_train_and_eval_leave_all_that_is_promised(finished) -> None:
    folder, done = finished
    assert json.loads((folder / "run/config.json").read_text())["seed"] == 7
    assert list((folder / "run").glob("events.out.tfevents.*"))
    assert (folder / "run/checkpoints/2").is_dir()
    assert "step 2/2" in done.stderr
    assert "images/s" in done.stderr
    # What the run is, in plain lines, and nothing of other libraries.
    for words in (
        "method     hjepa (weights: prediction 1, budget 0.2",
        "data       64 images of digits",
        "training   2 steps, 0.5 epochs of 4",
        "changed    seed=7",
        f"curves  tensorboard --logdir={folder}/run",
        f"report  {folder}/eval/run",
        f"next    hjepa show {folder}/run --eval_dir={folder}/eval",
    ):
        assert words in done.stderr
    assert len(done.stderr.splitlines()) < 40, done.stderr
    assert not re.search(r"[IWE]\d{4} \d\d:\d\d:\d\d", done.stderr)
    metrics = json.loads((folder / "eval/run/metrics.json").read_text())
    assert metrics["info"]["step"] == 2
    for row in ("trained", "random"):
        assert 0 <= metrics["encoders"][row]["linear_probe"]["top1"] <= 100
        assert row in done.stdout
    pictures = {path.name for path in (folder / "eval/run").glob("*.png")}
    assert pictures >= {"map.png", "flow.png", "neighbors.png"}
    page = folder / "eval/run/report.html"
    assert f"page: {page}" in done.stdout
    shown = parse(page.read_text()).shown
    assert "drawn" not in shown
    sections = ("Training", "Nearest neighbors", "Learned Hamiltonian flow", "How to reproduce")
    for words in (*sections, "Prediction loss", "train.epochs", f"hjepa eval {folder}/run"):
        assert words in shown, words


def test_eval_alone_gives_the_same_metrics(finished) -> None:
    folder, _ = finished
    command = ("eval", f"{folder}/run", "--checkpoint=2", f"--eval_dir={folder}/again")
    done = run(*command, module="hjepa_jax.tools.cli")
    assert done.returncode == 0, done.stderr
    first, second = (
        json.loads((folder / name / "run/metrics.json").read_text())["encoders"]
        for name in ("eval", "again")
    )
    assert first == second


def test_both_coordinates_with_an_h_that_is_fitted_afterwards(finished) -> None:
    folder, _ = finished
    options = ("--config.evaluation.posthoc=learnable", "--config.evaluation.posthoc_steps=5")
    options += (f"--eval_dir={folder}/both", "--config.evaluation.probe_epochs=1")
    done = run("eval", f"{folder}/run", "--coord=both", *options, module="hjepa_jax.tools.cli")
    assert done.returncode == 0, done.stderr
    encoders = json.loads((folder / "both/run/metrics.json").read_text())["encoders"]
    assert list(encoders) == ["trained", "trained sqrt_h", "random", "random sqrt_h"]
    assert encoders["random sqrt_h"]["posthoc"]["images"] == 64
    page = parse((folder / "both/run/report.html").read_text()).shown
    for words in ("Post-hoc H", "Spectrum of the fitted H", "--config.evaluation.coordinates=both"):
        assert words in page
    assert "drawn" not in page
    done = run("eval", f"{folder}/run", "--coord=both", module="hjepa_jax.tools.cli")
    assert done.returncode == 1
    assert re.search("coordinates is set to 'both' but has no effect .*posthoc", done.stderr)


def test_a_resumed_run_keeps_its_settings(finished) -> None:
    folder, _ = finished
    command = ("train", f"--resume={folder}/run", "--config.train.lr=0.5")
    done = run(*command, module="hjepa_jax.tools.cli")
    assert done.returncode == 1
    assert re.search(r"different configuration: config.train.lr \(.*, 0.5 here\)", done.stderr)


def test_a_run_of_another_configuration_is_not_taken_up(finished, tmp_path) -> None:
    folder, _ = finished
    shutil.copytree(folder / "run", tmp_path / "runs/quickstart-smoke")
    done = run("--config=quickstart:smoke", cwd=tmp_path)
    assert done.returncode == 1
    assert "the run is in runs/quickstart-smoke, as there is no --workdir" in done.stderr
    assert "config.seed (7 there, 42 here)" in done.stderr
    assert "choose another --workdir" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.train.epocs=3"], ["config.train.epocs", "config.train.epochs"]),
        (["--config.sigreg.weight=3"], ["config.sigreg.weight", "no effect"]),
        (["--config.train.lr=much"], ["much"]),
        (["--config.train.lr=None"], ["config.train.lr", "None"]),
        (["--config.train.lrr=None"], ["config.train.lrr", "config.train.lr"]),
        (["--config.method=lejpea"], ["'lejpea'", "'lejepa'"]),
        (["--mode=trian"], ["trian"]),
        (["--workdr=x"], ["workdr"]),
        (["stray"], ["stray"]),
        (["--mode=eval"], ["no checkpoints", "--mode=train"]),
        (["--workdir=gs://bucket/x"], ["--workdir=gs://bucket/x", "mount"]),
        (["--workdir=/dev/null/x"], ["--workdir=/dev/null/x", "/dev/null is a file"]),
        (["--config.data.name=cifar100", "--config.data.root=/nowhere"], ["cifar-100", "/nowhere"]),
        (["--config.data.name=cifar100"], ["data.download=True", "md5 eb9058c3"]),
        # No test has a network.
        (
            ["--config.data.name=cifar100", "--config.data.download=True"],
            ["cifar-100-python.tar.gz", "refused", "md5 eb9058c3", "put it at"],
        ),
    ],
)
def test_what_is_wrong_is_one_sentence_without_traceback(arguments, words, tmp_path) -> None:
    done = run("--config=configs/quickstart.py:smoke", f"--workdir={tmp_path}/run", *arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, done.stderr


def test_unknown_variant_and_missing_config(tmp_path) -> None:
    workdir = f"--workdir={tmp_path}/run"
    done = run("--config=configs/quickstart.py:sigrge", workdir)
    assert done.returncode != 0
    assert "did you mean ':sigreg'" in done.stderr
    assert "Traceback" not in done.stderr
    done = run("--config=configs/nothing.py", workdir)
    assert done.returncode != 0
    assert "configs/nothing.py" in done.stderr
    assert "Traceback" not in done.stderr
    done = run(workdir)
    assert "--config is needed, for example --config=quickstart" in done.stderr


def test_doctor_finds_a_healthy_installation() -> None:
    done = run("--config=configs/quickstart.py:smoke", module="hjepa_jax.tools.doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "problem" not in done.stdout
    for word in (
        "jax: ",
        "devices: ",
        "cpu kernels: ",
        "tensorflow: not installed",
        "disk: ",
        "data train: ",
        "dry run: 2",
    ):
        assert word in done.stdout


def test_doctor_names_the_problem_and_its_remedy() -> None:
    done = run(
        "--config=configs/cifar100.py",
        "--config.data.root=/nowhere",
        module="hjepa_jax.tools.doctor",
    )
    assert done.returncode == 1
    assert "problem  data: " in done.stdout
    assert "/nowhere" in done.stdout
    assert "Traceback" not in done.stderr


RUN = "my runs/x"


@pytest.mark.parametrize(
    ("status", "evaluated", "shown", "words"),
    [
        ("running", False, True, ["tensorboard", f"--logdir={RUN}"]),
        ("stopped", False, True, ["hjepa", "train", f"--resume={RUN}"]),
        ("not started", False, True, ["hjepa", "train", f"--resume={RUN}"]),
        ("imported", False, True, ["hjepa", "eval", RUN, "--eval_dir=e"]),
        ("finished", False, True, ["hjepa", "eval", RUN, "--eval_dir=e"]),
        ("finished", True, False, ["hjepa", "show", RUN, "--eval_dir=e"]),
        ("finished", True, True, ["hjepa", "export", f"--workdir={RUN}", "--out=x.stablehlo"]),
    ],
)
def test_the_next_command_can_be_pasted_into_a_shell(
    status, evaluated, shown, words, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = main.next_command(
        pathlib.Path(RUN), status, evaluated=evaluated, eval_dir=pathlib.Path("e"), shown=shown
    )
    assert [word.replace("encoder.", "x.") for word in shlex.split(told)] == words


def test_with_another_evaluated_run_beside_it_the_next_command_compares(tmp_path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "evaluation/metrics.json").write_text("{}")
    for shown in (False, True):
        told = main.next_command(tmp_path / "b", "finished", evaluated=True, shown=shown)
        assert told == f"hjepa compare {tmp_path}/a {tmp_path}/b"


def test_the_closing_lines_name_the_folder_that_was_written(tmp_path) -> None:
    run = tmp_path / "run"
    encoders = {"trained": {"state_part": "q"}}
    for step, name in ((7, "evaluation"), (8, r"evaluation-step8-[0-9a-f]{8}")):
        metrics = {"info": {"run": "run", "step": step}, "encoders": encoders}
        folder = report_folder(first_report(run, None), metrics)
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(metrics))
        told = main._closing(run, None, metrics)["report"]
        assert told == str(folder)
        assert re.fullmatch(name, folder.name)
    only_trained = main._closing(run, None, None)
    assert list(only_trained) == ["run", "curves", "next"]
    assert only_trained["next"] == f"hjepa eval {run}"
