"""What `--config` names: a recipe of the package, a run, or a Python, JSON, or YAML file.

A YAML file may have the form of this package, or that of the published scripts.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pathlib
import runpy
import traceback
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from hjepa_jax.config import files
from hjepa_jax.config.settings import schema
from hjepa_jax.errors import UserError, first_line
from hjepa_jax.storage import yaml_files
from hjepa_jax.storage.files import local_path

RECIPES = pathlib.Path(__file__).parents[1] / "recipes"
_SAVED = (".json", ".yaml", ".yml")
# Named, as recipes and methods are: it knows the methods, which know the configuration.
_PUBLISHED = "hjepa_jax.interop.published.translate"
# The sections that are found in the published form alone, and those that are in both forms.
_THEIRS, _SHARED = {"hjepa", "regularizer"}, {"data", "loss", "model", "seed", "train"}


def recipe_names() -> list[str]:
    """Returns the names of the package's recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.py") if path.stem != "__init__")


def variants(recipe: str) -> list[str]:
    """Returns the variants of a recipe of the package, without those of a smoke test."""
    return list(importlib.import_module(f"hjepa_jax.recipes.{recipe}").METHODS)


def load_config(text: str, tell: Callable[[str], object] = lambda sentence: None) -> ConfigDict:
    """Returns the configuration that `--config` names.

    Args:
      text: a recipe, such as 'cifar100', or a Python file that defines `get_config`, each
        optionally followed by ':variant'; the folder of a run, or its `config.json`; or a YAML file
        with a mapping of sections.
      tell: called with a sentence on what was done to a configuration of the published scripts.

    Raises:
      UserError: if there is no such recipe or file, or if it fails or has no such variant.
    """
    name, colon, variant = text.partition(":")
    # A path may have a colon of its own.
    if text.startswith("file:") or os.path.exists(text):
        name, colon, variant = text, "", ""
    path = _find(name, text)
    if path.suffix == ".py":
        return _run_file(path, text, variant)
    if colon:
        raise UserError(
            f"--config={text}: a saved configuration has no variants: remove ':{variant}'."
        )
    try:
        if path.suffix == ".json":
            return files.read(path)
        values = yaml_files.read_yaml(path)
        if not is_published(values):
            return files.from_values(values)
        found = importlib.import_module(_PUBLISHED).translate(values)
        tell(f"--config={text}: {found.sentence()}")
        return found.config
    except (OSError, ValueError) as error:
        raise UserError(f"--config={text} cannot be read: {first_line(error, 400)}") from error


def is_published(values: Mapping[str, object]) -> bool:
    """Returns whether nested values have the form of the published scripts, and nothing of ours."""
    own = {name.partition(".")[0] for name in schema().rows} - _SHARED
    train = values.get("train")
    weights = isinstance(train, Mapping) and any(str(name).startswith("lambda_") for name in train)
    return (weights or bool(_THEIRS & set(values))) and not own & set(values)


def _find(name: str, text: str) -> pathlib.Path:
    """Returns the file of a configuration whose suffix tells how to read it."""
    path = local_path(name, "--config")
    if not path.is_file() and not path.suffix and len(path.parts) == 1 and path.parts[0] == name:
        if name in recipe_names():
            return RECIPES / f"{name}.py"
        if not path.is_dir():
            raise UserError(_no_recipe(name, text))
    if path.is_dir():
        saved = path / "config.json"
        if not saved.is_file():
            raise UserError(
                f"--config={text}: the folder {path} is not that of a run, as it holds no "
                "config.json: give a recipe, a file, or the folder of a run."
            )
        return saved
    if not path.is_file():
        raise UserError(
            f"--config={text}: {path} does not exist; the current folder is {pathlib.Path.cwd()}."
        )
    if path.suffix not in (".py", *_SAVED):
        raise UserError(
            f"--config={text}: a configuration's file name ends in .py, .json, or .yaml: rename it."
        )
    return path


def _no_recipe(name: str, text: str) -> str:
    """Returns the sentence about a name that is neither a recipe nor a file."""
    known = recipe_names()
    nearest = difflib.get_close_matches(name, known, 1, 0.0)[0]
    return (
        f"--config={text}: {name[:100]!r} is neither a file nor a recipe ({', '.join(known)}): "
        f"did you mean --config={nearest}?"
    )


def _run_file(path: pathlib.Path, text: str, variant: str) -> ConfigDict:
    """Returns the result of `get_config` in a Python file; its errors become UserErrors."""
    name = text.partition(":")[0] if path.parent == RECIPES else str(path)
    try:
        get_config = runpy.run_path(str(path)).get("get_config")
        if not callable(get_config):
            raise UserError(f"--config={name}: the file defines no function get_config.")
        parameters = inspect.signature(get_config).parameters.values()
        takes_variant = any(found.kind != found.VAR_KEYWORD for found in parameters)
        if variant and not takes_variant:
            raise UserError(f"--config={name}:{variant}: its get_config takes no variant.")
        config = get_config(variant) if takes_variant else get_config()
    except UserError:
        raise
    except Exception as error:  # a configuration file may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = inside[-1] if inside else getattr(error, "lineno", None)
        place = "" if line is None else f", line {line}"
        raise UserError(
            f"--config={name}{place}: {type(error).__name__}: {first_line(error, 400)}"
        ) from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"--config={name}: get_config returned a {type(config).__name__}: return what "
            "hjepa_jax.config.base_config() gives, changed."
        )
    return config
