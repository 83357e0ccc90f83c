"""Several processes: how they find each other, are one run, and end together."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from hjepa_jax.errors import UserError
from hjepa_jax.evaluate import evaluate
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime import distributed
from hjepa_jax.runtime.distributed import Cluster, find_cluster
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.train import train

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS, SAVED = 24, 4
ENVIRONMENT = {"JAX_PLATFORMS": "cpu"}
OVERRIDES = {
    "train.max_steps": STEPS,
    "train.epochs": 6,
    # Rounding grows with the learning rate.
    "train.lr": 2e-4,
    "checkpoint.every_steps": SAVED,
    "evaluation.online_every_epochs": 5.0,
    "evaluation.all_state_parts": False,
    "evaluation.random_baseline": False,
}

SLURM = {
    "SLURM_JOB_ID": "70000",
    "SLURM_STEP_NODELIST": "gpu[007-008,011]",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "4,1(x2)",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
}


def flags(address=None, count=None, number=None):
    return {"coordinator_address": address, "num_processes": count, "process_id": number}


def test_a_single_process_is_left_alone() -> None:
    assert find_cluster(flags(), {}) is None
    assert find_cluster(flags("a:1", 1, 0), {}) is None
    assert find_cluster(flags(), {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None
    # An interactive shell of an allocation of six tasks.
    assert find_cluster(flags(), {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "6"}) is None
    with distributed.session(None):
        distributed.check_same({"anything": 1}, "")
        assert distributed.is_primary()
        assert distributed.sum_over_processes(3) == 3


def test_flags_variables_and_launchers_are_understood() -> None:
    expected = Cluster("node1:51234", 4, 2)
    assert find_cluster(flags("node1:51234", 4, 2), {}) == expected
    variables = {
        "JAX_COORDINATOR_ADDRESS": "node1:51234",
        "JAX_NUM_PROCESSES": "4",
        "JAX_PROCESS_ID": "2",
    }
    assert find_cluster(flags(), variables) == expected
    assert find_cluster(flags("node1:51234", None, 2), {"JAX_NUM_PROCESSES": "4"}) == expected
    # Flags come before the launcher, whose GPUs are then no longer asked for.
    assert find_cluster(flags("node1:51234", 4, 2), SLURM) == expected

    address = f"gpu007:{61440 + 70000 % 4096}"
    assert find_cluster(flags(), SLURM) == Cluster(address, 6, 3, (3,))
    alone = {**SLURM, "SLURM_NODEID": "2", "SLURM_PROCID": "5", "SLURM_LOCALID": "0"}
    assert find_cluster(flags(), alone) == Cluster(address, 6, 5)
    assert find_cluster(flags(), {**SLURM, "CUDA_VISIBLE_DEVICES": "7"}) == Cluster(address, 6, 3)
    chosen = find_cluster(flags("here:9"), {**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"})
    assert chosen == Cluster("here:9", 6, 3, (3,))
    for nodes in ("n1", "n1,n2", "n[1-3]", "n[1,3],m4"):
        found = find_cluster(flags(), {**SLURM, "SLURM_STEP_NODELIST": nodes})
        assert found is not None
        assert found.coordinator_address.startswith("n1:")

    assert find_cluster(flags("a:1"), OPEN_MPI) == Cluster("a:1", 2, 1)
    shared = OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    assert find_cluster(flags("a:1"), shared) == Cluster("a:1", 2, 1, (1,))
    assert find_cluster(flags("a:1"), {**shared, "CUDA_VISIBLE_DEVICES": "7"}) == Cluster(
        "a:1", 2, 1
    )
    assert find_cluster(flags(), {"OMPI_COMM_WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("given", "environ", "words"),
    [
        (flags("a:1"), {}, ["--num_processes and --process_id missing", "JAX_PROCESS_ID"]),
        (flags(None, 2, 0), {}, ["--coordinator_address missing"]),
        (flags(), OPEN_MPI, ["--coordinator_address missing", "JAX_COORDINATOR_ADDRESS"]),
        (flags("a", 2, 0), {}, ["--coordinator_address is 'a'", "host:port"]),
        (flags("a:1", 2, 2), {}, ["--process_id is 2", "0..1"]),
        (flags("a:1", 2, 0), {"JAX_NUM_PROCESSES": "4"}, ["--num_processes=2 contradicts"]),
        (flags("a:1", 2), {"JAX_PROCESS_ID": "x"}, ["JAX_PROCESS_ID is 'x'", "whole number"]),
    ],
)
def test_what_is_incomplete_or_contradictory_is_one_sentence(given, environ, words) -> None:
    with pytest.raises(UserError) as caught:
        find_cluster(given, environ)
    for word in words:
        assert word in str(caught.value)


def smoke_config():
    config = quickstart.get_config("identity-smoke")
    for path, value in OVERRIDES.items():
        section, _, name = path.rpartition(".")
        config[section][name] = value
    return config


def free_port(low: int = 20000, high: int = 60000) -> int:
    """Returns a port that nobody listens on."""
    for port in np.random.default_rng(os.getpid()).integers(low, high, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", int(port)))
            return int(port)
    raise AssertionError("no free port")


class Processes:
    """Processes of one run on this machine, their output in files."""

    def __init__(self, folder: pathlib.Path, name: str, each: list[tuple[list[str], dict]]):
        folder.mkdir(exist_ok=True)
        self._logs = [folder / f"{name}.{i}.log" for i in range(len(each))]
        self.running = []
        for log, (arguments, variables) in zip(self._logs, each):
            command = [sys.executable, "-m", "hjepa_jax.main"]
            command += ["--config=configs/quickstart.py:identity-smoke", f"--workdir={folder}/run"]
            command += [f"--eval_dir={folder}/eval"]
            command += [f"--config.{path}={value}" for path, value in OVERRIDES.items()]
            command += arguments
            with log.open("wb") as output:
                self.running.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env={**os.environ, **ENVIRONMENT, **variables},
                        stdout=output,
                        stderr=subprocess.STDOUT,
                    )
                )

    def output(self, number: int) -> str:
        return self._logs[number].read_text()

    def end(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


def by_flags(count: int) -> list[tuple[list[str], dict]]:
    """Returns arguments and variables of so many processes."""
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    return [([address, f"--num_processes={count}", f"--process_id={i}"], {}) for i in range(count)]


def by_open_mpi(count: int) -> list[tuple[list[str], dict]]:
    """Returns arguments and variables of so many processes that mpirun starts on one machine."""
    address = f"--coordinator_address=127.0.0.1:{free_port()}"
    names = ("RANK", "LOCAL_RANK")
    sizes = {f"OMPI_COMM_WORLD_{name}": f"{count}" for name in ("SIZE", "LOCAL_SIZE")}
    return [
        ([address], sizes | {f"OMPI_COMM_WORLD_{name}": f"{i}" for name in names})
        for i in range(count)
    ]


@pytest.mark.parametrize("launched", [by_flags, by_open_mpi])
def test_processes_of_different_configurations_end_with_a_sentence(tmp_path, launched) -> None:
    first, second = launched(2)
    second[0].extend(["--config.train.weight_decay=0.25", f"--workdir={tmp_path}/other"])
    both = Processes(tmp_path, "both", [first, second])
    try:
        codes = [process.wait(timeout=120) for process in both.running]
    finally:
        both.end()
    assert codes == [1, 1]
    for number, value in enumerate(("0.0005", "0.25")):
        (sentence,) = [s for s in both.output(number).splitlines() if s.startswith("hjepa_jax:")]
        assert (
            f"process {number} of 2: the processes differ in config.train.weight_decay" in sentence
        )
        folder = f"--workdir ('{tmp_path}/{('run', 'other')[number]}' here)"
        assert f"({value} here), {folder}: start all of them with the same command." in sentence
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "other").exists()


def test_a_taken_port_ends_all_processes_with_a_sentence(tmp_path) -> None:
    """Not with an abort of jax's after minutes."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"--coordinator_address=127.0.0.1:{other.getsockname()[1]}"
        each = [([address, "--num_processes=2", f"--process_id={i}"], {}) for i in range(2)]
        both = Processes(tmp_path, "both", each)
        try:
            codes = [process.wait(timeout=60) for process in both.running]
        finally:
            both.end()
    assert codes == [1, 1]
    for number, words in enumerate(("its port is taken", "something other than process 0")):
        (sentence,) = [s for s in both.output(number).splitlines() if s.startswith("hjepa_jax:")]
        assert words in sentence
        assert "Traceback" not in both.output(number)


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """Returns the loss of each step."""
    steps, values = read_metrics(workdir).get("loss/total", ([], []))
    return {int(step): float(value) for step, value in zip(steps, values)}


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory):
    """A run of four processes, one of which is killed, that two processes finish and evaluate."""
    folder = tmp_path_factory.mktemp("several")
    slurm = {
        "SLURM_JOB_ID": str(free_port(61440, 65535) - 61440),
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "4",
        "SLURM_NODEID": "0",
    }
    four = Processes(
        folder,
        "four",
        [([], {**slurm, "SLURM_PROCID": f"{i}", "SLURM_LOCALID": f"{i}"}) for i in range(4)],
    )
    try:
        deadline = time.monotonic() + 240
        # Beyond the save: there, the others would notice only by the missing heartbeat.
        while SAVED + 1 not in losses(folder / "run"):
            assert time.monotonic() < deadline, four.output(0)
            assert four.running[1].poll() is None, four.output(1)
            time.sleep(0.01)
        four.running[1].send_signal(signal.SIGKILL)
        since = time.monotonic()
        codes = [four.running[i].wait(timeout=60) for i in (0, 2, 3)]
        took = time.monotonic() - since
    finally:
        four.end()
    saved = [path.name for path in (folder / "run/checkpoints").iterdir()]
    assert str(SAVED) in saved
    assert str(STEPS) not in saved, "the run was over before it could be killed"

    two = Processes(folder, "two", by_flags(2))
    try:
        for process in two.running:
            process.wait(timeout=240)
    finally:
        two.end()
    assert [process.returncode for process in two.running] == [0, 0], two.output(0) + two.output(1)
    return folder, (codes, took), four, two


def test_the_death_of_one_process_ends_the_others(killed_and_resumed) -> None:
    _, (codes, took), four, _ = killed_and_resumed
    assert 0 not in codes
    assert took < 60
    for process in (0, 2, 3):
        words = four.output(process)
        assert "one of them has exited" in words or "another task died" in words


def test_processes_train_as_one_and_are_resumed_by_fewer(killed_and_resumed, tmp_path) -> None:
    folder, _, _, two = killed_and_resumed
    train(smoke_config(), tmp_path / "alone")
    alone, several = losses(tmp_path / "alone"), losses(folder / "run")
    assert sorted(alone) == sorted(several) == list(range(1, STEPS + 1))
    difference = [abs(several[step] / alone[step] - 1) for step in alone]
    assert max(difference[:SAVED]) < 1e-4, difference
    assert max(difference) < 1e-3, difference
    assert f"resumed at step {SAVED}" in two.output(0)


def test_only_process_0_writes_and_prints(killed_and_resumed) -> None:
    folder, _, four, two = killed_and_resumed
    # Of both parts of the training, and of the evaluation.
    assert len(list((folder / "run").glob("events.out.tfevents.*"))) == 3
    assert json.loads((folder / "run/config.json").read_text())["train"]["max_steps"] == STEPS
    for process in (two.output(1), *(four.output(i) for i in (1, 2, 3))):
        for word in (f"/{STEPS} ", "method ", "trained", "report and pictures"):
            assert word not in process
    assert "1 of 4 devices" in four.output(0)
    assert "kNN top-1" in two.output(0)
    assert "report and pictures" in two.output(0)


def test_two_processes_evaluate_as_one_does(killed_and_resumed, tmp_path) -> None:
    folder, *_ = killed_and_resumed
    alone = evaluate(smoke_config(), folder / "run", tmp_path)
    several = json.loads((folder / "eval/run/metrics.json").read_text())
    paths = jax.tree_util.tree_leaves_with_path(json.loads(json.dumps(alone["encoders"])))
    other = dict(jax.tree_util.tree_leaves_with_path(several["encoders"]))
    assert len(paths) == len(other) > 30
    for path, value in paths:
        if isinstance(value, float):
            assert other[path] == pytest.approx(value, rel=1e-3, abs=1e-4), path
        else:
            assert other[path] == value, path
