"""Completion: commands, flags, recipes, and fields, and all of it without JAX."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

from hjepa_jax.config import rows
from hjepa_jax.config.command_line.field_names import field_names
from hjepa_jax.errors import UserError
from hjepa_jax.tools import cli, completion

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODULES = {name: command.module for name, command in cli.COMMANDS.items()}


def complete(*words: str) -> list[str]:
    """Returns the candidates for the last word."""
    return completion.candidates(list(words), MODULES)


def test_the_names_read_from_the_source_are_those_of_all_fields() -> None:
    assert field_names() == sorted(rows())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["--v"], ["--version"]),
        (["nonsense", "x"], []),
        (["train", "--wor"], ["--workdir="]),
        (["train", "--mode=tr"], ["--mode=train", "--mode=train_and_eval"]),
        (["train", "--mode", "tr"], ["train", "train_and_eval"]),
        (["train", "--config=quick"], ["--config=quickstart"]),
        (["train", "--config", "cifar100:ham_d"], ["cifar100:ham_diag"]),
        (["sweep", "--config=cifar100:sm"], ["--config=cifar100:smoke"]),
        (["train", "--config=elsewhere/own.py:s"], []),
        (["train", "--config.tr"], ["--config.train."]),
        (["train", "--config.see"], ["--config.seed="]),
        (["train", "--config.train.l"], ["--config.train.lr="]),
        (["views", "--config.data.augment.sol"], None),
        (["compare", "--config."], []),
        (["prepare", "--noveri"], ["--noverify"]),
        (["config", "data.a"], ["data.augment"]),
        (["completion", ""], ["bash", "fish", "zsh"]),
        (["compare", "runs/x"], []),
        (["train", "--workdir="], []),
    ],
)
def test_the_last_word_is_completed(words, expected) -> None:
    if expected is None:
        expected = [f"{words[-1]}arize_{end}=" for end in ("probability", "threshold")]
    assert complete(*words) == expected


def test_every_flag_of_every_command_is_offered() -> None:
    for name, command in cli.COMMANDS.items():
        own = sys.modules[command.module].PROGRAM.flags if command.module in sys.modules else []
        offered = complete(name, "--")
        assert "--help" in offered
        for flag in own:
            assert f"--{flag}" in offered or f"--{flag}=" in offered


def test_completion_does_not_import_jax() -> None:
    words = [["train", "--config.train."], ["sweep", "--config=cifar100:"], ["plan", "--"], ["e"]]
    code = "import sys\nfrom hjepa_jax.tools import cli\n"
    code += (
        f"for words in {words}:\n    sys.argv = ['hjepa', '__complete', *words]\n    cli.main()\n"
    )
    code += "print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert lines[-1] == "False", done.stderr
    assert {"--config.train.lr=", "--config=cifar100:parity", "--topology=", "eval"} <= set(lines)


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """An environment with `hjepa` on its PATH."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "hjepa").write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m hjepa_jax.tools.cli "$@"\n'
    )
    (folder / "hjepa").chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_bash_completes_words_that_it_splits_itself(environment) -> None:
    ask = """compopt() { asked="$*"; }
ask() { COMP_LINE=$1; COMP_POINT=${#1}; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
  asked=; _hjepa; echo "${COMPREPLY[*]}|$asked"; }
ask 'hjepa tr' hjepa tr
ask 'hjepa train --config=cifar100:si' hjepa train --config = cifar100 : si
ask 'hjepa train --config=' hjepa train --config =
ask 'hjepa train --config.train.l' hjepa train --config.train.l
ask 'hjepa completion ' hjepa completion ''
ask 'hjepa show runs' hjepa show runs
echo ${#COMPREPLY[@]}  # none, so that files are offered
"""
    script = f"{completion.SCRIPTS['bash']}\n{ask}"
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "train|",
        "sigreg|",
        "cifar100 folder imagenet100 lejepa pretrained quickstart|",
        "--config.train.lr=|-o nospace",
        "bash fish zsh|",
        "|",
        "0",
    ]


@pytest.mark.skipif(not shutil.which("fish"), reason="needs fish")
def test_fish_offers_files_only_where_nothing_else_is_known(environment) -> None:
    lines = ["tr", "train --config=cifar100:si", "train --config=", "train --config.train.l"]
    lines += ["completion ", "show hjepa_jax/to", "train --data=hjepa_jax/to"]
    ask = "".join(f"complete -C 'hjepa {line}'\necho\n" for line in lines)
    done = subprocess.run(
        ["fish", "--no-config", "-c", f"{completion.SCRIPTS['fish']}\n{ask}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [found.split() for found in done.stdout.split("\n\n")[:-1]] == [
        ["train"],
        ["--config=cifar100:sigreg"],
        [
            f"--config={name}"
            for name in ("cifar100", "folder", "imagenet100", "lejepa", "quickstart")
        ],
        ["--config.train.lr="],
        ["bash", "fish", "zsh"],
        ["hjepa_jax/tools/"],
        ["--data=hjepa_jax/tools/"],
    ]


# An interactive shell in a terminal of its own; its widget completes a line and prints the result.
_ZSHRC = """PS1= RPS1= PROMPT_SP=
autoload -Uz compinit; compinit -u -D
{script}
told() {{ zle complete-word; zle -I; print -r -- "<$BUFFER>"; BUFFER= }}
zle -N told; bindkey '^I' told
print '<ready>'
"""
_ASK_ZSH = """zmodload zsh/zpty
zpty shell zsh -i
zpty -r -m shell out '*<ready>*'
for line in "$@"; do
  zpty -n -w shell "$line"$'\t'
  zpty -r -m shell out '*<*>*'
  print -r -- "${${out##*<}%%>*}"
done
zpty -d shell
"""


@pytest.mark.skipif(not shutil.which("zsh"), reason="needs zsh")
def test_zsh_completes_lines_in_a_terminal(environment, tmp_path) -> None:
    (tmp_path / ".zshrc").write_text(_ZSHRC.format(script=completion.SCRIPTS["zsh"]))
    lines = ["tr", "train --config=cifar100:si", "train --config.train.l", "train --config.se"]
    lines += ["show hjepa_jax/to", "train --data=hjepa_jax/to"]
    done = subprocess.run(
        ["zsh", "-f", "-c", _ASK_ZSH, "zsh", *(f"hjepa {line}" for line in lines)],
        cwd=ROOT,
        env={**environment, "ZDOTDIR": str(tmp_path), "TERM": "xterm"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.splitlines() == [
        "hjepa train ",
        "hjepa train --config=cifar100:sigreg ",
        "hjepa train --config.train.lr=",
        "hjepa train --config.seed=",
        "hjepa show hjepa_jax/tools/",
        "hjepa train --data=hjepa_jax/tools/",
    ], done.stderr


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_the_script_of_a_shell_has_no_syntax_error(shell, monkeypatch, capsys) -> None:
    completion.main(["completion", shell])
    script = capsys.readouterr().out
    assert "hjepa __complete" in script
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed here")
    subprocess.run([program, "-n", "-c", script], check=True)


def test_an_unknown_shell_is_a_sentence() -> None:
    with pytest.raises(UserError, match="'tcsh' is not a known shell: give one of bash, zsh, fish"):
        completion.main(["completion", "tcsh"])
