"""Reading files that others provide: regular ones of a bounded size alone."""

import os
import pathlib
import socket
import stat
import tempfile

import pytest

from hjepa_jax.storage.files import UnfitFileError, check_regular, printable, read_regular

LIMIT = 1 << 20


def make_odd(kind: str, path: pathlib.Path) -> None:
    """Puts something at a path that is no regular file of a sane size."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a folder":
        path.symlink_to(path.parent)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made, tempfile.TemporaryDirectory() as short:
            # The path of a socket may have only about a hundred characters.
            made.bind(f"{short}/s")
            os.rename(f"{short}/s", path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(5 << 30)


ODD = ("pipe", "link to a device", "folder", "link to a folder", "socket", "huge")


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("read", [check_regular, read_regular])
def test_what_is_no_file_of_a_sane_size_is_refused(kind, read, tmp_path) -> None:
    path = tmp_path / "image.png"
    make_odd(kind, path)
    with pytest.raises(UnfitFileError, match=r"image\.png (is a|has 5368709120 bytes)"):
        read(path, LIMIT)


@pytest.mark.parametrize("size", [0, 1, LIMIT - 1, LIMIT])
def test_regular_files_are_read_whole(size, tmp_path) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", LIMIT) == content
    assert check_regular(str(tmp_path / "link"), LIMIT).st_size == size
    with pytest.raises(UnfitFileError, match="at most"):
        read_regular(tmp_path / "file", size - 1)


def test_a_file_without_a_true_size_is_read_within_the_bound() -> None:
    path = pathlib.Path("/proc/self/status")
    if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
        pytest.skip("there is no /proc")
    assert read_regular(path, LIMIT).startswith(b"Name:")
    with pytest.raises(UnfitFileError, match="more than 10 bytes"):
        read_regular(path, 10)


def test_what_does_not_exist_stays_an_os_error(tmp_path) -> None:
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    for name in ("broken", "absent"):
        with pytest.raises(FileNotFoundError):
            read_regular(tmp_path / name, LIMIT)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"plain.png", "plain.png"),
        ("Größe.png".encode(), "Größe.png"),
        (b"\xff\xfe.png", r"\xff\xfe.png"),
        (b"two\nlines\x1b[1m", r"two\nlines\x1b[1m"),
    ],
)
def test_names_are_shown_in_printable_characters(name, shown) -> None:
    assert printable(os.fsdecode(name)) == shown
    printable(os.fsdecode(name)).encode()
