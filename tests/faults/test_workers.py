"""Worker processes that do not start, die, or get no memory; data that never comes."""

import errno
import gc
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from image_files import data_config, train_stream

from hjepa_jax import main
from hjepa_jax.config.checks import typed
from hjepa_jax.data import batches
from hjepa_jax.data.sources.base import ArraySource
from hjepa_jax.data.workers import blocks, watched
from hjepa_jax.errors import DataError, TrainingError
from hjepa_jax.recipes import quickstart
from hjepa_jax.runtime.stop_request import StopRequest
from hjepa_jax.tools import doctor
from tests.data.test_pipeline import PARENT, array_source, running

ROOT = pathlib.Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
GUARD = 60  # seconds after which a program hangs; each of these takes a few

UNGUARDED = """
import pathlib, sys
from hjepa_jax.recipes import quickstart
from hjepa_jax.train import train
config = quickstart.get_config("smoke")
config.data.num_workers = 2
train(config, pathlib.Path(sys.argv[1]))
"""
# A worker that ends with status 0 on importing the main program.
QUIET = """
import sys
if __name__ == "__mp_main__":
    sys.exit(0)
sys.path[:0] = [".", "tests", "tests/support"]
from tests.data.test_pipeline import array_source, data_config, train_stream
next(train_stream(data_config(num_workers=2), array_source()))
"""


def program(arguments: list[str], text: str | None = None) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        input=text,
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=GUARD,
        check=False,
    )


@pytest.mark.parametrize("text", [UNGUARDED, QUIET], ids=["unguarded", "quiet"])
def test_a_program_that_workers_cannot_import_ends_with_a_sentence(tmp_path, text) -> None:
    script = tmp_path / "script.py"
    script.write_text(text)
    done = program([str(script), str(tmp_path / "run")])
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "DataError: A worker process of the input pipeline exited during start-up" in last
    assert "`if __name__ == '__main__':`" in last


def test_a_program_on_standard_input_is_told_before_anything_is_written(tmp_path) -> None:
    done = program(["-", str(tmp_path / "run")], UNGUARDED)
    assert done.returncode == 1
    assert "num_workers=0" in done.stderr.strip().splitlines()[-1]
    assert "<stdin> is not a file" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_worker_in_the_import_of_the_main_program_starts_nothing(monkeypatch) -> None:
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(SystemExit, match="put its call under"):
        train_stream(data_config(num_workers=1), array_source())


def test_a_worker_killed_while_it_starts_is_an_error_within_seconds() -> None:
    source = array_source()
    assert source.images.nbytes > 2**16  # more than a pipe holds

    def kill() -> None:
        while not (found := multiprocessing.active_children()):
            time.sleep(0.001)
        found[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with train_stream(data_config(num_workers=2), source) as stream:
        begun = time.monotonic()
        with pytest.raises(DataError, match=r"died \(killed by SIGKILL\)"):
            list(stream)  # the other one's first batch may come before
        assert time.monotonic() - begun < GUARD
    killer.join()
    assert not multiprocessing.active_children()


class SlowSource(ArraySource):
    """Images that take their time."""

    def record(self, index: int):
        time.sleep(0.1)
        return super().record(index)


def test_a_worker_that_has_made_its_share_is_not_missed(monkeypatch) -> None:
    monkeypatch.setattr(watched, "_DEAD_SECONDS", 0.3)
    quick = array_source()
    source = SlowSource(quick.description, quick.images, quick.labels(), list("abcdefg"))
    config = data_config(num_workers=2, num_threads=1)
    with train_stream(config, source, num_steps=1) as stream:
        assert len(list(stream)) == 1


class QuittingSource(ArraySource):
    """Its last image ends the worker process that reads it, as a library may that calls exit."""

    def record(self, index: int):
        if index == len(self) - 1 and multiprocessing.parent_process() is not None:
            os._exit(0)
        return super().record(index)


def quitting(config, step: int) -> QuittingSource:
    """Returns a source of 40 batches whose last image is in the batch of `step`."""
    images = np.zeros((640, 32, 32, 3), np.uint8)
    config.seed = next(
        seed for seed in range(1000) if 639 in batches.batch_indices(seed, step, 640, 16)[1]
    )
    return QuittingSource("test", images, np.arange(640) % 7, list("abcdefg"))


@pytest.mark.parametrize(("num_workers", "num_steps"), [(1, None), (2, None), (3, 40)])
def test_a_worker_that_ends_without_an_error_is_missed(monkeypatch, num_workers, num_steps) -> None:
    monkeypatch.setattr(watched, "_DEAD_SECONDS", 0.3)
    config = data_config(num_workers=num_workers)
    source = quitting(config, 9)
    begun = time.monotonic()
    with (
        train_stream(config, source, num_steps=num_steps) as stream,
        pytest.raises(DataError, match=r"died \(exit code 0\)"),
    ):
        list(itertools.islice(stream, 10))
    assert time.monotonic() - begun < GUARD
    assert not multiprocessing.active_children()
    assert not watched.any_stuck()


def test_near_the_end_of_a_stream_a_worker_is_missed_later(monkeypatch) -> None:
    monkeypatch.setattr(watched, "_DEAD_SECONDS", 0.3)
    monkeypatch.setattr(watched, "_PATIENT_SECONDS", 1.0)
    config = data_config(num_workers=2)
    with (
        train_stream(config, quitting(config, 11), num_steps=12) as stream,
        pytest.raises(DataError, match=r"died \(exit code 0\)"),
    ):
        list(stream)


@pytest.fixture
def no_data(monkeypatch):
    """Batches from number 1 on never come, until the test is over."""
    released = threading.Event()
    original = batches.BatchMaker.__call__

    def call(self: batches.BatchMaker, step: int):
        if step >= 1:
            released.wait()
        return original(self, step)

    monkeypatch.setattr(batches.BatchMaker, "__call__", call)
    monkeypatch.setattr(watched, "_CLOSE_SECONDS", 0.1)
    yield
    released.set()


def after(seconds: float, *numbers: signal.Signals) -> threading.Thread:
    """Sends this process signals."""

    def send() -> None:
        for number in numbers:
            time.sleep(seconds)
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_stop_ends_the_wait_for_a_batch(no_data, number) -> None:
    with (
        StopRequest() as stop,
        train_stream(data_config(), array_source(), stop=stop.ends_wait) as stream,
    ):
        next(stream)
        sender = after(0.3, number)
        assert list(stream) == []
        sender.join()


def test_a_second_interrupt_ends_any_wait_for_a_batch(no_data) -> None:
    with StopRequest(), train_stream(data_config(), array_source()) as stream:
        next(stream)
        sender = after(0.3, signal.SIGINT, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
        sender.join()


def test_one_of_several_processes_waits_for_its_batch_but_not_for_ever(monkeypatch) -> None:
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with StopRequest() as stop:
        assert not stop.ends_wait(1000.0)
        signal.raise_signal(signal.SIGTERM)
        assert not stop.ends_wait(1.0)
        with pytest.raises(TrainingError, match="no batch has arrived for 100 s"):
            stop.ends_wait(100.0)


# A run whose third batch never comes, as from a disk that does not answer.
STUCK = """
import sys, time
from hjepa_jax.recipes import quickstart
from hjepa_jax import main
from hjepa_jax.tools import doctor
from hjepa_jax.data import batches
original = batches.BatchMaker.__call__
def call(self, step):
    if step >= 2:
        time.sleep(1000)
    return original(self, step)
batches.BatchMaker.__call__ = call
main.run()
"""


def test_sigterm_saves_and_ends_a_run_that_waits_for_data(tmp_path) -> None:
    command = [sys.executable, "-c", STUCK, "--config=configs/quickstart.py:smoke"]
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(
            [
                *command,
                "--config.data.device_prefetch=1",
                f"--workdir={tmp_path}/run",
                "--config.train.max_steps=4",
            ],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + GUARD
        while "step 1/" not in (tmp_path / "log").read_text():
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=GUARD) == 0
    finally:
        run.kill()
    assert "stopped as requested after step 2 of 4" in (tmp_path / "log").read_text()
    assert (tmp_path / "run/checkpoints/2").is_dir()


@pytest.mark.parametrize(
    ("end", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "KeyboardInterrupt"),
        (SystemExit("hjepa_jax: a sentence"), 1, "hjepa_jax: a sentence\n"),
        (SystemExit(None), 0, ""),
        (SystemExit(3), 3, ""),
        (RuntimeError("broken"), 1, "RuntimeError: broken"),
    ],
)
def test_a_program_ends_though_a_read_never_returns(monkeypatch, capsys, end, code, words) -> None:
    """The interpreter would join the thread that reads."""
    codes = []

    def run(*_: object, **__: object) -> None:
        raise end

    monkeypatch.setattr("hjepa_jax.main.PROGRAM.run", run)
    monkeypatch.setattr("hjepa_jax.main.os._exit", codes.append)
    with pytest.raises(type(end)):
        main.run()
    assert codes == []
    monkeypatch.setattr(watched, "any_stuck", lambda: True)
    with pytest.raises(type(end)):
        main.run()
    assert codes == [code]
    assert words in capsys.readouterr().err


needs_shared_memory = pytest.mark.skipif(not blocks.FOLDER.is_dir(), reason="needs /dev/shm")


# Batches, and what the workers and their parent wait for each other with.
KINDS = {"hjepa_jax", "sem.hjepa_jax"}


def left(pid: int) -> list[pathlib.Path]:
    return list(blocks.FOLDER.glob(f"*hjepa_jax-*-{pid}-*"))


@needs_shared_memory
def test_what_a_run_leaves_that_was_killed_with_its_workers_is_removed(tmp_path) -> None:
    """As out of memory, or by a scheduler; test_pipeline kills the parent alone."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    parent.stdout.close()
    deadline = time.monotonic() + GUARD
    # Looked at before the kill: behind it another run that starts may remove them first.
    while {path.name.partition("-")[0] for path in left(parent.pid)} != KINDS:
        assert time.monotonic() < deadline, "the case is not the one that is tested"
        time.sleep(0.02)
    os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    blocks.remove_leftovers()
    assert left(parent.pid) == []


@needs_shared_memory
def test_nothing_is_collected_while_blocks_are_removed(monkeypatch) -> None:
    """A semaphore that is collected in the middle of a note cannot note its own end."""
    prefix, seen = blocks.new_prefix(), []

    def note(name: str, kind: str) -> None:
        seen.append((name, kind, gc.isenabled()))

    for way in ("register", "unregister"):
        monkeypatch.setattr(blocks.resource_tracker, way, note)
    (blocks.FOLDER / f"{prefix}0").touch()
    blocks.remove(prefix)
    assert seen == [(f"/{prefix}0", "shared_memory", False)] * 2
    assert gc.isenabled()


@needs_shared_memory
def test_only_blocks_of_runs_that_have_ended_are_removed() -> None:
    mine = blocks.FOLDER / f"{blocks.new_prefix()}1-0"
    namespace, pid, begun = mine.name.split("-")[1:4]
    others = [
        blocks.FOLDER / name
        for name in (
            f"hjepa_jax-{int(namespace) + 1}-{pid}-1-0-1-0",  # another container's
            f"hjepa_jax-{namespace}-odd",
            f"hjepa_jax-{namespace}-x-1-0-1-0",
        )
    ]
    dead = [
        blocks.FOLDER / f"hjepa_jax-{namespace}-{pid}-{int(begun) + 1}-0-1-0",  # its number again
        blocks.FOLDER / f"hjepa_jax-{namespace}-99999999-1-0-1-0",
    ]
    try:
        for path in (mine, *others, *dead):
            path.write_bytes(b"x")
        assert blocks.remove_leftovers() >= 2
        assert not any(path.exists() for path in dead)
        assert all(path.exists() for path in (mine, *others))
    finally:
        for path in (mine, *others, *dead):
            path.unlink(missing_ok=True)


def test_too_little_shared_memory_is_named_before_the_start(monkeypatch) -> None:
    size = batches.batch_bytes(typed(data_config()).data, array_source())
    assert size == 2 * 16 * 32 * 32 * 3
    config = data_config(num_workers=2, prefetch_batches=4)
    monkeypatch.setattr(blocks, "free_bytes", lambda: 12 * size - 1)
    with pytest.raises(DataError, match=r"/dev/shm, .*num_workers=0.*--shm-size=8g or --ipc=host"):
        train_stream(config, array_source())
    assert not multiprocessing.active_children()
    monkeypatch.setattr(blocks, "free_bytes", lambda: 12 * size)
    assert blocks.shortage(12 * size) is None


@needs_shared_memory
@pytest.mark.parametrize(("free", "shown"), [(2**18, "0.2 MiB free"), (2**30, "1024 MiB free")])
def test_the_doctor_tells_whether_shared_memory_suffices(monkeypatch, free, shown) -> None:
    config = quickstart.get_config("smoke")
    assert list(doctor.check_shared_memory(typed(config))) == []
    config.data.num_workers = 2
    monkeypatch.setattr(blocks, "free_bytes", lambda: free)
    (finding,) = doctor.check_shared_memory(typed(config))
    assert finding.fact == f"{shown}, 0.3 MiB needed by data.num_workers"
    assert ("--shm-size" in (finding.remedy or "")) == (free == 2**18)


def test_shared_memory_that_fills_up_is_named(monkeypatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    maker = batches.BatchMaker(typed(data_config()).data, 0, array_source())
    prefix = blocks.new_prefix()
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DataError, match=r"/dev/shm.* has no space for an array of 0\.0 MiB.*--shm"):
        blocks.Share(prefix)(maker(0))
    assert list(blocks.FOLDER.glob(f"{prefix}*")) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOENT, errno.ENOSPC])
def test_shared_memory_that_cannot_be_used_at_all_is_named(monkeypatch, number) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("multiprocessing.synchronize.SemLock.__init__", fail)
    with (
        train_stream(data_config(num_workers=2), array_source()) as stream,
        pytest.raises(DataError, match=r"cannot be set up .*num_workers=0.*/dev/shm exists"),
    ):
        next(stream)


@needs_shared_memory
def test_batches_fit_where_shared_memory_is_told_to_suffice() -> None:
    """The most that was ever in shared memory stays below what is asked for at the start."""
    config = data_config(num_workers=2, prefetch_batches=4, num_threads=2)
    mine, seen = f"hjepa_jax-*-{os.getpid()}-*", []
    with train_stream(config, array_source(), num_steps=40) as stream:
        for _ in stream:
            time.sleep(0.01)
            seen.append(len(list(blocks.FOLDER.glob(mine))))
    arrays = 3
    assert arrays < max(seen) <= arrays * blocks.in_flight(2, 2)
    assert list(blocks.FOLDER.glob(mine)) == []
