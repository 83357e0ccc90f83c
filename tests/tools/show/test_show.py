"""What a run's files say: status, progress, recipe, scores, and the next command."""

import fcntl
import json
import os
import pathlib
import shutil
import time

import pytest

from hjepa_jax.config import files
from hjepa_jax.config.checks import typed
from hjepa_jax.errors import UserError, size
from hjepa_jax.recipes import cifar100
from hjepa_jax.storage.metrics_file import METRICS_FILE, line_of
from hjepa_jax.tools.show import command
from hjepa_jax.tools.show.command import age, block, find_runs, table
from hjepa_jax.tools.show.state import nearest_recipe, read_state

# 1000 images in batches of 100 for 5 epochs.
STEPS = 50


def add_checkpoint(run: pathlib.Path, step: int, *, seconds_ago: float = 0) -> None:
    folder = run / "checkpoints" / str(step)
    (folder / "meta").mkdir(parents=True)
    data = {"step": step, "num_images": 1000, "batch_size": 100}
    (folder / "meta" / "metadata").write_text(json.dumps({"data": data}))
    then = time.time() - seconds_ago
    os.utime(folder, (then, then))


def add_report(eval_dir: pathlib.Path, run: str) -> None:
    trained = {
        "knn": {"k_values": [1, 20], "top1": [0.25, 0.5]},
        "linear_probe": {"top1": 0.75, "top5": None},
        "diagnostics": {
            "covariance_spectrum_topq": {"effective_rank": 12.5, "participation_ratio": 3.0},
            "alignment_uniformity": {"alignment": 0.5, "uniformity": -2.0},
        },
    }
    metrics = {"info": {"run": run, "step": 40}, "headline_k": 20, "encoders": {"trained": trained}}
    (eval_dir / run).mkdir(parents=True)
    (eval_dir / run / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def run(tmp_path) -> pathlib.Path:
    """A run of the SIGReg recipe with two changes, stopped at step 30, saved at 20."""
    config = cifar100.get_config("sigreg")
    config.train.epochs, config.data.batch_size, config.data.root = 5, 100, "/data/c"
    folder = tmp_path / "runs" / "x"
    files.save(typed(config), folder)
    add_checkpoint(folder, 10)
    add_checkpoint(folder, 20, seconds_ago=3 * 3600)
    values = {"loss/total": 0.5, "eval/knn20": 0.25}
    # The last two lines are two seconds a step apart, behind a pause.
    times = {5: 0.0, 10: 10.0, 15: 20.0, 20: 30.0, 25: 1e6, 30: 1e6 + 10}
    lines = [line_of(step, step / 10, when, values) for step, when in times.items()]
    (folder / METRICS_FILE).write_bytes(b"".join(lines))
    return folder


def test_a_stopped_run_tells_where_it_stands(run, tmp_path) -> None:
    state = read_state(run, tmp_path / "eval")
    assert (state.status, state.step, state.total_steps, state.epoch) == ("stopped", 30, STEPS, 3.0)
    assert (state.method, state.encoder, state.batch_size) == ("lejepa", "resnet", 100)
    assert state.data == "cifar100 in /data/c"
    assert state.recipe == "cifar100:sigreg"
    assert state.changes == ["data.batch_size=100 (512)", "train.epochs=5 (30)"]
    assert state.checkpoints == [10, 20]
    assert state.checkpoint_age == pytest.approx(3 * 3600, abs=60)
    assert state.remaining == pytest.approx(20 * 2.0)
    assert (state.loss, state.online, state.scores) == (0.5, {"eval/knn20": 0.25}, [])
    assert state.files[METRICS_FILE] == (run / METRICS_FILE).stat().st_size
    assert state.files["checkpoints"] == sum(
        path.stat().st_size for path in run.rglob("checkpoints/*/meta/metadata")
    )
    assert state.next == f"hjepa train --resume={run}"
    told = block(state)
    assert "stopped, step 30 of 50 (60 %), epoch 3.0 of 5, 40 seconds from done" in told
    assert "cifar100:sigreg with data.batch_size=100 (512), train.epochs=5 (30)" in told
    assert "step 20, 3 hours ago (kept: 10, 20)" in told
    assert "none yet" in told


def test_a_run_that_trains_is_told_by_its_lock(run, tmp_path) -> None:
    (run / "lock").write_text("{}")
    assert read_state(run, tmp_path).status == "stopped"
    with (run / "lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        state = read_state(run, tmp_path)
        assert (state.status, state.next) == ("running", f"tensorboard --logdir={run}")
        # Another look disturbs nothing.
        assert read_state(run, tmp_path).status == "running"
    assert read_state(run, tmp_path).status == "stopped"


def test_a_finished_run_is_evaluated_and_then_exported(run, tmp_path) -> None:
    add_checkpoint(run, STEPS)
    state = read_state(run, tmp_path / "eval")
    assert (state.status, state.step, state.remaining) == ("finished", STEPS, None)
    assert state.next == f"hjepa eval {run} --eval_dir={tmp_path / 'eval'}"
    assert read_state(run).next == f"hjepa eval {run}"
    add_report(tmp_path / "eval", "x")
    state = read_state(run, tmp_path / "eval")
    (scores,) = state.scores
    assert (scores["step"], scores["knn"], scores["probe_top1"]) == (40, 0.5, 0.75)
    assert "probe_top5" not in scores
    assert state.next.startswith(f"hjepa export --workdir={run} ")
    assert "kNN 50.0 %, kNN@1 25.0 %, probe 75.0 %, effective rank 12.5 (step 40" in block(state)
    shutil.move(tmp_path / "eval" / "x", run / "evaluation")
    (inside,) = read_state(run, tmp_path / "eval").scores
    assert inside["knn"] == 0.5


def test_scores_in_the_folder_of_the_run_are_shown(run) -> None:
    add_report(run, "evaluation")
    (scores,) = read_state(run).scores
    assert scores["report"] == str(run / "evaluation")


def test_scores_in_both_coordinates_are_told_apart(run) -> None:
    add_report(run, "evaluation")
    path = run / "evaluation/metrics.json"
    metrics = json.loads(path.read_text())
    moved = json.loads(json.dumps(metrics["encoders"]["trained"])) | {"coordinates": "sqrt_h"}
    moved["knn"]["top1"] = [0.125, 0.875]
    metrics["encoders"]["trained sqrt_h"] = moved
    path.write_text(json.dumps(metrics))
    state = read_state(run)
    assert [one["knn"] for one in state.scores] == [0.5, 0.875]
    assert [one.get("coordinates") for one in state.scores] == [None, "sqrt_h"]
    assert "kNN 87.5 %, kNN@1 12.5 %, probe 75.0 %, effective rank 12.5 in H^{1/2} z" in block(
        state
    )
    # The table has the figures of raw states.
    assert table([state]).splitlines()[1].split()[-2:] == ["50.0", "75.0"]


def test_a_run_without_checkpoints_is_told_without_guesses(run, tmp_path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / METRICS_FILE).unlink()
    state = read_state(run, tmp_path)
    assert (state.status, state.step, state.total_steps) == ("not started", 0, None)
    assert (state.epoch, state.checkpoint_age, state.loss) == (None, None, None)
    assert "not started, step 0\n" in block(state)


def test_the_nearest_recipe_is_exact_and_none_is_made_up() -> None:
    assert nearest_recipe(typed(cifar100.get_config("ham_chain-smoke"))) == (
        "cifar100:ham_chain-smoke",
        [],
    )
    config = cifar100.get_config()
    for name in config.loss:
        if name.endswith("weight"):
            config.loss[name] += 0.125
    for name in config.data.augment:
        if name.endswith("probability"):
            config.data.augment[name] = 0.125
    for name in ("b1", "b2", "weight_decay", "warmup_epochs", "min_lr_ratio", "lr", "adam_eps"):
        config.train[name] = 0.0625
    config.resnet.width, config.seed, config.dynamics.steps = 8, 1, 1
    assert nearest_recipe(typed(config)) == (None, [])


def test_runs_are_found_in_folders(run, tmp_path) -> None:
    assert find_runs(run) == find_runs(run.parent) == find_runs(tmp_path) == [run]
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(UserError, match="is no run, and holds none"):
            find_runs(wrong)


def test_the_command_prints_a_block_a_table_or_json(run, tmp_path, capsys) -> None:
    add_report(tmp_path / "eval", "x")
    where = f"--eval_dir={tmp_path / 'eval'}"
    command.main(command.PROGRAM.parse(["show", str(run), where]))
    assert capsys.readouterr().out.splitlines()[0].split() == ["run", str(run)]
    command.main(command.PROGRAM.parse(["show", str(run), str(run.parent), where]))
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.split()[:3] == ["run", "status", "step"]
    assert [row.split()[1:4] for row in rows] == [["stopped", "30/50", "lejepa"]] * 2
    assert rows[0].split()[-2:] == ["50.0", "75.0"]
    command.main(command.PROGRAM.parse(["show", str(run), "--json", where]))
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["status"], told["total_steps"]) == ("stopped", STEPS)
    assert told["scores"][0]["knn"] == 0.5


def test_what_cannot_be_read_is_a_sentence(run, tmp_path, capsys) -> None:
    add_report(tmp_path / "eval", "x")
    (tmp_path / "eval" / "x" / "metrics.json").write_text("{}")
    state = read_state(run, tmp_path / "elsewhere")
    assert state.scores == []
    with pytest.raises(UserError, match="has no readable evaluation"):
        read_state(run, tmp_path / "eval")
    (run / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        read_state(run, tmp_path)
    # One of several does not hide the others.
    files.save(typed(cifar100.get_config()), run.parent / "y")
    command.main(command.PROGRAM.parse(["show", str(run.parent)]))
    told = capsys.readouterr()
    assert "config.json cannot be read" in told.err
    assert [row.split()[1] for row in told.out.splitlines()] == ["status", "not"]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (123e6, "123 MB")]
)
def test_sizes(count, text) -> None:
    assert size(int(count)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(5, "5 seconds"), (119, "119 seconds"), (600, "10 minutes"), (2e5, "2 days")],
)
def test_ages(seconds, text) -> None:
    assert age(seconds) == text


def test_a_table_marks_what_is_unknown(run, tmp_path) -> None:
    shutil.rmtree(run / "checkpoints")
    rows = table([read_state(run, tmp_path)]).splitlines()
    assert rows[1].split()[1:3] == ["stopped", "30/?"]
    assert rows[1].split()[-2:] == ["-", "-"]
