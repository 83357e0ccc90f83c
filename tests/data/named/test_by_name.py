"""Datasets by name from the cache: what the archive holds is what the splits show."""

import hashlib
import io
import tarfile

import pytest
from file_server import serving
from image_files import cifar_files, data_config, encode, photo

from hjepa_jax.config.checks import typed
from hjepa_jax.data.download.catalog import Archive, Checksum
from hjepa_jax.data.named.cifar import Cifar10, Cifar100
from hjepa_jax.data.named.imagenette import Imagenette
from hjepa_jax.data.named.stl10 import Stl10
from hjepa_jax.data.sources.base import DataSet
from hjepa_jax.data.sources.open import open_source


def stl10_files() -> dict[str, bytes]:
    image = bytes(3 * 96 * 96)
    return {
        "class_names.txt": b"a\nb\n",
        "train_X.bin": image * 3,
        "train_y.bin": bytes([1, 2, 1]),
        "test_X.bin": image * 2,
        "test_y.bin": bytes([2, 1]),
        "unlabeled_X.bin": image * 4,
        "fold_indices.txt": b"0 1\n",
    }


def imagenette_files() -> dict[str, bytes]:
    names = ("n01440764", "n02102040")
    counts = {"train": 2, "val": 1}
    return {"noisy_imagenette.csv": b"path\n"} | {
        f"{split}/{name}/{name}_{i}.JPEG": encode(photo(i))
        for split, count in counts.items()
        for name in names
        for i in range(count)
    }


LAYOUTS: dict[str, tuple[type[DataSet], str, dict[str, bytes], int, int]] = {
    "cifar10": (Cifar10, "cifar-10-batches-py", cifar_files("cifar10"), 30, 6),
    "cifar100": (Cifar100, "cifar-100-python", cifar_files("cifar100"), 6, 6),
    "stl10": (Stl10, "stl10_binary", stl10_files(), 3, 2),
    "imagenette": (Imagenette, "imagenette2-160", imagenette_files(), 4, 2),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_named_dataset_is_downloaded_into_the_cache(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HJEPA_DATA", str(tmp_path / "cache"))
    kind, folder, files, train, test = LAYOUTS[name]
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packed:
        for path, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{path}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    with serving() as server:
        server.files["/x.tgz"] = content
        checksum = Checksum("md5", hashlib.md5(content).hexdigest())
        offered = Archive(name, server.url("/x.tgz"), len(content), checksum, 1 << 20)
        local = type("Local", (kind,), {"archive": offered})
        data = local(typed(data_config(name=name, download=True)))
        sources = [data.open(split, ("train", "test")) for split in ("train", "test")]
        assert [len(source) for source in sources] == [train, test]
        assert len(server.requests) == 1
    assert {path.name for path in (tmp_path / "cache" / name).iterdir()} == {folder}
    # Offline, and by the configuration alone.
    again = open_source(typed(data_config(name=name)), "train")
    assert again.fingerprint() == sources[0].fingerprint()
    # An explicit root wins over the cache.
    with pytest.raises(FileNotFoundError, match="/nowhere"):
        open_source(typed(data_config(name=name, root="/nowhere")), "train")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_damaged_copy_in_the_cache_says_what_to_delete(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HJEPA_DATA", str(tmp_path))
    folder = tmp_path / name / LAYOUTS[name][1]
    folder.mkdir(parents=True)
    (folder / ("meta" if name == "cifar100" else "batches.meta")).write_bytes(
        cifar_files(name)["meta" if name == "cifar100" else "batches.meta"]
    )
    with pytest.raises(FileNotFoundError, match=rf"Delete {tmp_path / name}, and"):
        open_source(typed(data_config(name=name)), "train")


@pytest.mark.parametrize("name", LAYOUTS)
def test_without_consent_the_sentence_says_all(name) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.download=True.*md5 [0-9a-f]{32}.*put it"):
        open_source(typed(data_config(name=name)), "train")
