"""Searches: plan, rungs, resuming, failures and results, with a program in place of training."""

import json
import math
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from hjepa_jax import main as training
from hjepa_jax.config.flags import parse_override, resolve_arguments
from hjepa_jax.errors import UserError
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.tools.sweep import MAIN
from hjepa_jax.tools.tuning import command, report, trials
from hjepa_jax.tools.tuning.ranges import SPACES, Range, Space, overrides_of

# Scores of a trial with learning rate lr: highest at 1e-3; above 5e-2 it fails.
PROGRAM = """
import json, math, pathlib, sys
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
lr = float(flags.get("config.train.lr", 2e-3))
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
until = int(flags.get("stop_after", 9))
path = workdir / "metrics.jsonl"
done = len(path.read_text().splitlines()) if path.exists() else 0
with open(workdir.parent.parent / "starts", "a") as file:
    file.write(f"{workdir.name} {done} {until}\\n")
if lr > 5e-2:
    sys.exit("hjepa_jax: the loss is NaN.")
kill = workdir.parent.parent / "kill"
with open(path, "a") as file:
    for step in range(done + 1, until + 1):
        if kill.exists() and step == 2:
            kill.unlink()
            file.close()
            sys.exit(int(flags.get("config.train.b1", 0) == "0.5"))
        score = 0.9 - 0.2 * abs(math.log10(lr) + 3) + 0.001 * step
        file.write(json.dumps({"step": step, "time": 0, "online/knn_top1": score}) + "\\n")
        file.flush()
"""
SPACE = Space("", (), {"train.lr": Range("log", 1e-5, 1e-1)})
RULES = trials.Rules(seed=0, trials=9, factor=3, rungs=2, holdout=16)


@pytest.fixture
def program(tmp_path: pathlib.Path) -> tuple[str, ...]:
    """The command of the program above."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return (sys.executable, str(path))


def planned(out: pathlib.Path, rules: trials.Rules = RULES, space: Space = SPACE) -> trials.Plan:
    """A search of nine steps."""
    common = ["train.max_steps=9", "train.epochs=3"]
    return trials.plan_method("quickstart:smoke", out, "hjepa", space, common, rules)


def searched(out: pathlib.Path, program, rules: trials.Rules = RULES) -> dict:
    """The record of a search."""
    plan = planned(out, rules)
    outcomes = trials.run_search([plan], out, rules.factor, lambda _: None, program)
    report.write_search([plan], outcomes, rules, out, "hjepa tune --out=x")
    return json.loads((out / "tune.json").read_text())


def test_the_plan_holds_out_training_images_and_keeps_the_schedule(tmp_path) -> None:
    plan = planned(tmp_path)
    assert plan.steps == [1, 3, 9]
    assert plan.holdout == 16
    assert plan.trials[0].drawn == {}
    for trial in plan.trials:
        settings = resolve_arguments(list(trial.run.arguments))
        assert settings.evaluation.online_holdout == 16
        # 48 images are left, three batches: an evaluation in each step.
        assert settings.evaluation.online_every_epochs == 1 / 3
        assert settings.train.max_steps == 9
        assert float(trial.drawn.get("train.lr", settings.train.lr)) == settings.train.lr
    assert len({trial.run.arguments for trial in plan.trials}) == 9
    more = planned(tmp_path, RULES._replace(trials=12))
    assert more.trials[:9] == plan.trials
    tenth = planned(tmp_path, RULES._replace(holdout=None))
    assert tenth.holdout == 6


@pytest.mark.parametrize("method", SPACES)
def test_every_method_of_the_package_has_valid_trials(tmp_path, method) -> None:
    space = SPACES[method]
    plan = trials.plan_method("quickstart:smoke", tmp_path, method, space, [], RULES)
    for trial in plan.trials[1:]:
        settings = resolve_arguments(list(trial.run.arguments))
        assert set(trial.drawn) == set(space.ranges)
        for text in overrides_of(trial.drawn):
            name, _, value = text.partition("=")
            # No drawn field is without effect.
            assert settings.value(name) == parse_override(name, value), name


def test_a_variant_stands_beside_smoke() -> None:
    assert trials.source_of("quickstart:smoke", "sigreg") == "quickstart:sigreg-smoke"
    assert trials.source_of("quickstart", "sigreg") == "quickstart:sigreg"
    assert trials.source_of("quickstart", "") == "quickstart"


def test_one_in_three_goes_on_and_the_best_wins(tmp_path, program) -> None:
    out = tmp_path / "out"
    record = searched(out, program)["methods"]["hjepa"]
    rates = [float(t["overrides"][0].partition("=")[2]) if t["overrides"] else 2e-3
             for t in record["trials"]]  # fmt: skip
    reached = [max(map(int, t["scores"]), default=0) for t in record["trials"]]
    assert sorted(reached, reverse=True)[:3] == [9, 3, 3]
    assert reached.count(1) >= 5
    ok = [n for n, rate in enumerate(rates) if rate <= 5e-2]
    assert record["best"] == min(ok, key=lambda n: abs(math.log10(rates[n]) + 3))
    statuses = [t["status"] for t in record["trials"]]
    assert statuses.count("complete") == 1
    assert all((s == "failed") == (r > 5e-2) for s, r in zip(statuses, rates, strict=True))
    assert "failed" in statuses
    starts = (out / "starts").read_text().splitlines()
    best = [line for line in starts if line.startswith(f"hjepa-trial{record['best']:03d}")]
    # It goes on where it stopped, and the last part is the whole command without a stop.
    assert [line.split()[1:] for line in best] == [["0", "1"], ["1", "3"], ["3", "9"]]
    for name in ("tune.md", "hjepa.png", "best_so_far.png"):
        assert (out / name).stat().st_size > 500


@pytest.mark.parametrize("killed", [0, 1])
def test_a_search_that_was_killed_ends_the_same(tmp_path, program, killed) -> None:
    whole = searched(tmp_path / "whole", program)
    out = tmp_path / "out"
    out.mkdir()
    plan = planned(out)

    class Killed(BaseException):
        pass

    told = []

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 6 + 4 * killed:
            raise Killed

    with pytest.raises(Killed):
        trials.run_search([plan], out, 3, tell, program)
    # The next trial is stopped by a signal to it alone, as at a shutdown.
    (out / "kill").touch()
    if killed:
        with pytest.raises(UserError, match=r"was stopped before step 3: run the same command"):
            trials.run_search([plan], out, 3, lambda _: None, program)
    else:
        (out / "kill").unlink()
    again = json.dumps(searched(out, program)["methods"])
    # Reasons name the log of the failed trial.
    assert again.replace(str(out), str(tmp_path / "whole")) == json.dumps(whole["methods"])


def test_another_search_in_the_same_folder_is_refused(tmp_path, program) -> None:
    out = tmp_path / "out"
    searched(out, program)
    with pytest.raises(UserError, match=r"hjepa-trial001 with a different command"):
        searched(out, program, RULES._replace(seed=1))


def test_contradictions_are_drawn_again_and_a_hopeless_range_is_an_error(tmp_path) -> None:
    # A momentum of the warm-up's length is no contradiction; two unequal views of one are.
    both = {"data.num_global_views": Range("choice", choices=("1", "2"))}
    plan = planned(tmp_path, RULES, Space("", (), both))
    drawn = [trial.drawn["data.num_global_views"] for trial in plan.trials[1:]]
    assert set(drawn) == {"2"}
    never = Space("", (), {"data.num_global_views": Range("choice", choices=("1",))})
    with pytest.raises(UserError, match="no draw from the ranges of hjepa is valid: config"):
        planned(tmp_path, RULES, never)
    with pytest.raises(UserError, match=r"config\.train\.epochs is chosen when a training starts"):
        trials.plan_method("quickstart", tmp_path, "hjepa", SPACE, ["train.epochs=auto"], RULES)


def test_best_trial_is_a_file_that_training_takes(tmp_path, program) -> None:
    out = tmp_path / "out"
    record = searched(out, program)["methods"]["hjepa"]
    path = out / "best" / "hjepa.flags"
    (rate,) = record["trials"][record["best"]]["overrides"]
    arguments = ["train", f"--flagfile={path}", "--workdir=x", "--config.train.epochs=7"]
    training.PROGRAM.parse(arguments)
    config: Any = training.PROGRAM.flags["config"].value
    assert config.train.lr == float(rate.partition("=")[2])
    assert config.train.epochs == 7
    assert config.evaluation.online_holdout is None
    done = subprocess.run(
        [*MAIN, f"--flagfile={path}", f"--workdir={tmp_path / 'none'}", "--mode=eval"],
        capture_output=True,
        text=True,
    )
    assert "holds no checkpoints" in done.stderr, done.stderr


def test_command_tunes_stops_resumes_and_reports(tmp_path, monkeypatch, capsys) -> None:
    arguments = ["--config=quickstart:smoke", f"--out={tmp_path / 'out'}", "--methods=sigreg"]
    arguments += ["--trials=2", "--factor=2", "--rungs=1", "--holdout=16"]
    monkeypatch.setattr(sys, "argv", ["hjepa tune", *arguments])
    command.main(command.PROGRAM.parse(sys.argv))
    told = capsys.readouterr().out
    assert "| sigreg | 2 | 1 | " in told
    record = json.loads((tmp_path / "out" / "tune.json").read_text())["methods"]["sigreg"]
    assert record["steps"] == [1, 2]
    best = record["trials"][record["best"]]
    # A trial that was stopped and resumed has the scores of one that was not.
    run = tmp_path / "out" / "runs" / f"sigreg-trial{record['best']:03d}"
    known = json.loads((tmp_path / "out" / "commands.json").read_text())[run.name]
    whole = [flag.replace(str(run), str(tmp_path / "whole")) for flag in known]
    assert subprocess.run([*MAIN, *whole], capture_output=True).returncode == 0
    steps, scores = read_metrics(tmp_path / "whole")["online/knn_top1"]
    assert best["scores"] == {str(s): v for s, v in zip(steps.tolist(), scores.tolist())}


def test_a_trial_waits_for_the_process_of_a_search_that_was_killed(tmp_path, program) -> None:
    """The process goes on alone, and holds the lock of its run until the trial is trained."""
    out = tmp_path / "out"
    plan = planned(out, RULES._replace(trials=1, rungs=0))
    workdir = out / "runs" / "hjepa-trial000"
    workdir.mkdir(parents=True)
    held = (
        "import fcntl, pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "file = open(folder / 'lock', 'w')\n"
        "fcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\n"
        "time.sleep(2)\n"
        'line = \'{"step": 9, "online/knn_top1": 0.625}\\n\'\n'
        "(folder / 'metrics.jsonl').write_text(line)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", held, str(workdir)], stdout=subprocess.PIPE, text=True
    ) as orphan:
        assert orphan.stdout is not None
        assert orphan.stdout.readline() == "held\n"
        outcome = trials.run_search([plan], out, 3, lambda _: None, program)["hjepa"]
        assert orphan.wait() == 0
    assert outcome.scores == {0: {9: 0.625}}
    assert not (out / "starts").exists()
