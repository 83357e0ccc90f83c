"""The Python on which `.ci/run` repeats a short set of tests, and that set."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SHORT_SET = ROOT / ".ci/short_set"


@pytest.fixture(scope="module")
def finder():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("other_python", ROOT / ".ci/other_python.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def program(folder: pathlib.Path, version: str, *, works: bool = True) -> str:
    """Makes a program that answers the check as this version, or fails as pyenv's scripts do."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"python{version}"
    path.write_text(f"#!/bin/sh\n{f'echo {version}' if works else 'exit 127'}\n")
    path.chmod(0o755)
    return str(path)


def test_the_newest_that_works_is_chosen(finder, tmp_path) -> None:
    path = {"PATH": f"{tmp_path / 'a'}:{tmp_path / 'b'}"}
    assert finder.newest_other("3.11", path) is None
    older = program(tmp_path / "b", "3.11")
    assert finder.newest_other("3.13", path) == older
    newer = program(tmp_path / "b", "3.12")
    assert finder.newest_other("3.13", path) == newer
    assert finder.newest_other("3.12", path) == older
    # One that does not run hides neither another of its version nor an older one.
    program(tmp_path / "a", "3.13", works=False)
    assert finder.newest_other("3.11", path) == newer
    newest = program(tmp_path / "b", "3.13")
    assert finder.newest_other("3.11", path) == newest


def test_pyenv_s_are_found_and_a_version_that_setup_cfg_does_not_name_is_not(
    finder, tmp_path
) -> None:
    environment = {"PATH": str(tmp_path / "shims"), "PYENV_ROOT": str(tmp_path)}
    program(tmp_path / "shims", "3.13", works=False)
    program(tmp_path / "shims", "3.10")
    assert finder.newest_other("3.11", environment) is None
    found = program(tmp_path / "versions/3.13.0/bin", "3.13")
    assert finder.newest_other("3.11", environment) == found


def test_this_python_passes_the_check_as_its_own_version_alone(finder) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert finder.works(sys.executable, version)
    assert not finder.works(sys.executable, "3.99")
    assert not finder.works("/nowhere/python", version)


def test_the_script_prints_an_empty_line_where_there_is_none(tmp_path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYENV_ROOT"}
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/other_python.py"],
        env=environment | {"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "\n"


def test_the_short_set_is_what_ci_runs_and_names_tests_that_exist() -> None:
    assert "python -m pytest @.ci/short_set\n" in (ROOT / ".ci/run").read_text()
    lines = SHORT_SET.read_text().splitlines()
    assert len(lines) == len(set(lines)) > 5
    for line in lines:
        file, *test = line.split("::")
        text = (ROOT / file).read_text()
        for name in test:
            assert re.search(rf"^def {name.split('[')[0]}\(", text, re.M), line
    rooms = {line.split("/")[1] for line in lines}
    assert rooms >= {"data", "faults", "kernels", "runtime", "training"}
