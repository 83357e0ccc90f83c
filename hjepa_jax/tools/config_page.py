"""The page of all fields: `docs/configuration.md`, and what `hjepa config` prints."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from hjepa_jax.config.command_line.program import Program, write_out
from hjepa_jax.config.fields import FIXED, FREE, LARGEST, Row
from hjepa_jax.config.parts import TABLES
from hjepa_jax.config.settings import schema
from hjepa_jax.errors import UserError

PROGRAM = Program(
    "config",
    """Print the fields of the configuration: types, defaults, bounds, meanings.

    hjepa config
    hjepa config train
    hjepa config own_vicreg --config.method=examples.own_method:VICReg

A part of your own that is named adds its sections.""",
    arguments="[SECTION] [--config.method=MODULE:CLASS ...]",
    number=(0, 1),
    alone=True,
)
_HEAD = """# Configuration

Every field, generated from its declaration in `hjepa_jax/config/`; `hjepa config [SECTION]` prints
the same. Set a field as `--config.SECTION.FIELD=value`, or in a file as `config.SECTION.FIELD =
value`. "Resume: may change" marks fields that a resumed run may change.
"""


def _type(row: Row) -> str:
    """Returns a field's type as it is annotated."""
    text = row.kind.__name__
    if row.length == "any":
        text = f"tuple[{text}, ...]"
    elif row.length is not None:
        text = f"tuple[{', '.join([text] * int(row.length))}]"
    return f"{text} | None" if row.optional else text


def _bounds(row: Row) -> str:
    """Returns what is allowed beside the type; '' where that is all."""
    spec = row.spec
    if row.choices:
        return ", ".join(f"`{choice!r}`" for choice in row.choices)
    parts = []
    if spec.above is not None:
        parts.append(f"> {spec.above:.10g}")
    if spec.at_least is not None:
        parts.append(f">= {spec.at_least:.10g}")
    if spec.at_most is not None and spec.at_most != LARGEST.get(row.kind):
        parts.append(f"<= {spec.at_most:.10g}")
    parts += ["odd"] if spec.odd else []
    parts += ["low <= high"] if spec.ordered else []
    parts += ["not empty"] if spec.nonempty else []
    return ", ".join(parts)


def _notes(row: Row) -> str:
    """Returns the meaning, the conditions, and who may have another value."""
    parts = [row.spec.meaning, *(f"To use it, set {c.remedy}." for c in row.conditions)]
    if row.resume == FREE:
        parts.append("Resume: may change.")
    elif row.resume != FIXED:
        parts.append("Resume: may change unless `evaluation.online_probe` is on.")
    if row.spec.own:
        parts.append("Each process may have its own value.")
    return " ".join(parts).replace("|", "\\|").replace("<", "\\<")


def _table(found: list[Row]) -> list[str]:
    lines = ["| field | type | default | allowed | meaning |", "|---|---|---|---|---|"]
    for row in found:
        name = row.path.rpartition(".")[2]
        kind = _type(row).replace("|", "\\|")
        lines.append(
            f"| `{name}` | `{kind}` | `{row.default!r}` | {_bounds(row)} | {_notes(row)} |"
        )
    return lines


def page(section: str | None = None, parts: Mapping[str, str] | None = None) -> str:
    """Returns the fields as Markdown.

    Args:
      section: dotted name of a section, with the sections in it; None = all.
      parts: fields of TABLES by dotted name; parts named by import path add their sections.

    Raises:
      UserError: if there is no such section or part.
    """
    of = schema(parts)
    if section is not None and section not in of.sections:
        nearest = difflib.get_close_matches(section, sorted(of.sections), 1, 0.0)[0]
        raise UserError(
            f"{section!r} is not a section of the configuration: did you mean {nearest!r}?"
        )
    lines = [_HEAD] if section is None else []
    for path, meaning in of.meanings.items():
        if section is not None and path != section and not path.startswith(f"{section}."):
            continue
        found = [row for row in of.rows.values() if row.path.rpartition(".")[0] == path]
        lines += [f"## {path or 'Top level'}", "", meaning, "", *_table(found), ""]
    return "\n".join(lines).rstrip() + "\n"


def main(argv: list[str]) -> None:
    """Prints the page."""
    named = dict(PROGRAM.given)
    other = [path for path in named if path not in TABLES]
    if other:
        raise UserError(
            f"--config.{other[0]} has no effect here: only a part of your own adds fields, for "
            "example --config.method=module.path:Class."
        )
    parts = {path: str(value) for path, value in named.items()}
    write_out(page(argv[1] if len(argv) > 1 else None, parts).removesuffix("\n"))


def run() -> None:
    """Entry point of `hjepa config`."""
    PROGRAM.run(main)
