"""Decoding: every kind of image becomes upright RGB; hostile and broken files are refused."""

import struct
import zlib

import numpy as np
import pytest
from image_files import encode, photo
from PIL import Image

from hjepa_jax.data import decode
from hjepa_jax.data.decode import CorruptImageError, decode_image


def decoded(data: bytes) -> np.ndarray:
    image = decode_image(data, "test file")
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_are_exact(kind, options) -> None:
    np.testing.assert_array_equal(decoded(encode(photo(0), kind, **options)), photo(0))


def test_jpeg_is_close() -> None:
    got = decoded(encode(photo(0), quality=95, subsampling=0))
    assert np.abs(got.astype(int) - photo(0)).mean() < 4


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_png_modes_become_rgb(mode) -> None:
    image = Image.fromarray(photo(0)).convert(mode)
    expected = np.asarray(image.convert("RGBA").convert("RGB"))
    np.testing.assert_array_equal(decoded(encode(image, "PNG")), expected)


def test_palette_with_transparency_keeps_its_colours() -> None:
    image = Image.fromarray(photo(0)).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    data = encode(image, "PNG", transparency=bytes(range(0, 256, 16)))
    np.testing.assert_array_equal(decoded(data), expected)


def test_sixteen_bits_keep_the_high_byte() -> None:
    wide = np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 34
    got = decoded(encode(Image.fromarray(wide), "PNG"))
    np.testing.assert_array_equal(got, np.repeat((wide >> 8)[..., None], 3, axis=-1))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    image = Image.fromarray(photo(0))
    got = decoded(encode(image.convert("CMYK"), quality=95))
    assert np.abs(got.astype(int) - photo(0)).mean() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation) -> None:
    upright = photo(0)
    # What a camera stores for each orientation so that undoing it gives the upright image.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decoded(encode(np.ascontiguousarray(stored), "PNG", exif=exif))
    np.testing.assert_array_equal(got, upright)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9])
def test_truncated_files_are_refused_with_their_name(kind, share) -> None:
    data = encode(photo(0), kind)
    with pytest.raises(CorruptImageError, match="Cannot decode the image test file: "):
        decode_image(data[: int(len(data) * share)], "test file")


def test_rubbish_and_other_formats_are_refused() -> None:
    for data in (b"no image at all", encode(photo(0), "TIFF"), encode(photo(0), "GIF")):
        with pytest.raises(CorruptImageError):
            decode_image(data, "test file")


def test_damaged_png_is_refused() -> None:
    data = bytearray(encode(photo(0), "PNG"))
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(CorruptImageError):
        decode_image(bytes(data), "test file")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_refused_before_decoding() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    for side in (9_500, 60_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        bomb = (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", header)
            + chunk(b"IDAT", b"")
            + chunk(b"IEND", b"")
        )
        with pytest.raises(CorruptImageError, match="pixels"):
            decode_image(bomb, "bomb.png")


def test_oversized_file_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(decode, "MAX_ENCODED_BYTES", 100)
    with pytest.raises(CorruptImageError, match="more than 100"):
        decode_image(encode(photo(0)), "big.jpg")


def test_large_jpegs_are_reduced_but_never_below_the_size_needed() -> None:
    image = Image.fromarray(photo(0)).resize((800, 600))
    for needed in (50.0, 100.0, 160.0, 340.0, 400.0, 800.0):
        reduced = decode_image(encode(image), "photo.jpg", needed)
        side = (reduced.width * reduced.height) ** 0.5
        full = (800 * 600) ** 0.5
        assert side >= min(needed, full) - 1
        # One more halving would have been too much (8 is the decoder's most).
        assert side / 2 < needed or reduced.width == 100
    assert decode_image(encode(image, "PNG"), "photo.png", 50.0).size == (800, 600)
