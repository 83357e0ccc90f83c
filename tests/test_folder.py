"""Image folders: what is found, what is refused, and the cache of encoded bytes."""

import pickle

import numpy as np
import pytest
from image_files import data_config, encode, photo, write_folder

from hjepa_jax.data.cache import ByteCache
from hjepa_jax.data.folder import open_root
from hjepa_jax.data.sources import decode, open_source


def test_images_and_classes_are_found_in_order(tmp_path) -> None:
    write_folder(tmp_path, {"train": {"dog": 2, "cat": 3}, "val": {"dog": 1, "cat": 2}})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "train" / "dog" / "extra.PNG").write_bytes(encode(photo(9), "PNG"))
    source = open_source(data_config(name="folder", root=str(tmp_path)).data, "train")
    assert source.class_names == ("cat", "dog")
    assert source.labels().tolist() == [0, 0, 0, 1, 1, 1]
    assert source.record(5).name == str(tmp_path / "train" / "dog" / "extra.PNG")
    np.testing.assert_array_equal(decode(source.record(5)), photo(9))
    assert "6 images, 2 classes" in source.description


@pytest.mark.parametrize("stored", ["test", "val", "validation"])
@pytest.mark.parametrize("asked", ["test", "val"])
def test_test_split_has_several_names(stored, asked, tmp_path) -> None:
    write_folder(tmp_path, {"train": {"a": 1}, stored: {"a": 2}})
    assert len(open_root(str(tmp_path), asked, 0)) == 2


def test_split_in_parts_is_joined(tmp_path) -> None:
    write_folder(
        tmp_path,
        {"train.X1": {"b": 2}, "train.X2": {"a": 1, "c": 1}, "val.X": {"a": 1, "b": 1, "c": 1}},
    )
    train = open_root(str(tmp_path), "train", 0)
    assert train.class_names == ("a", "b", "c")
    assert train.labels().tolist() == [0, 1, 1, 2]
    assert open_root(str(tmp_path), "val", 0).class_names == train.class_names


@pytest.mark.parametrize(
    ("counts", "split", "error", "words"),
    [
        ({"train": {"a": 1}}, "test", FileNotFoundError, "no split 'test'.*there: train"),
        ({}, "train", FileNotFoundError, "no split 'train'.*there: none"),
        ({"train": {}}, "train", FileNotFoundError, "no split"),
        ({"train": {"a": 1, "b": 0}}, "train", ValueError, "class folder .*b has no images"),
        (
            {"train": {"a": 1, "b": 1}, "test": {"a": 1, "c": 1}},
            "test",
            ValueError,
            "only in 'test': c; only in 'train': b",
        ),
        (
            {"train": {"a": 1, "b": 1}, "test": {"a": 1}},
            "test",
            ValueError,
            "only in 'test': none; only in 'train': b",
        ),
    ],
)
def test_incomplete_folders_are_explained(counts, split, error, words, tmp_path) -> None:
    write_folder(tmp_path, counts)
    with pytest.raises(error, match=words):
        open_root(str(tmp_path), split, 0)


def test_other_wrong_roots_are_explained(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"needs data\.root"):
        open_root(None, "train", 0)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        open_root(str(tmp_path / "absent"), "train", 0)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="has no class folders"):
        open_root(str(tmp_path), "train", 0)


def test_fingerprint_notices_added_and_resized_files(tmp_path) -> None:
    write_folder(tmp_path, {"train": {"a": 3}})
    first = open_root(str(tmp_path), "train", 0).fingerprint()
    assert open_root(str(tmp_path), "train", 0).fingerprint() == first
    (tmp_path / "train" / "a" / "000.jpg").write_bytes(encode(photo(50)))
    second = open_root(str(tmp_path), "train", 0).fingerprint()
    (tmp_path / "train" / "a" / "new.jpg").write_bytes(encode(photo(51)))
    assert len({first, second, open_root(str(tmp_path), "train", 0).fingerprint()}) == 3


def test_cache_reads_once_within_its_budget() -> None:
    reads = []

    def reader(key: int, size: int):
        def read() -> bytes:
            reads.append(key)
            return bytes(size)

        return read

    cache = ByteCache(1)
    for _ in range(2):
        cache.get(0, reader(0, 700_000))
        cache.get(1, reader(1, 700_000))
        cache.get(2, reader(2, 300_000))
    # The second entry never fits beside the first.
    assert reads == [0, 1, 2, 1]
    pickle.loads(pickle.dumps(cache)).get(0, reader(0, 10))
    assert reads[-1] == 0
    assert len(pickle.dumps(cache)) < 1000
    nothing = ByteCache(0)
    nothing.get(5, reader(5, 1))
    nothing.get(5, reader(5, 1))
    assert reads[-2:] == [5, 5]


def test_cached_files_are_not_read_again(tmp_path) -> None:
    write_folder(tmp_path, {"train": {"a": 2}})
    source = open_root(str(tmp_path), "train", 1)
    before = source.record(0)
    (tmp_path / "train" / "a" / "000.jpg").unlink()
    assert source.record(0) == before
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(source)).record(0)
