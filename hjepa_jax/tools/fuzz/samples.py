"""Small intact datasets of every supported kind, for the `data` fuzzer to damage."""

from __future__ import annotations

import functools
import io
import json
import pathlib
import pickle
import tarfile
import tempfile
import zipfile
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from hjepa_jax.data.formats.parquet_tables import pyarrow_module
from hjepa_jax.data.sources.image_folder import open_folder
from hjepa_jax.data.sources.shard_writer import write_shards

CLASSES = ("bird", "cat", "dog")
COUNTS = {"train": 9, "test": 4}
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")


class Sample(NamedTuple):
    """An intact dataset.

    Attributes:
      name: the `config.data.name` that reads it.
      root: the `config.data.root`, relative to its folder; '' = the folder itself.
      files: contents by path relative to its folder.
      checked: whether the format itself detects every change of a stored image.
      labels: the `config.data.labels`, or a file of them relative to its folder.
    """

    name: str
    root: str
    files: dict[str, bytes]
    checked: bool
    labels: str = "auto"


def pixels(split: str, number: int) -> npt.NDArray[np.uint8]:
    """Returns image `number` of a split, uint8 [H, W, 3]."""
    rng = np.random.default_rng([len(split), number])
    return rng.integers(0, 256, (16 + 3 * number, 40 - 2 * number, 3), dtype=np.uint8)


def encoded(split: str, number: int, kind: str = "PNG") -> bytes:
    """Returns the bytes of an image file."""
    buffer = io.BytesIO()
    image = Image.fromarray(pixels(split, number))
    options: dict[str, Any] = {}
    if kind == "JPEG":
        exif = image.getexif()
        exif[0x0112] = 1 + number % 8
        options["exif"] = exif
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def images(split: str) -> list[bytes]:
    """Returns the bytes of the PNG files of a split."""
    return [encoded(split, number) for number in range(COUNTS[split])]


def _folder(various: bool) -> Sample:
    files = {}
    for split, count in COUNTS.items():
        for number in range(count):
            kind = _FORMATS[number % len(_FORMATS)] if various else "PNG"
            path = f"{split}/{CLASSES[number % 3]}/{number}.{kind.lower()}"
            files[path] = encoded(split, number, kind)
    return Sample("folder", "", files, not various)


def _read_back(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def write(files: dict[str, bytes], folder: pathlib.Path) -> None:
    """Writes the files of a sample below a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _shards() -> Sample:
    with tempfile.TemporaryDirectory() as temporary:
        source, out = pathlib.Path(temporary, "images"), pathlib.Path(temporary, "out")
        write(_folder(various=False).files, source)
        for split in COUNTS:
            write_shards(open_folder(source, split), split, out, images_per_shard=4)
        return Sample("folder", "", _read_back(out), True)


def parquet_table(split: str, kind: str = "struct") -> Any:
    """Returns a table of images and labels, as the Hugging Face hub stores them."""
    pyarrow = pyarrow_module()
    values: Any = images(split)
    if kind == "struct":
        values = [{"bytes": value, "path": f"{i}.png"} for i, value in enumerate(values)]
    labels = [number % 3 for number in range(COUNTS[split])]
    features = {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.table({"image": values, "label": labels})
    return table.replace_schema_metadata(metadata)


def parquet_file(table: Any, **options: Any) -> bytes:
    """Returns the bytes of a Parquet file."""
    pyarrow = pyarrow_module()
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, row_group_size=4, **options)
    return sink.getvalue().to_pybytes()


def _parquet(kind: str) -> Sample:
    files = {
        f"data/{split}-00000-of-00001.parquet": parquet_file(parquet_table(split, kind))
        for split in COUNTS
    }
    return Sample("folder", "", files, False)


def cifar_values(name: str) -> dict[str, dict[bytes, Any]]:
    """Returns the contents of the files of a tiny CIFAR, by file name."""
    rng = np.random.default_rng(3)
    if name == "cifar10":
        files, key, classes = (
            [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"],
            b"labels",
            10,
        )
        meta: tuple[str, bytes] = ("batches.meta", b"label_names")
    else:
        files, key, classes = ["train", "test"], b"fine_labels", 100
        meta = ("meta", b"fine_label_names")
    values: dict[str, dict[bytes, Any]] = {
        file: {
            b"batch_label": b"made",
            key: rng.integers(0, classes, 3).tolist(),
            b"data": rng.integers(0, 256, (3, 3072), dtype=np.uint8),
            b"filenames": [b"a.png", b"b.png", b"c.png"],
        }
        for file in files
    }
    values[meta[0]] = {meta[1]: [f"kind{i}".encode() for i in range(classes)]}
    return values


def tar_file(files: dict[str, bytes], mode: Any = "w:gz") -> bytes:
    """Returns the bytes of an archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zip_file(files: dict[str, bytes]) -> bytes:
    """Returns the bytes of a zip archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def _packed(name: str) -> Sample:
    files = _folder(various=False).files
    content = zip_file(files) if name.endswith(".zip") else tar_file(files)
    return Sample("folder", name, {name: content}, True)


def _labeled() -> Sample:
    """Images without class folders, and a file of their labels."""
    files, rows = {}, ["file,label"]
    for split, count in COUNTS.items():
        for number in range(count):
            path = f"{split}/{split}{number}.png"
            files[path] = encoded(split, number)
            rows.append(f"{path},{CLASSES[number % len(CLASSES)]}")
    files["labels.csv"] = "\n".join(rows).encode()
    return Sample("folder", "", files, True, "labels.csv")


def _cifar(name: str, form: str) -> Sample:
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    files = {
        f"{folder}/{file}": pickle.dumps(value, protocol=2)
        for file, value in cifar_values(name).items()
    }
    if form == "folder":
        return Sample(name, folder, files, False)
    return Sample(
        name, form, {form: tar_file(files, "w:gz" if form.endswith("gz") else "w")}, False
    )


def _stl10() -> Sample:
    rng = np.random.default_rng(5)
    files = {"class_names.txt": "".join(f"{name}\n" for name in CLASSES).encode()}
    for split, count in COUNTS.items():
        files[f"{split}_X.bin"] = rng.bytes(count * 3 * 96 * 96)
        files[f"{split}_y.bin"] = bytes(number % len(CLASSES) + 1 for number in range(count))
    return Sample("stl10", "", files, False)


def _tfds() -> Sample:
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "label": tfds.features.ClassLabel(names=list(CLASSES)),
    }
    with tempfile.TemporaryDirectory() as temporary:
        made = pathlib.Path(temporary)

        class FuzzShapes(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            pkg_dir_path: Any = made

            def _info(self):
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                return {split: self._generate_examples(split) for split in COUNTS}

            def _generate_examples(self, split):
                for number, image in enumerate(images(split)):
                    yield number, {"image": image, "label": number % 3}

        FuzzShapes(data_dir=made, file_format="array_record").download_and_prepare()
        return Sample("tfds:fuzz_shapes", "", _read_back(made), True)


_MAKERS = {
    "folder": lambda: _folder(various=False),
    "various images": lambda: _folder(various=True),
    "shards": _shards,
    "parquet": lambda: _parquet("struct"),
    "parquet of bytes": lambda: _parquet("binary"),
    "folder.zip": lambda: _packed("images.zip"),
    "folder.tar.gz": lambda: _packed("images.tar.gz"),
    "labels in a file": _labeled,
    "cifar10": lambda: _cifar("cifar10", "folder"),
    "cifar10.tar.gz": lambda: _cifar("cifar10", "cifar-10-python.tar.gz"),
    "cifar100.tar": lambda: _cifar("cifar100", "cifar-100-python.tar"),
    "stl10": _stl10,
    "tfds": _tfds,
}
KINDS = tuple(_MAKERS)


@functools.cache
def sample(kind: str) -> Sample:
    """Returns the intact dataset of a kind; cached."""
    return _MAKERS[kind]()
