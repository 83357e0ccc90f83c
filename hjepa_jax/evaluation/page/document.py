"""A self-contained HTML page: no network, and nothing but the page's own script runs.

Without scripts everything can be read; the script adds values on hover and the choice of theme.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import re
from collections.abc import Sequence
from typing import NamedTuple

from hjepa_jax.evaluation.page import ink
from hjepa_jax.evaluation.page.text import escape


class Section(NamedTuple):
    """A titled part of a page, as HTML."""

    title: str
    content: str


@functools.cache
def _file(name: str) -> str:
    return (importlib.resources.files("hjepa_jax.evaluation.page") / name).read_text(
        encoding="utf-8"
    )


def warning(sentence: str) -> str:
    """Returns a sentence, set apart."""
    return f'<p class="warning">{escape(sentence)}</p>'


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def document(title: str, intro: str, sections: Sequence[Section]) -> str:
    """Returns a page.

    Args:
      title: text.
      intro: HTML between the title and the first section.
      sections: the sections; those without content are left out.
    """
    shown = [(name, text) for name, text in sections if text]
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name, _ in shown)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{text}</section>'
        for name, text in shown
    )
    script, style = _file("page.js"), _file("page.css") + ink.css()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    policy += f"script-src 'sha256-{digest}'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        f'<header><h1>{ink.breakable(title)}</h1><button type="button" id="theme" hidden>'
        f"</button></header>{intro}"
        f'<nav aria-label="Sections">{links}</nav>{body}</main>'
        f"<script>{script}</script></body></html>\n"
    )
