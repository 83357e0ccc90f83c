"""A command of `hjepa`: its own flags, its help, and one-sentence errors.

    PROGRAM = Program("views", __doc__, required=("config",))
    _CONFIG = define_config(None, "What to show.", values=PROGRAM.flags)

The module that declares a program imports JAX inside functions alone: help and completion read it.
"""

from __future__ import annotations

import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence

from absl import app, flags

from hjepa_jax.config.flags import parse_command_line
from hjepa_jax.errors import UserError

_WIDTH = 96
_INDENT = 28


class Program:
    """A command of `hjepa`.

    Attributes:
      name: name after `hjepa`.
      flags: its own flags.
      source: the text of `--config`, once parsed; None without one.
      given: (dotted name, value) of each override of the configuration, once parsed.
    """

    def __init__(
        self,
        name: str,
        meaning: str | None,
        *,
        required: Sequence[str] = (),
        example: str = "--config=quickstart",
        arguments: str = "",
        number: tuple[int, int] = (0, 0),
        speaker: str = "",
        alone: bool = False,
        level: int = logging.INFO,
    ) -> None:
        """Declares a program without flags.

        Args:
          name: name after `hjepa`.
          meaning: what it does: a docstring, whose first line may begin with "`hjepa NAME`: ".
          required: names of required flags.
          example: example of them, or of the arguments, for the message.
          arguments: the arguments that are no flags, for the help, such as 'RUN [RUN ...]'.
          number: least and most of them.
          alone: whether overrides are taken without a `--config`.
          speaker: printed before errors; '' = 'hjepa NAME'.
          level: least level of the package's messages that it prints, see `console.set_up`.
        """
        self.name = name
        self.flags = flags.FlagValues()
        self.source: str | None = None
        self.given: list[tuple[str, object]] = []
        self._alone = alone
        self._meaning = (meaning or "").strip()
        self._required, self._example = tuple(required), example
        self._arguments, self._number = arguments, number
        self._level = level
        self._speaker = speaker or f"hjepa {name}"

    def help(self) -> str:
        """Returns the usage, the meaning, and every flag with its default."""
        configured = self.takes_overrides
        parts = [f"usage: hjepa {self.name}", self._arguments, "[FLAGS]"]
        parts += ["[--config.SECTION.FIELD=VALUE ...]"] if configured else []
        own = sorted(self.flags.flag_values_dict())
        lines = [" ".join(filter(None, parts)), "", self._meaning]
        lines += ["", "flags:", *map(self._flag_help, own)] if own else []
        if configured:
            lines += ["", "'hjepa config' lists the fields of the configuration."]
        return "\n".join(lines)

    @property
    def takes_overrides(self) -> bool:
        """Whether the command line may set fields of a configuration."""
        return self._alone or "config" in list(self.flags)

    def _flag_help(self, name: str) -> str:
        """Returns the lines about a flag."""
        flag = self.flags[name]
        shown = f"--[no]{name}" if flag.boolean else f"--{name}={flag_value(flag)}"
        if name in self._required:
            end = " (required)"
        elif flag.default is None or flag.default in ([], [""]):
            end = ""
        else:
            default = flag.default
            end = f" (default: {','.join(default) if isinstance(default, list) else default})"
        head = f"  {shown}".ljust(_INDENT)
        indent = " " * _INDENT
        # absl puts the choices of an enum before its meaning,
        # and notes on lists behind it.
        meaning = (flag.help or "").rpartition(">: ")[2].partition(";\n")[0]
        text = f"{meaning.removesuffix('(a comma separated list)').rstrip()}{end}"
        if len(head) >= _INDENT and not head.endswith(" "):
            return f"{head}\n" + textwrap.fill(
                text, _WIDTH, initial_indent=indent, subsequent_indent=indent
            )
        return textwrap.fill(text, _WIDTH, initial_indent=head, subsequent_indent=indent)

    @staticmethod
    def asks_for_help(argv: list[str]) -> bool:
        """Returns whether a command line asks for the help."""
        before = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
        return bool({"-h", "-help", "--help", "--helpfull", "--helpshort"} & set(before))

    def parse(self, argv: list[str]) -> list[str]:
        """Parses a command line; prints the help and exits if that is asked for.

        Args:
          argv: the arguments, after the program's name.

        Returns:
          The name and the arguments that are no flags.

        Raises:
          UserError: one sentence about what is wrong.
        """
        if self.asks_for_help(argv):
            write_out(self.help())
            sys.exit(0)
        for name in self.flags:
            self.flags[name].unparse()  # in tests, a program is parsed more than once
        parsed = parse_command_line(self.flags, argv, f"hjepa {self.name}")
        rest, self.source, self.given = parsed
        if self.given and not self.takes_overrides:
            raise UserError(f"config.{self.given[0][0]} is set, but there is no --config.")
        missing = [name for name in self._required if self.flags[name].value is None]
        if missing:
            listed = " and ".join(f"--{name}" for name in self._required)
            verb = "is" if len(self._required) == 1 else "are"
            raise UserError(f"{listed} {verb} needed, for example {self._example}.")
        least, most = self._number
        if len(rest) - 1 > most:
            wanted = f" after {self._arguments}" if most else ": flags begin with '--'"
            raise UserError(f"{rest[most + 1]!r} is an unexpected argument{wanted}.")
        if len(rest) - 1 < least:
            raise UserError(
                f"{self._arguments} is needed, for example hjepa {self.name} {self._example}."
            )
        return rest

    def changes(self) -> tuple[str, ...]:
        """Returns the fields that the parsed command line sets, as 'train.lr=0.1'."""
        return tuple(f"{path}={value}" for path, value in self.given)

    def overrides(self) -> list[str]:
        """Returns the overrides of the parsed command line as arguments for another process."""
        return [f"--config.{change}" for change in self.changes()]

    def run(
        self,
        main: Callable[[list[str]], object],
        rewrite: Callable[[list[str]], list[str]] = list,
    ) -> None:
        """Runs the program with the arguments of the process; a user's error is one sentence.

        Args:
          main: called with the program's name and the arguments that are no flags.
          rewrite: applied to the command line before it is parsed.
        """

        def parse(argv: list[str]) -> list[str]:
            try:
                return self.parse(argv if self.asks_for_help(argv) else rewrite(argv))
            except UserError as error:
                sys.exit(f"{self._speaker}: {error}")

        def guarded(argv: list[str]) -> object:
            # It takes a tenth of a second, which help and completion need not wait for.
            from hjepa_jax import console

            if not flags.FLAGS["verbosity"].present:
                console.set_up(level=self._level)
            try:
                return main(argv)
            except UserError as error:
                sys.exit(f"{self._speaker}: {error}")

        app.run(guarded, flags_parser=parse)


def write_out(text: str) -> None:
    """Prints a text whose reader, such as `head`, may stop early."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python would try again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def flag_value(flag: flags.Flag) -> str:
    """Returns what may follow a flag's '=', for the help."""
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        return "|".join(choices)
    kinds = {int: "N", float: "X", list: "A,B,..."}
    if isinstance(flag.parser, flags.ListParser):
        return kinds[list]
    return kinds.get(getattr(flag.parser, "number_type", None) or _type(flag), "TEXT")


def _type(flag: flags.Flag) -> type:
    kinds = {"int": int, "float": float}
    return kinds.get(flag.flag_type(), str)
