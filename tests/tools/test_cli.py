"""The `hjepa` command: every subcommand has its own help, and answers mistakes alike."""

import importlib
import logging
import pathlib
import re
import subprocess
import sys

import pytest

from hjepa_jax import main
from hjepa_jax.config import files
from hjepa_jax.config.checks import typed
from hjepa_jax.config.flags import split_overrides
from hjepa_jax.errors import UserError
from hjepa_jax.recipes import quickstart
from hjepa_jax.tools import cli
from hjepa_jax.tools.commands import evaluate, sweep

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))


def program(name: str):
    """Returns the program of a subcommand."""
    return importlib.import_module(cli.COMMANDS[name].module).PROGRAM


def run(monkeypatch, *arguments: str) -> None:
    """Runs the command in this process."""
    monkeypatch.setattr(sys, "argv", ["hjepa", *arguments])
    cli.main()


@pytest.mark.parametrize("arguments", [(), ("-h",), ("--help",), ("help",)])
def test_the_command_lists_all_of_its_subcommands(arguments, monkeypatch, capsys) -> None:
    run(monkeypatch, *arguments)
    listed = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(command.meaning)}$", listed, re.M)


def test_the_version_is_that_of_the_package(monkeypatch, capsys) -> None:
    run(monkeypatch, "--version")
    assert capsys.readouterr().out == "hjepa_jax 0.1.0\n"


@pytest.mark.parametrize(
    ("wrong", "right"), [("trian", "train"), ("evaluate", "eval"), ("kill_test", "kill-test")]
)
def test_an_unknown_subcommand_names_the_nearest(wrong, right, monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, wrong)
    assert end.value.code == 2
    assert f"did you mean 'hjepa {right}'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", cli.COMMANDS)
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_every_subcommand_lists_its_own_flags_with_defaults(name, flag, capsys) -> None:
    found = program(name)
    assert found.name == name
    with pytest.raises(SystemExit) as end:
        found.parse([name, flag])
    assert end.value.code == 0
    told = capsys.readouterr().out
    lines = told.splitlines()
    assert lines[0].startswith(f"usage: hjepa {name} ")
    assert len(lines[2]) > 20
    assert len(lines) < 60
    shown = re.findall(r"^  --(?:\[no\])?(\w+)", told, re.M)
    assert shown == sorted(found.flags.flag_values_dict())
    for own in shown:
        default = found.flags[own].default
        if default not in (None, [], [""]):
            text = ",".join(default) if isinstance(default, list) else str(default)
            assert f"(default: {text})" in " ".join(told.split())
    # absl's hundreds belong to no command.
    assert "verbosity" not in told


def test_the_help_of_a_command_needs_no_jax() -> None:
    modules = [command.module for command in cli.COMMANDS.values()]
    code = f"import sys, importlib\nfor m in {modules}:\n    importlib.import_module(m)\n"
    code += "print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_answers_a_misspelt_field_alike(name) -> None:
    with pytest.raises(UserError) as refused:
        program(name).parse([name, "--config.train.learning_rate=1"])
    assert str(refused.value) == (
        "config.train.learning_rate is not a field of the configuration: did you mean "
        "config.train.lr?"
    )


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_answers_an_unknown_flag_alike(name) -> None:
    with pytest.raises(UserError, match=rf"^--nonsense_flag is not a flag of hjepa {name}: --help"):
        program(name).parse([name, "--nonsense_flag=1"])


def test_every_script_is_a_subcommand() -> None:
    modules = {command.module for command in cli.COMMANDS.values()}
    assert len(SCRIPTS) == 12
    for name in SCRIPTS:
        (module,) = re.findall(
            r"^from ([\w.]+) import run$", (ROOT / "scripts" / f"{name}.py").read_text(), re.M
        )
        assert module in modules


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--train.lr=1"],
            "--train.lr is not a flag of hjepa train: did you mean --config.train.lr",
        ),
        (["--train.learning_rate=1"], "is not a flag .*did you mean config.train.lr"),
        (["--lr=1"], "did you mean --config.train.lr"),
        (["--learning_rate", "1"], "did you mean --config.train.lr"),
        (["--batch_size=1"], "did you mean --config.data.batch_size"),
        (["--work_dir=x"], "did you mean --workdir"),
        (["--train"], "and config.train is a section"),
        (["--mode=trian"], "mode.*trian"),
        (["stray"], "'stray' is an unexpected argument: flags begin with '--'"),
        (["--num_processes=many"], "num_processes"),
    ],
)
def test_mistakes_of_a_training_command_are_sentences(arguments, words) -> None:
    with pytest.raises(UserError, match=words) as refused:
        main.PROGRAM.parse(["train", "--config=quickstart", *arguments])
    assert "\n" not in str(refused.value)


def test_an_evaluation_takes_all_from_the_run(tmp_path) -> None:
    files.save(typed(quickstart.get_config("sigreg-smoke")), tmp_path / "a:b")
    folder = str(tmp_path / "a:b")
    line = evaluate.as_training(["hjepa", folder, "--checkpoint=best", "--config.seed=3"])
    assert main.PROGRAM.parse(line) == ["hjepa"]
    values = main.PROGRAM.flags
    assert (values["mode"].value, values["workdir"].value) == ("eval", folder)
    assert values["checkpoint"].value == "best"
    assert (values["config"].value.method, values["config"].value.seed) == ("lejepa", 3)
    for form in (["--coord=ham"], ["--coord", "ham"], ["--coord=sqrt_h"]):
        given = evaluate.as_training(["hjepa", folder, *form, "--config.seed=3"])
        assert given[4:] == ["--config.evaluation.coordinates=sqrt_h", "--config.seed=3"]
    assert "--coord=raw|ham|sqrt_h|both" in evaluate.PROGRAM.help()
    for form in (["--coord=qp"], ["--coord"]):
        with pytest.raises(UserError, match=r"--coord is '(qp)?': it must be one of raw, ham"):
            evaluate.as_training(["hjepa", folder, *form])
    for wrong in (["hjepa"], ["hjepa", "--checkpoint=best", folder]):
        with pytest.raises(UserError, match="the folder of a run comes first"):
            evaluate.as_training(wrong)


@pytest.mark.parametrize("form", [["--resume={}"], ["--resume", "{}"], ["-resume={}"]])
def test_a_resumption_takes_all_from_the_run(form, tmp_path) -> None:
    files.save(typed(quickstart.get_config("sigreg-smoke")), tmp_path / "run")
    folder = str(tmp_path / "run")
    given = [text.format(folder) for text in form]
    line = main.resumed(["hjepa", *given, "--config.log.every_steps=3"])
    main.PROGRAM.parse(line)
    values = main.PROGRAM.flags
    assert (values["workdir"].value, values["mode"].value) == (folder, "train_and_eval")
    assert values["config"].value.method == "lejepa"
    assert values["config"].value.log.every_steps == 3
    for more in (["--config=quickstart"], ["--workdir", "x"]):
        with pytest.raises(UserError, match=r"brings its own --(config|workdir)"):
            main.resumed(["hjepa", *more, *given])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--resume"], "takes the folder of one run"),
        (["--resume=a", "--resume=b"], "takes the folder of one run"),
        (["--resume=/nowhere"], "/nowhere holds no run"),
        (["--resume="], "--resume is empty"),
    ],
)
def test_what_cannot_be_resumed_is_a_sentence(arguments, words) -> None:
    with pytest.raises(UserError, match=words):
        main.resumed(["hjepa", *arguments])


def test_a_command_line_without_a_resumption_is_untouched() -> None:
    line = ["hjepa", "--config=resume", "--workdir=resume"]
    assert main.resumed(line) == line


def test_a_run_without_a_workdir_is_named_like_its_configuration(tmp_path) -> None:
    assert main.own_workdir("cifar100:sigreg") == "runs/cifar100-sigreg"
    assert main.own_workdir("configs/cifar100.py") == "runs/cifar100"
    assert main.own_workdir("own/small.yaml") == "runs/small"
    files.save(typed(quickstart.get_config()), tmp_path)
    for source in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError, match=r"--workdir is needed .* give --resume instead"):
            main.own_workdir(str(source))


def test_a_sweep_passes_overrides_on_to_its_runs() -> None:
    given = ["data.global_scale=0.3,1", "train.grad_clip=None", "data.train_split=a=b", "seed=3"]
    arguments = [f"--config.{text}" for text in given] + ["--noconfig.model.split_qp"]
    sweep.PROGRAM.parse(["sweep", "--config=quickstart:smoke", "--out=x", *arguments])
    passed = sweep.PROGRAM.overrides()
    assert sweep.PROGRAM.source == "quickstart:smoke"
    assert split_overrides(passed) == split_overrides(arguments)
    assert len(passed) == 5


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_subcommand_shows_plain_messages_and_no_chatter(
    name, tmp_path, monkeypatch, capsys
) -> None:
    def emit(argv: list[str]) -> None:
        del argv
        logging.getLogger("hjepa_jax.train").warning("a batch was skipped")
        logging.getLogger("hjepa_jax.train").info("resumed")
        for library in ("jax._src.xla_bridge", "absl", "orbax", "matplotlib"):
            logging.getLogger(library).info("chatter")
        logging.getLogger("jax").warning("a real one")

    module = importlib.import_module(cli.COMMANDS[name].module)
    monkeypatch.setattr(main if name == "eval" else module, "main", emit)
    files.save(typed(quickstart.get_config("smoke")), tmp_path)
    needed = {"config": "quickstart:smoke"}
    flags = [f"--{flag}={needed.get(flag, tmp_path)}" for flag in module.PROGRAM._required]
    arguments = ["bash" if name == "completion" else str(tmp_path)] * module.PROGRAM._number[0]
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, name, *arguments, *flags)
    assert not end.value.code
    told = ["warning: a batch was skipped", "resumed", "warning: a real one"]
    if name in ("doctor", "export", "features", "kill-test"):  # they tell their own story
        del told[1]
    assert capsys.readouterr().err.splitlines() == told
