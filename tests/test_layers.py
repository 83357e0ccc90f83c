"""The layering of the package: who may import whom, read from the source with `ast`."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "hjepa_jax"

# A module may import from layers of a smaller number, and from its own folder.
LAYERS = {
    "errors": -1,
    "files": 0,
    "schema": 1,
    "dynamics": 1,
    "sharding": 1,
    "compilation_cache": 1,
    "config": 1,
    "config_check": 3,
    "variants": 2,
    "command_line": 4,
    "checkpoint_files": 2,
    "orbax_noise": 1,
    "rendezvous": 1,
    "distributed": 4,
    "workdir_lock": 5,
    "stop_request": 5,
    "objectives": 2,
    "data": 3,
    "runtime": 1,
    "kernels": 2.5,
    "models": 3,
    "interop": 4,
    "build": 4,
    "online_probe": 4,
    "train_state": 5,
    "spectral_step": 6,
    "accumulation": 4,
    "sharded_optimizer": 2,
    "train_step": 7,
    "checkpoint_arrays": 3,
    "checkpoint": 7,
    "writers": 7,
    "run": 8,
    "device_check": 9,
    "plan": 9,
    "nonfinite": 9,
    "evaluation": 9,
    "saved_run": 9,
    "train": 10,
    "evaluate": 10,
    "import_torch": 10,
    "main": 11,
    "loading": 11,
    "sweep": 11,
    "soak": 11,
    "doctor": 11,
    "cli": 12,
    "export": 12,
    "export_encoder": 13,
    "physics_runs": 12,
    "reproduce_pictures": 11,
    "reproduce": 12,
    "tools": 13,
}
# Numerics know arrays alone.
PURE = {"dynamics": {"jax", "numpy"}, "objectives": {"jax", "numpy"}}
STANDARD = {"__future__", "typing", "collections", "dataclasses", "functools", "math", "warnings"}


def imports(path: pathlib.Path) -> set[str]:
    """Returns the dotted names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
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
            assert target in ("config", "errors", "files", "schema"), f"{path} imports {name}"
    if layer in PURE:
        foreign = {name.split(".")[0] for name in imports(path)} - STANDARD - {"hjepa_jax"}
        assert foreign <= PURE[layer], f"{path} imports {foreign - PURE[layer]}"


def test_no_cycles_between_files() -> None:
    names = {
        path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES
    }
    graph = {names[path]: imports(path) & set(names.values()) for path in FILES}
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
    assert len(text.splitlines()) <= 420, f"{path} is too long: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 70, f"{path}: {node.name} has {length} lines: split it"


def test_scripts_are_thin() -> None:
    for path in sorted((PACKAGE.parent / "scripts").glob("*.py")):
        assert len(path.read_text().splitlines()) <= 100, f"{path} belongs into the package"
