"""Locating and reading the golden vectors.

The folder is the environment variable HJEPA_GOLDEN_DIR, else `tests/golden`.
"""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


class GoldenFile(Mapping[str, np.ndarray]):
    """A lazily read .npz: arrays are decompressed when asked for."""

    def __init__(self, archive: np.lib.npyio.NpzFile) -> None:
        self._archive = archive
        self._names = frozenset(archive.files)

    def __getitem__(self, key: str) -> np.ndarray:
        return self._archive[key]

    def __contains__(self, key: object) -> bool:
        return key in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._archive.files)

    def __len__(self) -> int:
        return len(self._archive.files)


def golden_dir() -> pathlib.Path:
    """Returns the folder of the golden vectors."""
    default = pathlib.Path(__file__).resolve().parent.parent / "golden"
    return pathlib.Path(os.environ.get("HJEPA_GOLDEN_DIR") or default)


def golden_file(name: str) -> pathlib.Path | None:
    """Returns the path of a golden file, or None when this folder does not have it."""
    path = golden_dir() / name
    return path if path.is_file() else None


@functools.cache
def load(name: str) -> Mapping[str, np.ndarray]:
    """Opens a golden .npz; an empty mapping when this folder does not have it."""
    path = golden_file(name)
    if path is None:
        return {}
    return GoldenFile(np.load(path, allow_pickle=False))


def groups(mapping: Mapping[str, npt.ArrayLike], prefix: str = "") -> list[str]:
    """Returns the sorted first path components after `prefix` that have keys below them."""
    found = set()
    for key in mapping:
        if key.startswith(prefix) and "/" in key[len(prefix) :]:
            found.add(key[len(prefix) :].split("/")[0])
    return sorted(found)


def subtree(mapping: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the entries below `prefix`, with the prefix taken off their names."""
    return {key[len(prefix) :]: mapping[key] for key in mapping if key.startswith(prefix)}


def recorded(group: Mapping[str, np.ndarray], name: str, published: Any) -> Any:
    """Returns a hyper-parameter of a group, under its name or below `cfg/`.

    Args:
      group: a group's entries.
      name: the hyper-parameter.
      published: the value that the published code has where the group does not record it.
    """
    for key in (name, f"cfg/{name}"):
        if key in group:
            return group[key].item()
    return published


def assert_close(
    actual: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float, name: str
) -> None:
    """Asserts max|a-b| <= tolerance * max(1, max|b|), the golden set's own measure."""
    left = np.asarray(actual, np.float64)
    right = np.asarray(expected, np.float64)
    assert left.shape == right.shape, f"{name}: shape {left.shape}, expected {right.shape}"
    if right.size == 0:
        return
    error = float(np.max(np.abs(left - right))) / max(1.0, float(np.max(np.abs(right))))
    assert error <= tolerance, f"{name}: error {error:.3e} exceeds {tolerance:.1e}"
