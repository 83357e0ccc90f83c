"""Decoding: every kind of image becomes upright RGB; hostile and broken files are refused."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from image_files import encode, photo
from PIL import Image, PngImagePlugin, TiffImagePlugin

from hjepa_jax.data import decode
from hjepa_jax.data.decode import CorruptImageError, decode_image, extensions, formats


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


def test_palette_with_transparency_keeps_its_colors() -> None:
    image = Image.fromarray(photo(0)).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    data = encode(image, "PNG", transparency=bytes(range(0, 256, 16)))
    np.testing.assert_array_equal(decoded(data), expected)


def test_sixteen_bits_keep_the_high_byte() -> None:
    wide = np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 34
    got = decoded(encode(Image.fromarray(wide), "PNG"))
    np.testing.assert_array_equal(got, np.repeat((wide >> 8)[..., None], 3, axis=-1))


def test_cmyk_jpeg_keeps_its_colors() -> None:
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


@pytest.mark.parametrize("kind", ["BMP", "DIB", "TIFF", "PPM"])
def test_other_lossless_formats_are_exact(kind) -> None:
    np.testing.assert_array_equal(decoded(encode(photo(0), kind)), photo(0))


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_frames_the_first_is_read(kind) -> None:
    first, second = (Image.fromarray(photo(seed)).quantize(64) for seed in (0, 1))
    if kind != "GIF":
        first, second = first.convert("RGB"), second.convert("RGB")
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(first, kind, save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(decoded(data), np.asarray(first.convert("RGB")))


def test_a_picture_of_several_jpegs_is_its_first_one() -> None:
    first, second = (Image.fromarray(photo(seed, 200, 240)) for seed in (0, 1))
    data = encode(first, "MPO", save_all=True, append_images=[second], quality=95, subsampling=0)
    assert ".mpo" in extensions()
    assert np.abs(decoded(data).astype(int) - photo(0, 200, 240)).mean() < 4
    assert decode_image(data, "x", 50.0).size == (60, 50)


def test_other_lossy_formats_are_close() -> None:
    for kind in ("AVIF", "JPEG2000"):
        if kind in formats():
            data = encode(photo(0), kind)
            assert np.abs(decoded(data).astype(int) - photo(0)).mean() < 12
            assert encode(photo(0), kind) == data


def test_rubbish_and_other_formats_are_refused() -> None:
    for data in (b"no image at all", b"", encode(photo(0), "TGA"), encode(photo(0), "PCX")):
        messages = set()
        for _ in range(2):
            with pytest.raises(CorruptImageError) as caught:
                decode_image(bytes(data), "test file")
            messages.add(str(caught.value))
        # The reason is the same for the same file, and no address in this process.
        assert len(messages) == 1
        assert " at 0x" not in messages.pop()


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


def test_a_reduced_decode_keeps_the_short_side() -> None:
    panorama = Image.fromarray(photo(0, 250, 4000))
    for view, height in ((1, 32), (40, 63), (62, 63), (63, 125), (126, 250), (400, 250)):
        reduced = decode_image(encode(panorama), "panorama.jpg", 100.0, view)
        assert reduced.height in (height, height - 1), view
    for width, height in ((3, 10_000), (10_000, 3), (1, 900), (9, 2000)):
        thin = decode_image(encode(photo(0, height, width)), "thin.jpg", 100.0)
        assert min(thin.size) >= 1
        assert decode_image(encode(photo(0, height, width)), "x", 100.0, 32).size == (width, height)


def test_noise_of_a_panorama_survives_the_reduced_decode() -> None:
    noise = np.random.default_rng(0).normal(128, 20, (250, 4000)).clip(0, 255).astype(np.uint8)
    data = encode(Image.fromarray(noise), quality=95)
    view = 112
    full = decode_image(data, "x").convert("L").crop((1000, 0, 1250, 250)).resize((view, view))
    kept = decode_image(data, "x", 236.0, view).convert("L")
    start, side = kept.width // 4, kept.height
    kept = kept.crop((start, 0, start + side, side)).resize((view, view))
    assert np.asarray(kept).std() > 0.9 * np.asarray(full).std()


def tiff_exif(rng: random.Random) -> bytes:
    """EXIF of a few tags, which may have any type, count and offset, or bytes without order."""
    if rng.random() < 0.2:
        return rng.choice([b"Exif\0\0", b""]) + rng.randbytes(rng.randrange(60))
    order = rng.choice("<>")
    tags = sorted(rng.sample([0x0101, 0x010F, 0x0112, 0x011A, 0x8769, 0x8825, 0xA005], 4))
    entries = b""
    for tag in tags:
        kind = 3 if rng.random() < 0.5 else rng.randrange(16)
        count = rng.choice([0, 1, 1, 1, 2, 2**31])
        if kind == 3 and count == 1:
            value = struct.pack(f"{order}HH", rng.choice([0, 1, 3, 6, 8, 9, 65531]), 0)
        else:
            value = struct.pack(f"{order}I", rng.choice([0, 6, 8, 100, 2**32 - 1]))
        entries += struct.pack(f"{order}HHI", tag, kind, count) + value
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    directory = struct.pack(f"{order}H", rng.choice([4, 4, 4, 9, 65535])) + entries
    return b"Exif\0\0" + start + directory + bytes(rng.choice([0, 4, 40]))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_intact_pixels_are_read_whatever_the_exif(kind) -> None:
    image = Image.fromarray(photo(0, 16, 24))
    turned = 0
    for seed in range(150):
        exif = tiff_exif(random.Random(f"{kind}/{seed}"))
        data = encode(image, kind, exif=exif)
        try:
            expected = Image.open(io.BytesIO(data)).convert("RGB")
        except Exception:
            continue
        got = decode_image(data, f"seed {seed}")
        upright = {np.asarray(expected.transpose(way)).tobytes() for way in Image.Transpose}
        assert np.asarray(got).tobytes() in upright | {np.asarray(expected).tobytes()}, seed
        turned += got.size != expected.size
    # The orientations that can be read were followed.
    assert turned > 3


def with_tags(kind: str, *entries: tuple[int, int, int, bytes]) -> bytes:
    """An image that has EXIF entries (tag, type, count, four bytes), in little-endian order."""
    packed = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4)
    image = Image.fromarray(photo(0))
    return encode(image, kind, exif=exif, quality=95)


SIX = struct.pack("<HH", 6, 0)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("entries", "turned"),
    [
        ([(0x0101, 3, 1, struct.pack("<HH", 65531, 0)), (0x0112, 3, 1, SIX)], True),
        ([(0x0101, 4, 1, b"\xff\xff\xff\xff"), (0x0112, 3, 1, SIX)], True),
        ([(0x0101, 2, 9, b"\xff\xff\xff\x7f"), (0x0112, 3, 1, SIX)], None),
        ([(0x0112, 4, 1, struct.pack("<I", 6))], True),
        ([(0x0112, 11, 1, struct.pack("<f", 6.0))], False),
        ([(0x0112, 2, 2, b"6\0\0\0")], False),
        ([(0x0112, 1, 1, b"\6\0\0\0")], False),
        ([(0x0112, 7, 4, b"\6\0\0\0")], False),
        ([(0x0112, 3, 2, struct.pack("<HH", 6, 6))], True),
        ([(0x0112, 3, 1, struct.pack("<HH", 9, 0))], False),
    ],
)
def test_odd_orientations_cost_no_pixels(kind, entries, turned) -> None:
    height, width, _ = decoded(with_tags(kind, *entries)).shape
    assert turned is None or (height, width) == ((48, 40) if turned else (40, 48))


def test_a_png_profile_that_is_no_hexadecimal_is_no_orientation() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n      9\nno hexadecimal digits\n")
    np.testing.assert_array_equal(decoded(encode(photo(0), "PNG", pnginfo=info)), photo(0))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_a_tiff_is_turned_once(orientation) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x0112] = orientation
    got = decoded(encode(photo(0), "TIFF", tiffinfo=info))
    np.testing.assert_array_equal(got, np.rot90(photo(0), {1: 0, 3: 2, 6: 3}[orientation]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_tiffs_of_every_mode_are_turned(mode) -> None:
    stored = Image.fromarray(photo(0)[:20]).convert(mode)
    upright = decoded(encode(stored, "TIFF"))
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[0x0112] = 6
    turned = decoded(encode(stored, "TIFF", tiffinfo=info))
    np.testing.assert_array_equal(turned, np.rot90(upright, -1))
