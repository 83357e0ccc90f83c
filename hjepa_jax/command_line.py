"""Parsing of command lines whose every mistake is answered with one sentence."""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

from absl import flags

from hjepa_jax import config_check
from hjepa_jax.config import rows
from hjepa_jax.errors import UserError


def flag_error(argv: list[str], error: Exception) -> str:
    """Returns the sentence for a command line that could not be parsed."""
    for argument in argv[1:]:
        name, _, value = argument.lstrip("-").partition("=")
        path = pathlib.Path(value.partition(":")[0])
        if name == "config" and not path.is_file():
            return f"--config={value}: there is no file {path} in {pathlib.Path.cwd()}."
        sentence = (
            config_check.unknown_field(name.removeprefix("config.")) if "config." in name else None
        )
        if sentence:
            return sentence
    # ml_collections prints the traceback of a failing config file; its last line says what.
    lines = str(error).strip().split("\n")
    line = lines[-1] if "Traceback" in lines[0] or len(lines) > 3 else lines[0]
    return re.sub(r"^[\w.]+Error: ", "", line.strip())


def parse_command_line(values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parses flags, with `--config.section.field=None` for fields that may be None.

    Returns:
      The arguments that are no flags, the program's name first.

    Raises:
      UserError: with one sentence on what is wrong.
    """
    none = re.compile(r"--?config\.([\w.]+)=None")
    cleared = [match[1] for argument in argv if (match := none.fullmatch(argument))]
    kept = [argument for argument in argv if not none.fullmatch(argument)]
    try:
        for path in cleared:
            if sentence := config_check.unknown_field(path):
                raise UserError(sentence)
            if not rows()[path].optional:
                raise UserError(f"config.{path} may not be None: give it a value.")
        # ml_collections looks for overrides in sys.argv, whatever it is given.
        sys.argv[:] = kept
        rest = values(kept)
        for path in cleared:
            section, _, name = path.rpartition(".")
            target: Any = values["config"].value
            for part in section.split(".") if section else []:
                target = target[part]
            target[name] = None
        # A file that fails to load fails only here.
        _ = values["config"].value is None or values["config"].value.keys()
        return rest
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise UserError(flag_error(argv, error)) from error
