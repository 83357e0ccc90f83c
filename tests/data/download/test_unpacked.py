"""Archives of the user's own: unpacked into the cache once, and read as folders are."""

import pathlib
import tarfile
import zipfile

import pytest
from image_files import encode, photo

from hjepa_jax.data.download import unpacked as module
from hjepa_jax.data.download.unpacked import is_archive, unpacked
from hjepa_jax.data.sources.folder import open_root
from hjepa_jax.errors import DataError


@pytest.fixture
def images(tmp_path, monkeypatch) -> pathlib.Path:
    """Class folders in a folder, with a file that is no image; the cache is a folder of its own."""
    monkeypatch.setenv("HJEPA_DATA", str(tmp_path / "cache"))
    for name in ("cat/a.jpg", "cat/b.jpg", "dog/c.jpg"):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photo(len(name))))
    (tmp_path / "pets/film.mp4").write_bytes(bytes(100))
    (tmp_path / "pets/cat/._a.jpg").write_bytes(b"junk")
    return tmp_path / "pets"


def pack(images: pathlib.Path, ending: str) -> pathlib.Path:
    """Packs the folder."""
    path = images.parent / f"my pets{ending}"
    if ending == ".ZIP":
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(images.rglob("*.*")):
                archive.write(file, file.relative_to(images.parent))
    else:
        with tarfile.open(path, f"w:{ending.rpartition('.')[2].replace('tar', '')}") as archive:
            archive.add(images, "pets")
    return path


@pytest.mark.parametrize("ending", [".ZIP", ".tar", ".tar.gz", ".tar.xz"])
def test_an_archive_is_read_as_the_folder_that_it_holds(ending, images, tmp_path, caplog) -> None:
    caplog.set_level("INFO")
    path = pack(images, ending)
    assert is_archive(path)
    source = open_root(str(path), "train", 0)
    assert (source.class_names, source.labels().tolist()) == (("cat", "dog"), [0, 0, 1])
    assert source.record(2).encoded == (images / "dog/c.jpg").read_bytes()
    told = [r.getMessage() for r in caplog.records]
    assert any(line.endswith(": 2 files besides images left in it") for line in told)
    # Nothing is written beside the archive, and the second time nothing is unpacked.
    assert {p.name for p in tmp_path.iterdir()} == {"pets", path.name, "cache"}
    (folder,) = [p for p in (tmp_path / "cache/unpacked").iterdir() if p.is_dir()]
    assert folder.name.startswith("my pets-")
    caplog.clear()
    assert open_root(str(path), "train", 0).fingerprint() == source.fingerprint()
    assert not [r for r in caplog.records if "unpacking" in r.getMessage()]


def test_a_changed_archive_is_unpacked_again(images) -> None:
    first = unpacked(pack(images, ".tar"))
    (images / "dog/d.jpg").write_bytes(encode(photo(9)))
    second = unpacked(pack(images, ".tar"))
    assert first != second
    assert len(open_root(str(second), "train", 0)) == 4


def test_what_is_hostile_or_damaged_leaves_nothing(images, tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("link.jpg")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"Cannot unpack .*x\.tar: link\.jpg is a link"):
        unpacked(path)
    path.write_bytes(b"no archive" * 100)
    with pytest.raises(DataError, match=r"Cannot unpack .*x\.tar: it is not a tar archive"):
        unpacked(path)
    assert not [p for p in (tmp_path / "cache/unpacked").iterdir() if p.is_dir()]

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_unpack", full)
    with pytest.raises(DataError, match="does not fit: the disk"):
        unpacked(path)


def test_an_unknown_file_is_one_sentence(tmp_path) -> None:
    (tmp_path / "x.rar").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"x\.rar is not a folder or archive \(\.zip, "):
        open_root(str(tmp_path / "x.rar"), "train", 0)
