"""Parquet files as the Hugging Face hub stores them."""

import builtins
import json
import pickle

import numpy as np
import pytest
from image_files import data_config, encode, photo

from hjepa_jax.data.folder import open_root
from hjepa_jax.data.sources import decode, open_source

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
    source = open_source(data_config(name="folder", root=str(tmp_path)).data, "train")
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


def test_what_does_not_fit_is_explained(tmp_path) -> None:
    write(tmp_path / "train.parquet", 3, label="number")
    with pytest.raises(
        ValueError, match=r"no label column .*its columns are: other, image, number"
    ):
        open_root(str(tmp_path), "train", 0)
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
