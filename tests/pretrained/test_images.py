"""What a user may give to `encode`: every kind of image becomes the pixels that training sees."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from image_files import encode, photo, png16
from PIL import Image

from hjepa_jax.data.decode import CorruptImageError, decode_image
from hjepa_jax.errors import UserError
from hjepa_jax.pretrained.images import check_range, decoded, is_one, items, known_count


def pixels(images, value_range=None) -> list[np.ndarray]:
    """Returns the pixels of all images that `items` yields."""
    return [np.asarray(decoded(item, value_range)) for item in items(images, value_range)]


def only(images, value_range=None) -> np.ndarray:
    (found,) = pixels(images, value_range)
    assert found.dtype == np.uint8
    return found


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_a_pil_image_of_any_mode_is_its_file_decoded(mode, tmp_path) -> None:
    image = Image.fromarray(photo(1, 9, 7)).convert(mode)
    encoded = encode(image, "TIFF")
    file = tmp_path / "image.tif"
    file.write_bytes(encoded)
    expected = np.asarray(decode_image(encoded, "image"))
    assert expected.shape == (9, 7, 3)
    np.testing.assert_array_equal(only(image), expected)
    for path in (file, str(file), file.as_uri()):
        np.testing.assert_array_equal(only(path), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_an_opened_image_is_turned_upright_as_its_file_is(kind, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = tmp_path / "turned"
    file.write_bytes(encode(photo(2, 8, 12), kind, exif=exif))
    with Image.open(file) as opened:
        found = only(opened)
    assert found.shape == (12, 8, 3)
    np.testing.assert_array_equal(found, only(file))


def test_gray_is_repeated_and_alpha_dropped() -> None:
    rgb = photo(3, 5, 6)
    gray = rgb[..., 0]
    for array in (gray, gray[..., None]):
        np.testing.assert_array_equal(only(array), np.stack([gray] * 3, -1))
    np.testing.assert_array_equal(only(np.dstack([rgb, gray])), rgb)
    np.testing.assert_array_equal(only(rgb[:, ::-1]), rgb[:, ::-1])


def test_floats_from_0_to_1_are_rounded_to_bytes() -> None:
    values = np.array([[0.0, 0.2, 1.0], [0.001, 0.003, 0.998]])
    expected = [[0, 51, 255], [0, 1, 254]]
    for array in (values, values.astype(np.float32), jnp.asarray(values, jnp.float32)):
        np.testing.assert_array_equal(only(array)[..., 0], expected)


def test_value_range_maps_what_has_more_than_8_bits(tmp_path) -> None:
    deep = np.array([[0, 16, 4095], [2048, 100, 65535]], np.uint16)
    expected = np.array([[0, 1, 255], [128, 6, 255]])
    file = tmp_path / "deep.png"
    Image.fromarray(deep).save(file)
    for image in (deep, deep.astype(np.int64), Image.fromarray(deep), file):
        np.testing.assert_array_equal(only(image, (0, 4095))[..., 0], expected)
        with pytest.raises(UserError, match=r"value_range=\(low, high\)"):
            only(image)
    normalized = np.array([[-2.0, 0.0, 2.0]], np.float32)
    np.testing.assert_array_equal(only(normalized, (-2, 2))[0, :, 1], [0, 128, 255])
    # 8 bits have no other range.
    np.testing.assert_array_equal(only(deep.astype(np.uint8), (0, 4095)), only(deep.astype("u1")))


def test_all_that_holds_images_yields_them_in_order(tmp_path) -> None:
    images = [photo(seed, 4 + seed, 5) for seed in range(4)]
    for number, (place, image) in enumerate(zip(("b/x.png", "a.png", "c.png", "b/a.bmp"), images)):
        path = tmp_path / place
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode(image, "PNG" if number < 3 else "BMP"))
    (tmp_path / "notes.txt").write_text("no image")
    in_folder = [images[i] for i in (1, 3, 0, 2)]
    same = np.stack([images[0], images[0] // 2])
    for given, expected, count in (
        (tmp_path, in_folder, None),
        (str(tmp_path), in_folder, None),
        (images, images, 4),
        (tuple(map(Image.fromarray, images)), images, 4),
        (iter(images), images, None),
        (same, list(same), 2),
        ([images[1], same, [images[2]]], [images[1], *same, images[2]], 4),
        ((batch for batch in (same, same)), [*same, *same], None),
        ([tmp_path, images[0]], [*in_folder, images[0]], None),
        ([], [], 0),
    ):
        assert not is_one(given)
        assert known_count(given) == count
        found = pixels(given)
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            np.testing.assert_array_equal(one, other)


def test_one_image_is_one(tmp_path) -> None:
    image = photo(0)
    file = tmp_path / "image.png"
    file.write_bytes(encode(image, "PNG"))
    for one in (image, image[..., 0], image[..., :1], Image.fromarray(image), file, str(file)):
        assert is_one(one)
        assert known_count(one) == 1


def test_an_iterator_is_not_read_ahead() -> None:
    read = []

    def images():
        for number in range(9):
            read.append(number)
            yield np.zeros((2, 2), np.uint8)

    assert next(items(images(), None)).name == "images[0]"
    assert read == [0]


GOOD = np.zeros((4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (3, r"^images is of type int, but images are PIL images, arrays"),
        (None, "images is of type NoneType"),
        ({"image": GOOD}, "images is of type dict"),
        ({"a.png"}, "images is of type set"),
        (b"\x89PNG", "images is of type bytes"),
        ([GOOD, (GOOD, 7)], r"^images\[1\]\[1\] is of type int"),
        ([GOOD, "/nowhere/a.png"], r"^The image /nowhere/a\.png cannot be read: No such file"),
        (["s3://bucket/a.png"], r"images\[0\]=s3://bucket/a\.png is a remote address"),
        ([GOOD, GOOD[..., :2]], r"^images\[1\] has shape \(4, 4, 2\), but an array is"),
        (np.zeros((3, 8, 9), np.uint8), r"last: images\.transpose\(1, 2, 0\)\.$"),
        (np.zeros((7, 3, 8, 9), np.uint8), r"last: images\.transpose\(0, 2, 3, 1\)\.$"),
        (np.zeros((5, 8, 9), np.uint8), r"4 channels\.$"),
        (np.zeros(5, np.uint8), r"has shape \(5,\)"),
        ([np.zeros((0, 4, 3), np.uint8)], r"images\[0\] has shape \(0, 4, 3\): it is empty"),
        ([GOOD, GOOD.astype(bool)], r"images\[1\] has dtype bool: convert it to uint8"),
        (np.array([[GOOD[0, 0]], None], object), "has shape"),
        ([GOOD, GOOD.astype(int)], r"images\[1\] has dtype int64 and values from 0 to 0: pass"),
        ([GOOD - 1.0], r"images\[0\] has dtype float64 and values from -1 to -1, but floats must"),
        (np.full((2, 4, 4, 3), 255.0), r"^images\[0\] has dtype float64 and values from 255 to"),
        (np.full((4, 4), np.nan), "values from nan to nan"),
    ],
)
def test_what_is_no_image_is_named(images, words) -> None:
    with pytest.raises(UserError, match=words) as caught:
        pixels(images)
    assert "\n" not in str(caught.value)


def test_a_file_or_folder_without_an_image_is_named(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"folder .*/empty has no images \(\.apng"):
        pixels(tmp_path / "empty")
    for content in (b"", b"no image", encode(photo(0), "JPEG")[:-40]):
        (tmp_path / "damaged.jpg").write_bytes(content)
        with pytest.raises(CorruptImageError, match=r"damaged\.jpg"):
            pixels([GOOD, tmp_path / "damaged.jpg"])
    with (
        Image.open(tmp_path / "damaged.jpg") as damaged,
        pytest.raises(CorruptImageError, match=r"Cannot decode images\[1\]"),
    ):
        pixels([GOOD, damaged])


def test_a_file_of_16_bits_per_channel_needs_its_path(tmp_path) -> None:
    deep = photo(4, 6, 6).astype(np.uint16) * 16
    file = pathlib.Path(tmp_path / "deep.png")
    file.write_bytes(png16(deep))
    np.testing.assert_array_equal(only(file, (0, 4095)), deep >> 4)
    with Image.open(file) as opened, pytest.raises(UserError, match="of which Pillow keeps 8"):
        only(opened, (0, 4095))


@pytest.mark.parametrize(
    "value_range", [5, (1,), (1, 1), (2, 1), (0, np.inf), ("a", "b"), (0, 1, 2)]
)
def test_a_range_is_two_finite_numbers(value_range) -> None:
    with pytest.raises(UserError, match="the two values that become 0 and 255"):
        check_range(value_range)
