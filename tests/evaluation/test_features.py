"""Features: order, padding, errors, and the halves of the state."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hjepa_jax.evaluation import features


@jax.jit
def encode(images):
    return images.reshape(len(images), -1).astype(jnp.float32) * 2.0


def _batches(count: int, size: int) -> Iterator[dict[str, np.ndarray]]:
    """Images numbered by their pixels, in padded batches whose padding is 255."""
    for start in range(0, count, size):
        ids = np.arange(start, start + size)
        images = np.where(ids < count, ids, 255).astype(np.uint8)
        yield {
            "image": np.broadcast_to(images[:, None, None, None], (size, 2, 2, 3)),
            "label": ids % 7,
            "mask": ids < count,
        }


@pytest.mark.parametrize(("count", "size"), [(10, 4), (8, 4), (3, 8), (1, 1)])
def test_features_are_in_order_and_padding_is_dropped(count: int, size: int) -> None:
    found = features.extract_features(encode, _batches(count, size))
    expected = np.repeat(2.0 * np.arange(count)[:, None], 12, axis=1)
    np.testing.assert_array_equal(found.features, expected)
    np.testing.assert_array_equal(found.labels, np.arange(count) % 7)
    assert found.features.dtype == np.float32
    assert found.labels.dtype == np.int32


def test_the_time_of_features_and_the_wait_in_it_are_measured() -> None:
    """By a clock that each batch and each pass of the encoder moves on."""
    now = [100.0]

    def slow(seconds: float, value):
        now[0] += seconds
        return value

    batches = (slow(2.0, batch) for batch in _batches(10, 4))
    found, time = features.timed_features(
        lambda images: slow(0.5, encode(images)), batches, lambda: now[0]
    )
    plain = features.extract_features(encode, _batches(10, 4))
    np.testing.assert_array_equal(found.features, plain.features)
    assert time == features.Extraction(images=10, seconds=7.5, waited=6.0)
    assert time.figures() == {
        "images": 10,
        "seconds": 7.5,
        "images_per_second": pytest.approx(10 / 7.5),
        "data_wait_share": pytest.approx(0.8),
    }


def test_batches_without_mask_have_no_padding() -> None:
    batches = [{k: b[k] for k in ("image", "label")} for b in _batches(6, 3)]
    assert features.extract_features(encode, batches).features.shape == (6, 12)


def test_one_shape_is_compiled_for_a_padded_array() -> None:
    shapes = []

    def record(images):
        shapes.append(images.shape)
        return encode(images)

    images = np.arange(11, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    found = features.encode_images(record, images, 4)
    np.testing.assert_array_equal(found[:, 0], 2.0 * np.arange(11))
    assert set(shapes) == {(4, 2, 2, 3)}


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="no images to evaluate"):
        features.extract_features(encode, [])
    padding = [{**b, "mask": np.zeros(2, bool)} for b in _batches(2, 2)]
    with pytest.raises(ValueError, match="no images to evaluate"):
        features.extract_features(encode, padding)


def test_diverged_features_are_an_error_that_counts_them() -> None:
    def broken(images):
        return encode(images).at[1].set(jnp.nan)

    with pytest.raises(ValueError, match="features of 2 of 6 images are not finite"):
        features.extract_features(broken, _batches(6, 3))


def test_non_finite_padding_does_not_matter() -> None:
    def broken_on_padding(images):
        return jnp.where(images.reshape(len(images), -1)[:, :1] == 255, jnp.inf, encode(images))

    found = features.extract_features(broken_on_padding, _batches(5, 4))
    assert np.isfinite(found.features).all()


def test_wrong_shape_from_the_encoder_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"must return \[3, D\]"):
        features.extract_features(lambda images: jnp.zeros((2, 4)), _batches(3, 3))


def test_state_parts_are_the_halves_of_the_state() -> None:
    z = np.arange(24.0).reshape(2, 12)
    q, p = (features.select_state_part(z, name, split_qp=True) for name in ("q", "p"))
    np.testing.assert_array_equal(np.concatenate([q, p], axis=-1), z)
    np.testing.assert_array_equal(features.select_state_part(z, "qp", split_qp=True), z)
    np.testing.assert_array_equal(features.select_state_part(z, "qp", split_qp=False), z)
    assert features.state_parts_of(True) == ("q", "p", "qp")
    assert features.state_parts_of(False) == ("qp",)


@pytest.mark.parametrize("name", ["q", "p"])
def test_halves_of_an_unsplit_state_are_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=r"model.split_qp is False.*'qp'"):
        features.select_state_part(np.zeros((2, 4)), name, split_qp=False)


def test_invalid_state_parts_are_errors() -> None:
    with pytest.raises(ValueError, match="'z'; it must be one of"):
        features.select_state_part(np.zeros((2, 4)), "z", split_qp=True)
    with pytest.raises(ValueError, match="even width, but these features have 5"):
        features.select_state_part(np.zeros((2, 5)), "q", split_qp=True)
