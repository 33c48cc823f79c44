"""The number that stands for a text in a column of numbers."""

from __future__ import annotations

import xxhash


def text_identity(text: str) -> int:
    """A hash of a text, from 0 to 2^63 - 1: the same in every process, and far above any group's number."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) >> 1
