"""The page of all fields: up to date, complete, and printed by the command line."""

import pathlib
import sys

import pytest

from hjepa_jax.config import rows, sections
from hjepa_jax.errors import UserError
from hjepa_jax.tools import cli
from hjepa_jax.tools.config_page import page

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_the_page_in_the_docs_is_the_one_that_is_generated() -> None:
    saved = (ROOT / "docs/configuration.md").read_text()
    assert saved == page(), "run: hjepa config > docs/configuration.md"


def test_every_field_stands_in_the_table_of_its_section() -> None:
    section, found = "", []
    for line in page().splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ").replace("Top level", "")
        elif line.startswith("| `"):
            found.append(f"{section}.{line.split('`')[1]}".removeprefix("."))
            # A bar that is not escaped would add a column.
            assert line.replace("\\|", "").count("|") == 6, line
    assert sorted(found) == sorted(rows())


@pytest.mark.parametrize("section", sorted(sections()))
def test_a_section_is_a_part_of_the_page(section) -> None:
    part = page(section)
    assert part.startswith(f"## {section}\n")
    assert part in page()


def test_a_field_is_told_with_type_bounds_condition_and_policies() -> None:
    lines = {line.split("`")[1]: line for line in page("data").splitlines() if line[:3] == "| `"}
    assert lines["max_test_images"].startswith(
        "| `max_test_images` | `int \\| None` | `None` | > 0 |"
    )
    assert lines["local_size"].endswith("To use it, set config.data.num_local_views above 0. |")
    assert "Resume: may change. Each process may have its own value." in lines["num_workers"]
    assert "Resume" not in lines["batch_size"]
    assert "| `'auto'`, `'host'`, `'device'` |" in lines["backend"]


def test_the_command_prints_a_section_or_a_sentence(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["hjepa", "config", "data.augment"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert capsys.readouterr().out == page("data.augment")
    monkeypatch.setattr(sys, "argv", ["hjepa", "config", "dynamic"])
    with pytest.raises(SystemExit, match="did you mean 'dynamics'"):
        cli.main()
    with pytest.raises(UserError):
        page("")


def test_the_command_prints_a_section_of_a_part_of_your_own(monkeypatch, capsys) -> None:
    own = "examples.own_method:VICReg"
    monkeypatch.setattr(sys, "argv", ["hjepa", "config", "own_vicreg", f"--config.method={own}"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    printed = capsys.readouterr().out
    assert printed == page("own_vicreg", {"method": own})
    assert "| `gamma` | `float` | `1.0` | > 0 | Standard deviation" in printed
    assert f"To use it, set config.method='{own}'." in printed
    # Other pages know nothing of it.
    assert "own_vicreg" not in page()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.method=examples.own_method:VicReg"], "has no class 'VicReg'"),
        (["--config.train.lr=1"], "config.train.lr has no effect here"),
        (["data", "train"], "'train' is an unexpected argument after"),
    ],
)
def test_what_the_command_cannot_print_is_a_sentence(arguments, words, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["hjepa", "config", *arguments])
    with pytest.raises(SystemExit, match=words) as caught:
        cli.main()
    assert "\n" not in str(caught.value)
