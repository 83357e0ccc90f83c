"""A server on this machine and an empty cache."""

import pathlib
from collections.abc import Iterator

import pytest
from file_server import FileServer, serving


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as running:
        yield running


@pytest.fixture
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    """The cache of this process and those that it starts; it does not exist yet."""
    monkeypatch.setenv("HJEPA_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"
