"""Docstrings and comments name modules, functions and files that exist."""

import importlib
import importlib.util
import pathlib
import re
import tokenize

import pytest

from hjepa_jax.config import sections

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "hjepa_jax").rglob("*.py"))
MODULES: dict[str, list[str]] = {}
for file in FILES:
    dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    MODULES.setdefault(dotted.rpartition(".")[2], []).append(dotted)
# First parts that mean a section of the configuration, another library, or a variable.
OTHERS = {section.partition(".")[0] for section in sections()} | {"config", "settings", "torch"}
ENDINGS = {"py", "json", "md", "txt"}


def resolves(name: str) -> bool:
    """Returns whether 'module.attribute', or a dotted name from the package on, exists."""
    first, *rest = name.split(".")
    return any(exists(start, rest) for start in MODULES[first])


def exists(module: str, rest: list[str]) -> bool:
    """Returns whether a module has an attribute or submodule of a path of names."""
    value = importlib.import_module(module)
    for part in rest:
        module = f"{module}.{part}"
        if hasattr(value, part):
            value = getattr(value, part)
        elif hasattr(value, "__path__") and importlib.util.find_spec(module):
            value = importlib.import_module(module)
        else:
            return False
    return True


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_names_in_prose_exist(file: pathlib.Path) -> None:
    with tokenize.open(file) as stream:
        tokens = list(tokenize.generate_tokens(stream.readline))
    kinds = (tokenize.COMMENT, tokenize.STRING)
    text = "\n".join(token.string for token in tokens if token.type in kinds)
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)(?:\(\))?`", text):
        first, last = name.partition(".")[0], name.rpartition(".")[2]
        if first in MODULES and first not in OTHERS and last not in ENDINGS:
            assert resolves(name), f"`{name}` does not exist"
    for name in re.findall(r"\b(?:scripts|benchmarks|configs|docs|hjepa_jax)/[\w/]+\.\w+", text):
        assert (ROOT / name).is_file(), f"{name} does not exist"


@pytest.mark.parametrize("name", ["knn.vote", "hjepa_jax.training.step", "harness.main"])
def test_names_that_exist_resolve(name: str) -> None:
    assert resolves(name)


@pytest.mark.parametrize("name", ["knn.nothing", "hjepa_jax.nothing", "hjepa_jax.data.nothing"])
def test_names_that_do_not_exist_do_not_resolve(name: str) -> None:
    assert not resolves(name)
