"""The parser of command lines: files, overrides in every clear form, and mistakes as sentences."""

import sys

import pytest
from absl import flags

from hjepa_jax.config import files
from hjepa_jax.config.flags import (
    define_config,
    parse_command_line,
    resolve_arguments,
    split_overrides,
)
from hjepa_jax.errors import UserError
from hjepa_jax.tools import sweep

QUICKSTART = "--config=configs/quickstart.py:smoke"


def parse(*arguments: str):
    """Returns the configuration of a command line."""
    values = flags.FlagValues()
    config = define_config(None, "Configuration.", values=values)
    flags.DEFINE_string("flagfile", "", "Further flags.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Folder.", flag_values=values)
    parsed = parse_command_line(values, ["program", *arguments], "program")
    assert parsed.arguments == ["program"]
    return config.value


@pytest.mark.parametrize(
    ("arguments", "path", "expected"),
    [
        (["--config.train.max_steps=None", "--config.train.max_steps=1"], "train.max_steps", 1),
        (["--config.train.max_steps=1", "--config.train.max_steps=None"], "train.max_steps", None),
        (["--config.train.grad_clip", "None"], "train.grad_clip", None),
        (["-config.train.grad_clip", "2"], "train.grad_clip", 2.0),
        (["--config.data.max_train_images=1e3"], "data.max_train_images", 1000),
        (["--config.train.epochs=2.0"], "train.epochs", 2),
        (["--config.train.epochs=auto"], "train.epochs", "auto"),
        (["--config.data.mean=auto", "--config.data.mean=0,0,1"], "data.mean", (0.0, 0.0, 1.0)),
        (["--data=some/photos"], "data.root", "some/photos"),
        (["--data", "photos"], "data.name", "folder"),
        (["-data=photos"], "data.test_holdout", "auto"),
        (["--data=photos", "--config.data.test_holdout=9"], "data.test_holdout", 9),
        (["--config.train.weight_decay", "1e-3"], "train.weight_decay", 1e-3),
        (["--config.loss.q_logdet_floor", "-2"], "loss.q_logdet_floor", -2.0),
        (["--config.evaluation.all_state_parts=no"], "evaluation.all_state_parts", False),
        (["--config.evaluation.all_state_parts=off"], "evaluation.all_state_parts", False),
        (["--config.evaluation.all_state_parts", "False"], "evaluation.all_state_parts", False),
        (["--config.evaluation.pixel_baseline=on"], "evaluation.pixel_baseline", True),
        (["--config.evaluation.pixel_baseline=Yes"], "evaluation.pixel_baseline", True),
        (["--config.evaluation.pixel_baseline", "--workdir=x"], "evaluation.pixel_baseline", True),
        (["--noconfig.evaluation.all_state_parts"], "evaluation.all_state_parts", False),
        (["--config.data.global_scale=(0.3,1)"], "data.global_scale", (0.3, 1.0)),
        (["--config.data.global_scale=[0.3, 1]"], "data.global_scale", (0.3, 1.0)),
        (["--config.data.global_scale", "0.3,1"], "data.global_scale", (0.3, 1.0)),
        (["--config.evaluation.few_shot=5"], "evaluation.few_shot", (5,)),
        (["--config.evaluation.few_shot=()"], "evaluation.few_shot", ()),
        (
            ["--config.evaluation.robustness=('gray','blur')"],
            "evaluation.robustness",
            ("gray", "blur"),
        ),
        (["--config.data.train_split=a=b"], "data.train_split", "a=b"),
    ],
)
def test_overrides_mean_what_they_say(arguments, path, expected) -> None:
    found = dict(files.flatten(parse(QUICKSTART, *arguments)))[path]
    assert found == expected
    assert type(found) is type(expected)


def test_a_flagfile_is_part_of_the_command_line(tmp_path) -> None:
    file = tmp_path / "flags"
    file.write_text(
        f"{QUICKSTART}\n# a comment\n--config.train.grad_clip=None\n"
        "--config.train.max_steps 1e1\n--config.seed=3\n"
    )
    config = parse(f"--flagfile={file}", "--config.seed=4")
    assert (config.train.grad_clip, config.train.max_steps, config.seed) == (None, 10, 4)
    with pytest.raises(UserError, match=r"nowhere"):
        parse("--flagfile=/nowhere")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.train.learning_rate=1"], "config.train.learning_rate .*config.train.lr"),
        (["--config.train.epochs=1.5"], "config.train.epochs is '1.5': .*whole number.*max_steps"),
        (["--config.train.lr=much"], "config.train.lr is 'much': it must be a number"),
        (["--config.train.lr=nan"], "config.train.lr is nan: it must be finite"),
        (["--config.train.lr=None"], "config.train.lr may not be None"),
        (["--config.train.lr"], "config.train.lr has no value"),
        (["--config.train.lr", "--workdir=x"], "config.train.lr has no value"),
        (["--config.train=3"], "config.train is a section"),
        (["--config.data.global_scale=0.3"], "global_scale is .*two numbers"),
        (["--config.data.global_scale=(0.3,None)"], "global_scale is .*two numbers"),
        (
            ["--config.evaluation.all_state_parts=perhaps"],
            "all_state_parts is 'perhaps': .*True or False",
        ),
        (
            ["--config.evaluation.variant=q"],
            "evaluation.variant is now .*state_part",
        ),
        (["--noconfig.train.lr"], "not True or False"),
        (["--workdr=x"], "workdr"),
        (["--config.seed=2000000000000000000000"], "config.seed .*4294967295 or less"),
    ],
)
def test_mistakes_are_sentences(arguments, words) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse(QUICKSTART, *arguments)
    assert "\n" not in str(caught.value)


def test_the_configuration_is_a_flag_of_the_program_that_defines_it() -> None:
    values = flags.FlagValues()
    define_config(None, "Configuration.", values=values)
    found = values.get_flags_for_module(sys.modules[__name__])
    assert {flag.name for flag in found} == {"config", "data"}


def test_commands_for_other_processes_are_checked_before_these_start(tmp_path) -> None:
    config = resolve_arguments(
        [QUICKSTART, f"--workdir={tmp_path}", "--config.seed=3", "--config.seed=4"]
    )
    assert config.seed == 4
    for argument, words in (
        ("--config.train.epocs=3", "did you mean config.train.epochs"),
        ("--config.sigreg.weight=3", "no effect"),
    ):
        with pytest.raises(UserError, match=words):
            resolve_arguments([QUICKSTART, argument])
        setting = argument.removeprefix("--config.")
        with pytest.raises(UserError, match=words):
            sweep.plan("configs/quickstart.py", tmp_path, settings=(setting,), seeds=(0,))
    with pytest.raises(UserError, match="did you mean ':sigreg'"):
        sweep.plan("configs/quickstart.py", tmp_path, variants=("sigrge",), seeds=(0,))


def test_arguments_behind_a_double_dash_are_no_overrides() -> None:
    arguments = ["program", "--", "--config.seed=1"]
    assert split_overrides(arguments) == (arguments, [])


@pytest.mark.parametrize(
    ("arguments", "kept", "overrides"),
    [
        (
            ["--config.model.split_qp", "--workdir=w", "--mode=eval"],
            ["--workdir=w", "--mode=eval"],
            1,
        ),
        (["--config.model.split_qp", "--config.train.lr=0.1", "rest"], ["rest"], 2),
        (["--noconfig.model.split_qp", "--workdir=w"], ["--workdir=w"], 1),
        (["--config.model.split_qp", "no", "--workdir=w"], ["--workdir=w"], 1),
        (["--config.train.lr", "0.1", "--workdir=w"], ["--workdir=w"], 1),
        (["--config.model.split_qp"], [], 1),
    ],
)
def test_nothing_behind_an_override_is_lost(arguments, kept, overrides) -> None:
    """What followed a truth value without a value was."""
    found, set_fields = split_overrides(arguments)
    assert found == kept
    assert len(set_fields) == overrides


def test_an_override_needs_a_configuration() -> None:
    with pytest.raises(UserError, match=r"config\.seed is set, but there is no --config"):
        parse("--config.seed=1")


def test_arguments_that_leave_fields_to_another_process_are_checked() -> None:
    assert resolve_arguments(["--config=folder", "--data=x"]).data.root == "x"
    with pytest.raises(UserError, match=r"config\.train\.lr is 0\.0"):
        resolve_arguments(["--config=folder", "--data=x", "--config.train.lr=0"])
