"""Encoding of images of every kind, with an encoder that compiles at once."""

import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from image_files import encode, photo
from tiny_encoder import Halves

from hjepa_jax.data.augmentation.host import eval_image
from hjepa_jax.errors import ConfigError, UserError
from hjepa_jax.pretrained.encoder import Preprocessing, TrainedEncoder
from hjepa_jax.pretrained.hub import Origin
from hjepa_jax.runtime import sharding

MEAN, STD = (0.5, 0.25, 0.0), (0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def encoder() -> TrainedEncoder:
    about = Preprocessing(8, 10, MEAN, STD)
    variables = {"params": {"scale": jnp.float32(1)}, "batch_stats": {}}
    mesh = sharding.local_mesh()
    origin = Origin({}, step=3)
    return TrainedEncoder(Halves(), variables, about, origin, mesh, split_qp=True, batch_size=4)


def expected(image: np.ndarray) -> np.ndarray:
    """The state of one image, in NumPy."""
    x = (eval_image(image, 8, 10) / 255 - MEAN) / STD
    return x.reshape(2, -1, 3).mean(1).ravel()


def test_one_image_gives_a_vector_and_several_give_rows(encoder, tmp_path) -> None:
    images = [photo(seed, 10 + seed, 30 - seed) for seed in range(11)]
    rows = np.stack([expected(image) for image in images])
    for number in (0, 4):
        (tmp_path / f"{number}.png").write_bytes(encode(images[number], "PNG"))
    found = encoder.encode(images)
    assert (found.dtype, encoder.dim) == (np.float32, 6)
    np.testing.assert_allclose(found, rows, atol=1e-5)
    for one in (images[4], tmp_path / "4.png"):
        np.testing.assert_allclose(encoder.encode(one), rows[4], atol=1e-5)
    for several in ([images[4]], images[4][None], iter([images[4]])):
        np.testing.assert_allclose(encoder.encode(several), rows[4:5], atol=1e-5)
    np.testing.assert_allclose(encoder.encode(tmp_path), rows[[0, 4]], atol=1e-5)
    np.testing.assert_array_equal(encoder.encode(images, state_part="p"), found[:, 3:])
    np.testing.assert_array_equal(encoder.encode(images[0], state_part="q"), found[0, :3])


def test_an_iterator_is_read_by_batches_and_let_go(encoder) -> None:
    alive = []

    def images():
        for seed in range(23):
            alive.append(weakref.ref(image := photo(seed, 9, 9)))
            # The batch in the making, and the one that is being encoded.
            assert sum(ref() is not None for ref in alive) <= 2 * encoder.batch_size
            yield image

    assert encoder.encode(images()).shape == (23, 6)


@pytest.mark.parametrize(("listed", "total"), [(True, "9/9"), (False, "9/?")])
def test_progress_counts_images_on_stderr(encoder, capfd, listed, total) -> None:
    images = [photo(seed, 9, 9) for seed in range(9)]
    encoder.encode(images if listed else iter(images))
    assert capfd.readouterr() == ("", "")
    encoder.encode(images if listed else iter(images), progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert total in err


def test_errors_name_the_item_and_leave_nothing_running(encoder) -> None:
    good = photo(0, 9, 9)
    with pytest.raises(UserError, match=r"^images\[6\] has dtype float64 and values from -1 to"):
        encoder.encode([*[good] * 6, good / 127.5 - 1, good])
    for empty in ([], iter(()), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(UserError, match="no images to encode: pass at least one"):
            encoder.encode(empty)
    with pytest.raises(UserError, match="value_range is"):
        encoder.encode(good, value_range=(1, 0))
    with pytest.raises(ConfigError, match="'z'"):
        encoder.encode(iter(lambda: 1 / 0, None), state_part="z")


def test_crop_and_normalize_are_what_the_module_sees(encoder) -> None:
    images = [photo(seed, 12, 20) for seed in range(6)]
    crops = encoder.crop(images)
    np.testing.assert_array_equal(crops, [eval_image(image, 8, 10) for image in images])
    given = jax.jit(encoder.normalize)(crops)
    np.testing.assert_allclose(given, (crops / 255 - MEAN) / STD, atol=1e-5)
    states = encoder.module.apply(encoder.variables, given, train=False)
    np.testing.assert_allclose(states, encoder.encode(images), atol=1e-6)
    assert encoder.crop(images[0]).shape == (1, 8, 8, 3)


def test_replaced_variables_change_a_copy(encoder) -> None:
    image = photo(1, 9, 9)
    doubled = encoder.replace({**encoder.variables, "params": {"scale": jnp.float32(2)}})
    np.testing.assert_allclose(doubled.encode(image), 2 * encoder.encode(image), rtol=1e-6)
    assert (doubled.origin.fine_tuned, encoder.origin.fine_tuned) == (True, False)
    np.testing.assert_allclose(encoder.encode(image), expected(image), atol=1e-5)


def test_states_that_are_not_finite_are_refused(encoder) -> None:
    broken = encoder.replace({**encoder.variables, "params": {"scale": jnp.float32(np.nan)}})
    with pytest.raises(UserError, match="1 of 1 images are not finite"):
        broken.encode(photo(0))
