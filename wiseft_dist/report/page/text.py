"""Text from anywhere, made fit to be looked at."""

from __future__ import annotations

from wiseft_dist.printable import printable

MAX_WHOLE = 1e15
"""Whole numbers beyond it have a power of ten."""
KEPT = "\n\u00a0\u200c\u200d"
"""New lines, and what joins and parts letters where a language needs it."""


def shown(text: str) -> str:
    """The text with escapes for what does not show, such as marks that turn the direction of what follows."""
    return printable(text, keep=KEPT)


def number_text(value: float) -> str:
    """Six digits of a number, and all of a whole one: ``0.333333``, ``1234567``."""
    return f"{value:.0f}" if abs(value) < MAX_WHOLE and value == int(value) else f"{value:.6g}"
