"""Texts and numbers on HTML pages."""

from __future__ import annotations

import html
import math

from hjepa_jax.storage.files import printable

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
# Stands for a missing or meaningless value.
NOTHING = "–"


def escape(value: object) -> str:
    """Returns a value as text, escaped for HTML."""
    return html.escape(printable(str(value)))


def number(value: float) -> str:
    """Returns a short decimal form: 1200 -> '1200', 0.00012 -> '1.2·10⁻⁴'."""
    if value <= 0:
        return f"−{number(-value)}" if value else "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        mantissa = mantissa.removesuffix(".0")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return power if mantissa == "1" else f"{mantissa}·{power}"
    return f"{value:.4g}"


def shown(value: float, digits: int, *, signed: bool = False) -> str:
    """Formats a number with `digits` decimals, or as a dash if it is missing."""
    if not math.isfinite(value):
        return NOTHING
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def label(name: str, limit: int = 40) -> str:
    """Returns the name of a class or a run as text of limited length; never empty."""
    text = printable(name)
    text = text if len(text) <= limit else f"{text[: limit - 1]}…"
    return text if text.strip() else "(no name)"
