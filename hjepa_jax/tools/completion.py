"""Print a script with which a shell completes commands, flags, recipes, and fields.

    eval "$(hjepa completion bash)"                                    # in ~/.bashrc
    eval "$(hjepa completion zsh)"                                     # in ~/.zshrc, after compinit
    hjepa completion fish > ~/.config/fish/completions/hjepa.fish      # once

`hjepa train --config.train.<TAB>` then lists the fields of the section.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping

from absl import flags

from hjepa_jax.config.command_line.field_names import field_names
from hjepa_jax.config.command_line.program import Program, write_out
from hjepa_jax.config.load import recipe_names, variants
from hjepa_jax.errors import UserError

PROGRAM = Program("completion", __doc__, arguments="bash|zsh|fish", number=(1, 1), example="bash")
# How a shell asks for the words that may stand at the place of the last argument.
ASK = "__complete"
_BASH = f"""_hjepa() {{
  local line=${{COMP_LINE:0:COMP_POINT}} word=${{COMP_WORDS[COMP_CWORD]}} before
  local -a words
  read -ra words <<< "$line"
  [[ $line == *[[:space:]] ]] && words+=("")
  # Bash splits words at = and :, and replaces only what follows the last of them.
  [[ $word == [=:] ]] && word=
  before=${{words[-1]%"$word"}}
  mapfile -t COMPREPLY < <(command hjepa {ASK} "${{words[@]:1}}" 2> /dev/null)
  COMPREPLY=("${{COMPREPLY[@]#"$before"}}")
  [[ ${{#COMPREPLY[@]}} -gt 0 && ${{COMPREPLY[0]}} == *[=.:] ]] && compopt -o nospace
}}
complete -o default -F _hjepa hjepa"""
_ZSH = f"""#compdef hjepa
_hjepa() {{
  local -a found
  found=(${{(f)"$(command hjepa {ASK} "${{(@)words[2,CURRENT]}}" 2> /dev/null)"}})
  if (( $#found )); then
    compadd -Q -S '' -- ${{(M)found:#*[=.:]}}
    compadd -Q -- ${{found:#*[=.:]}}
  else
    compset -P '*='
    _files
  fi
}}
compdef _hjepa hjepa"""
# Files are offered only where nothing is found.
_FISH = f"""function __hjepa_find
    set -l words (commandline -opc) (commandline -ct)
    set -g __hjepa_found (command hjepa {ASK} $words[2..-1] 2> /dev/null)
    set -q __hjepa_found[1]
end
complete -c hjepa -n __hjepa_find -f -a '$__hjepa_found'"""
SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def candidates(words: list[str], commands: Mapping[str, str]) -> list[str]:
    """Returns what the last word of a command line may become; [] = perhaps a file.

    Args:
      words: the words after `hjepa`; the last one is incomplete.
      commands: names of the subcommands with their modules.
    """
    *before, word = words or [""]
    if not before:
        options = [*commands, "--help", "--version"]
    elif before[0] not in commands:
        options = []
    else:
        program = importlib.import_module(commands[before[0]]).PROGRAM
        options = _of_program(program, before, word)
    return sorted({option for option in options if option.startswith(word)})


def _of_program(program: Program, before: list[str], word: str) -> Iterable[str]:
    """Returns the words that a program may take."""
    own = list(program.flags.flag_values_dict())
    if word.startswith("--config.") and program.takes_overrides:
        return _next_part([f"--config.{name}=" for name in field_names()], word)
    if "=" in word:
        name, _, text = word.partition("=")
        return [f"{name}={value}" for value in _values(program, name.lstrip("-"), text)]
    if word.startswith("-"):
        boolean = [name for name in own if program.flags[name].boolean]
        found = [f"--{name}" if name in boolean else f"--{name}=" for name in own]
        found += [f"--no{name}" for name in boolean] + ["--help"]
        return [*found, "--config."] if program.takes_overrides else found
    if before[-1].startswith("--") and "=" not in before[-1]:
        return _values(program, before[-1].lstrip("-"), word)
    if program.name == "completion":
        return SCRIPTS
    if program.name == "config":
        return {name.rpartition(".")[0] for name in field_names()} - {""}
    return []


def _values(program: Program, name: str, text: str) -> Iterable[str]:
    """Returns the values of a flag that are known."""
    if name not in program.flags:
        return []
    if name == "config":
        recipe, colon, _ = text.partition(":")
        if colon and recipe in recipe_names():
            return [f"{recipe}:{variant}" for variant in [*variants(recipe), "smoke"]]
        return recipe_names()
    flag: flags.Flag = program.flags[name]
    return getattr(flag.parser, "enum_values", None) or []


def _next_part(names: list[str], word: str) -> set[str]:
    """Returns names up to the first period behind what was typed, so that sections come first."""
    found = set()
    for name in names:
        if name.startswith(word):
            head, period, _ = name[len(word) :].partition(".")
            found.add(f"{word}{head}{period}")
    return found


def main(argv: list[str]) -> None:
    """Prints the script."""
    if argv[1] not in SCRIPTS:
        raise UserError(f"{argv[1][:60]!r} is not a known shell: give one of {', '.join(SCRIPTS)}.")
    write_out(SCRIPTS[argv[1]])


def run() -> None:
    """Entry point of `hjepa completion`."""
    PROGRAM.run(main)
