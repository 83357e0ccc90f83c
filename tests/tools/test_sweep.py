"""Sweeps: plan, resuming, failures and the table, with a small program in place of training."""

import json
import pathlib
import re
import statistics
import subprocess
import sys

import forked
import pytest

from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.errors import UserError
from hjepa_jax.tools import sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]

# Writes the report of a run whose accuracy is a function of its seed and learning rate.
PROGRAM = """
import json, pathlib, sys
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
seed, lr = int(flags["config.seed"]), float(flags.get("config.train.lr", 0.5))
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
with open(workdir / "starts", "a") as file:
    file.write("x")
if seed == 13 and not (workdir.parent.parent / "mended").exists():
    sys.exit("hjepa_jax: seed 13 is unlucky.")
accuracy = lr + seed / 100
folder = pathlib.Path(flags["eval_dir"]) / workdir.name
if folder.exists():
    folder = folder.with_name(folder.name + "-2")
folder.mkdir(parents=True)
(folder / "metrics.json").write_text(json.dumps({
    "info": {},
    "headline_k": 20,
    "encoders": {"trained": {
        "state_part": "q",
        "knn": {"k_values": [1, 20], "top1": [0.1, accuracy], "top5": [0.2, 0.9]},
        "linear_probe": {"top1": accuracy / 2, "top5": 1.0},
        "diagnostics": {
            "covariance_spectrum_topq": {
                "eigenvalues": [1.0],
                "effective_rank": 7.0,
                "participation_ratio": 3.0,
                "rankme": 5.0,
            },
            "alignment_uniformity": {"alignment": 0.5, "uniformity": -2.0},
        },
    }},
}))
"""


@pytest.fixture
def command(tmp_path) -> tuple[str, ...]:
    """The command of the program above."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return (sys.executable, str(path))


def make_plan(out: pathlib.Path, seeds=(0, 1), **changes):
    """Two settings of one variant."""
    arguments = {"variants": ("hjepa",), "settings": ("train.lr=0.25", "train.lr=0.5"), **changes}
    return sweep.plan("configs/quickstart.py", out, seeds=seeds, **arguments)


def test_plan_is_the_product_with_unique_names(tmp_path) -> None:
    runs = sweep.plan(
        "configs/cifar100.py",
        tmp_path,
        variants=("hjepa", "sigreg"),
        settings=("", "train.lr=1e-3 config.train.epochs=40"),
        seeds=(0, 1, 2),
        common=("train.init_from=/runs/x",),
    )
    assert len(runs) == 12
    assert len({run.name for run in runs}) == 12
    assert len({run.group for run in runs}) == 4
    last = runs[-1]
    assert last.name == "sigreg-train.lr=1e-3-config.train.epochs=40-seed2"
    assert last.arguments == (
        "--config=configs/cifar100.py:sigreg",
        f"--workdir={tmp_path}/runs/{last.name}",
        f"--eval_dir={tmp_path}/eval",
        "--config.train.init_from=/runs/x",
        "--config.train.lr=1e-3",
        "--config.train.epochs=40",
        "--config.seed=2",
    )
    assert runs[0].name == "hjepa-seed0"
    assert sweep.plan("configs/cifar100.py", tmp_path, seeds=(0,))[0].name == "cifar100-seed0"
    for run in runs:
        assert re.fullmatch(r"[\w.=-]+", run.name)


def test_commands_of_a_plan_are_accepted_by_main(tmp_path) -> None:
    """--mode=eval exits right after flags and configuration are accepted."""
    (run,) = sweep.plan(
        "configs/quickstart.py",
        tmp_path,
        variants=("sigreg-smoke",),
        settings=("train.lr=3e-3 sigreg.weight=0.125",),
        seeds=(5,),
        common=("data.max_test_images=30",),
    )
    done = subprocess.run(
        [*sweep.MAIN, *run.arguments, "--mode=eval"], cwd=ROOT, capture_output=True, text=True
    )
    assert "holds no checkpoints" in done.stderr, done.stderr
    settings = resolve_arguments(list(run.arguments))
    assert (settings.seed, settings.train.lr, settings.data.max_test_images) == (5, 0.003, 30)
    assert settings.value("sigreg.weight") == 0.125


def test_runs_results_and_table(tmp_path, command) -> None:
    out = tmp_path / "sweep"
    runs = make_plan(out, seeds=(0, 1, 4))
    told: list[str] = []
    assert sweep.run_all(runs, out, told.append, command) == {}
    assert len(told) == 6
    text = sweep.write_results(runs, out)
    found = json.loads((out / "results.json").read_text())
    group = found["groups"]["hjepa-train.lr=0.25"]
    assert len(group["runs"]) == 3
    accuracies = [0.25, 0.26, 0.29]
    assert group["mean"]["knn"] == pytest.approx(statistics.mean(accuracies))
    assert group["std"]["knn"] == pytest.approx(statistics.stdev(accuracies))
    assert group["std"]["effective_rank"] == 0.0
    (row,) = [line for line in text.splitlines() if "lr=0.25" in line]
    assert row == (
        "| hjepa-train.lr=0.25 | 3 | 26.67 ± 2.08 | 13.33 ± 1.04 | 100.00 ± 0.00 | 7.0 ± 0.0 "
        "| 3.0 ± 0.0 | 5.0 ± 0.0 | – |"
    )
    assert "6 of 6 runs finished" in text
    assert (out / "results.md").read_text() == text


def test_a_missing_value_is_a_dash_and_null(tmp_path, command) -> None:
    out = tmp_path / "sweep"
    runs = make_plan(out, settings=("",))
    sweep.run_all(runs, out, lambda _: None, command)
    path = out / "eval" / runs[0].name / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["encoders"]["trained"]["linear_probe"]["top1"] = None
    path.write_text(json.dumps(metrics))
    assert "| hjepa | 2 | 50.50 ± 0.71 | – |" in sweep.write_results(runs, out)

    def refuse(text: str):
        raise AssertionError(f"{text} is not JSON")

    found = json.loads((out / "results.json").read_text(), parse_constant=refuse)
    assert found["groups"]["hjepa"]["mean"]["probe_top1"] is None


def test_another_evaluation_of_a_run_is_not_used_as_its_report(tmp_path, command) -> None:
    out = tmp_path / "sweep"
    (run,) = make_plan(out, seeds=(0,), settings=("",))
    sweep.run_all([run], out, lambda _: None, command)
    metrics = sweep.metrics_of(run, out)
    other = out / "eval" / f"{run.name}-step9-cifar10-0123abcd"
    other.mkdir()
    (other / "metrics.json").write_text(json.dumps({**metrics, "info": {"run": run.name}}))
    assert sweep.metrics_of(run, out) == metrics
    # If it is the only one, as after an interrupted report, it is that of the run.
    (out / "eval" / run.name / "metrics.json").unlink()
    assert sweep.metrics_of(run, out)["info"] == {"run": run.name}


def test_finished_runs_are_not_started_again(tmp_path, command) -> None:
    out = tmp_path / "sweep"
    sweep.run_all(make_plan(out), out, lambda _: None, command)
    more, told = make_plan(out, seeds=(0, 1, 2)), []
    sweep.run_all(more, out, told.append, command)
    assert sum("already finished" in line for line in told) == 4
    for run in more:
        assert (out / "runs" / run.name / "starts").read_text() == "x"


def test_a_run_with_an_incomplete_report_is_repeated(tmp_path, command) -> None:
    out = tmp_path / "sweep"
    runs = make_plan(out, seeds=(0,))
    folder = out / "eval" / runs[0].name
    folder.mkdir(parents=True)
    (folder / "knn.png").write_text("half a picture")
    assert sweep.metrics_of(runs[0], out) is None
    assert sweep.run_all(runs, out, lambda _: None, command) == {}
    assert (out / "eval" / f"{runs[0].name}-2" / "metrics.json").is_file()
    assert len(sweep.results(runs, out)["groups"]) == 2


def test_a_failure_is_reported_and_does_not_stop_the_others(tmp_path, command) -> None:
    out = tmp_path / "sweep"
    runs = make_plan(out, seeds=(13, 1), settings=("",))
    failed = sweep.run_all(runs, out, lambda _: None, command)
    assert list(failed) == ["hjepa-seed13"]
    assert failed["hjepa-seed13"].startswith("hjepa_jax: seed 13 is unlucky. (exit status 1, ")
    text = sweep.write_results(runs, out)
    assert "1 of 2 runs finished" in text
    # One run has no standard deviation.
    assert "| hjepa | 1 | 51.00 | 25.50 |" in text
    assert json.loads((out / "results.json").read_text())["groups"]["hjepa"]["std"]["knn"] is None
    (out / "mended").touch()
    assert sweep.run_all(runs, out, lambda _: None, command) == {}
    assert "2 of 2 runs finished" in sweep.write_results(runs, out)


def test_errors_are_one_sentence(tmp_path, command) -> None:
    out = tmp_path / "sweep"
    sweep.run_all(make_plan(out, seeds=(0,), settings=("",)), out, lambda _: None, command)
    changed = make_plan(out, seeds=(0,), settings=("",), common=("train.epochs=25",))
    with pytest.raises(UserError, match=r"hjepa-seed0 with a different command .*epochs=25.*--out"):
        sweep.run_all(changed, out, lambda _: None, command)
    with pytest.raises(UserError, match="duplicate runs: hjepa-seed0"):
        make_plan(out, seeds=(0, 0), settings=("",))
    with pytest.raises(UserError, match=r"'lr' is not an override: write 'section\.field=value'"):
        make_plan(out, settings=("lr",))
    with pytest.raises(UserError, match="names a variant"):
        sweep.plan("configs/quickstart.py:sigreg", out, variants=("hjepa",), seeds=(0,))
    (out / "eval" / "hjepa-seed0" / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json cannot be read .*delete it"):
        sweep.run_all(make_plan(out, seeds=(0,), settings=("",)), out, lambda _: None, command)


def test_script_rejects_invalid_seeds(tmp_path) -> None:
    flags = ("--config=configs/quickstart.py", "--seeds=a,1", f"--out={tmp_path}/sweep")
    done = forked.run("scripts/sweep.py", *flags)
    assert done.returncode == 1
    assert done.stderr.strip() == "hjepa sweep: --seeds=a,1: seeds must be integers."
    assert not (tmp_path / "sweep").exists()


def test_script_tabulates_what_is_finished(tmp_path, command) -> None:
    out = tmp_path / "sweep"
    runs = sweep.plan("configs/quickstart.py", out, variants=("hjepa", "sigreg"), seeds=(0, 1))
    sweep.run_all(runs, out, lambda _: None, command)
    flags = ("--config=configs/quickstart.py", "--variants=hjepa,sigreg", "--seeds=0,1")
    done = forked.run("scripts/sweep.py", *flags, f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("already finished") == 4
    assert "| sigreg | 2 | 50.50 ± 0.71 |" in done.stdout
    assert "4 of 4 runs finished" in (out / "results.md").read_text()
