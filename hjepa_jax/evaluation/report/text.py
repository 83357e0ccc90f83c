"""Names of classes, files and runs, escaped for pictures and Markdown."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterable

from matplotlib import font_manager

from hjepa_jax.storage.files import printable

NO_NAME = "(no name)"
# Longer names would crowd out the plot.
LEGEND_LETTERS = 24
# Characters with a meaning in a line of Markdown: underscores only at the edge of a word, brackets
# only where a link or an image could start.
_MARKDOWN = re.compile(r"[\\`*|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\](?=[(\[:])")


@functools.cache
def _characters() -> frozenset[int]:
    """Returns the characters in the font of the pictures."""
    path = font_manager.findfont(font_manager.FontProperties())
    return frozenset(font_manager.get_font(path).get_charmap())


def plot_text(name: str, limit: int = 40) -> str:
    """Returns a name as text that matplotlib draws literally, also in a legend.

    A '$' starts no formula, a leading '_' does not hide the name from legends, and characters that
    the font lacks are shown as escape sequences. Names are truncated to `limit` characters.
    """
    shown = "".join(
        c if ord(c) in _characters() else c.encode("ascii", "backslashreplace").decode()
        for c in printable(name)
    )
    shown = shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
    shown = shown if shown.strip() else NO_NAME
    return re.sub(r"^(?=_)", " ", shown.replace("$", r"\$"))


def plot_texts(names: Iterable[str]) -> list[str]:
    """Returns `plot_text` of names, with numbers that make duplicates distinct."""
    shown: list[str] = []
    for name in names:
        text = plot_text(name, LEGEND_LETTERS)
        number = 2
        while text in shown:
            text = f"{plot_text(name, LEGEND_LETTERS)} ({number})"
            number += 1
        shown.append(text)
    return shown


def markdown_text(value: object) -> str:
    """Returns a value as one line of text, escaped for Markdown and HTML."""
    text = html.escape(printable(str(value)), quote=False)
    return _MARKDOWN.sub(r"\\\g<0>", text)
