"""A part named by import path: its section, from every place that can name it, and mistakes."""

import pickle
import sys

import pytest

from hjepa_jax.config import base_config, parts, resolve, settings
from hjepa_jax.config.checks import typed
from hjepa_jax.config.files import from_json
from hjepa_jax.config.flags import resolve_arguments
from hjepa_jax.errors import ConfigError, UserError

MODULE = '''
import dataclasses
from hjepa_jax.config.fields import field

@dataclasses.dataclass(frozen=True)
class Own:
    """Settings of the own part."""
    strength: float = field(1.0, "How strong.", at_least=0)

class BuiltIn:
    sections = {}
    @classmethod
    def problems(cls, settings):
        return iter(())

class Part(BuiltIn):
    sections = {"own": Own}
    @classmethod
    def problems(cls, settings):
        if settings.section(Own).strength == 13:
            yield "config.own.strength is 13: set another."

class Collides(BuiltIn):
    sections = {"train": Own}
'''
PART = "own_part_of_a_test:Part"


@pytest.fixture(autouse=True)
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_part_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(parts.SOURCES, "digits", "own_part_of_a_test:BuiltIn")
    settings._schema.cache_clear()
    yield
    settings._schema.cache_clear()
    sys.modules.pop("own_part_of_a_test", None)


def own_of(found):
    return found.section(sys.modules["own_part_of_a_test"].Own)


def test_a_configuration_file_can_change_the_section() -> None:
    config = base_config(source=PART)
    config.own.strength = 2.0
    found = resolve(config)
    assert own_of(found).strength == 2.0
    assert pickle.loads(pickle.dumps(found)) == found
    assert own_of(found.replace({"own.strength": 3.0})).strength == 3.0


@pytest.mark.parametrize("part_first", [True, False])
def test_the_command_line_takes_the_fields_in_any_order(part_first) -> None:
    overrides = [f"--config.data.name={PART}", "--config.own.strength=2"]
    order = overrides if part_first else overrides[::-1]
    assert own_of(resolve_arguments(["--config=configs/quickstart.py", *order])).strength == 2.0


def test_json_brings_the_section_back() -> None:
    config = base_config(source=PART)
    config.own.strength = 2.0
    assert own_of(resolve(from_json(typed(config).to_json()))).strength == 2.0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_part_of_a_test:Collides", "'train' collides"),
        ("own_part_of_a_test:Nothing", "has no class 'Nothing'"),
        ("no_such_module_anywhere:Part", "the module 'no_such_module_anywhere' is neither"),
        ("digit", "not one of digits.*did you mean 'digits'"),
    ],
)
def test_mistakes_are_one_sentence(name, words) -> None:
    config = base_config()
    config.data.name = name
    with pytest.raises(ConfigError, match=words) as caught:
        resolve(config)
    assert "\n" not in str(caught.value)


def test_a_field_of_a_part_that_is_not_chosen_is_refused() -> None:
    config = base_config(source=PART)
    config.own.strength = 2.0
    config.data.name = "digits"
    with pytest.raises(UserError, match=r"config\.own\.strength"):
        resolve(config)


def test_contradictions_of_the_part_are_told() -> None:
    config = base_config(source=PART)
    config.own.strength = 13.0
    with pytest.raises(ConfigError, match="set another"):
        resolve(config)


def test_a_part_named_on_the_command_line_replaces_the_section_of_the_one_in_the_file(
    tmp_path,
) -> None:
    file = tmp_path / "own_config.py"
    file.write_text(
        "from hjepa_jax.config import base_config\n"
        "def get_config():\n"
        f"    config = base_config(source={PART!r})\n"
        "    config.own.strength = 2.0\n"
        "    return config\n"
    )
    assert own_of(resolve_arguments([f"--config={file}"])).strength == 2.0
    found = resolve_arguments([f"--config={file}", "--config.data.name=digits"])
    assert (found.data.name, "own" in found.parts) == ("digits", False)
    with pytest.raises(UserError, match=r"config\.own\.strength"):
        resolve_arguments(
            [f"--config={file}", "--config.data.name=digits", "--config.own.strength=3"]
        )
