"""Reads pickles of plain data with its own interpreter.

`pickle.Unpickler` cannot be made safe by restricting classes: a five-byte opcode can allocate
gigabytes, and NumPy's array reconstruction interprets raw bytes as objects. This interpreter builds
only containers, numbers, strings and bytes; an array stays a record of shape, type and bytes until
all three are known to match; work and memory are bounded by the size of the pickle.
"""

from __future__ import annotations

import codecs
import re
import struct
import warnings
from collections.abc import Callable, Mapping
from typing import TypeVar

from hjepa_jax.data.formats.pickled_arrays import Array, ArrayType
from hjepa_jax.storage.files import printable

# CIFAR-100 needs a quarter of a million opcodes, a torch checkpoint a few thousand.
_MAX_OPCODES = 4_000_000
_MAX_DEPTH = 64
_LONG_TEXT = 1 << 20
_KEYS = (str, bytes, int, float, bool, type(None))
_T = TypeVar("_T")


class Name:
    """A global named by a pickle; never imported."""

    def __init__(self, name: str):
        self.name = name


def load(
    content: bytes,
    calls: Mapping[str, Callable[..., object]],
    names: tuple[str, ...] = (),
    persistent: Callable[[object], object] | None = None,
) -> object:
    """Returns the plain data of a pickle.

    Args:
      content: the pickle, of any protocol.
      calls: replacements called for globals, by dotted name. Pickled state is passed to the `build`
        method of an `Array` or `ArrayType` that they return.
      names: further globals that may be mentioned; each becomes a `Name`.
      persistent: resolves persistent references; None rejects them.

    Raises:
      ValueError: if it is damaged, names any other global, or needs more work or memory than its
        size justifies. The message completes a sentence.
    """
    machine = _Machine(content, calls, names, persistent)
    try:
        loaded = machine.run()
    except (IndexError, KeyError, struct.error, OverflowError, TypeError) as error:
        raise ValueError("it is not a complete pickle") from error
    _check_size(loaded)
    return loaded


def _check_size(loaded: object) -> None:
    """Rejects data that is shared or nested too much to be traversed.

    Raises:
      ValueError: if a bound is exceeded.
    """
    level = [loaded]
    for _ in range(_MAX_DEPTH):
        containers = [value for value in level if isinstance(value, (dict, list, tuple)) and value]
        if not containers:
            return
        if sum(map(len, containers)) > _MAX_OPCODES:
            raise ValueError("its containers share too many elements")
        level = [
            value
            for container in containers
            for value in (container.values() if isinstance(container, dict) else container)
        ]
    raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")


class _Machine:
    """A stack machine for the opcodes of plain data; its errors are those that `load` catches."""

    def __init__(
        self,
        content: bytes,
        calls: Mapping[str, Callable[..., object]],
        names: tuple[str, ...],
        persistent: Callable[[object], object] | None,
    ):
        self._content = content
        self._position = 0
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}
        # Python 3's encodings of bytes, and of empty bytes, for Python 2.
        self._calls = {"_codecs.encode": self._encode, "__builtin__.bytes": lambda: b"", **calls}
        self._names = names
        self._persistent = persistent
        self._encoded = 0

    def run(self) -> object:
        """Returns the pickled value."""
        for _ in range(_MAX_OPCODES):
            opcode = self._content[self._position]
            self._position += 1
            if opcode == 0x2E:  # STOP
                return self._stack[-1]
            step = _STEPS.get(opcode)
            if step is None:
                raise ValueError(f"it has the unknown opcode {bytes([opcode])!r}")
            step(self)
        raise ValueError(f"it has more than {_MAX_OPCODES} opcodes")

    def take(self, count: int) -> bytes:
        """Consumes the next `count` bytes."""
        end = self._position + count
        if count < 0 or end > len(self._content):
            raise ValueError("it ends too early")
        part = self._content[self._position : end]
        self._position = end
        return part

    def number(self, size: int, signed: bool = False) -> int:
        """Consumes a little-endian integer of `size` bytes."""
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self) -> bytes:
        """Consumes the bytes up to the next newline."""
        end = self._content.find(b"\n", self._position)
        if end < 0:
            raise ValueError("it ends too early")
        part = self.take(end - self._position)
        self._position += 1
        return part

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> object:
        if self._marks and len(self._stack) <= self._marks[-1]:
            raise IndexError
        return self._stack.pop()

    def top(self, kind: type[_T]) -> _T:
        """Returns the value on top of the stack, which must be an instance of `kind`."""
        value = self._stack[-1]
        if not isinstance(value, kind):
            raise TypeError
        return value

    def since_mark(self) -> list[object]:
        """Pops the values above the last mark."""
        mark = self._marks.pop()
        values = self._stack[mark:]
        del self._stack[mark:]
        return values

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def last(self, count: int) -> tuple[object, ...]:
        """Pops the last `count` values."""
        values = [self.pop() for _ in range(count)]
        return tuple(reversed(values))

    def put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def get(self, number: int) -> None:
        self.push(self._memo[number])

    def text(self, size: int) -> None:
        """Pushes UTF-8 text; long text must be Latin-1, which needs no more memory than bytes."""
        part = self.take(size)
        if size > _LONG_TEXT and re.search(rb"[\xc4-\xff]", part):
            raise ValueError(f"it has a text of {size} bytes")
        self.push(part.decode("utf-8", "surrogatepass"))

    def quoted(self) -> None:
        part = self.line().strip()
        if len(part) < 2 or part[:1] != part[-1:] or part[:1] not in (b"'", b'"'):
            raise ValueError("it has a text without quotes")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.push(codecs.escape_decode(part[1:-1])[0])

    def integer(self) -> None:
        part = self.line()
        if len(part) > 40:
            raise ValueError("it has a number of too many digits")
        self.push({b"00": False, b"01": True}.get(part) if part in (b"00", b"01") else int(part))

    def long_text(self) -> None:
        part = self.line().removesuffix(b"L")
        if len(part) > 40:
            raise ValueError("it has a number of too many digits")
        self.push(int(part))

    def long(self, size: int) -> None:
        if size > 16:
            raise ValueError("it has a number of too many digits")
        self.push(self.number(size, signed=True))

    def append(self, values: list[object]) -> None:
        self.top(list).extend(values)

    def set_items(self, values: list[object]) -> None:
        self.top(dict).update(_pairs(values))

    def named(self, module: object, name: object) -> None:
        """Pushes the name of an allowed global."""
        full = f"{_word(module)}.{_word(name)}"
        if full in self._calls or full in self._names:
            return self.push(Name(full))
        raise ValueError(f"it asks for {printable(full[:200])}, which is not allowed")

    def call(self) -> None:
        """Calls the replacement of a global."""
        function, arguments = self.last(2)
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise TypeError
        if function.name not in self._calls:
            raise ValueError(f"it calls {function.name}, which is not allowed")
        self.push(self._calls[function.name](*arguments))

    def build(self) -> None:
        """Passes state to an array or its type; attributes of dictionaries are dropped."""
        state = self.pop()
        value = self._stack[-1]
        if isinstance(value, (Array, ArrayType)):
            value.build(state)
        elif not isinstance(value, dict):
            raise TypeError

    def reference(self) -> None:
        if self._persistent is None:
            raise ValueError("it refers to something outside it")
        self.push(self._persistent(self.pop()))

    def _encode(self, text: object, encoding: object) -> bytes:
        """Decodes bytes as Python 3 stores them in old protocols; only Latin-1 is allowed."""
        if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
            raise ValueError("it holds bytes in an encoding other than Latin-1")
        self._encoded += len(text)
        if self._encoded > len(self._content):
            raise ValueError("it holds more bytes than its size justifies")
        return text.encode("latin1")


def _word(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _pairs(values: list[object]) -> dict[object, object]:
    keys = values[::2]
    if len(values) % 2 or not all(isinstance(key, _KEYS) for key in keys):
        raise TypeError
    # Larger integers could be chosen so that all hashes collide.
    if any(isinstance(key, int) and abs(key) >= 2**60 for key in keys):
        raise TypeError
    return dict(zip(keys, values[1::2], strict=True))


_M = _Machine
_STEPS: dict[int, Callable[[_Machine], None]] = {
    ord(opcode): step
    for opcode, step in {
        "\x80": lambda m: m.take(1) and None,  # PROTO
        "\x95": lambda m: m.take(8) and None,  # FRAME
        "(": _M.mark,
        "0": lambda m: m.pop() and None,
        "1": lambda m: m.since_mark() and None,
        "2": lambda m: m.push(m._stack[-1]),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "I": _M.integer,
        "L": _M.long_text,
        "J": lambda m: m.push(m.number(4, signed=True)),
        "K": lambda m: m.push(m.number(1)),
        "M": lambda m: m.push(m.number(2)),
        "\x8a": lambda m: m.long(m.number(1)),
        "\x8b": lambda m: m.long(m.number(4)),
        "F": lambda m: m.push(float(m.line()[:64])),
        "G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        "S": _M.quoted,
        "T": lambda m: m.push(m.take(m.number(4))),
        "U": lambda m: m.push(m.take(m.number(1))),
        "B": lambda m: m.push(m.take(m.number(4))),
        "C": lambda m: m.push(m.take(m.number(1))),
        "\x8e": lambda m: m.push(m.take(m.number(8))),  # BINBYTES8
        "\x96": lambda m: m.push(m.take(m.number(8))),  # BYTEARRAY8
        "V": lambda m: m.push(m.line().decode("raw-unicode-escape")),
        "X": lambda m: m.text(m.number(4)),
        "\x8c": lambda m: m.text(m.number(1)),
        "\x8d": lambda m: m.text(m.number(8)),
        "]": lambda m: m.push([]),
        "}": lambda m: m.push({}),
        ")": lambda m: m.push(()),
        "l": lambda m: m.push(m.since_mark()),
        "d": lambda m: m.push(_pairs(m.since_mark())),
        "t": lambda m: m.push(tuple(m.since_mark())),
        "\x85": lambda m: m.push(m.last(1)),
        "\x86": lambda m: m.push(m.last(2)),
        "\x87": lambda m: m.push(m.last(3)),
        "a": lambda m: m.append([m.pop()]),
        "e": lambda m: m.append(m.since_mark()),
        "s": lambda m: m.set_items(list(m.last(2))),
        "u": lambda m: m.set_items(m.since_mark()),
        "p": lambda m: m.put(int(m.line()[:20])),
        "q": lambda m: m.put(m.number(1)),
        "r": lambda m: m.put(m.number(4)),
        "\x94": lambda m: m.put(len(m._memo)),  # MEMOIZE
        "g": lambda m: m.get(int(m.line()[:20])),
        "h": lambda m: m.get(m.number(1)),
        "j": lambda m: m.get(m.number(4)),
        "c": lambda m: m.named(m.line()[:200], m.line()[:200]),
        "\x93": lambda m: m.named(*m.last(2)),  # STACK_GLOBAL
        "R": _M.call,
        "b": _M.build,
        "Q": _M.reference,
    }.items()
}
