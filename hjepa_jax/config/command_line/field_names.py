"""Names of all fields, read from the source: completion cannot wait for JAX's import."""

from __future__ import annotations

import ast
import functools
import importlib.util
import pathlib
from collections.abc import Iterator

from hjepa_jax.config.fields import walk
from hjepa_jax.config.parts import TABLES
from hjepa_jax.config.settings import Settings


def field_names() -> list[str]:
    """Returns the dotted names of the built-in fields, without their order."""
    names = {row.path for row in walk(Settings)}
    for table in TABLES.values():
        for place in table.values():
            module, _, kind = place.partition(":")
            names |= set(_part_fields(module, kind))
    return sorted(names)


@functools.cache
def _tree(module: str) -> ast.Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return ast.parse(pathlib.Path(spec.origin).read_text())


def _class(module: str, name: str) -> tuple[str, ast.ClassDef]:
    """Returns a class that a module defines or imports, and the module that defines it."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names]:
            return _class(str(node.module), name)
    raise LookupError(f"{module} has no class {name}")


def _part_fields(module: str, name: str) -> Iterator[str]:
    """Yields the fields of the sections that a part declares itself."""
    home, found = _class(module, name)
    for node in found.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)):
            continue
        if ast.unparse(node.target) == "sections":
            for key, value in zip(node.value.keys, node.value.values):
                if key is not None:  # a key of None takes over another part's
                    yield from _fields(home, ast.unparse(value), f"{ast.literal_eval(key)}.")


def _fields(module: str, name: str, prefix: str) -> Iterator[str]:
    """Yields the fields of a dataclass, and of the sections in it."""
    home, found = _class(module, name)
    for node in found.body:
        if not (isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call)):
            continue
        path, maker = f"{prefix}{ast.unparse(node.target)}", ast.unparse(node.value.func)
        if maker == "section":
            yield from _fields(home, ast.unparse(node.value.args[0]), f"{path}.")
        elif maker == "field":
            yield path
