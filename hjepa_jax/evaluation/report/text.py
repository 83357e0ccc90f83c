"""Names of others (classes, files, runs) as text in pictures and in Markdown."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Iterable
from typing import Any

from matplotlib import font_manager

from hjepa_jax.storage.files import printable

NO_NAME = "(no name)"
# More would take the room of what a legend explains.
LEGEND_LETTERS = 24
# What Markdown gives a meaning within a line: an underscore only at the edge of a word, brackets
# only where a link or an image would begin to be one.
_MARKDOWN = re.compile(r"[\\`*|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|\](?=[(\[:])")


@functools.cache
def _characters() -> frozenset[int]:
    """Returns the characters that the font of the pictures has."""
    path = font_manager.findfont(font_manager.FontProperties())
    return frozenset(font_manager.get_font(path).get_charmap())


def plot_text(name: str, limit: int = 40) -> str:
    """Returns a name as matplotlib draws it letter by letter, also in a legend.

    Formulas are not set ('$'), names that begin with '_' are not left out of legends, and what the
    font cannot draw is shown as its number. Longer names than `limit` characters are cut.
    """
    shown = "".join(
        c if ord(c) in _characters() else c.encode("ascii", "backslashreplace").decode()
        for c in printable(name)
    )
    shown = shown if len(shown) <= limit else f"{shown[: limit - 1]}…"
    shown = shown if shown.strip() else NO_NAME
    return re.sub(r"^(?=_)", " ", shown.replace("$", r"\$"))


def plot_texts(names: Iterable[str]) -> list[str]:
    """Returns `plot_text` of names, with a number after those that would be the same."""
    shown: list[str] = []
    for name in names:
        text = plot_text(name, LEGEND_LETTERS)
        number = 2
        while text in shown:
            text = f"{plot_text(name, LEGEND_LETTERS)} ({number})"
            number += 1
        shown.append(text)
    return shown


def markdown_text(value: Any) -> str:
    """Returns a value as one line of text that Markdown and HTML take for nothing but text."""
    text = html.escape(printable(str(value)), quote=False)
    return _MARKDOWN.sub(r"\\\g<0>", text)
