"""Kernels, memory traffic, and collectives of a compiled program, read from its HLO text.

The traffic of a kernel is what it reads and writes in the device's main memory if each of its
operands is read once: caches are ignored, and so are the gaps that a tiled layout leaves. Arrays in
another memory space, such as a TPU's vector memory, do not count.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
# They name memory, or wait, and start nothing on the device.
_FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
_SLICES = {"dynamic-slice", "slice", "gather"}
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=(%[\w.\-]+))"
)
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a program: its result's shape, its operation, and what it takes."""

    shape: str
    operation: str
    operands: tuple[str, ...]
    attributes: str
    root: bool
    number: int | None  # of a parameter

    def named(self, attribute: str) -> str | None:
        """Returns the computation that an attribute names."""
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.attributes)
        return found[1] if found else None


Computation = Mapping[str, Instruction]


@dataclasses.dataclass
class Counts:
    """What a program does in one execution, on each device.

    Attributes:
      traffic: bytes read and written in main memory.
      kernels: number of executed operations of each kind.
      collectives: number of executed collectives of each kind.
      reduced: bytes that one device contributes to the collectives of each kind.
      endless: loops of unknown length, which are counted as one turn.
    """

    traffic: int = 0
    kernels: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    collectives: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    reduced: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    endless: int = 0

    def add(self, other: Counts, times: int = 1) -> None:
        """Adds another program that is executed so many times."""
        self.traffic += times * other.traffic
        self.endless += other.endless
        for mine, theirs in (
            (self.kernels, other.kernels),
            (self.collectives, other.collectives),
            (self.reduced, other.reduced),
        ):
            for kind, number in theirs.items():
                mine[kind] += times * number


def array_bytes(shape: str, *, main_memory: bool = False) -> list[int]:
    """Returns the size of each array of a shape as HLO writes it, a tuple's in order.

    Args:
      shape: such as 'f32[8,16]{1,0:T(8,128)S(1)}' or '(bf16[4]{0}, pred[])'.
      main_memory: arrays in other memory spaces have size 0.
    """
    sizes = []
    for kind, sides, layout in _ARRAY.findall(shape):
        bits = re.search(r"\d+", kind)
        width = 8 if kind == "pred" else int(bits[0]) if bits else 0
        entries = math.prod(int(side.strip("<=")) for side in sides.split(",") if side)
        elsewhere = main_memory and re.search(r"S\([1-9]", layout)
        sizes.append(0 if elsewhere else -(-entries * width // 8))
    return sizes


def _closing(text: str) -> int:
    """Returns where the parenthesis that opens a text is closed."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def _instruction(line: str) -> tuple[str, Instruction] | None:
    match = _LINE.match(re.sub(r"/\*.*?\*/", "", line))
    if match is None:
        return None
    root, name, rest = match.groups()
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    operation, opening, _ = rest.partition("(")
    rest = rest[len(operation) :]
    end = _closing(rest) if opening else 0
    inside, attributes = rest[1:end], rest[end + 1 :]
    number = int(inside) if operation == "parameter" else None
    operands = () if operation == "constant" else tuple(_NAME.findall(inside))
    return name, Instruction(shape, operation, operands, attributes, bool(root), number)


def parse_program(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations of an HLO module by name, and the name of the first to run.

    Raises:
      ValueError: if the text has no entry computation.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (found := _instruction(line)):
            current[found[0]] = found[1]
    if entry is None:
        raise ValueError("the text has no ENTRY computation: it is no HLO module")
    return dict(computations), entry


def count_program(text: str) -> Counts:
    """Returns what a compiled program does.

    Loops of known length count in full, and a conditional counts as its branch of least traffic.

    Raises:
      ValueError: if the text is no HLO module.
    """
    computations, entry = parse_program(text)
    return _Counter(computations).computation(entry)


class _Counter:
    """Counts the computations of a program."""

    def __init__(self, computations: Mapping[str, Computation]) -> None:
        self.computations = computations

    def computation(self, name: str) -> Counts:
        counts = Counts()
        for instruction in self.computations[name].values():
            self._count(instruction, self.computations[name], counts)
        return counts

    def _count(self, found: Instruction, inside: Computation, counts: Counts) -> None:
        """Adds an instruction of the computation `inside`."""
        operation = found.operation
        if operation in _FREE or operation.endswith("-done"):
            return
        if operation == "while":
            turns = _TURNS.search(found.attributes)
            counts.endless += turns is None
            body = found.named("body")
            assert body is not None
            counts.add(self.computation(body), int(turns[1]) if turns else 1)
            return
        if operation == "conditional":
            branches = [
                self.computation(name)
                for several, one in _BRANCHES.findall(found.attributes)
                for name in _NAME.findall(several or one)
            ]
            counts.add(min(branches, key=lambda branch: branch.traffic))
            return
        called = found.named("to_apply" if operation == "call" else "calls")
        if operation in ("call", "async-start") and called:
            counts.add(self.computation(called))
            return
        if 'custom_call_target="AllocateBuffer"' in found.attributes:
            return
        kind = operation.removesuffix("-start")
        counts.kernels[kind] += 1
        counts.traffic += self._traffic(found, inside)
        if kind in COLLECTIVES:
            counts.collectives[kind] += 1
            counts.reduced[kind] += sum(
                sum(array_bytes(inside[operand].shape)) for operand in found.operands
            )

    def _traffic(self, found: Instruction, inside: Computation) -> int:
        """Returns the bytes that an instruction reads and writes."""
        if found.operation.endswith("-start") and found.operation != "all-reduce-start":
            # Its result holds the operands too.
            sizes = array_bytes(found.shape, main_memory=True)
            if found.operation.removesuffix("-start") in _SLICES:
                place = len(found.operands)
                return min(sizes[0], array_bytes(found.shape)[place]) + sizes[place]
            return sum(sizes)
        shapes = [inside[operand].shape for operand in found.operands]
        read = [sum(array_bytes(shape, main_memory=True)) for shape in shapes]
        written = array_bytes(found.shape, main_memory=True)
        if found.operation == "fusion":
            fused = self.computations[found.named("calls") or ""]
            read = [
                min(size, self._read(fused, number)) if size else 0
                for number, size in enumerate(read)
            ]
            roots = list(_roots(fused))
            if len(roots) == len(written):
                written = [
                    min(size, _written(fused, root))
                    for size, root in zip(written, roots, strict=True)
                ]
        elif found.operation in _SLICES:
            read = [min(sum(written), read[0]), *read[1:]]
        elif found.operation == "dynamic-update-slice":
            read, written = [0, *read[1:]], [min(read[1], sum(written))]
        return sum(read) + sum(written)

    def _read(self, fused: Computation, number: int) -> int:
        """Returns how many bytes of an operand a fusion reads: of one that it slices, not all."""
        name, parameter = next(
            (name, found) for name, found in fused.items() if found.number == number
        )
        return self._used(fused, name, sum(array_bytes(parameter.shape)))

    def _used(self, fused: Computation, name: str, size: int) -> int:
        """Returns how many of the `size` bytes of a value its users read."""
        total = 0
        for user, found in fused.items():
            if name not in found.operands:
                continue
            if found.operation == "bitcast":
                total += self._used(fused, user, size)
            elif found.operation in _SLICES and found.operands[0] == name:
                total += sum(array_bytes(found.shape))
            elif found.operation == "fusion":
                inner = self.computations[found.named("calls") or ""]
                total += sum(
                    self._read(inner, number)
                    for number, operand in enumerate(found.operands)
                    if operand == name
                )
            elif found.operation != "dynamic-update-slice" or found.operands[0] != name:
                return size
        return min(total, size)


def _roots(fused: Computation) -> Iterator[Instruction]:
    """Returns the instructions that a fusion returns."""
    root = next(found for found in fused.values() if found.root)
    if root.operation == "tuple":
        yield from (fused[name] for name in root.operands)
    else:
        yield root


def _written(fused: Computation, root: Instruction) -> int:
    """Returns how many bytes of a result a fusion writes: of one that it updates, not all."""
    while root.operation == "bitcast":
        root = fused[root.operands[0]]
    changed = fused[root.operands[1]] if root.operation == "dynamic-update-slice" else root
    return sum(array_bytes(changed.shape))


def sent_bytes(counts: Counts, devices: int) -> float:
    """Returns the bytes that one device sends for the collectives, as rings of all devices do."""
    per_byte: Sequence[tuple[str, float]] = [
        ("all-reduce", 2 * (devices - 1) / devices),
        ("all-gather", devices - 1),
        ("reduce-scatter", (devices - 1) / devices),
        ("all-to-all", (devices - 1) / devices),
        ("collective-permute", 1),
        ("collective-broadcast", 1),
    ]
    return sum(counts.reduced[kind] * share for kind, share in per_byte)
