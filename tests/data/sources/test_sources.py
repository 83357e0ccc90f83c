"""Sources in general: digits, arrays, subsets, and opening by configuration."""

import pickle
import time

import numpy as np
import pytest
from image_files import data_config, encode, photo

from hjepa_jax.config import resolve
from hjepa_jax.config.checks import typed
from hjepa_jax.data.sources import derived
from hjepa_jax.data.sources.base import ArraySource, ImageSource, Record, decode
from hjepa_jax.data.sources.derived import subset
from hjepa_jax.data.sources.open import open_source
from hjepa_jax.errors import ConfigError


def small() -> ArraySource:
    images = np.stack([photo(seed, 32, 32) for seed in range(12)])
    return ArraySource("small", images, np.arange(12) % 3, ["a", "b", "c"])


def test_digits_are_split_without_overlap_and_by_class() -> None:
    config = data_config(name="digits")
    train, test = open_source(typed(config), "train"), open_source(typed(config), "test")
    assert isinstance(train, ImageSource)
    assert (len(train), len(test), len(train.class_names)) == (1437, 360, 10)
    every = np.concatenate([train.labels(), test.labels()])
    share = np.bincount(test.labels()) / np.bincount(every)
    assert np.abs(share - 360 / 1797).max() < 0.01
    pixels = {train.record(i).image.tobytes() for i in range(len(train))}
    assert not pixels & {test.record(i).image.tobytes() for i in range(len(test))}
    image = decode(train.record(0))
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    # Real digits: the nearest training image tells the class.
    flat = [
        np.stack([s.record(i).image[..., 0].ravel() for i in range(len(s))]).astype(np.float32)
        for s in (train, test)
    ]
    distance = (flat[1] ** 2).sum(1)[:, None] + (flat[0] ** 2).sum(1) - 2 * flat[1] @ flat[0].T
    assert (train.labels()[distance.argmin(1)] == test.labels()).mean() > 0.95


def test_digits_refuse_other_splits() -> None:
    with pytest.raises(ValueError, match="'train' and 'test', not 'val'"):
        open_source(typed(data_config(name="digits")), "val")


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"data\.name is 'imagenet', .*digits.*folder"):
        open_source(typed(data_config(name="imagenet")), "train")


@pytest.mark.parametrize(
    ("name", "words"), [("tfds", "does not name a dataset"), ("cifar10:mnist", "takes no name")]
)
def test_a_name_behind_the_colon_is_where_it_belongs(name, words) -> None:
    with pytest.raises(ConfigError, match=rf"config\.data\.name is '{name}'.*{words}"):
        resolve(data_config(name=name))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("root", [None, "/nowhere/at/all"])
def test_missing_data_says_at_once_how_to_get_it(name, root) -> None:
    start = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=r"cs\.toronto\.edu.*md5 [0-9a-f]{32}.*data\.root"):
        open_source(typed(data_config(name=name, root=root)), "train")
    with pytest.raises(FileNotFoundError, match="tfds build"):
        open_source(typed(data_config(name=f"tfds:{name}", root=root)), "train")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), [0, 1], "must be uint8"),
        (np.zeros((2, 4, 4), np.uint8), [0, 1], "must be uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0], "2 images, but labels"),
        (np.zeros((0, 4, 4, 3), np.uint8), [], "no images"),
        (np.zeros((2, 4, 4, 3), np.uint8), [0, 3], "outside 0 .. 2"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(images, labels, words) -> None:
    with pytest.raises(ValueError, match=words):
        ArraySource("bad", images, labels, ["a", "b", "c"])


def test_subset_is_seeded_nested_and_without_repetition() -> None:
    source = small()
    names = [subset(source, 5, 1).record(i).name for i in range(5)]
    assert len(set(names)) == 5
    assert names == [subset(source, 8, 1).record(i).name for i in range(5)]
    assert names != [subset(source, 5, 2).record(i).name for i in range(5)]
    part = subset(source, 5, 1)
    assert part.labels().tolist() == [part.record(i).label for i in range(5)]
    assert "5 images of small" in part.description
    assert part.class_names == source.class_names
    assert derived.stored_images(part).shape == (32, 32, 3)
    assert subset(source, None, 1) is source
    assert subset(source, 100, 1) is source
    with pytest.raises(ValueError, match="at least one image, not 0"):
        subset(source, 0, 1)


def test_fingerprints_notice_changes() -> None:
    source = small()
    images = source.images.copy()
    images[3] ^= 1
    others = [
        ArraySource("small", images, source.labels(), source.class_names),
        ArraySource("small", source.images, (source.labels() + 1) % 3, source.class_names),
        ArraySource("small", source.images, source.labels(), ["a", "b", "d"]),
        subset(source, 5, 1),
        subset(source, 5, 2),
    ]
    assert len({s.fingerprint() for s in [source, *others]}) == 6
    assert small().fingerprint() == source.fingerprint()
    assert pickle.loads(pickle.dumps(source)).fingerprint() == source.fingerprint()


def test_decode_takes_bytes_or_pixels() -> None:
    image = photo(0)
    np.testing.assert_array_equal(decode(Record(encode(image, "PNG"), None, 0, "x")), image)
    np.testing.assert_array_equal(decode(Record(None, image, 0, "x")), image)
    with pytest.raises(ValueError, match="neither bytes nor pixels"):
        decode(Record(None, None, 0, "x"))


@pytest.mark.parametrize(
    ("count", "classes", "expected"),
    [
        (1, ["a"], "1 image of 32x32 pixels, 1 class"),
        (2, ["a", "b"], "2 images of 32x32"),
    ],
)
def test_descriptions_count_in_singular_and_plural(count, classes, expected) -> None:
    source = ArraySource("s", np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count), classes)
    assert source.description.startswith(f"s: {expected}")
    assert subset(source, 1, 0).description.startswith("1 image of s" if count > 1 else "s: 1")
