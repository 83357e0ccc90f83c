"""Colors and dashes of the series on a page, in light and in dark."""

from __future__ import annotations

import re
from collections.abc import Iterable

from hjepa_jax.evaluation.page.text import escape
from hjepa_jax.evaluation.report.plots import PALETTE

COLORS = (*PALETTE, "#000000", "#E69F00", "#882255", "#7F7F7F")
# The same hues, bright enough for a dark background.
DARK_COLORS = (
    *("#4AA3DF", "#FF8A3D", "#2CC295", "#E39AC4", "#8FD3FF", "#C9A24B"),
    *("#F2F4F7", "#F5C04A", "#D8689B", "#A0A6AD"),
)
# Where colors repeat, dashes distinguish lines.
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
# The style of references, such as random initialization.
REFERENCE = -1


def css() -> str:
    """Returns the style sheet of the series: class `i<N>` sets `--paint`."""
    pairs = enumerate(zip(COLORS, DARK_COLORS, strict=True))
    rules = [f".i{n}{{--paint:light-dark({light},{dark})}}" for n, (light, dark) in pairs]
    return "".join([*rules, ".ir{--paint:light-dark(#7a7f85,#9aa0a6)}"])


def paint(style: int) -> str:
    """Returns the CSS class of a style number."""
    return "ir" if style < 0 else f"i{style % len(COLORS)}"


def dash(style: int) -> str:
    """Returns the SVG attribute of a style's dashes, which differ where colors repeat; or ''."""
    pattern = "2 3" if style < 0 else _DASHES[style // len(COLORS) % len(_DASHES)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def swatch(style: int) -> str:
    """Returns a short line in a style."""
    return (
        f'<svg class="swatch {paint(style)}" viewBox="0 0 26 10" aria-hidden="true">'
        f'<line x1="1" x2="25" y1="5" y2="5" class="line"{dash(style)}/></svg>'
    )


def legend(names: Iterable[tuple[str, int]]) -> str:
    """Returns names with their swatches, for the charts that follow."""
    items = "".join(f"<span>{swatch(style)}{breakable(name)}</span>" for name, style in names)
    return f'<p class="legend">{items}</p>'


def breakable(name: str) -> str:
    """Returns a name, escaped, with line breaks allowed after punctuation."""
    return re.sub(r"([-_.=/])", r"\1<wbr>", escape(name))
