"""Text from files that nobody vouches for, as a terminal may show it."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    """``text`` with escapes for control characters and whatever else does not show, but for those in ``keep``."""
    return "".join(
        character if character.isprintable() or character in keep else character.encode("unicode_escape").decode()
        for character in text
    )
