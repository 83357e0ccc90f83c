"""Target `images`: folders of every image mode, format, shape, EXIF and name, some damaged.

An attempt opens both splits, makes a training batch, and reads the evaluation batches. Intact
images must have the pixels of Pillow's `convert`, upright or rotated.
"""

from __future__ import annotations

import io
import os
import pathlib
import random
import struct
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from hjepa_jax.config import base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.data.decode import CorruptImageError, decode_image
from hjepa_jax.data.pipeline import eval_batches, train_batches
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.tools.fuzz.damage import damage_bytes, damage_place

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16")
_DEEP = ("I", "F", "I;16")
_KINDS = {
    "PNG": (".png", ".PNG", ".apng"),
    "JPEG": (".jpg", ".JPEG", ".jfif", ".jpe", ".png"),
    "TIFF": (".tif", ".TIFF"),
    "GIF": (".gif",),
    "BMP": (".bmp", ".dib"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm", ".pbm"),
    "JPEG2000": (".jp2",),
}
_SIDES = (1, 2, 3, 7, 17, 40, 65, 130)
_JUNK = (
    b"Thumbs.db",
    b"._a.jpg",
    b".hidden.png",
    b"notes.txt",
    b"x.xml",
    b"noextension",
    b"a.part",
)
_NAMES = (b"a", b"b c", b"\xff\xfe", "\N{SNOWMAN}".encode(), b"new\nline", b"$_$", b"..x", b"d/e/f")


def _exif(rng: random.Random) -> bytes:
    """Bytes that may be EXIF: tags of any type, count and offset, among them an orientation."""
    if rng.random() < 0.2:
        return rng.choice((b"", b"Exif\0\0")) + rng.randbytes(rng.randrange(50))
    order = rng.choice("<>")
    tags = sorted(rng.sample((0x0101, 0x010F, 0x0112, 0x011A, 0x8298, 0x8769, 0x8825, 0xA005), 4))
    entries = b""
    for tag in tags:
        kind, count = rng.choice((3, 3, rng.randrange(16))), rng.choice((0, 1, 1, 1, 2, 2**31))
        value = struct.pack(f"{order}I", rng.choice((0, 6, 8, 100, 2**32 - 1)))
        if kind == 3:
            value = struct.pack(f"{order}HH", rng.choice((0, 1, 3, 6, 8, 9, 65531)), 0)
        entries += struct.pack(f"{order}HHI", tag, kind, count) + value
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + head + struct.pack(f"{order}H", rng.choice((4, 4, 9, 65535))) + entries


def _image(rng: random.Random) -> tuple[str, bytes, str]:
    """Returns a description, the bytes of an image that Pillow wrote, and an extension."""
    while True:
        kind, mode = rng.choice(tuple(_KINDS)), rng.choice(_MODES)
        size = (rng.choice(_SIDES), rng.choice(_SIDES))
        if rng.random() < 0.05:
            size = rng.choice(((3, 3000), (4000, 2), (900, 250)))
        random_pixels = np.random.default_rng(rng.randrange(2**32))
        if mode in _DEEP:
            top = rng.choice((1, 255, 4095, 65535))
            values = random_pixels.random((size[1], size[0])) * top
            dtype = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
            image = Image.fromarray(values.astype(dtype))
        else:
            values = random_pixels.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            image = Image.fromarray(values)
        options: dict[str, Any] = {}
        if rng.random() < 0.5 and kind in ("PNG", "JPEG", "WEBP"):
            options["exif"] = _exif(rng)
        if rng.random() < 0.2 and kind in ("PNG", "GIF", "TIFF", "WEBP"):
            options |= {"save_all": True, "append_images": [image.copy()]}
        buffer = io.BytesIO()
        try:
            if mode not in _DEEP:
                image = image.convert(mode)
            image.save(buffer, kind, **options)
            # An image that Pillow cannot read back is not intact.
            Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
        except Exception:
            continue
        about = f"{kind} {mode} {size[0]}x{size[1]}{' exif' if 'exif' in options else ''}"
        return about, buffer.getvalue(), rng.choice(_KINDS[kind])


def _check_pixels(content: bytes, about: str) -> None:
    """Raises AssertionError unless an intact image of 8 bits has the pixels that Pillow reads."""
    stored = Image.open(io.BytesIO(content))
    if stored.mode in _DEEP or stored.mode.startswith("I;"):
        decode_image(content, about)
        return
    expected = stored.convert("RGB")
    if stored.mode in ("P", "PA"):
        # The colors of transparent pixels are kept, which a direct conversion warns about.
        expected = stored.convert("RGBA").convert("RGB")
    got = decode_image(content, about).tobytes()
    turned = [expected.transpose(way) for way in Image.Transpose]
    assert got in [one.tobytes() for one in (expected, *turned)], f"{about}: other pixels"


def _write(rng: random.Random, root: pathlib.Path) -> tuple[list[str], list[bytes], bool]:
    """Writes two splits; returns the damage, the intact files, and whether all are intact."""
    about, intact, all_intact = [], [], True
    classes = rng.sample(_NAMES, rng.randrange(1, 4))
    for split in (rng.choice(("train", "Train", "training")), rng.choice(("test", "val", "valid"))):
        for name in classes:
            folder = os.fsencode(root / split) + b"/" + name
            for number in range(rng.randrange(2, 4)):
                inner = folder + rng.choice((b"", b"", b"/deep/er"))
                os.makedirs(inner, exist_ok=True)
                what, content, extension = _image(rng)
                path = inner + b"/%d" % number + extension.encode()
                damaged = rng.random() < 0.1
                if damaged and rng.random() < 0.7:
                    how, content = damage_bytes(rng, content)
                    what = f"{what} ({how})"
                with open(path, "wb") as file:
                    file.write(content)
                if damaged and "(" not in what:
                    what = f"{what} ({damage_place(rng, pathlib.Path(os.fsdecode(path)))})"
                if damaged:
                    all_intact = False
                    about.append(f"{split}: {what}")
                else:
                    intact.append(content)
            if rng.random() < 0.3:
                with open(folder + b"/" + rng.choice(_JUNK), "wb") as file:
                    file.write(b"junk")
            if rng.random() < 0.1:
                os.symlink(rng.choice((b"nowhere", folder, b".", b"link")), folder + b"/link")
    return about, intact, all_intact


def make(rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable[[], None]]:
    """Makes an odd image folder; see `worker`."""
    about, intact, all_intact = _write(rng, folder)
    # Pillow warns about odd metadata, which is not tested here.
    warnings.simplefilter("ignore")
    skip = rng.random() < 0.7
    config = base_config()
    config.data.update(name="folder", root=str(folder), batch_size=1, image_size=16, num_threads=1)
    config.data.backend = "host"
    config.data.update(on_corrupt="skip" if skip else "error", eval_resize=rng.choice((None, 20)))
    settings = typed(config)

    def attempt() -> None:
        for content in intact:
            _check_pixels(content, "an intact image")
        train, test = open_split(settings, "train"), open_split(settings, "test")
        assert train.class_names == test.class_names
        train.description.encode()
        try:
            with train_batches(settings.data, settings.seed, train, num_steps=1) as stream:
                next(stream)
            for source in (train, test):
                with eval_batches(settings.data, source, 4) as stream:
                    seen = sum(int(batch["mask"].sum()) for batch in stream)
                assert seen + stream.corrupt_count == len(source)
                assert not all_intact or seen == len(source), "an intact image was left out"
        except CorruptImageError as error:
            if all_intact or " at 0x" in str(error):
                raise AssertionError(f"refused although intact, or by address: {error}") from error
            raise

    return f"{len(intact)} intact images; {'; '.join(about) or 'no damaged ones'}", attempt
