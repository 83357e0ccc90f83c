"""Prepared shards: the same images back, and damage noticed."""

import json
import os
import pathlib
import pickle

import numpy as np
import pytest
from image_files import data_config, photo

from hjepa_jax.config.checks import typed
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.sources import shards
from hjepa_jax.data.sources.base import ArraySource, Record, decode
from hjepa_jax.data.sources.folder import open_root
from hjepa_jax.data.sources.open import open_source
from hjepa_jax.data.sources.shard_writer import write_shards

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_round_trip_of_every_record(folder, tmp_path) -> None:
    original = open_root(str(folder), "train", 0)
    write_shards(original, "train", tmp_path / "out", images_per_shard=3)
    write_shards(open_root(str(folder), "val", 0), "val", tmp_path / "out")
    prepared = open_source(typed(data_config(name="folder", root=str(tmp_path / "out"))), "train")
    assert [prepared.record(i) for i in range(7)] == [original.record(i) for i in range(7)]
    assert prepared.class_names == original.class_names
    assert prepared.labels().tolist() == original.labels().tolist()
    assert len(open_root(str(tmp_path / "out"), "test", 0)) == 2
    assert pickle.loads(pickle.dumps(prepared)).record(5) == original.record(5)
    assert shards.verify(tmp_path / "out") == []


def test_decoded_images_are_stored_without_loss(tmp_path) -> None:
    images = np.stack([photo(seed, 32, 32) for seed in range(4)])
    write_shards(ArraySource("x", images, [0, 1, 1, 0], ["a", "b"]), "train", tmp_path)
    prepared = shards.open_shards(tmp_path, "train")
    np.testing.assert_array_equal(np.stack([decode(prepared.record(i)) for i in range(4)]), images)


def test_damage_is_noticed(folder, tmp_path) -> None:
    out = tmp_path / "out"
    write_shards(open_root(str(folder), "train", 0), "train", out, 4)
    shard = out / "train-00001.array_record"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    assert shards.verify(out) == ["train-00001.array_record"]
    shard.write_bytes(content[:-5])
    with pytest.raises(ValueError, match="instead of"):
        shards.open_shards(out, "train")
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001.*missing"):
        shards.open_shards(out, "train")
    with pytest.raises(FileNotFoundError, match="no split 'test'; it has: train"):
        shards.open_shards(out, "test")
    (out / shards.INDEX).write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        open_root(str(out), "train", 0)
    (out / shards.INDEX).write_text("[]")
    with pytest.raises(ValueError, match="not an index"):
        open_root(str(out), "train", 0)


def test_records_pack_long_and_foreign_names() -> None:
    record = Record(b"bytes", None, 7, "Schloß/Größe.jpg")
    assert shards.decode_record(shards.encode_record(record)) == record
    long = shards.decode_record(shards.encode_record(record._replace(name="x" * 70000)))
    assert long.encoded == b"bytes"
    assert len(long.name) == 65535
    with pytest.raises(ValueError, match="no header"):
        shards.decode_record(b"xy")


def test_an_index_that_points_outside_its_folder_is_refused(folder, tmp_path) -> None:
    out = tmp_path / "out"
    write_shards(open_root(str(folder), "train", 0), "train", out)
    (out / "train-00000.array_record").rename(tmp_path / "elsewhere.array_record")
    index = json.loads((out / shards.INDEX).read_text())
    for place in ("../elsewhere.array_record", str(tmp_path / "elsewhere.array_record")):
        index["splits"]["train"]["shards"][0]["file"] = place
        (out / shards.INDEX).write_text(json.dumps(index))
        with pytest.raises(ValueError, match="outside its folder"):
            shards.open_shards(out, "train")


def set_field(index, path: str, value) -> None:
    *outer, last = path.split(".")
    for part in outer:
        index = index[int(part)] if isinstance(index, list) else index[part]
    if value is None:
        del index[last]
    else:
        index[int(last) if isinstance(index, list) else last] = value


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("splits", None, "the field 'splits' is missing"),
        ("splits", [1], "the field 'splits' must be a mapping, not a list of length 1"),
        ("class_names", "ab", "the field 'class_names' must be a list, not the text 'ab'"),
        ("class_names", ["a", 3], r"the field 'class_names\[1\]' must be text, not 3"),
        ("class_names", ["a"], r"A label in .* is outside 0 \.\. 0"),
        ("splits.train", 3, "the field 'splits.train' must be a mapping, not 3"),
        ("splits.train.shards", [], "'splits.train.shards' must be a list of at least 1"),
        ("splits.train.shards.0.file", None, r"'splits.train.shards\[0\].file' is missing"),
        ("splits.train.shards.0.file", "..", "outside its folder"),
        ("splits.train.shards.0.file", "x\0.array_record", "outside its folder"),
        ("splits.train.shards.0.bytes", "9", "bytes' must be a whole number"),
        ("splits.train.shards.0.bytes", 2.5, "bytes' must be a whole number"),
        ("splits.train.shards.0.sha256", 7, "sha256' must be text, not 7"),
        ("splits.train.shards.0.num_images", 3, "the shards of 'train' have 6 images, the split 7"),
        ("splits.train.num_images", -1, "must be a whole number from 1"),
        ("splits.train.num_images", 10**11, "must be a whole number from 1"),
        ("splits.train.num_images", 8, "the shards of 'train' have 7 images, the split 8"),
    ],
)
def test_an_index_that_does_not_fit_is_one_sentence(field, value, sentence, prepared) -> None:
    index = json.loads((prepared / shards.INDEX).read_text())
    set_field(index, field, value)
    (prepared / shards.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=sentence):
        shards.open_shards(prepared, "train")


def test_shards_with_swapped_counts_are_noticed(prepared) -> None:
    index = json.loads((prepared / shards.INDEX).read_text())
    set_field(index, "splits.train.shards.0.num_images", 3)
    set_field(index, "splits.train.shards.1.num_images", 4)
    (prepared / shards.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"train-00000.array_record has 4 records instead of 3"):
        shards.open_shards(prepared, "train")


def npy(shape: str, kind: str = "<i4", content: bytes = bytes(28)) -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"rubbish",
        npy("(100000000000,)"),
        npy("(7, 1)"),
        npy("(8,)"),
        npy("(7,)", content=bytes(27)),
        npy("(7,)", "<f4"),
        npy("(7,)", "|O"),
        npy("(" * 300 + "7,)"),
        npy("(7,)", content=(99).to_bytes(4, "little") * 7),
        npy("(7,)", content=b"\xf0\xff\xff\xff" * 7),
    ],
)
def test_labels_that_do_not_fit_are_one_sentence(content, prepared) -> None:
    (prepared / "train.labels.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"The labels .*are damaged|A label in .* is outside"):
        shards.open_shards(prepared, "train")


def test_labels_of_other_types_are_read(prepared) -> None:
    path = prepared / "train.labels.npy"
    labels = np.load(path)
    for kind in ("u1", ">i8", "<i2"):
        np.save(path, labels.astype(kind))
        source = shards.open_shards(prepared, "train")
        assert source.labels().tolist() == labels.tolist()
        assert source.labels().dtype == np.int32
    np.save(path, labels[::-1])
    with pytest.raises(CorruptImageError, match="a different label"):
        shards.open_shards(prepared, "train").record(0)


def test_a_damaged_shard_costs_its_own_images(prepared) -> None:
    good = [shards.open_shards(prepared, "train").record(i) for i in range(7)]
    path = prepared / "train-00001.array_record"
    content = bytearray(path.read_bytes())
    content[1600] ^= 1  # in the second of three chunks
    path.write_bytes(content)
    source = shards.open_shards(prepared, "train")
    assert [source.record(i) for i in (0, 1, 2, 3, 4, 6)] == [*good[:5], good[6]]
    with pytest.raises(CorruptImageError, match=r"train-00001.array_record is damaged at record 1"):
        source.record(5)
    content[64] ^= 255
    content[len(content) - 65536 : len(content) - 65000] = bytes(536)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"The shard .*00001.array_record is damaged"):
        shards.open_shards(prepared, "train")


@pytest.mark.parametrize("name", ["train-00000.array_record", "train.labels.npy", "dataset.json"])
def test_what_is_no_file_is_told(name, prepared) -> None:
    (prepared / name).unlink()
    os.mkfifo(prepared / name)
    with pytest.raises((OSError, ValueError), match=r"pipe|no split"):
        open_root(str(prepared), "train", 0)
