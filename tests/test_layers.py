"""The layering of the package: who may import whom, read from the source with `ast`."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "hjepa_jax"

# The rooms and the entrances, from the bottom up: a module imports from its own room and from
# those above it in this list.
ROOMS = (
    "errors",
    "console",
    "storage",
    "config",
    "recipes",
    "runtime",
    "dynamics",
    "objectives",
    "kernels",
    "models",
    "methods",
    "data",
    "training",
    "evaluation",
    "train",
    "evaluate",
    "main",
    "pretrained",
    "loading",
    "interop",
    "tools",
)
LAYERS = {room: level for level, room in enumerate(ROOMS)}
# Numerics know arrays alone.
PURE = {room: {"jax", "jaxtyping", "numpy"} for room in ("dynamics", "objectives")}
STANDARD = {"__future__", "typing", "collections", "dataclasses", "functools", "math", "warnings"}


def imports(path: pathlib.Path, *, types: bool = True) -> set[str]:
    """Returns the dotted names that a file imports, wherever in it, perhaps for types alone."""
    found, tree = set(), ast.parse(path.read_text())
    for node in [] if types else ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""}
            if node.module == "hjepa_jax":
                found |= {f"hjepa_jax.{alias.name}" for alias in node.names}
    return found


def layer_of(path: pathlib.Path) -> str:
    """Returns the layer's name of a file of the package."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_from_layers_below(path: pathlib.Path) -> None:
    layer = layer_of(path)
    assert layer in LAYERS, f"{path}: new module, give it a layer"
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "hjepa_jax" or len(parts) == 1:
            continue
        target = parts[1]
        if target == layer and (PACKAGE / layer).is_dir():
            continue
        assert LAYERS[target] < LAYERS[layer], f"{path} imports {name}"
        if layer == "data":
            assert target in ("config", "errors", "storage"), f"{path} imports {name}"
        if layer == "recipes":
            assert target in ("config", "errors"), f"{path} imports {name}"
    if layer in PURE:
        foreign = {name.split(".")[0] for name in imports(path)} - STANDARD - {"hjepa_jax"}
        assert foreign <= PURE[layer], f"{path} imports {foreign - PURE[layer]}"


def test_no_cycles_between_files() -> None:
    names = {
        path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES
    }
    graph = {names[path]: imports(path, types=False) & set(names.values()) for path in FILES}
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"import cycle: {' -> '.join((*trail, node))}"
        if node not in done:
            for target in graph[node]:
                visit(target, (*trail, node))
            done.add(node)

    for node in graph:
        visit(node, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path: pathlib.Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 400, f"{path} is too long: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{path}: {node.name} has {length} lines: split it"


def test_scripts_are_thin() -> None:
    for path in sorted((PACKAGE.parent / "scripts").glob("*.py")):
        assert len(path.read_text().splitlines()) <= 100, f"{path} belongs into the package"


def test_no_folder_has_more_than_a_dozen_modules() -> None:
    folders = {path.parent for path in FILES}
    counts = {
        str(folder.relative_to(PACKAGE)): len([*folder.glob("*.py")]) - 1 for folder in folders
    }
    assert counts["config"] > 1
    assert {name: count for name, count in counts.items() if count > 12} == {}
