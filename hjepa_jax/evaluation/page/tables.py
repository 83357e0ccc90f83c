"""Tables and lists of facts on HTML pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from hjepa_jax.evaluation.page.text import escape

_WHOLE_LETTERS = 13


class Row(NamedTuple):
    """A row of a table, as HTML: its head, its cells, and the CSS class of the row."""

    head: str
    cells: Sequence[str]
    kind: str = ""


def table(label: str, columns: Sequence[str], rows: Iterable[Row], *, narrow: bool = False) -> str:
    """Returns a table that scrolls on its own if the page is narrow; '' without rows.

    Args:
      label: what it shows, for screen readers; text.
      columns: heads of all columns, the first of which is that of the row heads; HTML.
      rows: the rows.
      narrow: whether the table is as wide as its content rather than as the page.
    """
    lines = []
    for row in rows:
        kind = f' class="{row.kind}"' if row.kind else ""
        cells = "".join(f"<td>{cell}</td>" for cell in row.cells)
        lines.append(f'<tr{kind}><th scope="row">{row.head}</th>{cells}</tr>')
    if not lines:
        return ""
    heads = "".join(f'<th scope="col">{column}</th>' for column in columns)
    kind = ' class="narrow"' if narrow else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f"<table{kind}><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def head(title: str) -> str:
    """Returns the head of a column, as HTML; short ones are not broken into lines."""
    text = escape(title)
    return f'<span class="whole">{text}</span>' if len(title) <= _WHOLE_LETTERS else text


def facts(values: Mapping[str, object]) -> str:
    """Returns names and values as a list; mappings and sequences are nested."""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{_fact(value)}</dd>" for name, value in values.items()
    )
    return f"<dl>{items}</dl>"


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return facts(value) if value else "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(escape, value)) or "none"
    return "none" if value is None or value == "" else escape(value)
