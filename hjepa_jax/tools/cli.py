"""The `hjepa` command: finds a subcommand, and lists them."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NamedTuple

import hjepa_jax
from hjepa_jax.config.command_line.program import write_out
from hjepa_jax.tools import completion


class Command(NamedTuple):
    """A subcommand: the module that declares `PROGRAM` and `run`, and what it does."""

    module: str
    meaning: str


_HERE = "hjepa_jax.tools"
# In the order of a first day's work.
COMMANDS = {
    "train": Command("hjepa_jax.main", "train and evaluate a configuration, or resume a run"),
    "eval": Command(f"{_HERE}.commands.evaluate", "evaluate a run"),
    "show": Command(f"{_HERE}.show.command", "show where a run stands, its scores, and its files"),
    "compare": Command(f"{_HERE}.commands.compare", "compare evaluated runs on one page"),
    "checkpoints": Command(f"{_HERE}.checkpoints.command", "evaluate and draw all checkpoints"),
    "sweep": Command(f"{_HERE}.commands.sweep", "run variants, settings, and seeds"),
    "ablation": Command(f"{_HERE}.ablation.command", "combine parts of HJEPA, tabulate effects"),
    "tune": Command(f"{_HERE}.tuning.command", "tune methods on held-out training images"),
    "features": Command(f"{_HERE}.commands.features", "write features of a run's data"),
    "export": Command(f"{_HERE}.commands.export", "write a run's encoder for other software"),
    "import-torch": Command(f"{_HERE}.commands.import_torch", "convert a PyTorch checkpoint"),
    "views": Command(f"{_HERE}.commands.views", "show the views that a configuration makes"),
    "prepare": Command(f"{_HERE}.commands.prepare", "pack images into shards, or check them"),
    "config": Command(f"{_HERE}.config_page", "print the fields of the configuration"),
    "doctor": Command(f"{_HERE}.doctor", "check this installation and a configuration"),
    "plan": Command(f"{_HERE}.plan.command", "predict a step's memory and speed elsewhere"),
    "physics": Command(f"{_HERE}.commands.physics", "compare symplectic maps with others"),
    "reproduce": Command(f"{_HERE}.commands.reproduce", "compare HJEPA with its baselines"),
    "layout": Command(f"{_HERE}.commands.layout", "check that devices do not change results"),
    "completion": Command(f"{_HERE}.completion", "print a script for completion in a shell"),
    "kill-test": Command(f"{_HERE}.commands.kill_test", "kill a run often, and check its end"),
}


def usage() -> str:
    """Returns the list of all commands."""
    lines = [f"  {name:<13} {command.meaning}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: hjepa COMMAND [FLAGS]",
            "",
            *lines,
            "",
            "'hjepa COMMAND --help' lists the flags of a command; 'hjepa --version' is there, too.",
            "First run: hjepa train --config=quickstart",
        ]
    )


def main() -> None:
    """Runs the subcommand named first on the command line."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        write_out(usage())
    elif name == "--version":
        write_out(f"hjepa_jax {hjepa_jax.__version__}")
    elif name == completion.ASK:
        modules = {known: command.module for known, command in COMMANDS.items()}
        found = completion.candidates(sys.argv[2:], modules)
        if found:  # an empty line would be a candidate, and keep shells from offering files
            write_out("\n".join(found))
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.0)[0]
        print(
            f"hjepa: {name[:100]!r} is not a command: did you mean 'hjepa {near}'? "
            "'hjepa --help' lists all.",
            file=sys.stderr,
        )
        sys.exit(2)
    else:
        del sys.argv[1]
        importlib.import_module(COMMANDS[name].module).run()


if __name__ == "__main__":
    main()
