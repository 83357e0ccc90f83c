"""Ablations: arms, effects against direct means of known answers, files, resuming, and errors."""

import json
import pathlib
import sys

import numpy as np
import pytest

from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.errors import UserError
from hjepa_jax.methods.hjepa_settings import Dynamics
from hjepa_jax.tools import sweep
from hjepa_jax.tools.ablation import command, report
from hjepa_jax.tools.ablation.axes import AXES, arms_of, chosen_axes
from tests.tools.test_sweep import PROGRAM

# The report of `PROGRAM` with answers: images below `right` are answered correctly.
ANSWERS = """
import numpy as np
width = float(flags.get("config.train.weight_decay", 0))
right = int(1000 * accuracy + 100 * width)
images = np.arange(1000)
answers = np.where(np.roll(images, 7 * seed) < right, 3, 4)
given = {"images": images, "labels": np.full(1000, 3), "knn": answers, "probe_top1": 7 - answers}
np.savez(folder / "answers.npz", **{f"trained/{name}": array for name, array in given.items()})
"""
LEVELS = (
    "lr low train.lr=0.25",
    "lr high train.lr=0.5",
    "decay none train.weight_decay=0",
    "decay some train.weight_decay=0.5",
)


@pytest.fixture
def program(tmp_path) -> tuple[str, ...]:
    """A program in place of training: accuracy 0.25 or 0.5, + seed / 100, + 0.05 with decay."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM + ANSWERS)
    return (sys.executable, str(path))


def planned(out: pathlib.Path, seeds=(0, 1)):
    """The axes, arms, and runs of a two-by-two ablation."""
    axes = chosen_axes([], LEVELS)
    arms = arms_of(axes)
    runs = {
        (arm.name, seed): sweep.plan_run("quickstart", out, arm.name, arm.overrides, seed)
        for seed in seeds
        for arm in arms
    }
    return axes, arms, runs


def written(out: pathlib.Path, program, seeds=(0, 1), skip=()) -> tuple[str, dict]:
    """The table and the record of an ablation, without the runs to skip."""
    axes, arms, runs = planned(out, seeds)
    done = [run for key, run in runs.items() if key not in skip]
    assert sweep.run_all(done, out, lambda _: None, program) == {}
    text = report.write_ablation(axes, arms, runs, out, "hjepa ablation --out=x")
    return text, json.loads((out / "ablation.json").read_text())


def test_arms_are_the_product_of_the_levels() -> None:
    arms = arms_of(chosen_axes([], LEVELS))
    assert [arm.name for arm in arms] == ["low-none", "low-some", "high-none", "high-some"]
    assert arms[1].overrides == ("train.lr=0.25", "train.weight_decay=0.5")
    assert arms[1].levels == {"lr": "low", "decay": "some"}
    # A level of a known axis is added to it, or replaced.
    more = chosen_axes(["predictor"], ["predictor slow dynamics.dt=0.001", "predictor mlp"])
    assert list(more["predictor"]) == [*AXES["predictor"], "slow"]
    assert more["predictor"]["mlp"] == ()


@pytest.mark.parametrize("config", ["quickstart:smoke", "cifar100", "imagenet100", "folder"])
def test_every_arm_is_a_valid_configuration(config, tmp_path) -> None:
    arms = arms_of(chosen_axes(list(AXES), []))
    assert len(arms) == np.prod([len(levels) for levels in AXES.values()])
    found = set()
    for arm in arms:
        # The fields of the published HJEPA stay where they have an effect.
        overrides = sweep.with_effect(config, (*arm.overrides, "dynamics.residual_scale=0.03"))
        run = sweep.plan_run(config, tmp_path, arm.name, overrides, 0)
        settings = resolve_arguments(list(run.arguments))
        dynamics = settings.section(Dynamics)
        assert dynamics.predictor == arm.levels["predictor"]
        used = dynamics.predictor == "hamiltonian"
        assert dynamics.residual_scale == (0.03 if used else 0.02)
        found.add(json.dumps(settings.values(), sort_keys=True, default=str))
    assert len(found) == len(arms)


def test_effects_are_differences_of_accuracy(tmp_path, program) -> None:
    text, record = written(tmp_path / "out", program)
    mains = {(one["level"], one["base"]): one for one in record["main_effects"]}
    assert mains["high", "low"]["effects"]["knn"]["difference"] == pytest.approx(0.25)
    assert mains["some", "none"]["effects"]["knn"]["difference"] == pytest.approx(0.05)
    # Here the probe answers 3 where kNN answers 4.
    assert mains["high", "low"]["effects"]["probe_top1"]["difference"] == pytest.approx(-0.25)
    assert mains["high", "low"]["pairs"] == 4
    effect = mains["some", "none"]["effects"]["knn"]
    # Of 1000 images, 50 differ in each pair of runs.
    half = 1.96 * np.sqrt(0.05 / 1000)
    assert effect["low"] < 0.05 - half / 2
    assert effect["high"] > 0.05 + half / 2
    assert effect["high"] - effect["low"] < 2.2 * half
    assert len(record["differences"]) == 4
    assert {one["others"]["decay"] for one in record["differences"] if one["axis"] == "lr"} == {
        "none",
        "some",
    }
    assert "| lr: high − low | 4 | +25.00 [" in text
    assert "8 of 8 runs finished" in text
    assert (tmp_path / "out" / "ablation.png").stat().st_size > 10_000
    assert (tmp_path / "out" / "ablation.md").read_text() == text


def test_an_unfinished_arm_is_left_out_of_the_pairs(tmp_path, program) -> None:
    text, record = written(tmp_path / "out", program, skip={("high-some", 1), ("low-none", 0)})
    assert "6 of 8 runs finished" in text
    mains = {one["axis"]: one for one in record["main_effects"]}
    # low-none with high-none, seed 1; low-some with high-some, seed 0.
    assert mains["lr"]["pairs"] == 2
    assert mains["lr"]["effects"]["knn"]["difference"] == pytest.approx(0.25)
    again, whole = written(tmp_path / "out", program)
    assert "8 of 8 runs finished" in again
    assert whole["main_effects"][0]["pairs"] == 4


def test_runs_on_different_images_are_refused(tmp_path, program) -> None:
    out = tmp_path / "out"
    written(out, program)
    path = out / "eval" / "low-some-seed1" / "answers.npz"
    with np.load(path) as arrays:
        changed = {**arrays, "trained/labels": np.roll(arrays["trained/images"], 1)}
    np.savez(path, **changed)
    with pytest.raises(UserError, match="tested on different images"):
        written(out, program)


@pytest.mark.parametrize(
    ("axes", "levels", "words"),
    [
        (["predicter"], [], "'predicter' is none of .*did you mean 'predictor'"),
        ([], ["lr"], "'lr' is not a level: write 'AXIS LEVEL"),
        ([], ["lr a-b train.lr=1"], "is not a level"),
        ([], ["lr low train.lr=1"], "the axis 'lr' has one level, 'low'"),
    ],
)
def test_wrong_axes_are_one_sentence(axes, levels, words) -> None:
    with pytest.raises(UserError, match=words):
        chosen_axes(axes, levels)


def test_command_trains_evaluates_and_tabulates(tmp_path, monkeypatch, capsys) -> None:
    levels = ["--level=lr low train.lr=1e-4", "--level=lr high train.lr=1e-2"]
    arguments = ["--config=quickstart:smoke", f"--out={tmp_path / 'out'}", "--axes=", *levels]
    arguments += ["--config.evaluation.random_baseline=False"]
    arguments += ["--config.evaluation.logistic_probe=True"]
    monkeypatch.setattr(sys, "argv", ["hjepa ablation", *arguments])
    command.main(command.PROGRAM.parse(sys.argv))
    told = capsys.readouterr().out
    assert "2 of 2 runs finished" in told
    assert "hjepa ablation --config=quickstart:smoke" in told
    record = json.loads((tmp_path / "out" / "ablation.json").read_text())
    (main,) = record["main_effects"]
    runs = record["groups"]
    assert list(main["effects"]) == ["knn", "probe_top1", "logistic_top1"]
    for name, effect in main["effects"].items():
        expected = runs["high"]["mean"][name] - runs["low"]["mean"][name]
        assert effect["difference"] == pytest.approx(expected)
