"""What `--config` names: recipes anywhere, runs, and Python, JSON, and YAML files."""

import importlib
import json

import pytest

from hjepa_jax.config import base_config, files
from hjepa_jax.config.checks import typed
from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.config.load import is_published, load_config, recipe_names
from hjepa_jax.errors import UserError
from hjepa_jax.recipes import cifar100
from hjepa_jax.tools import cli


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["cifar100", "folder", "imagenet100", "lejepa", "pretrained", "quickstart"]
    assert recipe_names() == names
    expected = cifar100.get_config("sigreg")
    assert load_config("cifar100:sigreg") == expected
    # A folder of the same name is more likely to hold data than to be meant here; ./ names it.
    (tmp_path / "cifar100").mkdir()
    assert load_config("cifar100:sigreg") == expected
    files.save(typed(cifar100.get_config("mlp")), tmp_path / "cifar100")
    assert load_config("./cifar100") == cifar100.get_config("mlp")
    assert load_config("cifar100:sigreg") == expected


def test_a_run_s_folder_is_found_by_its_bare_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.save(typed(cifar100.get_config("mlp")), tmp_path / "first")
    assert load_config("first") == cifar100.get_config("mlp")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "cifar10:sigreg",
            r"folder, imagenet100, lejepa, pretrained, quickstart\): did you mean "
            "--config=cifar100",
        ),
        ("quick", "did you mean --config=quickstart"),
        ("cifar100:sigrge", "did you mean ':sigreg'"),
        ("cifar100:hjepa-mlp", "names 2 methods"),
        ("./cifar100", "does not exist; the current folder is"),
        ("recipes/cifar100", "does not exist"),
        ("empty", "holds no config.json"),
        ("note.txt", r"ends in \.py, \.json, or \.yaml"),
        ("README", r"ends in \.py, \.json, or \.yaml"),
        ("~nobody-here/x", "home folder"),
        ("", "is empty"),
        (":smoke", "is empty"),
    ],
)
def test_what_is_not_found_is_one_sentence(text, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "README").write_text("x")
    with pytest.raises(UserError, match=words) as caught:
        load_config(text)
    assert "\n" not in str(caught.value)


def test_a_yaml_file_sets_fields_of_sections(tmp_path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("method: lejepa\ndata: {mean: [0.5, 0.5, 0.5]}\ntrain:\n  lr: 1e-3\n")
    config = load_config(str(file))
    expected = base_config()
    expected.method, expected.train.lr, expected.data.mean = "lejepa", 1e-3, (0.5, 0.5, 0.5)
    assert config == expected
    with pytest.raises(UserError, match="no variants"):
        load_config(f"{file}:smoke")
    for text, words in (
        ("train: {lrr: 1}", "config.train.lrr is not a field"),
        ("train: {lr: much}", "config.train.lr is 'much'"),
        ("train: 3", "but it is a section"),
        ("train: [", "line 1"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=words) as caught:
            load_config(str(file))
        assert "\n" not in str(caught.value)


def test_a_saved_configuration_is_never_run_as_python(tmp_path) -> None:
    file = tmp_path / "config.json"
    file.write_text("raise SystemExit('this was run')")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load_config(str(file))


def test_a_saved_configuration_is_read_and_checked(tmp_path) -> None:
    saved = load_config("configs/cifar100.py:ham_chain-smoke")
    files.save(typed(saved), tmp_path)
    file = tmp_path / "config.json"
    assert load_config(str(file)) == saved
    assert resolve_arguments([f"--config={file}", "--config.seed=9"]).seed == 9
    assert load_config(str(tmp_path)) == saved
    with pytest.raises(UserError, match="no variants"):
        load_config(f"{file}:smoke")
    values = json.loads(file.read_text())
    for damaged, words in (
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ('{"train": 3}', "config.train is 3, but it is a section"),
        ('{"train": {"lrr": 3}}', "config.train.lrr is not a field"),
        ('{"evaluation": {"variant": "q"}}', "config.evaluation.variant is now config.evaluation"),
        ('{"train": {"lr": "much"}}', "config.train.lr is 'much'"),
        ('{"train": {"epochs": 1.5}}', "config.train.epochs is 1.5: .*whole number"),
        ('{"data": {"mean": [0.5, null, 0.5]}}', "config.data.mean is .*None.*: it must be 3"),
        ('{"data": {"mean": 0.5}}', "config.data.mean is 0.5: it must be 3"),
    ):
        file.write_text(damaged)
        with pytest.raises(UserError, match=words):
            load_config(str(file))
    assert files.from_json(json.dumps(values)) == saved


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("", "defines no function get_config"),
        ("x = (", "line 1.*SyntaxError"),
        ("\n1 / 0", "line 2: ZeroDivisionError"),
        ("import nonsense_that_is_not_there", "line 1: ModuleNotFoundError"),
        ("def get_config():\n    return 3", "returned a int"),
        ("def get_config():\n    raise KeyError('x')", "line 2: KeyError"),
    ],
)
def test_a_configuration_file_that_fails_is_one_sentence(code, words, tmp_path) -> None:
    file = tmp_path / "odd.py"
    file.write_text(code)
    with pytest.raises(UserError, match=words) as caught:
        load_config(str(file))
    assert "\n" not in str(caught.value)


def test_variants(tmp_path) -> None:
    with pytest.raises(UserError, match="did you mean ':sigreg'"):
        load_config("configs/quickstart.py:sigrge")
    file = tmp_path / "plain.py"
    file.write_text("from hjepa_jax.config import base_config as get_config\n")
    assert load_config(str(file)) == base_config()
    with pytest.raises(UserError, match="takes no variant"):
        load_config(f"{file}:smoke")
    with pytest.raises(UserError, match="does not exist"):
        load_config(f"{tmp_path}/absent.py:smoke")


PUBLISHED = """
model: {encoder_mode: tokens, split_qp: true}
train: {epochs: 20, lr: 5e-4, warmup_epochs: 2, log_every: 100}
hjepa: {steps: 3}
regularizer: {q_logdet_floor: -1.5, p_logdet_floor: -1.5}
"""


def test_a_published_configuration_is_translated_and_told(tmp_path, capsys) -> None:
    file = tmp_path / "published.yaml"
    file.write_text(PUBLISHED)
    told: list[str] = []
    config = load_config(str(file), told.append)
    assert (config.dynamics.steps, config.train.epochs, config.train.grad_clip) == (3, 20, None)
    assert told == [
        f"--config={file}: it is a configuration of the published CIFAR script: 8 keys set fields, "
        "as docs/parity.md lists; without effect on the experiment: train.log_every."
    ]
    # Overrides hold on top, and each program says it once, on stderr.
    for name, others in (("train", []), ("views", []), ("plan", []), ("sweep", ["--out=out"])):
        program = importlib.import_module(cli.COMMANDS[name].module).PROGRAM
        program.parse(["hjepa", f"--config={file}", "--config.train.lr=0.25", *others])
        parsed = program.flags["config"].value
        assert (parsed.train.lr, parsed.dynamics.steps) == (0.25, 3)
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("published CIFAR script") == 1
    settings = resolve_arguments([f"--config={file}", "--config.seed=9"])
    assert (settings.seed, settings.train.epochs) == (9, 20)


@pytest.mark.parametrize(
    ("values", "published"),
    [
        ({"hjepa": {}}, True),
        ({"regularizer": {"type": "sigreg"}, "loss": {}}, True),
        ({"train": {"lambda_reg": 0.1}, "seed": 1}, True),
        ({"train": {"lr": 0.1}, "loss": {"match": "q"}, "seed": 1}, False),
        ({"train": {"lambda_reg": 0.1}, "sigreg": {"weight": 0.1}}, False),
        ({"hjepa": {}, "method": "hjepa"}, False),
        ({"train": [1]}, False),
        ({}, False),
    ],
)
def test_the_published_form_is_known_by_its_sections(values, published) -> None:
    assert is_published(values) == published


def test_what_cannot_be_translated_is_one_sentence_that_names_the_file(tmp_path) -> None:
    file = tmp_path / "published.yaml"
    file.write_text(PUBLISHED.replace("steps", "stepz"))
    with pytest.raises(
        UserError, match=r"published.yaml cannot be .*hjepa.stepz is 3, but no such"
    ):
        load_config(str(file))
    # A mixture of both forms is read as ours, which names what it does not know.
    file.write_text(PUBLISHED + "method: hjepa\n")
    with pytest.raises(UserError, match=r"config.model.encoder_mode is not a field"):
        load_config(str(file))
