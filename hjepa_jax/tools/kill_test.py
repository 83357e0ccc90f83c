"""Endurance test: a run that is killed repeatedly must end as an undisturbed one.

Its final state must be the same to the last bit, and so must its metrics, times apart.

Each attempt at the run ends in one of four ways: kill -9 during startup, between checkpoints, or
during a save; or SIGTERM, on which the run must save and exit with status 0.
"""

from __future__ import annotations

import dataclasses
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import PyTree

from hjepa_jax.data.sources.open import open_split
from hjepa_jax.errors import TrainingError
from hjepa_jax.runtime import checkpoint_files, sharding
from hjepa_jax.storage.files import open_log
from hjepa_jax.storage.metrics_file import read_metrics
from hjepa_jax.training.prepare import prepare
from hjepa_jax.training.saved_run import open_saved, saved_config
from hjepa_jax.training.state import TrainState

KILL_POINTS = ("save", "term", "step", "start")
_POLL_SECONDS = 0.001
_TIMES = ("time", "speed/", "data/wait_share")
_ATTEMPT_SECONDS = 600.0


def command(workdir: pathlib.Path, overrides: Sequence[str]) -> list[str]:
    """Returns the command of one attempt at the run."""
    main = [sys.executable, "-m", "hjepa_jax.main", "--mode=train"]
    return [*main, f"--workdir={workdir}", *overrides]


def final_state(workdir: pathlib.Path) -> TrainState:
    """Returns the newest checkpoint's state as numpy arrays."""
    config = saved_config(workdir)
    source = open_split(config, "train")
    run = prepare(config, len(source), sharding.data_mesh(), len(source.class_names))
    return jax.device_get(open_saved(config, workdir).restore(run.abstract_state)[0])


def differing_arrays(one: PyTree, two: PyTree) -> list[str]:
    """Returns the names of the arrays that are not bit-identical."""
    other = dict(jax.tree_util.tree_leaves_with_path(two))
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(one)
        if np.asarray(leaf).tobytes() != np.asarray(other[path]).tobytes()
    ]


def differing_metrics(one: pathlib.Path, two: pathlib.Path) -> list[str]:
    """Returns the tags whose steps or values differ between two runs, those of times left out."""
    first, second = (
        {tag: curve for tag, curve in read_metrics(run).items() if not tag.startswith(_TIMES)}
        for run in (one, two)
    )
    return [
        tag
        for tag in sorted(first.keys() | second.keys())
        if tag not in first or tag not in second or differing_arrays(first[tag], second[tag])
    ]


def checkpoint_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps of the complete checkpoints, oldest first."""
    return checkpoint_files.steps(workdir / "checkpoints")


def saving_step(workdir: pathlib.Path) -> int:
    """Returns the step of the save in progress; -1 if there is none."""
    folders = checkpoint_files.temporary_folders(workdir / "checkpoints")
    steps = [re.match(r"\d+", folder.name) for folder in folders]
    return max((int(found.group()) for found in steps if found), default=-1)


@dataclasses.dataclass
class Soak:
    """Counts of kills, attempts, runs and interrupted saves."""

    kills: dict[str, int]
    attempts: int = 0
    runs: int = 0
    torn_saves: int = 0
    slowest_stop: float = 0.0

    @property
    def total(self) -> int:
        """The number of attempts that were killed or stopped."""
        return sum(self.kills.values())

    def summary(self) -> str:
        """Returns the counts as a sentence."""
        ways = ", ".join(f"{name} {count}" for name, count in self.kills.items())
        return (
            f"{self.total} kills ({ways}) in {self.attempts} attempts of {self.runs} runs; "
            f"{self.torn_saves} saves interrupted; slowest stop on SIGTERM "
            f"{self.slowest_stop:.1f} s; every final state and metric bit-identical."
        )


class _Attempt:
    """One process of the run, and the ways to end it."""

    def __init__(self, workdir: pathlib.Path, overrides: Sequence[str], log: pathlib.Path):
        self.workdir = workdir
        self._log = log
        # A kill must hit only this process, and Ctrl-C at the terminal none.
        with open_log(log) as file:
            self.process = subprocess.Popen(
                command(workdir, overrides),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.deadline = time.monotonic() + _ATTEMPT_SECONDS

    def __enter__(self) -> _Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Waits for a condition; returns False if the process ended first."""
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > self.deadline:
                raise TrainingError(f"the run in {self.workdir} hangs: see its log.")
            time.sleep(_POLL_SECONDS)
        return self.process.poll() is None

    def kill(self) -> None:
        """Ends the process with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def kill_in_save(self, after: int) -> bool:
        """Kills during a save of a step above `after`; returns False if the run ended first."""
        while self.wait_for(lambda: saving_step(self.workdir) > after):
            self.process.send_signal(signal.SIGSTOP)
            if saving_step(self.workdir) > after:
                self.kill()
                return True
            self.process.send_signal(signal.SIGCONT)
        return False

    def stop(self) -> float:
        """Ends the process with SIGTERM; returns how long that took."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.require_success()
        return time.monotonic() - start

    def require_success(self) -> None:
        """Waits for the process to end; raises a TrainingError unless its exit status is 0."""
        status = self.process.wait(_ATTEMPT_SECONDS)
        if status != 0:
            lines = self._log.read_text(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "no output"
            raise TrainingError(f"the run in {self.workdir} ended with status {status} ({last}).")


def _end_attempt(
    attempt: _Attempt, kill_point: str, stride: int, startup: float, rng: random.Random
) -> bool:
    """Waits for the kill point, then ends the attempt; returns False if the run ended first."""
    steps = checkpoint_steps(attempt.workdir)
    after = (steps[-1] if steps else 0) + rng.randrange(stride)
    if kill_point == "start":
        end = time.monotonic() + rng.uniform(0.0, startup)
        reached = attempt.wait_for(lambda: time.monotonic() > end)
    elif kill_point == "save":
        return attempt.kill_in_save(after)
    else:
        reached = attempt.wait_for(
            lambda: max(checkpoint_steps(attempt.workdir), default=-1) > after
        )
        time.sleep(rng.uniform(0.0, 0.1))
    if not reached or attempt.process.poll() is not None:
        return False
    if kill_point != "term":
        attempt.kill()
    return True


def _one_run(
    workdir: pathlib.Path,
    start: Callable[[pathlib.Path], _Attempt],
    done: Soak,
    kills: int,
    end_attempt: Callable[[_Attempt, str], bool],
    log: Callable[[str], None],
) -> None:
    """Starts and kills a run until `kills` are done, then lets it finish."""
    kill_points = list(done.kills)
    while done.total < kills:
        kill_point = kill_points[done.total % len(kill_points)]
        with start(workdir) as attempt:
            if not end_attempt(attempt, kill_point):
                attempt.require_success()
                return
            if kill_point == "term":
                done.slowest_stop = max(done.slowest_stop, attempt.stop())
        done.kills[kill_point] += 1
        torn = saving_step(workdir)
        done.torn_saves += torn >= 0
        note = f", save of step {torn} interrupted" if torn >= 0 else ""
        steps = checkpoint_steps(workdir)
        log(f"kill {done.total}/{kills} ({kill_point}): checkpoints {steps}{note}")
    with start(workdir) as attempt:
        attempt.require_success()


def soak(
    out: pathlib.Path,
    *,
    kills: int,
    seed: int,
    overrides: Sequence[str],
    kill_points: Sequence[str] = KILL_POINTS,
    log: Callable[[str], None] = print,
) -> Soak:
    """Runs once undisturbed, then repeatedly with kills, and compares the final states.

    Args:
      out: an empty or new folder for the runs and their logs.
      kills: number of attempts to kill or stop; if a run ends first, the next one is started.
      seed: seed of the kill times.
      overrides: arguments of `hjepa_jax.main`, including --config.
      kill_points: the ways to end an attempt, used cyclically.
      log: called with a line per attempt.

    Raises:
      TrainingError: if a run fails, hangs, or ends in a different state or with different metrics;
        the message names what differs.
    """
    rng = random.Random(seed)
    out.mkdir(parents=True, exist_ok=True)
    reference, done = out / "undisturbed", Soak(dict.fromkeys(kill_points, 0))

    def start(workdir: pathlib.Path) -> _Attempt:
        done.attempts += 1
        # The number of threads must not matter either.
        threads = f"--config.data.num_threads={1 + done.attempts % 3}"
        return _Attempt(workdir, [*overrides, threads], out / "log.txt")

    with start(reference) as undisturbed:
        start_time = time.monotonic()
        undisturbed.wait_for(lambda: bool(checkpoint_steps(reference)))
        startup = time.monotonic() - start_time
        undisturbed.require_success()
    expected = final_state(reference)
    stride = max(2, int(expected.step) // (kills + 1))

    def end_attempt(attempt: _Attempt, kill_point: str) -> bool:
        return _end_attempt(attempt, kill_point, stride, startup, rng)

    while done.total < kills:
        done.runs += 1
        workdir = out / f"killed-{done.runs}"
        _one_run(workdir, start, done, kills, end_attempt, log)
        differing = differing_arrays(expected, final_state(workdir))
        differing += differing_metrics(reference, workdir)
        if differing:
            raise TrainingError(
                f"the run in {workdir} did not end as the one in {reference}: "
                f"{', '.join(differing)} differ."
            )
    return done
