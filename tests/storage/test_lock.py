"""Locks on files."""

import errno
import fcntl
import pathlib

import pytest

from hjepa_jax.storage.lock import take_lock


def test_one_open_file_at_a_time_has_the_lock(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lock"
    with path.open("w") as second:
        with path.open("w") as first:
            assert take_lock(first.fileno()) == "taken"
            assert take_lock(second.fileno()) == "held"
        assert take_lock(second.fileno()) == "taken"


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_told(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(file: int, operation: int) -> None:
        raise OSError(number, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert take_lock(0) == "unsupported"


def test_other_errors_are_raised(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "lock").open("w") as file:
        number = file.fileno()
    with pytest.raises(OSError, match="Bad file descriptor"):
        take_lock(number)
