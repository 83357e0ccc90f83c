"""Tar archives as a stream: members as `tarfile` lists them, within bounds."""

import io
import random
import tarfile
import time
from typing import Any

import pytest

from hjepa_jax.data.formats import archives
from hjepa_jax.data.formats.archives import ArchiveError

CONTENTS = {"a.bin": b"x" * 1000, "folder/b": b"", "n" * 300 + "/ü": b"y" * 512, "c": b"z"}


def make(path, mode: Any = "w", form: int = tarfile.GNU_FORMAT, contents=None):
    with tarfile.open(path, mode, format=form) as archive:
        for name, content in (CONTENTS if contents is None else contents).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def listed(path, limit: int = 1 << 20, headers: int = 100):
    with archives.opened(path, limit, headers) as archive:
        return [
            (member.name, member.kind, archive.read(member.size)) for member in archive.members()
        ]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(mode, form, tmp_path) -> None:
    path = make(tmp_path / "x", mode, form)
    assert listed(path) == [(name, archives.FILE, data) for name, data in CONTENTS.items()]


def test_an_archive_without_an_end_mark_is_read(tmp_path) -> None:
    path = make(tmp_path / "x", contents={"a": b"1"})
    path.write_bytes(path.read_bytes()[:1024])
    assert listed(path) == [("a", archives.FILE, b"1")]


def test_what_is_no_file_is_told(tmp_path) -> None:
    kinds = {
        tarfile.SYMTYPE: "a link",
        tarfile.LNKTYPE: "a link",
        tarfile.FIFOTYPE: "a pipe",
        tarfile.CHRTYPE: "a device",
        tarfile.BLKTYPE: "a device",
        tarfile.DIRTYPE: archives.FOLDER,
    }
    with tarfile.open(tmp_path / "x", "w") as archive:
        for number, kind in enumerate(kinds):
            member = tarfile.TarInfo(f"m{number}")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    assert [kind for _, kind, _ in listed(tmp_path / "x")] == list(kinds.values())


def header(kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo("x")
    member.type, member.size = kind, size
    return member.tobuf()


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K", b"X"])
def test_the_header_of_a_name_is_bounded(kind, tmp_path) -> None:
    (tmp_path / "x").write_bytes(header(kind, 1 << 30) + bytes(10_000))
    with pytest.raises(ArchiveError, match="header of a name claims 1073741824 bytes"):
        listed(tmp_path / "x", 1 << 40)
    (tmp_path / "x").write_bytes(header(kind, 0) * 200)
    with pytest.raises(ArchiveError, match="too many members"):
        listed(tmp_path / "x")
    (tmp_path / "x").write_bytes(header(kind, 0) + bytes(1024))
    with pytest.raises(ArchiveError, match="ends after the header"):
        listed(tmp_path / "x")


@pytest.mark.parametrize(
    "record",
    [b"junk", b"99 path=a\n", b"9 path=a", b"-5 a=b\n", b"1 path=a\n", b"0 =\n", b"\xff" * 9],
)
def test_damaged_pax_records_are_refused(record, tmp_path) -> None:
    content = header(b"x", len(record)) + record.ljust(512, b"\0") + header(b"0", 0)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ArchiveError, match="header of a name is damaged"):
        listed(tmp_path / "x")


@pytest.mark.parametrize("size", ["-1", "1e3", "9" * 30, "٣", ""])
def test_sizes_that_are_none_are_refused(size, tmp_path) -> None:
    value = f"size={size}\n".encode()
    record = next(r for n in range(60) if len(r := f"{n} ".encode() + value) == n)
    content = header(b"x", len(record)) + record.ljust(512, b"\0") + header(b"0", 0)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ArchiveError, match=r"claims .* bytes"):
        listed(tmp_path / "x")


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_archives_that_unpack_to_more_than_their_bound_are_stopped(mode, tmp_path) -> None:
    path = make(tmp_path / "x", mode, contents={"zeros": bytes(30 << 20), "a": b"1"})
    assert path.stat().st_size < 100_000
    start = time.monotonic()
    with (
        archives.opened(path, 10 << 20, 100) as archive,
        pytest.raises(ArchiveError, match="unpacks to more than 10 MiB"),
    ):
        list(archive.members())
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_what_is_cut_off_is_damaged(mode, kept, tmp_path) -> None:
    path = make(tmp_path / "x", mode, contents={"a": random.Random(0).randbytes(16384)})
    content = path.read_bytes()[:16000]
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ArchiveError, match=r"ends too early|damaged"):
        listed(path)


def tree(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_files_are_unpacked_below_their_folder(mode, tmp_path) -> None:
    contents = {"./train/a/1.jpg": b"1", "train/b/2.jpg": b"", "n" * 200 + "/ü": b"3"}
    path = make(tmp_path / "x.tar", mode, contents=contents)
    (tmp_path / "out").mkdir()
    archives.unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {
        name.removeprefix("./"): data for name, data in contents.items()
    }


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.size = kind, target, size
    return member.tobuf()


ESCAPES = {
    "a link to a folder": entry("l", tarfile.SYMTYPE, "..") + entry("l/evil"),
    "links in two steps": entry("a", tarfile.SYMTYPE, ".")
    + entry("a/b", tarfile.SYMTYPE, "..")
    + entry("b/evil"),
    "a link within": entry("x") + entry("l", tarfile.SYMTYPE, "x"),
    "a hard link": entry("l", tarfile.LNKTYPE, "../outside"),
    "a parent": entry("../evil"),
    "a parent within": entry("a/../../evil"),
    "an absolute path": entry("/tmp/hjepa_jax_evil"),
    "a pipe": entry("p", tarfile.FIFOTYPE),
    "a device": entry("d", tarfile.CHRTYPE),
    "an enormous file": entry("big", size=1 << 35),
    "a file that is a folder": entry("a") + entry("a/b"),
    "a folder that is a file": entry("a/b") + entry("a"),
}


@pytest.mark.parametrize("case", ESCAPES)
def test_nothing_is_written_outside_and_no_link_made(case, tmp_path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "out").mkdir()
    (tmp_path / "x.tar").write_bytes(ESCAPES[case] + bytes(1024))
    with pytest.raises((ValueError, OSError)):
        archives.unpack(tmp_path / "x.tar", tmp_path / "out")
    found = {name for name in tree(tmp_path) if not name.startswith("out/")}
    assert found == {"outside", "x.tar"}
    assert (tmp_path / "outside").stat().st_nlink == 1
    assert not any(path.is_symlink() or path.is_fifo() for path in (tmp_path / "out").rglob("*"))


def test_a_link_is_named_with_what_to_do(tmp_path) -> None:
    (tmp_path / "x.tar").write_bytes(ESCAPES["a hard link"] + bytes(1024))
    with pytest.raises(ValueError, match=r"Cannot unpack .*x\.tar: l is a link; .*--dereference"):
        archives.unpack(tmp_path / "x.tar", tmp_path)
