"""Pickles of plain data: equal to what `pickle` reads, and no more work than their size."""

import pickle
import struct

import pytest

from hjepa_jax.data.formats import plain_pickle
from hjepa_jax.data.formats.pickled_arrays import ARRAYS

PLAIN = {
    "text": "Größe\n'\\x",
    b"bytes": b"\x00\xff'\n",
    "numbers": [0, 1, -1, 255, 65536, -(2**31), 2**70, 0.5, float("inf")],
    "others": (None, True, False, (), [], {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    3: {"nested": [{"deep": ["x"] * 1200}]},
    None: "a" * 70000,
}


def load(content: bytes):
    return plain_pickle.load(content, ARRAYS, ("numpy.ndarray",))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_is_what_pickle_reads(protocol) -> None:
    content = pickle.dumps(PLAIN, protocol)
    loaded = load(content)
    assert loaded == pickle.loads(content) == PLAIN
    assert loaded["others"][1] is True


def long(opcode: str, number: int) -> bytes:
    return opcode.encode() + struct.pack("<I", number)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a complete pickle"),
        (b".", "not a complete pickle"),
        (b"]", "not a complete pickle"),
        (b"(.", "not a complete pickle"),
        (b"]q\x00h\x01.", "not a complete pickle"),
        (b"h\x05.", "not a complete pickle"),
        (b"K\x01K\x02a.", "not a complete pickle"),
        (b"}]K\x01s.", "not a complete pickle"),  # an unhashable key
        (b"}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"K\x01s.", "not a complete pickle"),
        (b"X\xff\xff\xff\x7fabc.", "ends too early"),
        (b"\x8e" + b"\xff" * 8 + b".", "ends too early"),
        (b"\x8b\xff\xff\xff\x7f.", "too many digits"),
        (b"I" + b"9" * 5000 + b"\n.", "too many digits"),
        (b"\xfe.", "unknown opcode"),
        (b"]" + b"0]" * 5_000_000 + b".", "more than 4000000 opcodes"),
        (b"]" + b"]a" * 100 + b".", None),
        (b"]" * 70 + b"a" * 69 + b".", "nested more than 64 deep"),
        (b"]" * 100_000 + b"a" * 99_999 + b".", "nested more than 64 deep"),
        (b"(" * 100_000 + b"t" * 100_000 + b".", "nested more than 64 deep"),
        (b"]q\x00h\x00a.", "nested more than 64 deep"),  # it holds itself
        # Each list holds the one before twice: 2^60 entries for whoever walks through it.
        (b"]" + b"q\x00]h\x00ah\x00a" * 60 + b".", "share too many elements"),
        (b"cos\nsystem\n(S'true'\ntR.", "asks for os.system, which is not allowed"),
        (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93.", "asks for os.system"),
        (b"cnumpy\nndarray\n)R.", "calls numpy.ndarray"),
        (b"Vx\nQ.", "refers to something outside"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "encoding other than"),
        (long("X", 1 << 21) + b"\xf0\x9f\x98\x80" * (1 << 19) + b".", "a text of 2097152 bytes"),
    ],
)
def test_what_is_damaged_or_wants_more_is_refused(content, reason) -> None:
    if reason is None:
        assert load(content) is not None
        return
    with pytest.raises(ValueError, match=reason):
        load(content)


def test_a_place_far_away_costs_nothing() -> None:
    # pickle makes room for every place up to this one: 32 GiB.
    assert load(b"]" + long("r", 2**31) + long("j", 2**31) + b"0.") == []


def test_bytes_cannot_be_encoded_again_and_again() -> None:
    content = long("X", 100_000) + b"x" * 100_000 + b"q\x00"
    again = b"c_codecs\nencode\n(h\x00Vlatin1\ntR0"
    with pytest.raises(ValueError, match="more bytes than its size justifies"):
        load(content + again * 1000 + b".")
