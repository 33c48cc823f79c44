"""Text from anywhere, made fit to be looked at."""

from __future__ import annotations

from wiseft_dist.printable import printable

KEPT = "\n\u00a0\u200c\u200d"
"""New lines, and what joins and parts letters where a language needs it."""


def shown(text: str) -> str:
    """The text with escapes for what does not show, such as marks that turn the direction of what follows."""
    return printable(text, keep=KEPT)
