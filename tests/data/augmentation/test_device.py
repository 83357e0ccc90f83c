"""The device back end makes the host's views from the same parameters."""

import jax
import numpy as np
import pytest
from image_files import data_config, photo, train_stream, write_folder

from hjepa_jax.data.augmentation.device import ResidentImages, augment_batch, with_images
from hjepa_jax.data.sources.base import ArraySource, ImageSource
from hjepa_jax.data.sources.derived import subset
from hjepa_jax.data.sources.folder import open_root


def both(source: ImageSource, **fields):
    batches = {}
    for backend in ("host", "device"):
        config = data_config(backend=backend, **fields)
        with train_stream(config, source, start_step=1, num_steps=1) as stream:
            batches[backend] = next(stream)
    return batches["host"], batches["device"], augment_batch(batches["device"], config.data)


def check(host, device, made) -> None:
    assert set(made) == set(host)
    assert all(made[name].dtype == host[name].dtype for name in host)
    for name in ("label", "index"):
        np.testing.assert_array_equal(made[name], host[name])
    for name in set(host) - {"label", "index"}:
        assert made[name].shape == host[name].shape
        error = np.abs(np.asarray(made[name]).astype(int) - host[name])
        # Rounding alone, but for single pixels at the solarization threshold.
        assert error.mean() < 0.3
        assert (error > 2).mean() < 1e-3


def test_images_of_one_shape_are_cropped_on_the_device() -> None:
    images = np.stack([photo(seed, 32, 36) for seed in range(40)])
    source = subset(ArraySource("test", images, np.arange(40) % 4, list("abcd")), 35, 0)
    host, device, made = both(source, num_local_views=2, local_size=20)
    assert device["images"].shape == (16, 32, 36, 3)
    assert "global_views" not in device
    check(host, device, made)


def test_images_are_taken_out_of_rows() -> None:
    """Also in a loop over the numbers of several batches, and of images that are not square."""
    images = np.stack([photo(seed, 6, 4) for seed in range(9)])
    rows = jax.numpy.asarray(images.reshape(9, -1))
    numbers = np.array([[8, 0, 3], [3, 3, 5]], np.int32)
    resident = {"resident_images": ResidentImages(rows, (6, 4, 3))}

    def one(_: None, index: jax.Array) -> tuple[None, dict[str, jax.Array]]:
        return None, with_images({"index": index, **resident})

    _, found = jax.lax.scan(one, None, numbers)
    assert found.keys() == {"index", "images"}
    np.testing.assert_array_equal(found["images"], images[numbers])


@pytest.mark.parametrize("kernel", [3, 9])
def test_files_are_cropped_on_the_host(tmp_path, kernel) -> None:
    write_folder(tmp_path, {"train": {"a": 18, "b": 14}}, 50, 70)
    source = open_root(str(tmp_path), "train", 0)
    host, device, made = both(source, image_size=40, augment={"blur_kernel": kernel})
    assert "images" not in device
    check(host, device, made)


def test_host_batches_pass_through() -> None:
    source = ArraySource("test", np.stack([photo(i, 32, 32) for i in range(16)]), [0] * 16, ["a"])
    config = data_config()
    with train_stream(config, source, num_steps=1) as stream:
        host = next(stream)
    same = augment_batch(host, config.data)
    assert all(same[name] is host[name] for name in host)
