"""STL-10 in its binary format: pixels, labels, and the splits that have none."""

import pathlib
import pickle

import numpy as np
import pytest
from image_files import data_config

from hjepa_jax.config.checks import typed
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.sources.open import open_source
from hjepa_jax.errors import DataError

NAMES = "airplane\nbird\ncar\ncat\ndeer\ndog\nhorse\nmonkey\nship\ntruck\n"
COUNTS = {"train": 4, "test": 3, "unlabeled": 5}


def pixels(split: str) -> np.ndarray:
    """Images uint8 [N, 96, 96, 3]."""
    random = np.random.default_rng(len(split))
    return random.integers(0, 256, (COUNTS[split], 96, 96, 3), np.uint8)


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """Files as the archive has them, each channel column by column."""
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    (folder / "class_names.txt").write_text(NAMES)
    for split in COUNTS:
        columns = pixels(split).transpose(0, 3, 2, 1)
        (folder / f"{split}_X.bin").write_bytes(np.ascontiguousarray(columns).tobytes())
    (folder / "train_y.bin").write_bytes(bytes([1, 10, 2, 2]))
    (folder / "test_y.bin").write_bytes(bytes([3, 1, 10]))
    return tmp_path


def opened(root: pathlib.Path, split: str):
    return open_source(typed(data_config(name="stl10", root=str(root))), split)


@pytest.mark.parametrize(
    ("split", "labels"),
    [
        ("train", [0, 9, 1, 1]),
        ("test", [2, 0, 9]),
        ("unlabeled", [-1] * 5),
        ("train+unlabeled", [0, 9, 1, 1, -1, -1, -1, -1, -1]),
    ],
)
def test_every_split_has_its_pixels_and_labels(split, labels, root) -> None:
    source = opened(root, split)
    assert source.labels().tolist() == labels
    assert source.class_names == tuple(NAMES.split())
    expected = np.concatenate([pixels(part) for part in split.split("+")])
    assert len(source) == len(expected)
    copy = pickle.loads(pickle.dumps(source))
    for index, image in enumerate(expected):
        np.testing.assert_array_equal(source.record(index).image, image)
        np.testing.assert_array_equal(copy.record(index).image, image)
        assert source.record(index).label == labels[index]
    assert copy.fingerprint() == source.fingerprint()


def test_the_folder_of_the_files_is_a_root_too(root) -> None:
    inner = opened(root / "stl10_binary", "train")
    assert inner.fingerprint() == opened(root, "train").fingerprint()
    assert len({opened(root, split).fingerprint() for split in (*COUNTS, "train+unlabeled")}) == 4


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("train_X.bin", b"x" * 100, "has 100 bytes, which are not a number of images"),
        ("train_X.bin", b"", "has 0 bytes"),
        ("train_y.bin", bytes([1, 2]), "has 2 labels for 4 images"),
        ("train_y.bin", bytes([0, 1, 1, 1]), r"a label outside 1 \.\. 10"),
        ("train_y.bin", bytes([11, 1, 1, 1]), r"a label outside 1 \.\. 10"),
        ("class_names.txt", b"\n", "names no classes"),
    ],
)
def test_damaged_files_are_named(name, content, words, root) -> None:
    (root / "stl10_binary" / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}.*{words}"):
        opened(root, "train")


def test_missing_files_and_splits_are_named(root) -> None:
    with pytest.raises(DataError, match=r"has the splits train, test, unlabeled, train\+unlabeled"):
        opened(root, "val")
    (root / "stl10_binary/unlabeled_X.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"unlabeled_X\.bin is missing"):
        opened(root, "unlabeled")


def test_a_file_that_becomes_shorter_is_one_corrupt_image(root) -> None:
    source = opened(root, "train+unlabeled")
    file = root / "stl10_binary/unlabeled_X.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptImageError, match=r"unlabeled_X\.bin ends within image 8"):
        source.record(8)
    np.testing.assert_array_equal(source.record(7).image, pixels("unlabeled")[3])
