"""The fuzzing harness: outcomes are distinguished, and a crash ends only one attempt."""

import pathlib
import textwrap

import pytest

from hjepa_jax.tools.fuzz import harness

TARGET = """
import os, signal, time
from hjepa_jax.errors import DataError


def make(rng, folder):
    kind = ("right", "refused", "silent", "wrong", "crash", "exit", "hang")[int(os.environ["KIND"])]

    def attempt():
        assert folder.is_dir() and not list(folder.iterdir())
        print("not a reply")
        if kind == "refused":
            raise DataError("This file is empty.")
        if kind == "silent":
            raise DataError("")
        if kind == "wrong":
            raise AssertionError("2 is not 3")
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "exit":
            os._exit(7)
        if kind == "hang":
            time.sleep(60)

    return f"a {kind} input, {rng.randrange(100)}", attempt
"""


@pytest.fixture
def target(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "odd_inputs.py").write_text(textwrap.dedent(TARGET))
    root = pathlib.Path(__file__).resolve().parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{root}")
    return "odd_inputs"


@pytest.mark.parametrize(
    ("kind", "refused", "right", "text"),
    [
        (0, 0, 2, ""),
        (1, 2, 0, ""),
        (2, 0, 0, "without a sentence"),
        (3, 0, 0, "AssertionError: 2 is not 3"),
        (4, 0, 0, "SIGSEGV"),
        (5, 0, 0, "exit status 7"),
        (6, 0, 0, "not finished within 0.5 s"),
    ],
)
def test_outcomes_are_distinguished(kind, refused, right, text, target, monkeypatch) -> None:
    monkeypatch.setenv("KIND", str(kind))
    report = harness.run(target, seed=3, count=2, seconds=0.5)
    assert (report.tried, report.refused, report.right) == (2, refused, right)
    assert len(report.other) == 2 - refused - right
    assert all(text in line for line in report.other)
    assert f"{len(report.other)} defects" in str(report)


def test_an_attempt_can_be_repeated_alone(target, monkeypatch) -> None:
    monkeypatch.setenv("KIND", "3")
    both = harness.run(target, seed=1, count=2).other
    assert harness.run(target, seed=1, count=1, first=1).other == both[1:]
    assert harness.run(target, seed=2, count=2).other != both


@pytest.mark.parametrize(
    ("name", "count"),
    [("data", 40), ("torch", 40), ("images", 25), ("runs", 25), ("reports", 30)],
)
def test_no_attempt_of_a_target_finds_a_defect(name, count) -> None:
    report = harness.run(harness.TARGETS[name], seed=17, count=count, seconds=90.0)
    assert report.tried == count
    assert report.other == []
    assert report.refused > 0, report
    assert report.right > 0, report


def test_the_command_reports_and_fails_on_defects(target, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(harness.TARGETS, "data", target)
    out = tmp_path / "report.txt"
    for kind, status in (("0", 0), ("1", 0), ("3", 1)):
        monkeypatch.setenv("KIND", kind)
        with pytest.raises(SystemExit) as end:
            harness.main(["data", "--seed=0", "--count=2", f"--out={out}"])
        assert end.value.code == status
        assert out.read_text().startswith("tried 2: ")
