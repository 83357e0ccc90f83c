"""Parquet files as the Hugging Face hub stores them."""

import builtins
import json
import os
import pickle

import numpy as np
import pytest
from image_files import data_config, encode, photo

from hjepa_jax.config.checks import typed
from hjepa_jax.data.decode import CorruptImageError
from hjepa_jax.data.formats import parquet_tables
from hjepa_jax.data.loader import Decoder, Loader
from hjepa_jax.data.sources.base import decode
from hjepa_jax.data.sources.folder import open_root
from hjepa_jax.data.sources.open import open_source
from hjepa_jax.errors import DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def write(path, count: int, kind: str = "struct", names=None, label: str = "label") -> None:
    images = [encode(photo(seed), "PNG") for seed in range(count)]
    if kind == "struct":
        column = pyarrow.array([{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(images)])
    else:
        column = pyarrow.array(images, pyarrow.binary())
    table = pyarrow.table({"other": list(range(count)), "image": column, label: list(range(count))})
    if names is not None:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several row groups, as in real files.
    parquet.write_table(table, path, row_group_size=2)


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_images_labels_and_names_are_read(kind, tmp_path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", 5, kind, list("abcde"))
    write(tmp_path / "data" / "train-00001-of-00002.parquet", 3, kind, list("abcde"))
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", 2, kind, list("abcde"))
    source = open_source(typed(data_config(name="folder", root=str(tmp_path))), "train")
    assert (len(source), source.class_names) == (8, tuple("abcde"))
    assert source.labels().tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    for index, seed in ((0, 0), (4, 4), (7, 2)):
        np.testing.assert_array_equal(decode(source.record(index)), photo(seed))
    assert "row 7" in source.record(7).name
    again = pickle.loads(pickle.dumps(source))
    assert again.record(6) == source.record(6)
    assert again.fingerprint() == source.fingerprint()
    assert len(open_root(str(tmp_path), "test", 0)) == 2


def test_numbers_serve_where_there_are_no_names(tmp_path) -> None:
    write(tmp_path / "train.parquet", 3, label="fine_label")
    assert open_root(str(tmp_path), "train", 0).class_names == ("0", "1", "2")


def test_what_does_not_fit_is_explained(tmp_path, caplog) -> None:
    write(tmp_path / "train.parquet", 3, label="number")
    assert open_root(str(tmp_path), "train", 0).labels().tolist() == [-1] * 3
    (message,) = [r.getMessage() for r in caplog.records]
    assert "no label column" in message
    assert "its columns are: other, image, number" in message
    with pytest.raises(FileNotFoundError, match=r"split 'test'.*it has: train\.parquet"):
        open_root(str(tmp_path), "test", 0)
    table = pyarrow.table({"image": ["text"], "label": [0]})
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="expected binary"):
        open_root(str(tmp_path), "train", 0)
    write(tmp_path / "train.parquet", 3, names=["only one"])
    with pytest.raises(ValueError, match=r"outside 0 \.\. 0"):
        open_root(str(tmp_path), "train", 0)
    (tmp_path / "train.parquet").write_bytes(b"PAR1 rubbish")
    with pytest.raises(ValueError, match="Cannot read the Parquet file"):
        open_root(str(tmp_path), "train", 0)


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch) -> None:
    write(tmp_path / "train.parquet", 1)
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="pip install"):
        open_root(str(tmp_path), "train", 0)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train-00000-of-00002"], "1 of 2 files .*part 00001 is missing"),
        (["train-00001-of-00003", "train-00002-of-00003"], "2 of 3 files .*part 00000"),
        (["train-00000-of-00001", "train-00000-of-00002"], "several versions: .*00001 and .*00002"),
        (["train-00001-of-00002", "train-00000-of-00002", "train-00000-of-00003"], "several vers"),
        (["train-00000-of-00001-0a", "train-00000-of-00001-1b"], "has 2 files .* instead of 1"),
        (["train-00000-of-00001", "train-00004-of-00001"], "has 2 files .* instead of 1"),
        (["train-00000-of-00001", "data/train-00000-of-00001"], "would count twice"),
        (["train", "data/train"], "train.parquet is both in .*data and in "),
        (["train-00000-of-00002-0a1b2c"], "part 00001 is missing"),
        (["train_00000_of_00002"], r"1 of 2 files train_\*_of_00002 .*part 00001 is missing"),
    ],
)
def test_parts_that_are_missing_or_too_many_are_told(names, words, tmp_path) -> None:
    for name in names:
        write(tmp_path / f"{name}.parquet", 2)
    with pytest.raises(DataError, match=words):
        open_root(str(tmp_path), "train", 0)


def test_parts_of_several_names_are_complete_each(tmp_path) -> None:
    for name in ("train-a-00000-of-00001", "train-b-00000-of-00002", "train-b-00001-of-00002"):
        write(tmp_path / f"{name}.parquet", 2)
    assert len(open_root(str(tmp_path), "train", 0)) == 6


@pytest.mark.parametrize(
    "stem",
    [
        *("Train", "training-00000-of-00001", "TRAIN-whatever"),
        *("train_0", "Training_00000_of_00001", "train.00000"),
    ],
)
def test_the_split_has_several_names(stem, tmp_path) -> None:
    write(tmp_path / f"{stem}.parquet", 2)
    assert len(open_root(str(tmp_path), "train", 0)) == 2


def test_files_in_upper_case_are_part_of_their_split(tmp_path) -> None:
    write(tmp_path / "train_0.parquet", 2)
    write(tmp_path / "data" / "TRAIN_1.PARQUET", 3)
    write(tmp_path / "data" / "test.Parquet", 1)
    with pytest.raises(DataError, match="TRAIN and train could each be the split 'Train'"):
        open_root(str(tmp_path), "Train", 0)
    (tmp_path / "data" / "TRAIN_1.PARQUET").rename(tmp_path / "data" / "train_1.PARQUET")
    assert len(open_root(str(tmp_path), "train", 0)) == 5
    assert len(open_root(str(tmp_path), "test", 0)) == 1


def write_paths(path, rows: list[dict | None]) -> None:
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(
        pyarrow.table({"image": pyarrow.array(rows, kind), "label": [0] * len(rows)}), path
    )


def test_images_beside_the_file_are_read_by_their_path(tmp_path) -> None:
    for number in range(3):
        file = tmp_path / "data" / "images" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(photo(number), "PNG"))
    rows = [{"bytes": None, "path": f"images/{n}.png"} for n in range(3)]
    write_paths(tmp_path / "data" / "train-0-of-2.parquet", rows[:2])
    write_paths(tmp_path / "data" / "train-1-of-2.parquet", rows[2:])
    source = open_root(str(tmp_path), "train", 0)
    for number in range(3):
        np.testing.assert_array_equal(decode(source.record(number)), photo(number))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"bytes": None, "path": "gone.png"},
            r"row 0 \(gone\.png\) stores no bytes.*is not a file",
        ),
        ({"bytes": None, "path": "../outside.png"}, "stores no bytes.*is not a file"),
        ({"bytes": b"", "path": "/etc/passwd"}, "stores no bytes.*is not a file"),
        ({"bytes": None, "path": None}, "row 0: it is empty: no bytes are stored"),
        (None, "row 0: it is empty: no bytes are stored"),
    ],
)
def test_rows_without_an_image_cost_their_image_alone(row, words, tmp_path) -> None:
    (tmp_path / "outside.png").write_bytes(encode(photo(0), "PNG"))
    good = {"bytes": encode(photo(1), "PNG"), "path": None}
    write_paths(tmp_path / "data" / "train.parquet", [row, good, good])
    source = open_root(str(tmp_path / "data"), "train", 0)
    with pytest.raises(CorruptImageError, match=words):
        Decoder(typed(data_config()).data, source)(0)
    loaded = Loader(typed(data_config(on_corrupt="skip")).data, 0, source).load(0, [])
    assert loaded.number in (1, 2)


@pytest.mark.parametrize("dictionary", [True, False])
@pytest.mark.parametrize("kind", ["struct", "binary", "label"])
def test_a_file_that_unpacks_to_far_more_than_its_size_is_refused(
    dictionary, kind, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(parquet_tables, "_DECODED_BYTES", 8 << 20)
    values = [bytes(1 << 20)] * 40
    images = values if kind == "binary" else [{"bytes": v, "path": ""} for v in values]
    labels: list = [0] * 40
    if kind == "label":
        images, labels = [b"x"] * 40, ["y" * (1 << 20)] * 40
    table = pyarrow.table({"image": images, "label": labels})
    path = tmp_path / "train.parquet"
    parquet.write_table(table, path, compression="zstd", use_dictionary=dictionary)
    assert path.stat().st_size < 50_000
    column = "label" if kind == "label" else "image"
    with pytest.raises(DataError, match=rf"column '{column}' decodes to more than 8 MiB"):
        open_root(str(tmp_path), "train", 0)


def test_large_row_groups_are_read_in_batches_of_several_rows(tmp_path) -> None:
    # One group larger than what is decoded at once, as pandas writes it.
    table = pyarrow.table({"image": [bytes(80_000)] * 1000, "label": [0] * 1000})
    path = tmp_path / "train.parquet"
    parquet.write_table(table, path, compression="none", use_dictionary=False)
    column = parquet_tables.read_column(path, "image").column(0)
    assert len(column) == 1000
    assert column.num_chunks <= 100


def test_more_rows_than_bytes_are_refused(tmp_path) -> None:
    table = pyarrow.table({"image": [b"x"] * 500_000, "label": [0] * 500_000})
    parquet.write_table(table, tmp_path / "train.parquet", compression="zstd")
    with pytest.raises(DataError, match="claims 500000 rows in"):
        open_root(str(tmp_path), "train", 0)


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        (b"[1]", "its content must be a mapping|field 'huggingface'"),
        (b"\xff\xfe", r"\(field 'huggingface'\) is damaged: .* not UTF-8 text"),
        (b"[" * 10_000, "nested more than 64 deep"),
        (b'{"info": 3}', "the field 'huggingface.info' must be a mapping, or null, not 3"),
        (b'{"info": {"features": [1]}}', "'huggingface.info.features' must be a mapping"),
        (b'{"info": {"features": {"label": "x"}}}', "features.label' must be a mapping"),
        (b'{"info": {"features": {"label": {"names": 5}}}}', "names' must be a list"),
    ],
)
def test_metadata_that_does_not_fit_is_one_sentence(metadata, sentence, tmp_path) -> None:
    write(tmp_path / "train.parquet", 3)
    table = parquet.read_table(tmp_path / "train.parquet")
    table = table.replace_schema_metadata({"huggingface": metadata})
    parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match=sentence) as caught:
        open_root(str(tmp_path), "train", 0)
    assert "train.parquet" in str(caught.value)


@pytest.mark.parametrize(
    ("names", "distinct"),
    [
        (["crane", "dog", "crane"], ("crane", "dog", "crane (2)")),
        (["a", "a", "a"], ("a", "a (1)", "a (2)")),
        (["a", "a", "a (1)"], ("a", "a (1)", "a (1) (2)")),
        ([1, "1", None], ("1", "1 (1)", "null")),
    ],
)
def test_classes_of_one_name_stay_two_classes(names, distinct, tmp_path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.parquet", 3, names=names)
        source = open_root(str(tmp_path), split, 0)
        assert source.class_names == distinct
        assert source.labels().tolist() == [0, 1, 2]


def test_labels_of_different_bytes_are_different_classes(tmp_path) -> None:
    labels = pyarrow.array([b"\xfe", b"ok", b"\xff", b"\xfe"])
    table = pyarrow.table({"image": [b"x"] * 4, "label": labels})
    parquet.write_table(table, tmp_path / "train.parquet")
    source = open_root(str(tmp_path), "train", 0)
    assert source.class_names == (r"\xfe", r"\xff", "ok")
    assert source.labels().tolist() == [0, 2, 1, 0]


def test_class_names_of_any_type_are_text(tmp_path) -> None:
    write(tmp_path / "train.parquet", 4, names=["a", None, 3, ["x"]])
    names = open_root(str(tmp_path), "train", 0).class_names
    assert names == ("a", "null", "3", "a list of length 1")


@pytest.mark.parametrize(
    "labels",
    [
        [[0], [1]],
        [{"a": 1}, {"a": 2}],
        pyarrow.array([b"\xff", b"a"]).view(pyarrow.string()),
        pyarrow.array([2**62, 0], pyarrow.timestamp("ms")),
    ],
)
def test_labels_that_are_no_number_or_text_are_refused(labels, tmp_path) -> None:
    parquet.write_table(
        pyarrow.table({"image": [b"x", b"y"], "label": labels}), tmp_path / "train.parquet"
    )
    with pytest.raises(DataError, match="expected one number or text each"):
        open_root(str(tmp_path), "train", 0)


def test_a_row_that_cannot_be_read_is_one_corrupt_image(tmp_path) -> None:
    paths = pyarrow.array([b"\xff", b"a\0b", b"ok"]).view(pyarrow.string())
    column = pyarrow.StructArray.from_arrays(
        [pyarrow.array([None, None, b"z"], pyarrow.binary()), paths], ["bytes", "path"]
    )
    table = pyarrow.table({"image": column, "label": [0, 1, 2]})
    parquet.write_table(table, tmp_path / "train.parquet")
    source = open_root(str(tmp_path), "train", 0)
    assert source.record(2).encoded == b"z"
    for index in (0, 1):
        with pytest.raises(CorruptImageError, match=rf"Cannot read .* row {index}"):
            source.record(index)


def test_names_that_are_not_utf8_are_read_and_shown(tmp_path) -> None:
    write(tmp_path / "train.parquet", 2)
    (tmp_path / "train.parquet").rename(tmp_path / os.fsdecode(b"train-\xff.parquet"))
    source = open_root(str(tmp_path), "train", 0)
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(decode(again.record(1)), photo(1))
    assert again.fingerprint() == source.fingerprint()
    with pytest.raises(FileNotFoundError, match=r"it has: train-\\xff\.parquet"):
        open_root(str(tmp_path), "test", 0)
    for name in ("no image", "damaged"):
        path = tmp_path / os.fsdecode(b"test-\xfe.parquet")
        path.write_bytes(b"rubbish")
        if name == "no image":
            with path.open("wb") as file:
                parquet.write_table(pyarrow.table({"label": [0]}), file)
        with pytest.raises(DataError, match=r"test-\\xfe\.parquet(:| has no image column)"):
            open_root(str(tmp_path), "test", 0)


def test_pipes_and_twins_are_refused(tmp_path) -> None:
    os.mkfifo(tmp_path / "train.parquet")
    with pytest.raises(DataError, match="named pipe"):
        open_root(str(tmp_path), "train", 0)
    (tmp_path / "train.parquet").unlink()
    twins = pyarrow.Table.from_arrays(
        [pyarrow.array([b"x"]), pyarrow.array([b"y"]), pyarrow.array([0])],
        ["image", "image", "label"],
    )
    parquet.write_table(twins, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="column 'image' twice"):
        open_root(str(tmp_path), "train", 0)
