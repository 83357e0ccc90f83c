"""Archives in the cache: on request, once for all processes, complete or not at all, offline."""

import hashlib
import io
import os
import pathlib
import pty
import subprocess
import sys
import tarfile
import threading

import pytest
from file_server import FileServer
from offered_archives import offered, packed

from hjepa_jax.data.download import cache_folder, store
from hjepa_jax.data.download.catalog import CATALOG, Archive, Checksum
from hjepa_jax.data.download.store import stored
from hjepa_jax.errors import DataError, UserError

FILES = {"a/one.bin": b"1" * 5000, "a/b/two.bin": b"2" * 3000}

# Prints what `stored` returns, or the error.
STORED = """
import sys
from hjepa_jax.data.download.catalog import Archive, Checksum
from hjepa_jax.data.download.store import stored

url, size, digits, download = sys.argv[1:]
archive = Archive("small", url, int(size), Checksum("md5", digits), 1 << 20)
try:
    print(stored(archive, download=download == "yes"))
except (ValueError, OSError) as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture
def archive(server: FileServer, cache: pathlib.Path) -> Archive:
    return offered(server, "small", packed(FILES))


def command(archive: Archive, download: str) -> list[str]:
    arguments = (archive.url, str(archive.size), archive.checksum.digits, download)
    return [sys.executable, "-c", STORED, *arguments]


def content(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def visible(cache: pathlib.Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if not path.name.endswith(".lock"))


def test_the_catalog_states_what_is_published() -> None:
    assert {name: archive.checksum.digits for name, archive in CATALOG.items()} == {
        "cifar10": "c58f30108f718f92721af3b95e74349a",
        "cifar100": "eb9058c3a382ffc7106e4002c42a8d85",
        "stl10": "91f7769df0f17e558f3565bffb0c7dfb",
        "imagenette": "e793b78cc4c9e9a4ccc0c1155377a412",
    }
    assert all(archive.checksum.kind == "md5" for archive in CATALOG.values())


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HJEPA_DATA", "~/elsewhere")
    assert cache_folder.data_folder() == tmp_path / "elsewhere"
    monkeypatch.delenv("HJEPA_DATA")
    assert cache_folder.data_folder() == tmp_path / ".cache/hjepa_jax/data"
    monkeypatch.setenv("HJEPA_DATA", "s3://bucket/x")
    with pytest.raises(UserError, match="HJEPA_DATA=s3://bucket/x is a remote address"):
        cache_folder.data_folder()


def test_an_archive_is_unpacked_once_and_used_offline(server, cache, archive) -> None:
    folder = stored(archive, download=True)
    assert folder == cache / "small"
    assert content(folder) == FILES
    assert visible(cache) == ["small"]
    server.status["/small.tar.gz"] = 404
    assert stored(archive, download=True) == folder
    assert stored(archive, download=False) == folder
    assert len(server.requests) == 1


def test_nothing_is_sent_without_consent(server, cache, archive) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        stored(archive, download=False)
    place = f"put it at {cache / 'small.tar.gz'}"
    for words in ("data.download=True", archive.url, str(archive.checksum), place, "data.root"):
        assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert server.requests == []
    assert not cache.exists()


@pytest.mark.parametrize(("answer", "requests"), [(b"y\n", 1), (b"n\n", 0), (b"\n", 0)])
def test_somebody_at_a_terminal_is_asked(answer, requests, server, cache, archive) -> None:
    own, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            command(archive, "no"), stdin=theirs, stderr=theirs, stdout=subprocess.PIPE, text=True
        )
        os.write(own, answer)
        printed, _ = process.communicate(timeout=120)
        asked = os.read(own, 100_000).decode()
    finally:
        os.close(own)
        os.close(theirs)
    assert f"Download 0.0 MB from {archive.url} to {cache / 'small'}? [y/N]" in asked
    assert len(server.requests) == requests
    if requests:
        assert printed == f"{cache / 'small'}\n"
        assert content(cache / "small") == FILES
    else:
        assert printed.startswith("FileNotFoundError: small is not in the cache")


def test_an_archive_put_into_the_cache_by_hand_is_checked_used_and_kept(
    server, cache, archive
) -> None:
    cache.mkdir()
    place = cache / "small.tar.gz"
    place.write_bytes(b"something else")
    with pytest.raises(DataError) as caught:
        stored(archive, download=False)
    assert str(archive.checksum) in str(caught.value)
    assert f"md5 {hashlib.md5(b'something else').hexdigest()}" in str(caught.value)
    place.write_bytes(server.files["/small.tar.gz"])
    assert content(stored(archive, download=False)) == FILES
    assert visible(cache) == ["small", "small.tar.gz"]
    assert server.requests == []


def test_two_processes_at_once_download_once(server, cache, archive) -> None:
    server.hold = threading.Event()
    messages, errors = os.pipe()
    processes = [
        subprocess.Popen(command(archive, "yes"), stdout=subprocess.PIPE, stderr=errors, text=True)
        for _ in range(2)
    ]
    os.close(errors)
    with os.fdopen(messages) as lines:
        # The server holds the file back until the process that came second waits.
        assert any("waiting for" in line for line in lines)
        server.hold.set()
        results = [process.communicate(timeout=120)[0] for process in processes]
    assert results == [f"{cache / 'small'}\n"] * 2
    assert len(server.requests) == 1
    assert content(cache / "small") == FILES
    assert visible(cache) == ["small"]


def test_who_waits_says_for_whom_and_uses_the_result(server, cache, archive, caplog) -> None:
    from hjepa_jax.data.download.lock import locked

    cache.mkdir()
    found = []
    with locked(cache / ".small.lock", "it is held"):
        waiting = threading.Thread(target=lambda: found.append(stored(archive, download=True)))
        waiting.start()
        while "waiting for" not in caplog.text:
            waiting.join(0.01)
        (cache / "small").mkdir()
    waiting.join()
    assert f"waiting for process {os.getpid()} on " in caplog.text
    assert "small is being prepared" in caplog.text
    assert found == [cache / "small"]
    assert server.requests == []


def test_a_process_that_was_killed_leaves_nothing_that_counts(server, cache, archive) -> None:
    (cache / ".small.unpacking/a").mkdir(parents=True)
    (cache / ".small.unpacking/a/one.bin").write_bytes(b"half")
    assert content(stored(archive, download=True)) == FILES
    assert visible(cache) == ["small"]


def hostile(kind: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed_file:
        member = tarfile.TarInfo("../out" if kind == "path" else "x")
        member.size = 2 << 20 if kind == "size" else 0
        types = {"link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE}
        member.type, member.linkname = types.get(kind, tarfile.REGTYPE), "/etc/passwd"
        packed_file.addfile(member, io.BytesIO(bytes(member.size)))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("path", "leads out of the folder"),
        ("link", "is a link"),
        ("device", "is a device"),
        ("size", "at most 1048576 are unpacked"),
    ],
)
def test_hostile_archives_write_nothing(kind, words, server, cache, tmp_path) -> None:
    with pytest.raises(ValueError, match=words):
        stored(offered(server, "evil", hostile(kind)), download=True)
    assert not [name for name in visible(cache) if ".part" not in name]
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_while_unpacking_keeps_the_archive(
    server, cache, archive, monkeypatch
) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store.archives, "unpack", full)
        with pytest.raises(DataError, match="the disk or a quota is full"):
            stored(archive, download=True)
    assert visible(cache) == ["small.tar.gz.part", "small.tar.gz.part.json"]
    assert content(stored(archive, download=True)) == FILES
    assert len(server.requests) == 1


def test_a_cache_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HJEPA_DATA", str(tmp_path / "file/below"))
    archive = Archive("x", "http://127.0.0.1:9/x", 1, Checksum("md5", ""), 1)
    with pytest.raises(DataError, match=r"cannot be written .*HJEPA_DATA"):
        stored(archive, download=True)
