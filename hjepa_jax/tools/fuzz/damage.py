"""Seeded damage to files for the fuzzers: in bytes, in JSON, or by replacing the file."""

from __future__ import annotations

import json
import os
import pathlib
import random
from typing import Any

_ODD_VALUES: tuple[object, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**30, -(10**12), 0.5, -0.0, 1e308),
    *(float("nan"), float("inf"), "", "text", "\ud800", "a\0b", "../x", "/dev/zero", "x" * 70_000),
    *([], {}, [[]], [None], {"": 0}, ["a", 1], {"a": {"b": [1, {"c": None}]}}),
)


def odd_value(rng: random.Random) -> object:
    """Returns a value of a type or size that few fields expect."""
    if rng.random() < 0.1:
        return nested(rng.choice((10, 70, 300)))
    return rng.choice(_ODD_VALUES)


def nested(depth: int) -> object:
    """Returns nested lists, `depth` deep."""
    value: object = 1
    for _ in range(depth):
        value = [value]
    return value


def damage_bytes(rng: random.Random, content: bytes) -> tuple[str, bytes]:
    """Returns a short description of the damage, and the damaged bytes."""
    data = bytearray(content)
    length = len(data)
    place = rng.randrange(length) if length else 0
    if length and rng.random() < 0.3:
        # Formats keep their most important fields at either end.
        near = min(length, rng.choice((64, 600)))
        place = rng.choice((rng.randrange(near), length - 1 - rng.randrange(near)))
    size = rng.choice((1, 4, 8, 64, 1000))
    kind = rng.choice(("flip", "flips", "cut", "zero", "ones", "insert", "delete", "copy", "other"))
    if kind in ("flip", "flips") and length:
        for number in range(1 if kind == "flip" else 20):
            where = place if number == 0 else rng.randrange(length)
            data[where] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind in ("zero", "ones"):
        part = (b"\0" if kind == "zero" else b"\xff") * size
        data[place : place + size] = part[: length - place]
    elif kind == "insert":
        data[place:place] = rng.randbytes(size)
    elif kind == "delete":
        del data[place : place + size]
    elif kind == "copy" and length:
        start = rng.randrange(length)
        data[place : place + size] = data[start : start + size]
    elif kind == "other":
        data = bytearray(rng.choice((b"", b"\0" * 100, b"\xff" * 5000, rng.randbytes(300), b"[]")))
    return f"{kind} at {place} of {length}, {size} bytes", bytes(data)


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found = []
    level = [value]
    while level:
        inner = []
        for outer in level:
            keys = list(outer) if isinstance(outer, dict) else range(len(outer))
            found += [(outer, key) for key in keys]
            inner += [outer[key] for key in keys if isinstance(outer[key], (dict, list))]
        level = inner
    return found


def damage_json(rng: random.Random, text: bytes) -> tuple[str, bytes]:
    """Returns a description, and the JSON text with one value, one key or everything replaced."""
    value = json.loads(text)
    places = _places(value) if isinstance(value, (dict, list)) else []
    kind = rng.choice(("value", "value", "value", "missing", "twice", "whole", "deep", "bytes"))
    if kind == "bytes" or (not places and kind != "whole"):
        return damage_bytes(rng, text)
    if kind == "deep":
        return "nested 10,000 deep", b'{"a":' * 10_000 + b"1" + b"}" * 10_000
    if kind == "whole":
        value = odd_value(rng)
        return f"all of it is {_short(value)}", json.dumps(value).encode()
    outer, key = rng.choice(places)
    if kind == "value":
        outer[key] = odd_value(rng)
        return f"{key} is {_short(outer[key])}", json.dumps(value).encode()
    if kind == "twice" and isinstance(outer, dict):
        # The same key again, before the first one.
        again = f"{json.dumps(key)}: {json.dumps(odd_value(rng))}, {json.dumps(key)}:"
        return f"{key} twice", json.dumps(value).replace(f"{json.dumps(key)}:", again, 1).encode()
    del outer[key]
    return f"{key} is missing", json.dumps(value).encode()


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) < 40 else f"{text[:40]}..."


def damage_place(rng: random.Random, path: pathlib.Path) -> str:
    """Replaces a file by something else and returns what that is."""
    kind = rng.choice(
        ("nothing", "folder", "pipe", "endless", "broken link", "loop", "huge", "empty", "link")
    )
    moved = path.with_name(f"{path.name}.moved")
    path.rename(moved)
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "broken link":
        path.symlink_to("nowhere")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "huge":
        with path.open("wb") as file:
            file.write(moved.read_bytes())
            file.truncate(5 << 30)
    elif kind == "empty":
        path.touch()
    elif kind == "link":
        path.symlink_to(moved.name)
        return "link to itself elsewhere"
    moved.unlink()
    return kind
