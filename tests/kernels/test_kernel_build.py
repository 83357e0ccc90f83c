"""Building the native kernels: switched off, without a compiler, or damaged."""

import logging

import pytest

from hjepa_jax.kernels import build


@pytest.fixture
def fresh_kernels():
    """Returns `kernels` without its cache; what is registered stays registered."""
    build.kernels.cache_clear()
    yield build.kernels
    build.kernels.cache_clear()


def test_switched_off_is_no_warning(fresh_kernels, monkeypatch, caplog) -> None:
    monkeypatch.setenv("HJEPA_JAX_NATIVE", "off")
    assert not fresh_kernels()
    assert fresh_kernels().description == "switched off by HJEPA_JAX_NATIVE"
    assert not caplog.records


def test_without_a_compiler_a_warning_says_what_to_do(fresh_kernels, monkeypatch, caplog) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    for _ in range(2):
        assert not fresh_kernels()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "no C++ compiler (no-such-compiler) is on the PATH" in record.getMessage()
    assert "HJEPA_JAX_NATIVE=off" in record.getMessage()


def test_a_compiler_that_fails_leaves_nothing_behind(
    fresh_kernels, monkeypatch, tmp_path, caplog
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "error: no" >&2; exit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not fresh_kernels()
    assert f"{compiler} fails: error: no" in caplog.records[-1].getMessage()
    assert list((tmp_path / "hjepa_jax/native").iterdir()) == []


def test_a_damaged_library_is_reported(fresh_kernels, monkeypatch, tmp_path, caplog) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(b"no library")
    monkeypatch.setattr(build, "_library", lambda: (library, "_suffix", "compiler"))
    assert not fresh_kernels()
    assert str(library) in caplog.records[-1].getMessage()
