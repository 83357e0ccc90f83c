"""Allows one training run per workdir at a time.

Not `filelock`: its timeout does not name the holder, it locks hard links, and it misses a deleted
  file.
"""

from __future__ import annotations

import json
import logging
import os
import pathlib
import socket
import stat
from types import TracebackType

from hjepa_jax.errors import CheckpointError
from hjepa_jax.runtime import distributed
from hjepa_jax.storage.files import kind_of, printable
from hjepa_jax.storage.lock import take_lock
from hjepa_jax.storage.schema import Fields, Text, Whole, parse_json

_log = logging.getLogger(__name__)
_HOLDER = Fields({"pid": Whole(0), "host": Text(most=300)})


class WorkdirLock:
    """Locks the file `lock` in a workdir; the kernel releases it whenever the process ends.

    The file stays: removing it would let two processes lock two files of the same name. Of several
    processes of a run, only process 0 takes the lock.
    """

    def __init__(self, workdir: pathlib.Path):
        """Sets the workdir, which is created when the context is entered."""
        self._path = workdir / "lock"
        self._file: int | None = None
        self._folder: tuple[int, int] | None = None

    def __enter__(self) -> WorkdirLock:
        """Takes the lock.

        Raises:
          CheckpointError: if another process holds it (process and host are named), or `lock` is
            not a regular file with a single name.
        """
        if not distributed.is_primary():
            return self
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._folder = _identity(os.stat(self._path.parent))
            self._file = self._take()
        except OSError as error:
            raise CheckpointError(
                f"{self._path} cannot be written ({error.strerror}): make {self._path.parent} "
                f"writable, or choose another --workdir."
            ) from error
        return self

    def check(self) -> None:
        """Checks that this process still holds its workdir.

        A deleted lock file is recreated; nothing is written to a deleted workdir.

        Raises:
          CheckpointError: if the workdir was deleted or replaced, or another process took it.
        """
        if self._file is None:
            return
        try:
            folder = _identity(os.stat(self._path.parent))
            if folder == self._folder and self._is_ours():
                return
        except (FileNotFoundError, NotADirectoryError):
            folder = None
        except OSError as error:  # a failing disk or network has its own message, at the save
            _log.warning("%s cannot be checked (%s)", self._path, error)
            return
        if folder != self._folder:
            raise CheckpointError(
                f"{self._path.parent} was deleted, moved or replaced while this run was training "
                "in it: the run ends and writes nothing more to it. If the folder was moved, move "
                "it back; then run the same command again."
            )
        _log.warning("%s was deleted or replaced while this run holds it: taken again", self._path)
        earlier, self._file = self._file, self._take()
        os.close(earlier)

    def _is_ours(self) -> bool:
        assert self._file is not None
        try:
            there = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return _identity(there) == _identity(os.fstat(self._file))

    def _take(self) -> int | None:
        """Opens and locks the file; returns None if the file system does not support locks.

        Raises:
          CheckpointError: if another process holds the lock or the path is not a plain file.
          OSError: if the file cannot be opened.
        """
        if (kind := _other_than_own_file(self._path)) is not None:
            raise CheckpointError(
                f"{self._path} is {kind}, which is never overwritten: remove it, or choose another "
                "--workdir."
            )
        # It may have become a link: writing through it would overwrite a file elsewhere.
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        file = os.open(self._path, flags, 0o644)
        try:
            answer = take_lock(file)
        except OSError:
            os.close(file)
            raise
        if answer == "held":
            holder = os.read(file, 1000).decode(errors="replace")
            os.close(file)
            raise CheckpointError(self._sentence(holder))
        if answer == "unsupported":
            os.close(file)
            _log.warning(
                "%s cannot be locked: do not start a second run in this workdir.", self._path
            )
            return None
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        return file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _sentence(self, holder: str) -> str:
        try:
            named = parse_json(holder, _HOLDER, self._path)
            who = f"process {named['pid']} on {printable(named['host'])}"
        except ValueError:
            who = "another process"  # its name is not written yet
        return (
            f"{who} is training in {self._path.parent}: wait for it or stop it, or choose another "
            "--workdir."
        )


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _other_than_own_file(path: pathlib.Path) -> str | None:
    """Describes what is at a path; None if nothing or a file without other names."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(found.st_mode):
        return "a symbolic link"
    if not stat.S_ISREG(found.st_mode):
        return kind_of(found.st_mode)
    # Writing to a hard link changes the other file too.
    return "a hard link to another file" if found.st_nlink > 1 else None
