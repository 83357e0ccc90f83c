"""Downloads of one file: continued, bounded and checked, whatever server and network do."""

import errno
import hashlib
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from file_server import FileServer

from hjepa_jax.data.download import connection
from hjepa_jax.data.download import fetch as module
from hjepa_jax.data.download.catalog import CATALOG, Checksum
from hjepa_jax.data.download.fetch import Wanted, fetch
from hjepa_jax.errors import DataError

CONTENT = np.random.default_rng(0).integers(0, 256, 1_000_000, np.uint8).tobytes()
SUM = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def wanted(server: FileServer, tmp_path) -> Wanted:
    server.files["/a.bin"] = CONTENT
    return Wanted(server.url("/a.bin"), len(CONTENT), SUM, tmp_path / "a.bin")


def cut_after(server: FileServer, wanted: Wanted, count: int) -> None:
    """Receives so many bytes, and then no more."""
    server.cut = [count, 0]
    with pytest.raises(DataError, match="connection broke"):
        fetch(wanted, retry_seconds=())
    assert wanted.part.read_bytes() == CONTENT[:count]
    server.requests.clear()


@pytest.mark.parametrize(("kind", "digits"), [
    ("md5", "acbd18db4cc2f85cedef654fccc4a4d8"),
    ("sha256", "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"),
    # As `git hash-object` prints it.
    ("git", "19102815663d23f8b75a47e7a01965dcdc96468c"),
])  # fmt: skip
def test_checksums_of_known_content(kind, digits, tmp_path) -> None:
    (tmp_path / "foo").write_bytes(b"foo")
    assert Checksum(kind, digits).of(tmp_path / "foo") == Checksum(kind, digits)


@pytest.mark.parametrize("sized", [True, False])
def test_a_file_arrives_whole(sized, server, wanted) -> None:
    server.sized = sized
    fetch(wanted)
    assert wanted.part.read_bytes() == CONTENT
    assert server.asked("Range") == [None]
    # A complete part is not requested again.
    fetch(wanted)
    assert len(server.requests) == 1


@pytest.mark.parametrize("tags", [True, False])
def test_a_cut_download_continues_where_it_stopped(tags, server, wanted) -> None:
    server.tags = tags
    cut_after(server, wanted, 300_000)
    fetch(wanted)
    assert wanted.part.read_bytes() == CONTENT
    assert server.asked("Range") == ["bytes=300000-"]
    assert server.asked("If-Range")[0] is not None


def test_a_connection_that_breaks_is_made_again_at_once(server, wanted) -> None:
    server.cut = [100_000, 200_000, 300_000, None]
    fetch(wanted, retry_seconds=(0.0,))
    assert wanted.part.read_bytes() == CONTENT
    assert server.asked("Range") == [None, "bytes=100000-", "bytes=300000-", "bytes=600000-"]


def test_attempts_that_get_no_further_end_in_a_sentence(server, wanted) -> None:
    server.cut = [100_000, 0, 0, 0, 0]
    with pytest.raises(DataError) as caught:
        fetch(wanted, retry_seconds=(0.0, 0.0))
    assert len(server.requests) == 4
    for words in (wanted.url, "broke after 100000 of 1000000 bytes", str(SUM), str(wanted.place)):
        assert words in str(caught.value)
    assert "it continues after 0.1 MB" in str(caught.value)


def test_a_server_that_falls_silent_is_not_waited_for(server, wanted, monkeypatch) -> None:
    monkeypatch.setattr(connection, "TIMEOUT_SECONDS", 0.2)
    server.hold = threading.Event()
    try:
        with pytest.raises(DataError, match=r"broke after 0 bytes: timed out.*put it at"):
            fetch(wanted)
    finally:
        server.hold.set()
    assert len(server.requests) == 1


def test_a_file_that_changed_is_not_glued_to_the_old_part(server, wanted) -> None:
    cut_after(server, wanted, 300_000)
    server.files["/a.bin"] = new = CONTENT[::-1]
    changed = Checksum("sha256", hashlib.sha256(new).hexdigest())
    fetch(Wanted(wanted.url, len(new), changed, wanted.place))
    assert wanted.part.read_bytes() == new
    assert server.asked("Range") == ["bytes=300000-"]


def test_a_server_that_ignores_if_range_is_found_out(server, wanted, monkeypatch) -> None:
    cut_after(server, wanted, 300_000)
    server.files["/a.bin"] = new = CONTENT[::-1]
    server.ignores_if_range = True
    changed = Checksum("sha256", hashlib.sha256(new).hexdigest())
    fetch(Wanted(wanted.url, len(new), changed, wanted.place))
    assert wanted.part.read_bytes() == new
    assert server.asked("Range") == ["bytes=300000-", None]


def test_a_server_without_ranges_sends_everything_again(server, wanted) -> None:
    cut_after(server, wanted, 300_000)
    server.ranges = False
    fetch(wanted)
    assert wanted.part.read_bytes() == CONTENT


def test_a_file_that_became_shorter_starts_anew(server, wanted) -> None:
    cut_after(server, wanted, 300_000)
    server.files["/a.bin"] = new = b"short"
    server.ignores_if_range = True
    changed = Checksum("sha256", hashlib.sha256(new).hexdigest())
    fetch(Wanted(wanted.url, len(new), changed, wanted.place))
    assert wanted.part.read_bytes() == new


def test_a_part_of_another_address_is_not_continued(server, wanted) -> None:
    cut_after(server, wanted, 300_000)
    server.files["/b.bin"] = CONTENT
    fetch(Wanted(server.url("/b.bin"), len(CONTENT), SUM, wanted.place))
    assert server.asked("Range") == [None]
    assert wanted.part.read_bytes() == CONTENT


def test_a_wrong_checksum_deletes_the_file_and_states_both(server, wanted) -> None:
    server.files["/a.bin"] = other = CONTENT[1:] + b"x"
    with pytest.raises(DataError) as caught:
        fetch(wanted)
    assert f"{SUM}" in str(caught.value)
    assert f"sha256 {hashlib.sha256(other).hexdigest()}" in str(caught.value)
    assert "deleted" in str(caught.value)
    assert list(wanted.place.parent.iterdir()) == []


@pytest.mark.parametrize("sized", [True, False])
def test_what_is_far_larger_than_published_is_not_received(sized, server, wanted) -> None:
    server.sized = sized
    small = Wanted(wanted.url, 1000, SUM, wanted.place)
    with pytest.raises(DataError, match="more than 2000 bytes, where 1000 are published"):
        fetch(small)
    assert list(wanted.place.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (401, "answers 401, so it wants a login"),
        (403, "answers 403, so it is refused"),
        (404, "answers 404, so it is not there"),
        (503, "answers 503, try again later"),
    ],
)
def test_an_error_of_the_server_is_a_sentence(code, words, server, wanted) -> None:
    server.status["/a.bin"] = code
    with pytest.raises(DataError, match=words) as caught:
        fetch(wanted)
    assert wanted.url in str(caught.value)
    assert str(wanted.place) in str(caught.value)
    assert len(server.requests) == 1


def test_redirects_to_another_host_are_followed(server, wanted) -> None:
    server.redirects["/old"] = server.url("/a.bin", host="localhost")
    fetch(Wanted(server.url("/old"), len(CONTENT), SUM, wanted.place))
    assert wanted.part.read_bytes() == CONTENT
    assert [h.partition(":")[0] for h in server.asked("Host")] == ["127.0.0.1", "localhost"]


def test_a_continued_download_follows_the_redirect_again(server, wanted) -> None:
    server.redirects["/old"] = server.url("/a.bin", host="localhost")
    old = Wanted(server.url("/old"), len(CONTENT), SUM, wanted.place)
    cut_after(server, old, 300_000)
    fetch(old)
    assert wanted.part.read_bytes() == CONTENT
    assert server.asked("Range") == ["bytes=300000-"] * 2


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/x", "file:///etc/passwd"])
def test_redirects_to_other_protocols_are_not_followed(target, server, wanted) -> None:
    server.redirects["/a.bin"] = target
    with pytest.raises(DataError, match=r"answers 302|which is not followed"):
        fetch(wanted)
    assert not wanted.part.exists()


def test_an_encrypted_connection_is_not_left(server) -> None:
    import http.client
    import io
    import urllib.request

    from hjepa_jax.data.download.connection import _Redirects

    def redirected(old: str, new: str):
        request = urllib.request.Request(old)
        headers = http.client.HTTPMessage()
        return _Redirects().redirect_request(request, io.BytesIO(), 302, "", headers, new)

    with pytest.raises(DataError, match="from https only to https"):
        redirected("https://a.org/x", "http://b.org/x")
    assert redirected("https://a.org/x", "https://b.org/x").full_url == "https://b.org/x"
    assert redirected("http://a.org/x", "https://b.org/x").full_url == "https://b.org/x"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_sentence_and_the_part_is_continued(
    code, server, wanted, monkeypatch
) -> None:
    class Full:
        """A file on a disk with room for 400,000 bytes, which takes a part of the last write."""

        def __init__(self, file):
            self._file, self._left = file, 400_000

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def __getattr__(self, name):
            return getattr(self._file, name)

        def write(self, data) -> int:
            taken = min(len(data), self._left)
            self._left -= taken
            if taken == 0:
                raise OSError(code, os.strerror(code))
            return self._file.write(data[:taken])

    opened = pathlib.Path.open

    def small(path: pathlib.Path, *arguments, **options):
        file = opened(path, *arguments, **options)
        return Full(file) if path == wanted.part and arguments != ("rb",) else file

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "open", small)
        with pytest.raises(DataError, match="does not fit: the disk or a quota is full") as caught:
            fetch(wanted)
    assert "HJEPA_DATA" in str(caught.value)
    assert "it continues after 0.4 MB" in str(caught.value)
    assert wanted.part.read_bytes() == CONTENT[:400_000]
    fetch(wanted)
    assert wanted.part.read_bytes() == CONTENT
    assert server.asked("Range")[-1] == "bytes=400000-"


LIMITED = """
import pathlib, resource, sys
from hjepa_jax.data.download.catalog import Checksum
from hjepa_jax.data.download.fetch import Wanted, fetch
from hjepa_jax.errors import DataError

resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, 2**18))
try:
    fetch(Wanted(sys.argv[1], 10**6, Checksum("md5", ""), pathlib.Path(sys.argv[2])))
except DataError as error:
    print(error)
"""


def test_a_limit_of_the_kernel_is_the_same_sentence(server, wanted) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, wanted.url, str(wanted.place)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "the file size limit is reached" in done.stdout
    assert wanted.part.read_bytes() == CONTENT[: 2**18]


def test_a_file_without_room_on_the_disk_is_not_begun(server, wanted, monkeypatch) -> None:
    usage = type("Usage", (), {"free": 999_999})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DataError, match="999999 bytes are free"):
        fetch(wanted)
    assert not wanted.part.exists()


def test_a_folder_that_cannot_be_written_is_a_sentence(server, wanted) -> None:
    wanted.place.write_bytes(b"")
    inside = Wanted(wanted.url, len(CONTENT), SUM, wanted.place / "a.bin")
    with pytest.raises(DataError, match=r"cannot be written .*HJEPA_DATA"):
        fetch(inside)


def test_without_a_network_one_sentence_says_what_to_do(tmp_path) -> None:
    """The proxy that the tests set stands for a network that is not there."""
    for archive in CATALOG.values():
        place = tmp_path / archive.file
        with pytest.raises(DataError) as caught:
            fetch(Wanted(archive.url, archive.size, archive.checksum, place))
        for words in (archive.url, str(archive.checksum), f"put it at {place}", "refused"):
            assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_tests_cannot_reach_the_hosts_of_the_catalog(server, tmp_path, monkeypatch) -> None:
    """Every request to another host goes to the proxy, which here says what it was asked for."""
    assert os.environ["https_proxy"] == os.environ["http_proxy"] == "http://127.0.0.1:9"
    monkeypatch.setenv("https_proxy", server.url(""))
    monkeypatch.setenv("http_proxy", server.url(""))
    for archive in CATALOG.values():
        with pytest.raises(DataError):
            fetch(Wanted(archive.url, archive.size, archive.checksum, tmp_path / archive.file))
    assert [path for path, _ in server.requests] == [
        "www.cs.toronto.edu:443",
        "www.cs.toronto.edu:443",
        CATALOG["stl10"].url,
        "s3.amazonaws.com:443",
    ]
