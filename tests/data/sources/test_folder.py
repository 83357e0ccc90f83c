"""Image folders: what is found, what is refused, and the cache of encoded bytes."""

import os
import pickle

import numpy as np
import pytest
from image_files import data_config, encode, photo, write_folder

from hjepa_jax.config.checks import typed
from hjepa_jax.data.cache import ByteCache
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.sources.base import decode
from hjepa_jax.data.sources.folder import open_root
from hjepa_jax.data.sources.open import open_source


def test_images_and_classes_are_found_in_order(tmp_path) -> None:
    write_folder(tmp_path, {"train": {"dog": 2, "cat": 3}, "val": {"dog": 1, "cat": 2}})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / "cat" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / "train" / "dog" / "extra.PNG").write_bytes(encode(photo(9), "PNG"))
    source = open_source(typed(data_config(name="folder", root=str(tmp_path))), "train")
    assert source.class_names == ("cat", "dog")
    assert source.labels().tolist() == [0, 0, 0, 1, 1, 1]
    assert source.record(5).name == str(tmp_path / "train" / "dog" / "extra.PNG")
    np.testing.assert_array_equal(decode(source.record(5)), photo(9))
    assert "6 images, 2 classes" in source.description


@pytest.mark.parametrize("stored", ["test", "val", "validation", "valid", "Testing", "VALID"])
@pytest.mark.parametrize("asked", ["test", "val", "validation"])
def test_test_split_has_several_names(stored, asked, tmp_path) -> None:
    write_folder(tmp_path, {"train": {"a": 1}, stored: {"a": 2}})
    assert len(open_root(str(tmp_path), asked, 0)) == 2


@pytest.mark.parametrize("stored", ["Train", "training", "TRAINING"])
def test_training_split_has_several_names(stored, tmp_path) -> None:
    write_folder(tmp_path, {stored: {"a": 2}, "test": {"a": 1}})
    assert len(open_root(str(tmp_path), "train", 0)) == 2


def test_a_split_of_its_own_name_has_no_synonyms(tmp_path) -> None:
    write_folder(tmp_path, {"fold1": {"a": 2, "b": 1}, "Fold2": {"b": 1, "c": 3}})
    names = {"train_split": "fold1", "test_split": "fold2"}
    config = data_config(name="folder", root=str(tmp_path), **names)
    train, test = open_source(typed(config), "fold1"), open_source(typed(config), "fold2")
    assert train.class_names == test.class_names == ("a", "b", "c")
    assert test.labels().tolist() == [1, 2, 2, 2]
    with pytest.raises(FileNotFoundError, match=r"no split 'train'.*there: Fold2, fold1"):
        open_source(typed(config), "train")


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
        ({"train": {"a": 1}, "TRAIN": {"a": 1}, "Train": {"a": 1}}, "train", None, ""),
        ({"Train": {"a": 1}, "TRAIN": {"a": 1}}, "train", ValueError, "TRAIN and Train could each"),
        ({"val": {"a": 1}, "valid": {"a": 1}}, "test", ValueError, "val and valid could each"),
        ({"train": {"a": 1}, "train.X1": {"a": 1}}, "train", ValueError, r"train and train\.X1"),
    ],
)
def test_incomplete_folders_are_explained(counts, split, error, words, tmp_path) -> None:
    write_folder(tmp_path, counts)
    if error is None:
        assert len(open_root(str(tmp_path), split, 0)) == 1
        return
    with pytest.raises(error, match=words):
        open_root(str(tmp_path), split, 0)


def test_other_wrong_roots_are_explained(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"needs data\.root"):
        open_root(None, "train", 0)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        open_root(str(tmp_path / "absent"), "train", 0)
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match=r"train has no images \(.*in it or below it"):
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


def test_every_format_is_found_at_every_depth_and_in_upper_case(tmp_path) -> None:
    names = ["a.jpe", "b.JFIF", "c.bmp", "d.TIF", "e.tiff", "f.gif", "g.ppm", "h.WebP", "i.Png"]
    kinds = ["JPEG", "JPEG", "BMP", "TIFF", "TIFF", "GIF", "PPM", "WEBP", "PNG"]
    deep = tmp_path / "train" / "cat" / "2019" / "may.png"
    deep.mkdir(parents=True)
    for folder in (deep, deep.parent, tmp_path / "train" / "cat"):
        for name, kind in zip(names, kinds):
            (folder / name).write_bytes(encode(photo(3), kind))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.jpg").write_bytes(encode(photo(4)))
    (deep / "link").symlink_to(tmp_path / "elsewhere")
    (deep / "circle").symlink_to(tmp_path / "train" / "cat")
    source = open_root(str(tmp_path), "train", 0)
    assert len(source) == 3 * len(names) + 1
    assert source.record(0).name == str(tmp_path / "train/cat/2019/a.jpe")
    found = [source.record(index).name for index in range(len(source))]
    assert found == sorted(found)
    for index in range(len(source)):
        assert decode(source.record(index)).shape == (40, 48, 3)
    assert "left out" not in source.description


def told(caplog, words: str = "left out") -> list[str]:
    return [r.getMessage() for r in caplog.records if words in r.getMessage()]


def test_what_is_left_out_is_told_once_with_an_example(tmp_path, caplog) -> None:
    write_folder(tmp_path, {"train": {"cat": 2, "dog": 1}})
    train = tmp_path / "train"
    for name in ("notes.txt", "more.TXT", "README", "scan.pdf", ".hidden.jpg", "._x.jpg"):
        (train / "cat" / name).write_text("")
    (train / "cat" / "Thumbs.db").write_text("")
    (train / "dog" / "copy.jpg.part").symlink_to("nowhere")
    (train / "bird").symlink_to(tmp_path / "gone")
    (train / "loop").symlink_to("loop")
    (train / "loose.png").write_bytes(encode(photo(0), "PNG"))
    (train / "__MACOSX").mkdir()
    for _ in range(3):
        source = open_root(str(tmp_path), "train", 0)
    assert (len(source), source.class_names) == (3, ("cat", "dog"))
    assert "3 images, 2 classes, 8 files left out" in source.description
    (message,) = told(caplog)
    for words in (
        *(".txt: 2", "no extension: 1", ".pdf: 1", "broken links: 3", "outside class folders: 1"),
        *("for example " + str(train / "bird"), "besides 4 hidden ones", ".tiff"),
    ):
        assert words in message, words


@pytest.mark.parametrize(
    ("count", "words"), [(1, "1 file is left out"), (2, "2 files are left out")]
)
def test_one_file_that_is_left_out_is_told_in_the_singular(count, words, tmp_path, caplog) -> None:
    write_folder(tmp_path, {"train": {"cat": 1}})
    for number in range(count):
        (tmp_path / "train" / "cat" / f"{number}.txt").write_text("")
    open_root(str(tmp_path), "train", 0)
    (message,) = told(caplog)
    assert words in message


def test_splits_without_a_common_class_are_told(tmp_path, caplog) -> None:
    write_folder(tmp_path, {"train": {"cat": 1, "dog": 1}, "val": {"images": 2}})
    assert open_root(str(tmp_path), "test", 0).labels().tolist() == [2, 2]
    (message,) = told(caplog, "shares no class")
    assert "'test' (images) shares no class with the split 'train' (cat, dog)" in message


def test_whole_folders_say_nothing(tmp_path, caplog) -> None:
    write_folder(tmp_path, {"train": {"cat": 2}, "test": {"cat": 1}})
    for split in ("train", "test"):
        assert "left out" not in open_root(str(tmp_path), split, 0).description
    assert not caplog.records


def test_names_that_are_not_utf8_are_listed_shown_and_told(tmp_path) -> None:
    folder = os.fsencode(tmp_path) + b"/train/caf\xe9"
    os.makedirs(folder)
    with open(folder + b"/\xff1.jpg", "wb") as file:
        file.write(encode(photo(0)))
    with open(folder + b"/2\n.jpg", "wb") as file:
        file.write(b"rubbish")
    source = open_root(str(tmp_path), "train", 0)
    assert source.class_names == (r"caf\xe9",)
    assert decode(source.record(1)).shape == (40, 48, 3)
    with pytest.raises(CorruptImageError, match=r"caf\\xe9/2\\n\.jpg"):
        decode(source.record(0))
    for text in (source.description, source.record(1).name, source.fingerprint()):
        text.encode()
    again = pickle.loads(pickle.dumps(source))
    assert again.record(1) == source.record(1)
