"""YAML files: data by the core schema, and everything else a sentence that names the file."""

import math

import pytest

from hjepa_jax.storage.yaml_files import read_yaml


def test_values_have_the_types_of_yaml_1_2(tmp_path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "a: 1e-3\nb: 10\nc: [1, .5, -2.]\nd: null\ne: ~\nf: no\ng: true\nh: '1'\ni: .inf\nj:\n"
        "k: {l: 12:30}\nm: 0010\nn: 2020-01-01\n"
    )
    assert read_yaml(file) == {
        "a": 0.001,
        "b": 10,
        "c": [1, 0.5, -2.0],
        "d": None,
        "e": None,
        "f": "no",
        "g": True,
        "h": "1",
        "i": math.inf,
        "j": None,
        "k": {"l": "12:30"},
        "m": 10,
        "n": "2020-01-01",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "line 1"),
        ("a: 1\nb: : 2", "line 2"),
        ("- 1", "must be a mapping"),
        ("1: 2", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: 1\na: 2", "'a' occurs twice"),
        ("a: {b: 1, b: 2}", "'b' occurs twice"),
        ("a: &x [1]\nb: *x", "alias"),
        ("a: !!python/object/apply:os.getcwd []", "has the tag"),
        ("a: " + "[" * 100 + "]" * 100, "nested more than 64 deep"),
        ("a: 1\n---\nb: 2", "document"),
        (b"\xff\xfe", "not UTF-8"),
        ("a: \x07", "special characters"),
        ("? [1]\n: 2", "."),
        ("a: !!int x", "tag"),
    ],
)
def test_other_content_is_a_sentence(text, words, tmp_path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=words) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_only_regular_files_of_bounded_size_are_read(tmp_path) -> None:
    with pytest.raises(OSError):
        read_yaml(tmp_path)
    large = tmp_path / "large.yaml"
    large.write_text(f"a: '{'x' * 2**20}'")
    with pytest.raises(OSError, match="large"):
        read_yaml(large)
