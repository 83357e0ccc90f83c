"""What a file says is compared with a declared structure; what does not fit is one sentence."""

import json
import os
import pathlib

import pytest

from hjepa_jax.storage import files, schema
from hjepa_jax.storage.schema import (
    Anything,
    Fields,
    Items,
    Maybe,
    Number,
    Table,
    Text,
    Truth,
    Whole,
)

INDEX = Fields(
    {"names": Items(Text(), least=1), "shards": Table(Items(Fields({"bytes": Whole(0)})))},
    {"rate": Maybe(Number()), "done": Truth(), "kind": Text(choices=("a", "b"))},
)
GOOD = {"names": ["x"], "shards": {"train": [{"bytes": 3}]}, "rate": None, "more": object}


def changed(**fields):
    return {**GOOD, **fields}


def test_what_fits_is_returned_as_it_is() -> None:
    assert schema.require(GOOD, INDEX, "x.json") is GOOD
    full = changed(rate=1.5, done=False, kind="b")
    assert schema.require(full, INDEX, "x.json") is full
    assert schema.require([1, "x", None], Items(Anything()), "x.json") == [1, "x", None]


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([], "x.json is damaged: its content must be a mapping, not a list of length 0."),
        (None, "its content must be a mapping, not null"),
        ({"names": ["x"]}, "the field 'shards' is missing"),
        (changed(names=[]), "the field 'names' must be a list of at least 1, not a list of"),
        (changed(names="abc"), "'names' must be a list of at least 1, not the text 'abc'"),
        (changed(names=["x", 3]), "the field 'names[1]' must be text, not 3"),
        (changed(names=["\ud800"]), r"the field 'names[0]' must be text, not the text '\\ud800'"),
        (changed(shards={"train": [{}]}), "the field 'shards.train[0].bytes' is missing"),
        (changed(shards={"train": [{"bytes": -1}]}), "must be a whole number of at least 0, not"),
        (changed(shards={"train": [{"bytes": True}]}), "at least 0, not true"),
        (changed(shards={"train": [{"bytes": 1.0}]}), "at least 0, not 1.0"),
        (changed(shards={"train": [{"bytes": 10**5000}]}), "a number of more than 30 digits"),
        (changed(shards={3: []}), "the field 'shards.3' must be text, not 3"),
        (changed(rate=float("nan")), "'rate' must be a finite number, or null, not nan"),
        (
            changed(rate=10**400),
            "'rate' must be a finite number, or null, not a number of more than",
        ),
        (changed(rate="0"), "'rate' must be a finite number, or null, not the text '0'"),
        (changed(done=0), "'done' must be true or false, not 0"),
        (changed(kind="c"), "'kind' must be one of a, b, not the text 'c'"),
        (changed(kind=b"a"), "'kind' must be one of a, b, not a byte string of length 1"),
    ],
)
def test_what_does_not_fit_names_file_and_field(value, sentence) -> None:
    with pytest.raises(ValueError) as caught:
        schema.require(value, INDEX, "x.json")
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("x.json is damaged: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\x80\x02}q", "not UTF-8 text"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"a": 1, "b": 2, "a": 3}', "the field 'a' occurs twice"),
        (b"[" * 100_000, "nested more than 64 deep"),
        (b"[" * 100 + b"]" * 100, "nested more than 64 deep"),
        (b'{"a":' * 65 + b"[1]" + b"}" * 65, "nested more than 64 deep"),
        (b"1" * 10_000, "4300 digits"),
    ],
)
def test_what_is_no_json_is_a_sentence(content, reason, tmp_path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        schema.read_json(path, Anything())
    assert reason in str(caught.value)
    assert str(caught.value).startswith(f"{path} is damaged: it cannot be read as JSON: ")


def test_json_within_the_bounds_is_read(tmp_path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD | {"more": [[1e300]], "names": ["Größe"]}))
    assert schema.read_json(path, INDEX)["names"] == ["Größe"]
    path.write_text("[NaN]")
    assert schema.read_json(path, Items(Number(finite=False)), constants=True)[0] != 0
    deep: object = 1
    for _ in range(schema.MAX_DEPTH):
        deep = [deep]
    assert schema.parse_json(json.dumps(deep), Anything(), "x") == deep


def test_only_regular_files_of_a_sane_size_are_read(tmp_path: pathlib.Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with open(tmp_path / "sparse", "wb") as sparse:
        sparse.truncate(5 << 30)
    for name in ("pipe", "zero", "sparse"):
        with pytest.raises(files.UnfitFileError, match=name):
            schema.read_json(tmp_path / name, Anything())


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Schloß", "Schloß"),
        (b"cat", "cat"),
        (b"\xff", "\\xff"),
        ("\udcff", "\\udcff"),
        (3, "3"),
        (None, "null"),
        ([1], "a list of length 1"),
        (object(), "a object"),
    ],
)
def test_names_of_any_type_are_text(name, text) -> None:
    assert schema.readable(name) == text
    assert schema.readable(name).encode()
