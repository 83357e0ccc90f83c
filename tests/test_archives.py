"""Tar archives as a stream: members as `tarfile` lists them, within bounds."""

import io
import random
import tarfile
import time
from typing import Any

import pytest

from hjepa_jax.data import archives
from hjepa_jax.data.archives import ArchiveError

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
