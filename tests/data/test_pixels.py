"""Pixels of more than 8 bits: one scale for all images of a dataset, chosen from a sample."""

import logging
import pickle
import struct

import numpy as np
import pytest
from image_files import data_config, encode, png16, write_folder
from PIL import Image, TiffImagePlugin

from hjepa_jax.config.checks import typed
from hjepa_jax.data import decode as decode_module
from hjepa_jax.data.decode import decode_image, sample_limits
from hjepa_jax.data.formats.pixels import FULL, Limits, Ranges, choose_ranges, scale
from hjepa_jax.data.loader import Decoder
from hjepa_jax.data.sources import derived
from hjepa_jax.data.sources.base import decode
from hjepa_jax.data.sources.open import open_source

SHAPE = (24, 20)


def values(bits: int, seed: int = 0, channels: int = 1) -> np.ndarray:
    """Values uint16 that use all of some bits."""
    drawn = np.random.default_rng(seed).integers(0, 2**bits, (*SHAPE, channels), dtype=np.uint16)
    drawn[0, 0] = 2**bits - 1
    return drawn[..., 0] if channels == 1 else drawn


def tiff16(
    samples: np.ndarray,
    photometric: int,
    order: str = "<",
    extra: int | None = None,
    orientation: int = 1,
) -> bytes:
    """A 16-bit TIFF of several channels, which Pillow reads but does not write."""
    pixels = samples.astype(f"{order}u2").tobytes()
    height, width, channels = samples.shape
    start = 8 + 2 * channels
    short = (lambda value: value << 16) if order == ">" else (lambda value: value)
    entries = [
        *((256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8), (259, 3, 1, short(1))),
        *((262, 3, 1, short(photometric)), (273, 4, 1, start)),
        *((274, 3, 1, short(orientation)), (277, 3, 1, short(channels))),
        *((278, 4, 1, height), (279, 4, 1, len(pixels))),
    ]
    if extra is not None:
        entries.append((338, 3, 1, short(extra)))
    directory = struct.pack(f"{order}H", len(entries)) + b"".join(
        struct.pack(f"{order}HHII", *entry) for entry in entries
    )
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}I", start + len(pixels))
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    return head + bits + pixels + directory + bytes(4)


def of_cmyk(values: np.ndarray) -> np.ndarray:
    size = values.shape[1], values.shape[0]
    return np.asarray(
        Image.frombytes("CMYK", size, values.astype(np.uint8).tobytes()).convert("RGB")
    )


def signed_tiff(samples: np.ndarray) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[339] = 2
    return encode(Image.fromarray(samples.astype(np.int32)), "TIFF", tiffinfo=info)


def folder_of(tmp_path, files: dict[str, list[bytes]]):
    """Opens an image folder of one class with these files for each split; returns the config."""
    for split, contents in files.items():
        (tmp_path / split / "a").mkdir(parents=True)
        for number, content in enumerate(contents):
            (tmp_path / split / "a" / f"{number}.png").write_bytes(content)
    return data_config(name="folder", root=str(tmp_path))


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_bits_that_are_used_become_the_eight(bits, channels, tmp_path) -> None:
    stored = [values(bits, seed, channels) for seed in range(3)]
    dark = values(4, 9, channels)
    config = folder_of(tmp_path, {"train": [png16(one) for one in (*stored, dark)]})
    settings = typed(config)
    source = open_source(settings, "train")
    for index, one in enumerate((*stored, dark)):
        gray = one if channels == 1 else one[..., :1] if channels == 2 else one[..., :3]
        expected = np.broadcast_to((gray >> (bits - 8)).reshape(*SHAPE, -1), (*SHAPE, 3))
        np.testing.assert_array_equal(decode(source.record(index)), expected)
        np.testing.assert_array_equal(Decoder(settings.data, source)(index).image, expected)
    assert pickle.loads(pickle.dumps(source)).record(3) == source.record(3)


@pytest.mark.parametrize(
    ("encoded", "expected"),
    [
        (tiff16(values(12, 1, 3), 2), values(12, 1, 3) >> 4),
        (tiff16(values(16, 1, 3), 2), values(16, 1, 3) >> 8),
        (tiff16(values(10, 1, 3), 2, ">"), values(10, 1, 3) >> 2),
        (tiff16(values(12, 1, 4), 2, extra=2), values(12, 1, 4)[..., :3] >> 4),
        (tiff16(values(12, 1, 4), 5), of_cmyk(values(12, 1, 4) >> 4)),
        (tiff16(values(16, 1, 4), 5, ">"), of_cmyk(values(16, 1, 4) >> 8)),
        (encode(Image.fromarray(values(12)), "TIFF"), values(12) >> 4),
        (encode(Image.fromarray(values(10)), "TIFF", compression="tiff_lzw"), values(10) >> 2),
        (encode(Image.fromarray(values(16)), "PPM"), values(16) >> 8),
        (encode(Image.fromarray((values(8) / 255).astype(np.float32)), "TIFF"), values(8)),
        (encode(Image.fromarray(values(8).astype(np.float32)), "TIFF"), values(8)),
        (
            encode(Image.fromarray(values(12).astype(np.float32)), "TIFF"),
            np.rint(values(12) * (255 / 4095)),
        ),
        (encode(Image.fromarray((values(8) / 127.5 - 1).astype(np.float32)), "TIFF"), None),
        (signed_tiff(np.arange(480).reshape(SHAPE) - 200), None),
    ],
    ids=[
        *("rgb12", "rgb16", "rgb10 big", "rgba12", "cmyk12", "cmyk16 big"),
        *("gray12", "lzw10", "pgm16"),
        *("unit", "float8", "float12", "signed unit", "signed"),
    ],
)
def test_every_deep_format_is_scaled_by_what_is_there(encoded, expected, tmp_path) -> None:
    source = open_source(typed(folder_of(tmp_path, {"train": [encoded]})), "train")
    got = decode(source.record(0))
    if expected is None:
        # All of a signed range is used, from black to white.
        assert (got.min(), got.max()) == (0, 255)
        return
    gray = expected[..., None] if expected.ndim == 2 else expected
    np.testing.assert_array_equal(got, np.broadcast_to(gray, got.shape))


# What the stored rows and columns become.
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("kind", ["gray", "float", "rgb", "rgb whole", "png"])
def test_deep_images_are_turned(kind, orientation, tmp_path) -> None:
    info = {0x0112: orientation}
    if kind == "gray":
        stored = values(12)
        encoded = encode(Image.fromarray(stored), "TIFF", tiffinfo=info)
    elif kind == "float":
        stored = values(8) << 4
        unit = (values(8) / 255).astype(np.float32)
        encoded = encode(Image.fromarray(unit), "TIFF", tiffinfo=info)
    elif kind == "png":
        stored = values(12)
        exif = Image.Exif()
        exif[0x0112] = orientation
        encoded = encode(Image.fromarray(stored), "PNG", exif=exif)
    else:
        stored = values(12, 0, 3)
        factor = 16 if kind == "rgb whole" else 1
        encoded = tiff16(stored * factor, 2, orientation=orientation)
    source = open_source(typed(folder_of(tmp_path, {"train": [encoded]})), "train")
    expected = TURNED[orientation](stored.reshape(*SHAPE, -1) >> 4)
    got = decode(source.record(0))
    np.testing.assert_array_equal(got, np.broadcast_to(expected, (*expected.shape[:2], 3)))


def test_the_training_split_decides_for_every_split(tmp_path, caplog) -> None:
    train, test = values(12, 0), values(9, 1)
    config = folder_of(tmp_path, {"train": [png16(train)] * 2, "test": [png16(test)]})
    settings = typed(config)
    for _ in range(2):
        found = open_source(settings, "test")
        np.testing.assert_array_equal(decode(found.record(0))[..., 0], test >> 4)
        open_source(settings, "train")
    told = [r.getMessage() for r in caplog.records if "more than 8 bits" in r.getMessage()]
    assert len(told) == len(set(told)) == 2
    assert "0 .. 4095, which becomes 0 .. 255" in told[0]


def test_whole_sixteen_bits_and_eight_bits_need_no_warning(tmp_path, caplog) -> None:
    config = folder_of(tmp_path, {"train": [png16(values(16))]})
    open_source(typed(config), "train")
    write_folder(tmp_path / "eight", {"train": {"a": 2}})
    config.data.root = str(tmp_path / "eight")
    plain = open_source(typed(config), "train")
    assert plain.record(0).ranges is None
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_an_image_brighter_than_the_sample_saturates(tmp_path, monkeypatch, caplog) -> None:
    decode_module._warn_saturated.cache_clear()
    monkeypatch.setattr(derived, "_SAMPLED_IMAGES", 1)
    config = folder_of(tmp_path, {"train": [png16(values(10)), png16(values(12))]})
    source = open_source(typed(config), "train")
    expected = np.minimum(values(12), 1023) >> 2
    for _ in range(2):
        np.testing.assert_array_equal(decode(source.record(1))[..., 0], expected)
    told = [r.getMessage() for r in caplog.records if "values above" in r.getMessage()]
    assert len(told) == 1
    assert "above 1023" in told[0]


def test_deep_pixels_outside_the_sample_keep_their_high_byte() -> None:
    np.testing.assert_array_equal(
        np.asarray(decode_image(png16(values(14)), "x"))[..., 0], values(14) >> 8
    )
    unit = np.linspace(0, 1, 480, dtype=np.float32).reshape(SHAPE)
    for factor in (1, 255):
        encoded = encode(Image.fromarray(unit * factor), "TIFF")
        assert np.asarray(decode_image(encoded, "x")).max() == 255


def test_pixels_without_a_value_are_black() -> None:
    odd = np.array([[0.5, np.nan], [np.inf, -np.inf]], np.float32)
    assert sample_limits(encode(Image.fromarray(odd), "TIFF")) == Limits(True, 0.5, 0.5)
    assert scale(odd, (0.0, 1.0)).tolist() == [[128, 0], [255, 0]]


@pytest.mark.parametrize(
    ("low", "high", "real", "expected"),
    [
        (0, 0, False, (0, FULL)),
        (0, 1, False, (0, 1)),
        (0, 9, False, (0, 15)),
        (0, 255, False, (0, 255)),
        (0, 256, False, (0, 1023)),
        (0, 70_000, False, (0, 131_071)),
        (-1024, 3071, False, (-1024, 3071)),
        (0, 1.2, True, (0, 1)),
        (0, 0, True, (0, 1)),
        (0, 0.01, True, (0, 0.01)),
        (0, 0.3, True, (0, 1)),
        (0, 9.5, True, (0, 15)),
        (-0.05, 1.0, True, (0, 1)),
        (-1, 1, True, (-1, 1)),
        (0, 254.5, True, (0, 255)),
        (0, 60_000, True, (0, FULL)),
        (-300, 500, True, (-300, 500)),
    ],
)
def test_ranges_follow_from_the_limits(low, high, real, expected) -> None:
    found = choose_ranges([Limits(real, low, high)])
    assert found == (Ranges(None, expected) if real else Ranges(expected, None))
    assert choose_ranges([]) is None


EIGHT_BITS = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "TIFF": ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"],
    "GIF": ["1", "L", "LA", "P", "RGB", "RGBA"],
    "BMP": ["1", "L", "P", "RGB", "RGBA"],
}


@pytest.mark.parametrize("kind", EIGHT_BITS)
def test_eight_bit_modes_are_no_deep_pixels(kind) -> None:
    image = Image.fromarray(values(8, 3, 3).astype(np.uint8))
    for mode in EIGHT_BITS[kind]:
        encoded = encode(image.convert(mode), kind)
        assert sample_limits(encoded) is None, mode
        assert decode_image(encoded, "x").mode == "RGB", mode
