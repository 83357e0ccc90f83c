"""Small images, folders and archives for the tests of the data package."""

import io
import pathlib
import pickle
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image

from hjepa_jax.config import base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.data import pipeline
from hjepa_jax.data.sources.base import ImageSource


def photo(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    """A smooth colorful image with some texture, uint8 [height, width, 3]."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return np.clip(smooth + random.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)


def encode(image: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    """The bytes of an image file."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_folder(
    root: pathlib.Path, counts: dict[str, dict[str, int]], height: int = 40, width: int = 48
) -> pathlib.Path:
    """Writes `<split>/<class>/NNN.jpg` for the counts per split and class."""
    seed = 0
    for split, classes in counts.items():
        for name, count in classes.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number:03d}.jpg").write_bytes(encode(photo(seed, height, width)))
                seed += 1
    return root


def cifar_files(name: str, per_file: int = 6) -> dict[str, bytes]:
    """The files of a tiny CIFAR-10 or CIFAR-100, pickled as the originals are."""
    random = np.random.default_rng(3)
    if name == "cifar10":
        files, key = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], b"labels"
        meta_name, meta = "batches.meta", {b"label_names": [f"kind{i}".encode() for i in range(10)]}
        classes = 10
    else:
        files, key = ["train", "test"], b"fine_labels"
        meta_name, meta = "meta", {b"fine_label_names": [f"kind{i}".encode() for i in range(100)]}
        classes = 100
    contents = {meta_name: pickle.dumps(meta, protocol=2)}
    for file in files:
        rows = random.integers(0, 256, (per_file, 3072), dtype=np.uint8)
        labels = random.integers(0, classes, per_file).tolist()
        contents[file] = pickle.dumps({b"data": rows, key: labels}, protocol=2)
    return contents


def write_tar(path: pathlib.Path, contents: dict[str, bytes], mode: str = "w:gz") -> pathlib.Path:
    """Writes an archive of the given members."""
    with tarfile.open(path, mode) as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


class OneByOne:
    """A source whose images are read one after the other, although another holds them all."""

    def __init__(self, source: ImageSource):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getattr__(self, name: str):
        return getattr(self._source, name)

    def __reduce__(self):
        return OneByOne, (self._source,)


def data_config(**fields):
    """The base configuration with fields of its `data` section replaced; small batches."""
    config = base_config()
    config.data.update(batch_size=16, num_threads=1, prefetch_batches=2, cache_mb=0)
    config.data.update(backend="host", resident_mb=0)
    config.data.update(fields)
    return config


def train_stream(config, source, **arguments) -> pipeline.BatchStream:
    """The training batches of a configuration."""
    settings = typed(config)
    return pipeline.train_batches(settings.data, settings.seed, source, **arguments)


def png16(samples: np.ndarray) -> bytes:
    """A 16-bit PNG of gray, gray and alpha, RGB or RGBA samples, which Pillow does not write."""
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if samples.ndim == 2 else samples.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], 16, color_type, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
