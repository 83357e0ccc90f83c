"""The table of all keys of the published configurations, which `docs/parity.md` has."""

from __future__ import annotations

from collections.abc import Iterator

from hjepa_jax.interop.published.keys import CHECKED, FIXED, MAPPED, NO_EFFECT

BEGIN, END = "<!-- published keys -->", "<!-- end of the published keys -->"


def table() -> str:
    """Returns the table as Markdown."""
    lines = ["| section | published key | here | notes |", "|---|---|---|---|"]
    for key, ours, notes in sorted(_rows()):
        section, _, name = key.rpartition(".")
        where = f"`{section}`" if section else "(top level)"
        lines.append(f"| {where} | `{name}` | {ours} | {notes} |")
    return "\n".join(lines) + "\n"


def _rows() -> Iterator[tuple[str, str, str]]:
    """Yields (key, what it becomes, notes)."""
    for key, entry in MAPPED.items():
        read = f"read {entry.when.text}" if entry.when.text else ""
        yield key, f"`{entry.field}`", "; ".join(filter(None, (read, entry.note)))
    for key, (value, why) in FIXED.items():
        yield key, f"`{str(value).lower()}` alone, others are refused", why
    for key, what in CHECKED.items():
        yield key, "compared", what
    for key, why in NO_EFFECT.items():
        yield key, "no effect", why
