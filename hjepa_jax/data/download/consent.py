"""Asks before a download that the configuration does not allow."""

from __future__ import annotations

import sys


def may_ask() -> bool:
    """Returns whether somebody sits at a terminal."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()


def agreed(question: str) -> bool:
    """Asks at the terminal, and returns whether the answer is yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
