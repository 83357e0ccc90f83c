"""The `hjepa` command: training, the doctor, plans, and the page of all configuration fields."""

from __future__ import annotations

import sys

_USAGE = """usage: hjepa COMMAND [FLAGS]

  train    train and evaluate a configuration  (python -m hjepa_jax.main)
  doctor   check this installation and a configuration  (python -m hjepa_jax.tools.doctor)
  plan     predict memory and speed of a step on another machine
  config   print every field of the configuration, or of one SECTION

'hjepa COMMAND --help' lists the flags."""


def main() -> None:
    """Runs the subcommand named first on the command line."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command not in ("train", "doctor", "plan", "config"):
        print(_USAGE)
        sys.exit(0 if command in ("-h", "--help") else 2)
    del sys.argv[1]
    if command == "train":
        from hjepa_jax import main as entry
    elif command == "doctor":
        from hjepa_jax.tools import doctor as entry
    elif command == "plan":
        from hjepa_jax.tools.plan import command as entry
    else:
        from hjepa_jax.tools import config_page as entry
    entry.run()


if __name__ == "__main__":
    main()
