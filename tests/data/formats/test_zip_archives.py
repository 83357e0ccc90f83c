"""Zip archives: what is unpacked, within bounds, below one folder."""

import pathlib
import stat
import zipfile

import pytest

from hjepa_jax.data.formats import archives, zip_archives


def make(path: pathlib.Path, contents: dict[str, bytes], **modes: int) -> pathlib.Path:
    """Writes an archive; `modes` are Unix modes of members."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = modes.get(name, stat.S_IFREG | 0o644) << 16
            archive.writestr(info, content)
    return path


def unpack(path: pathlib.Path, folder: pathlib.Path, member_bytes: int = 1 << 20) -> int:
    folder.mkdir()
    return zip_archives.unpack(path, folder, lambda name: "txt" not in name, member_bytes)


def test_wanted_files_are_unpacked_and_others_counted(tmp_path) -> None:
    contents = {"a/b/c.jpg": b"1" * 2_000_000, "notes.txt": b"2", "ü.png": b"", "folder/": b""}
    path = make(tmp_path / "x.zip", contents)
    assert zip_archives.is_zip(path)
    assert unpack(path, tmp_path / "out", 1 << 21) == 1
    found = {str(p.relative_to(tmp_path / "out")): p for p in (tmp_path / "out").rglob("*.*")}
    assert set(found) == {"a/b/c.jpg", "ü.png"}
    assert found["a/b/c.jpg"].read_bytes() == contents["a/b/c.jpg"]


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("../out.jpg", 0, "leads out of the folder"),
        ("a/../../out.jpg", 0, "leads out of the folder"),
        ("/out.jpg", 0, "leads out of the folder"),
        ("link.jpg", stat.S_IFLNK | 0o777, "is a link"),
        ("pipe.jpg", stat.S_IFIFO | 0o777, "is not a plain file"),
        ("large.jpg", 0, r"has 2000000 bytes; at most 1048576"),
    ],
)
def test_nothing_hostile_is_unpacked(name, mode, words, tmp_path) -> None:
    path = make(tmp_path / "x.zip", {name: b"1" * 2_000_000}, **{name: mode})
    with pytest.raises(ValueError, match=rf"Cannot unpack .*x\.zip: .*{words}"):
        unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    assert not (tmp_path / "out.jpg").exists()


def test_a_bomb_is_stopped(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(archives, "_UNPACKED_BYTES", 0)
    path = make(tmp_path / "x.zip", {f"{n}.jpg": b"0" * 1_000_000 for n in range(5)})
    with pytest.raises(ValueError, match="it unpacks to more than"):
        unpack(path, tmp_path / "out")


def test_a_member_that_claims_too_little_is_stopped(tmp_path) -> None:
    path = make(tmp_path / "x.zip", {"a.jpg": b"0" * 2_000_000})
    content = path.read_bytes()
    size = (2_000_000).to_bytes(4, "little")
    assert content.count(size) == 2
    path.write_bytes(content.replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="Cannot unpack"):
        unpack(path, tmp_path / "out")
    assert sum(p.stat().st_size for p in (tmp_path / "out").rglob("*.jpg")) <= 10


@pytest.mark.parametrize("kept", [3, 40, 0.5, 0.99])
def test_damaged_archives_are_refused(kept, tmp_path) -> None:
    path = make(tmp_path / "x.zip", {"a.jpg": bytes(range(256)) * 40, "b.jpg": b"1"})
    content = path.read_bytes()
    path.write_bytes(content[: kept if kept > 1 else int(kept * len(content))])
    with pytest.raises(ValueError, match=r"Cannot unpack .* damaged or of an unknown kind"):
        unpack(path, tmp_path / "out")


def test_encrypted_files_are_named(tmp_path) -> None:
    path = make(tmp_path / "x.zip", {"a.jpg": b"1"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.jpg is encrypted"):
        unpack(path, tmp_path / "out")
