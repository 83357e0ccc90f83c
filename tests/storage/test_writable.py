"""Paths as people write them, and places that cannot be written to, found before the work."""

import errno
import importlib
import os
import pathlib
import sys

import pytest

from hjepa_jax.errors import UserError
from hjepa_jax.storage import files
from hjepa_jax.storage.files import check_writable_file, check_writable_folder, local_path
from hjepa_jax.tools import cli, doctor
from hjepa_jax.tools.commands import prepare

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_home_and_file_addresses_are_understood(monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for text, expected in {
        "runs/x": "runs/x",
        "~": "/home/someone",
        "~/runs/x": "/home/someone/runs/x",
        "file:///data/runs": "/data/runs",
        "FILE:///data/runs": "/data/runs",
        "file:/data/runs": "/data/runs",
        "file://localhost/data/a%20b": "/data/a b",
        "C:x": "C:x",
        "a:b/c": "a:b/c",
    }.items():
        assert local_path(text, "--workdir") == pathlib.Path(expected), text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gs://bucket/runs", "remote address.*mount"),
        ("s3://bucket/runs", "remote address.*mount"),
        ("hdfs://node:9000/runs", "remote address.*mount"),
        # What pathlib makes of gs://bucket/runs.
        (pathlib.Path("gs://bucket/runs"), "remote address.*mount"),
        ("file://otherhost/runs", "another machine"),
        ("file://runs", "three slashes"),
        ("~nobodyhasthisname/x", "absolute path"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("a\0b", r"character '\\x00'"),
        ("a\nb", r"character '\\n'"),
        ("a\x1b[31mb", r"character '\\x1b'"),
        (os.fsdecode(b"a\xff"), r"character '\\udcff'"),
    ],
)
def test_what_no_path_can_be_is_one_sentence(text, words) -> None:
    with pytest.raises(UserError, match=rf"--workdir.*{words}") as refusal:
        local_path(text, "--workdir")
    assert "\n" not in str(refusal.value)
    str(refusal.value).encode()


def test_a_folder_is_made_and_left_empty(tmp_path) -> None:
    place = tmp_path / "new" / "folder"
    check_writable_folder(place, "--workdir", checkpoints=True)
    assert list(place.iterdir()) == []
    check_writable_folder(tmp_path / "tried" / "alone", "--workdir", keep=False)
    assert not (tmp_path / "tried").exists()
    (place / "kept").write_text("x")
    check_writable_folder(place, "--workdir", keep=False)
    assert [p.name for p in place.iterdir()] == ["kept"]


def _blocked(tmp_path: pathlib.Path) -> dict[str, tuple[pathlib.Path, str]]:
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    return {
        "a file": (tmp_path / "file", "file is a file, not a folder"),
        "under a file": (tmp_path / "file" / "x" / "y", "file is a file, not a folder"),
        "a broken link": (tmp_path / "dangling", "dangling is a broken link"),
        "a long name": (tmp_path / ("n" * 300), "name too long"),
        "a long path": (tmp_path.joinpath(*["n" * 200] * 20), "is too long: choose a shorter path"),
        "proc": (pathlib.Path("/proc/nothing/here"), "cannot be written to"),
    }


@pytest.mark.parametrize(
    "case", ["a file", "under a file", "a broken link", "a long name", "a long path", "proc"]
)
def test_a_place_that_cannot_be_written_to_is_one_sentence(case, tmp_path) -> None:
    if case == "proc" and sys.platform != "linux":
        pytest.skip("only Linux has /proc")
    place, words = _blocked(tmp_path)[case]
    for check in (check_writable_folder, lambda p, what: check_writable_file(p / "out.png", what)):
        with pytest.raises(UserError, match="(?i)" + words) as refusal:
            check(place, "--out")
        assert "\n" not in str(refusal.value)
        assert str(refusal.value).startswith("--out=")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
def test_a_folder_that_takes_no_files_is_one_sentence(number, tmp_path, monkeypatch) -> None:
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", refuse)
    with pytest.raises(UserError, match=rf"--eval_dir=.*{os.strerror(number)}"):
        check_writable_folder(tmp_path / "x", "--eval_dir")


def test_a_file_in_place_is_not_touched_and_a_folder_is_refused(tmp_path) -> None:
    there = tmp_path / "out.html"
    there.write_text("earlier")
    check_writable_file(there, "--out")
    assert there.read_text() == "earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["out.html"]
    with pytest.raises(UserError, match="is a folder"):
        check_writable_file(tmp_path, "--out")
    with pytest.raises(UserError, match="is too long: choose a shorter name"):
        check_writable_file(tmp_path / f"{'n' * 260}.png", "--out")


@pytest.mark.parametrize("name", ["a\\b", "\\", "a\udcffb", "gs:", "s3:/x"])
def test_names_below_which_orbax_loses_checkpoints_are_refused(name, tmp_path) -> None:
    with pytest.raises(UserError, match="checkpoints cannot be found again"):
        check_writable_folder(tmp_path / name / "run", "--workdir", checkpoints=True)
    assert not (tmp_path / name).exists()
    check_writable_folder(tmp_path / name / "run", "--eval_dir")


@pytest.mark.parametrize("name", ["a[1]", "[...]", "a*", "a?", "{a,b}"])
def test_names_that_are_patterns_hold_checkpoints(name, tmp_path) -> None:
    check_writable_folder(tmp_path / name / "run", "--workdir", checkpoints=True)
    assert (tmp_path / name / "run").is_dir()


OUTPUTS = {
    "compare": (["runs/x"], "out=x.html"),
    "import-torch": (["--checkpoint=x.pth"], "workdir=x"),
    "physics": ([], "out=x"),
    "reproduce": ([], "out=x"),
    "views": (["--config=quickstart:smoke"], "out=x.png"),
    "kill-test": ([], "out=x"),
    "sweep": (["--config=quickstart"], "out=x"),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_command_tries_its_output_before_its_work(name, tmp_path) -> None:
    module = importlib.import_module(cli.COMMANDS[name].module)
    (tmp_path / "file").write_text("x")
    arguments, output = OUTPUTS[name]
    flag, _, file = output.partition("=")
    rest = module.PROGRAM.parse([name, *arguments, f"--{flag}={tmp_path}/file/{file}"])
    with pytest.raises(UserError, match=rf"^--{flag}=.*file is a file, not a folder"):
        module.main(rest)


def test_the_doctor_finds_a_place_that_cannot_be_written_to_and_leaves_nothing(tmp_path) -> None:
    (found,) = doctor.check_disk(tmp_path / "runs" / "x")
    assert found.subject == "disk"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("x")
    disk = [f for f in doctor.findings(None, tmp_path / "file") if f.subject == "disk"]
    assert [f.fact for f in disk] == ["failed"]
    assert "file is a file, not a folder" in str(disk[0].remedy)


def test_prepare_tries_its_output_before_its_work(tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    rest = prepare.PROGRAM.parse(["prepare", "nowhere", f"{tmp_path}/file/x"])
    with pytest.raises(UserError, match=r"^OUT=.*file is a file, not a folder"):
        prepare.main(rest)
