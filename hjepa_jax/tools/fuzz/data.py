"""Target `data`: damaged datasets of every kind, opened, listed and decoded.

An attempt is right if it reads consistent data, and if every image that its format protects, or
whose file is intact, equals the stored one.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pickle
import random
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from hjepa_jax.config import Settings, base_config
from hjepa_jax.config.checks import typed
from hjepa_jax.data import pipeline
from hjepa_jax.data.download.cache_folder import VARIABLE
from hjepa_jax.data.formats.parquet_tables import pyarrow_module
from hjepa_jax.data.loader import Loader
from hjepa_jax.data.sources.base import ImageSource
from hjepa_jax.data.sources.image_folder import open_folder
from hjepa_jax.data.sources.open import open_split
from hjepa_jax.data.sources.shard_writer import write_shards
from hjepa_jax.errors import UserError
from hjepa_jax.tools.fuzz import samples
from hjepa_jax.tools.fuzz.damage import damage_bytes, damage_json, damage_place, odd_value
from hjepa_jax.tools.fuzz.packed import tar_headers, unpacking, zip_headers
from hjepa_jax.tools.fuzz.samples import Sample

_MOST_IMAGES = 16


def _settings(sample: Sample, folder: pathlib.Path, skip: bool) -> Settings:
    config = base_config()
    config.data.update(
        name=sample.name,
        root=str(folder / sample.root),
        batch_size=4,
        image_size=16,
        num_threads=1,
        prefetch_batches=1,
        cache_mb=0,
        on_corrupt="skip" if skip else "error",
        labels=str(folder / sample.labels) if sample.labels.endswith(".csv") else sample.labels,
    )
    return typed(config)


def _check_listing(source: ImageSource) -> None:
    """Checks that a source's metadata is consistent and can be printed and written."""
    labels = source.labels()
    assert len(source) > 0, "no images"
    assert labels.dtype == np.int32, f"labels of type {labels.dtype}"
    assert labels.shape == (len(source),), f"{labels.shape} labels of {len(source)} images"
    classes = len(source.class_names)
    assert all(-1 <= label < classes for label in labels.tolist()), "a label of no class"
    for text in (*source.class_names, source.description, source.fingerprint()):
        assert isinstance(text, str), f"{text!r} is not text"
        text.encode()


def _read(settings: Settings, split: str, intact: set[bytes] | None) -> None:
    """Opens and reads a split as evaluation and training do; compares the intact images."""
    source = open_split(settings, split)
    _check_listing(source)
    loader = Loader(settings.data, settings.seed, source, full_size=True)
    for index in range(min(len(source), _MOST_IMAGES)):
        loaded = loader.load(index, [])
        image = np.asarray(loaded.image)
        assert image.dtype == np.uint8, image.dtype
        assert image.ndim == 3, image.shape
        if intact is not None:
            assert image.tobytes() in intact, f"image {index} has changed"
    if len(source) > _MOST_IMAGES:
        return
    with contextlib.closing(pipeline.eval_batches(settings.data, source, 4)) as stream:
        seen = sum(int(batch["mask"].sum()) for batch in stream)
    assert seen <= len(source), f"{seen} of {len(source)} images"


def _make_attempt(
    sample: Sample, folder: pathlib.Path, skip: bool, checked: bool
) -> Callable[[], None]:
    def attempt() -> None:
        # Archives are unpacked there, and nothing that was unpacked before is read.
        os.environ[VARIABLE] = str(
            folder / "cache" if sample.root else folder.with_suffix(".cache")
        )
        settings = _settings(sample, folder, skip)
        refusal = None
        counts = samples.COUNTS.items()
        stored = (samples.pixels(split, n) for split, count in counts for n in range(count))
        intact = {image.tobytes() for image in stored} if checked else None
        for split in samples.COUNTS:
            try:
                _read(settings, split, intact)
            except UserError as error:
                refusal = error
        if refusal is not None:
            raise refusal

    return attempt


def _write_damaged(
    rng: random.Random, sample: Sample, folder: pathlib.Path
) -> tuple[str, bool | None]:
    """Damages one file of a sample; returns what was done, and whether pixels must be intact."""
    files = dict(sample.files)
    name = rng.choice(sorted(files))
    if rng.random() < 0.15:
        samples.write(files, folder)
        return f"{name}: {damage_place(rng, folder / name)}", sample.checked
    if name.endswith(".json"):
        about, files[name] = damage_json(rng, files[name])
    else:
        about, files[name] = damage_bytes(rng, files[name])
        if rng.random() < 0.1 and len(files) > 1:
            other = rng.choice(sorted(files))
            about, files[name] = f"is {other}", files[other]
    samples.write(files, folder)
    return f"{name}: {about}", sample.checked


def _cifar_values(
    rng: random.Random, sample: Sample, folder: pathlib.Path
) -> tuple[str, bool | None]:
    """A CIFAR file with other values, another pickle protocol, or false sizes."""
    values: dict[str, Any] = dict(samples.cifar_values(sample.name))
    name = rng.choice(sorted(values))
    value = dict(values[name])
    key = rng.choice(sorted(value))
    kind = rng.choice(("value", "entry", "type", "shape", "whole", "text keys", "bomb", "size"))
    if kind == "value":
        value[key] = odd_value(rng)
    elif kind == "entry" and isinstance(value[key], list):
        value[key] = [*value[key][:-1], odd_value(rng)]
    elif kind == "type" and isinstance(value[key], np.ndarray):
        value[key] = value[key].astype(rng.choice(("i1", "u2", "f4", "c8", "?", "U3", "O", "S2")))
    elif kind == "shape" and isinstance(value[key], np.ndarray):
        shape = rng.choice(((-1,), (3, 32, 96), (1, -1), (9, 1024), (0, 3072), (3072, -1)))
        value[key] = value[key].reshape(shape) if 0 not in shape else np.zeros(shape, np.uint8)
    content = _pickled(value, rng.choice((0, 1, 2, 3, 4, 5)))
    if kind == "whole":
        content = _pickled(odd_value(rng), 4)
    elif kind == "text keys":
        content = pickle.dumps({k.decode(): v for k, v in value.items()})
    elif kind == "bomb":
        content = rng.choice(_PICKLE_BOMBS)
    elif kind == "size":
        old = rng.choice((b"u1", b"uint8", b"K\x03", b"M\x00\x0c", struct.pack("<I", 9216)))
        new = rng.choice((b"O8", b"V8", b"K\xff", b"J\xff\xff\xff\xff", b"\xff\xff\xff\x7f"))
        content = pickle.dumps(value, protocol=2).replace(old, new)
    files = {file: pickle.dumps(inner, protocol=2) for file, inner in values.items()}
    files[name] = content
    _write_cifar(sample, files, folder)
    return f"{name} {key!r}: {kind}", None


def _pickled(value: object, protocol: int) -> bytes:
    with contextlib.suppress(RecursionError):
        return pickle.dumps(value, protocol=protocol)
    return b"]" * 900 + b"a" * 899 + b"."


_PICKLE_BOMBS = (
    b"]r\xff\xff\xff\x7f.",
    b"\x8e\xff\xff\xff\xff\x0f\0\0\0.",
    b"\x8b\xff\xff\xff\x7f.",
    b"(" * 1_000_000 + b"t" * 1_000_000 + b".",
    b"]" + b"q\x00]h\x00ah\x00a" * 1000 + b".",
    b"}" + b"(" * 200_000 + b"t" * 200_000 + b"K\x01s.",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x08tcnumpy\n"
    b"dtype\n(U\x02O8K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U@"
    + b"\x41" * 64
    + b"tb.",
    b"cos\nsystem\n(S'exit 3'\ntR.",
)


def _write_cifar(sample: Sample, files: dict[str, bytes], folder: pathlib.Path) -> None:
    if sample.root.endswith((".gz", ".tar")):
        mode = "w:gz" if sample.root.endswith(".gz") else "w"
        files = {sample.root: samples.tar_file(files, mode)}
    else:
        files = {f"{sample.root}/{name}": content for name, content in files.items()}
    samples.write(files, folder)


def _parquet_values(
    rng: random.Random, sample: Sample, folder: pathlib.Path
) -> tuple[str, bool | None]:
    """A Parquet file with other types, values or metadata, or one that unpacks to gigabytes."""
    pyarrow = pyarrow_module()
    table = samples.parquet_table("train")
    count = table.num_rows
    kind = rng.choice(("labels", "label types", "images", "metadata", "bomb", "no rows", "names"))
    about = kind
    if kind == "labels":
        labels = rng.choice(([0, None] * count, [-1, 5] * count, [2**40] * count, [None] * count))
        table = table.set_column(1, "label", pyarrow.array(labels[:count], pyarrow.int64()))
    elif kind == "label types":
        value = rng.choice((0.5, float("nan"), "a", "\ud83d", b"\xff", True, [1], {"a": 1}, None))
        about = f"labels {value!r}"
        with contextlib.suppress(UnicodeEncodeError):
            table = table.set_column(1, "label", pyarrow.array([value] * count))
    elif kind == "images":
        value = rng.choice(
            (None, b"", "text", 3, [b"x"], {"path": "/dev/zero"}, {"bytes": None, "path": "../x"})
        )
        about = f"images {value!r}"
        table = table.set_column(0, "image", pyarrow.array([value] * count))
    elif kind == "metadata":
        text = dict(table.schema.metadata)[b"huggingface"]
        about, text = damage_json(rng, text)
        table = table.replace_schema_metadata({"huggingface": text})
    elif kind == "bomb":
        value = bytes(rng.choice((1 << 20, 1 << 26)))
        indices = pyarrow.array([0] * 30, pyarrow.int32())
        repeated = pyarrow.DictionaryArray.from_arrays(indices, pyarrow.array([value]))
        table = pyarrow.table({"image": repeated, "label": [0] * 30})
    elif kind == "no rows":
        table = table.slice(0, 0)
    else:
        table = table.rename_columns(["image", rng.choice(("", "image", "labels", "x\0"))])
    files = dict(sample.files)
    compression = "zstd" if kind == "bomb" else rng.choice(("snappy", "none", "gzip"))
    files["data/train-00000-of-00001.parquet"] = samples.parquet_file(
        table, compression=compression, store_schema=rng.random() < 0.5
    )
    samples.write(files, folder)
    return about, None


def _labels_file(
    rng: random.Random, sample: Sample, folder: pathlib.Path
) -> tuple[str, bool | None]:
    """Labels of shards with another shape, type or count."""
    files = dict(sample.files)
    shape = rng.choice(("(100000000000,)", "(9,)", "(9, 1)", "()", "(-1,)", "(" * 200, "(0,)"))
    kind = rng.choice(("<i4", "|O", "<f8", "<U9", "|u1", ">i8", "<M8[s]"))
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    start = b"\x93NUMPY" + rng.choice((b"\1\0", b"\2\0", b"\3\0", b"\x09\0"))
    files["train.labels.npy"] = start + struct.pack("<H", len(header)) + header + rng.randbytes(36)
    samples.write(files, folder)
    return f"labels {kind} {shape[:20]}", sample.checked


def _label_rows(
    rng: random.Random, sample: Sample, folder: pathlib.Path
) -> tuple[str, bool | None]:
    """A file of labels with other titles, separators, encodings, or rows."""
    title, *rows = sample.files[sample.labels].decode().split("\n")
    kind = rng.choice(("title", "row", "twice", "missing", "separator", "encoding", "huge"))
    if kind == "title":
        title = rng.choice(("", "file", "file,file", "label,file", "a,b", "a,b,c", "file,label,\0"))
    elif kind == "row":
        odd = ("", ",", '"', "x", "x,y,z", "/etc/passwd,cat", "../train/train0.png,cat", "\0,\0")
        rows[rng.randrange(len(rows))] = rng.choice(odd)
    elif kind == "twice":
        rows.append(rows[0])
    elif kind == "missing":
        del rows[rng.randrange(len(rows)) :]
    elif kind == "huge":
        rows.append(f"{'x' * 1_000_000},cat")
    text = "\n".join([title, *rows])
    if kind == "separator":
        text = text.replace(",", rng.choice(";\t |:"))
    encoding = rng.choice(("utf-16", "utf-8-sig", "latin-1")) if kind == "encoding" else "utf-8"
    samples.write({**sample.files, sample.labels: text.encode(encoding)}, folder)
    return f"labels: {kind}", sample.checked


def _odd_names(rng: random.Random, sample: Sample, folder: pathlib.Path) -> tuple[str, bool | None]:
    """Folders and files whose names are not text, are very long, or have a special meaning."""
    samples.write(sample.files, folder)
    names = (b"\xff\xfe", b"a\nb", b"$_$", b"<b>", b" ", b"x" * 250, b"a[0:5]", "ä".encode(), b".x")
    name = rng.choice(names)
    path = folder / rng.choice(sorted(sample.files))
    moved = path if rng.random() < 0.5 else path.parent
    about = f"{moved.relative_to(folder)} is called {name!r}"
    target = os.fsencode(moved.parent) + b"/" + name
    if moved == path:
        target += os.fsencode(path.suffix) if len(name) < 200 else b""
    os.rename(moved, target)
    return about, sample.checked


def _exif(rng: random.Random, sample: Sample, folder: pathlib.Path) -> tuple[str, bool | None]:
    """A JPEG file with damaged EXIF and intact pixels."""
    files = dict(sample.files)
    name = rng.choice([name for name in sorted(files) if name.endswith(".jpeg")])
    content = files[name]
    start = content.index(b"Exif\0\0") + 6
    length = struct.unpack(">H", content[start - 8 : start - 6])[0] - 8
    _, part = damage_bytes(rng, content[start : start + length])
    part = part[:length].ljust(length, b"\0")
    files[name] = content[:start] + part + content[start + length :]
    samples.write(files, folder)
    return f"EXIF of {name}", None


def _prepare_again(rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable[[], None]]:
    """A preparation of shards that resumes in a folder with damaged or leftover files."""
    images, done = samples.sample("folder"), samples.sample("shards")
    samples.write(images.files, folder / "images")
    notes = json.loads(done.files["dataset.json"])["splits"]["train"]
    left = {name: content for name, content in done.files.items() if rng.random() < 0.8}
    for note in notes["shards"]:
        name = note["file"].replace(".array_record", ".json")
        left[name] = json.dumps({**note, "content": notes["content"]}).encode()
    name = rng.choice(sorted(left))
    about, left[name] = (damage_json if name.endswith("json") else damage_bytes)(rng, left[name])
    samples.write(left, folder / "out")
    if rng.random() < 0.2:
        about = damage_place(rng, folder / "out" / name)

    def attempt() -> None:
        try:
            for split in samples.COUNTS:
                source = open_folder(folder / "images", split)
                write_shards(source, split, folder / "out", images_per_shard=4)
        except (ValueError, OSError) as error:
            # The script exits with this message.
            raise UserError(str(error)) from error
        _make_attempt(done, folder / "out", skip=False, checked=True)()

    return f"preparing again, {name}: {about}", attempt


_SPECIAL: dict[str, tuple[Any, ...]] = {
    "folder": (_odd_names,),
    "various images": (_odd_names, _exif, _exif),
    "shards": (_labels_file,),
    "parquet": (_parquet_values, _parquet_values),
    "cifar10": (_cifar_values, _cifar_values),
    "cifar10.tar.gz": (_cifar_values, tar_headers),
    "cifar100.tar": (_cifar_values, tar_headers),
    "folder.zip": (zip_headers, zip_headers),
    "folder.tar.gz": (tar_headers, tar_headers),
    "labels in a file": (_label_rows, _label_rows),
}


def make(rng: random.Random, folder: pathlib.Path) -> tuple[str, Callable[[], None]]:
    """Makes a damaged dataset below `folder`; see `worker`."""
    kind = rng.choice((*samples.KINDS, "archive", "preparation"))
    if kind == "preparation":
        return _prepare_again(rng, folder)
    if kind == "archive":
        return unpacking(rng, samples.sample("folder"), folder)
    sample = samples.sample(kind)
    damage = rng.choice((_write_damaged, _write_damaged, *_SPECIAL.get(kind, ())))
    about, checked = damage(rng, sample, folder)
    skip = rng.random() < 0.5
    about = f"{kind}, {'skip' if skip else 'error'}, {about}"
    return ascii(about), _make_attempt(sample, folder, skip, bool(checked))
