"""Batches in shared memory, in named blocks, so that no block outlives its run.

A block's name identifies the process that will read it. Blocks of a killed run are removed by its
workers or, if those were killed too, by the next run on the machine.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import itertools
import multiprocessing
import os
import pathlib
from collections.abc import Iterator, Mapping
from multiprocessing import resource_tracker, shared_memory

import numpy as np
import numpy.typing as npt
from grain.multiprocessing import SharedMemoryArray

from hjepa_jax.errors import DataError

FOLDER = pathlib.Path("/dev/shm")
_NAME = "hjepa_jax"
_streams = itertools.count()
_blocks = itertools.count()
REMEDY = (
    "set data.num_workers=0 or lower data.prefetch_batches; in Docker, give the container more "
    "with --shm-size=8g or --ipc=host"
)


def _started(pid: int) -> str:
    """Returns the start time of a process in clock ticks; '' if there is no such process."""
    try:
        text = pathlib.Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def _machine() -> str:
    """Returns the id of this process's PID namespace."""
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "0"


def _run() -> str:
    """Returns the prefix of all names used by this process."""
    pid = os.getpid()
    return f"{_NAME}-{_machine()}-{pid}-{_started(pid)}"


def new_prefix() -> str:
    """Returns the name prefix for the blocks of a new stream."""
    return f"{_run()}-{next(_streams)}-"


def name_semaphores() -> None:
    """Names the semaphores of this process's queues like its blocks, if they are files.

    Python removes them at exit, but not if the process and its helpers are killed.
    """
    configuration = getattr(multiprocessing.current_process(), "_config", None)
    if FOLDER.is_dir() and isinstance(configuration, dict) and "semprefix" in configuration:
        configuration["semprefix"] = f"/{_run()}-sem"


def _files(beginning: str) -> list[pathlib.Path]:
    return list(FOLDER.glob(f"{beginning}*")) if FOLDER.is_dir() else []


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """A context without garbage collection."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def remove(prefix: str) -> None:
    """Removes the blocks of a stream whose processes have ended."""
    # A collected semaphore notes its end as well, which Python refuses inside another note (CPython
    # issue 109629): it would leak.
    with _without_collection():
        for path in _files(prefix):
            with contextlib.suppress(OSError):
                path.unlink()
            # Registered first: its creator may not have done so yet, and Python would complain.
            for note in (resource_tracker.register, resource_tracker.unregister):
                note(f"/{path.name}", "shared_memory")


def remove_leftovers() -> int:
    """Removes the blocks and semaphores of ended runs on this machine; returns their number."""
    removed = 0
    beginning = f"{_NAME}-{_machine()}-"
    for path in (*_files(beginning), *_files(f"sem.{beginning}")):
        parts = path.name.split("-")
        if len(parts) < 5 or not parts[2].isdigit() or _started(int(parts[2])) == parts[3]:
            continue
        with contextlib.suppress(OSError):  # of another user
            path.unlink()
            removed += 1
    return removed


def free_bytes() -> int | None:
    """Returns the free bytes of shared memory; None if unknown."""
    try:
        found = os.statvfs(FOLDER)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def in_flight(num_workers: int, per_worker: int) -> int:
    """Returns the maximum number of batches in shared memory at once.

    Each worker fills its queue of `per_worker` batches and makes one more; grain's reader of the
    queue holds as many again.
    """
    return num_workers * 2 * (per_worker + 1)


def mib(size: int) -> str:
    """Formats a number of bytes in MiB."""
    return f"{size / 2**20:.1f} MiB" if size < 100 * 2**20 else f"{size / 2**20:.0f} MiB"


def unusable(error: OSError) -> str:
    """Returns the error message for shared memory that cannot even hold semaphores."""
    return (
        f"Worker processes cannot be set up ({error}): {REMEDY}, and check that {FOLDER} exists "
        f"and is writable."
    )


def shortage(needed: int) -> str | None:
    """Returns an error message if shared memory has less than `needed` bytes free, else None."""
    free = free_bytes()
    if free is None or free >= needed:
        return None
    return (
        f"{FOLDER}, the shared memory through which worker processes pass their batches, has "
        f"{mib(free)} free, but the batches in flight take up to {mib(needed)}: {REMEDY}."
    )


def _new_block(name: str, size: int) -> shared_memory.SharedMemory:
    """Creates a block and allocates its memory; without that, writing to a full system is fatal."""
    if not FOLDER.is_dir():
        return shared_memory.SharedMemory(create=True, size=size)
    path = FOLDER / name
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW, 0o600)
    try:
        os.ftruncate(file, size)
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            path.unlink()
            raise
    finally:
        os.close(file)
    return shared_memory.SharedMemory(name)


class Share:
    """Moves a worker's batches into shared memory; can be pickled."""

    def __init__(self, prefix: str):
        """Stores the name prefix of the blocks, from `new_prefix`."""
        self._prefix = prefix

    def __call__(
        self, made: tuple[Mapping[str, npt.NDArray], list[str]]
    ) -> tuple[dict[str, npt.NDArray], list[str]]:
        """Returns the batch in shared memory, and the messages.

        Raises:
          DataError: if there is not enough space.
        """
        batch, messages = made
        return {name: self._moved(array) for name, array in batch.items()}, messages

    def _moved(self, array: npt.NDArray) -> npt.NDArray:
        if array.nbytes == 0:
            return array
        name = f"{self._prefix}{os.getpid()}-{next(_blocks)}"
        try:
            block = _new_block(name, array.nbytes)
        except OSError as error:
            free = free_bytes()
            room = "" if free is None else f" ({mib(free)} are free)"
            raise DataError(
                f"{FOLDER}, the shared memory through which worker processes pass their batches, "
                f"has no space for an array of {mib(array.nbytes)}{room}: "
                f"{error.strerror}. To continue, {REMEDY}."
            ) from error
        shared = SharedMemoryArray.from_shared_memory(block, array.shape, array.dtype)
        np.copyto(shared, array, casting="no")
        return shared


def taken_out(values: npt.NDArray) -> npt.NDArray:
    """Copies an array to ordinary memory and frees its shared block at once.

    Grain frees blocks in a background thread, which may not run before the program exits.
    """
    copied = np.array(values)
    block = getattr(values, "shm", None)
    if block is not None:
        setattr(values, "_unlink_on_del", False)  # noqa: B010
        with contextlib.suppress(FileNotFoundError):
            block.unlink()
    return copied
