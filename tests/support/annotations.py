"""What a package's functions declare, and whether a run-time checker wraps them."""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jax


def _functions(package: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yields name and function of every public function that a module of the package defines."""
    for module_info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        module = importlib.import_module(f"{package}.{module_info.name}")
        for name, value in vars(module).items():
            value = value.fun if isinstance(value, jax.custom_vjp) else value
            if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_":
                yield f"{module.__name__}.{name}", value


def unchecked_functions(package: str) -> list[str]:
    """Returns the public functions that no run-time checker wraps."""
    return [name for name, function in _functions(package) if not hasattr(function, "__wrapped__")]


def bare_annotations(package: str) -> list[str]:
    """Returns the arguments and results that are not annotated, or as an array of any shape."""
    bare = []
    for name, function in _functions(package):
        hints = typing.get_type_hints(function)
        for argument in [*inspect.signature(function).parameters, "return"]:
            parts = (hints.get(argument, Any), *typing.get_args(hints.get(argument)))
            if any(part in (Any, jax.Array) for part in parts):
                bare.append(f"{name}: {argument}")
    return bare
