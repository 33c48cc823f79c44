"""The table of contents: one line a section, and one for many sections that say the same of many datasets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

SEPARATOR = ": "
"""Between a dataset and what a section says of it."""
FEW = 3
"""Sections that say the same of so many datasets share a line."""


@dataclass(frozen=True)
class Entry:
    """A line of the table of contents."""

    title: str
    anchor: str = ""
    """Where it leads; empty for a line that unfolds."""
    entries: tuple[Entry, ...] = ()
    """What it unfolds: a line a dataset."""


def contents(sections: Sequence[tuple[str, str]]) -> list[Entry]:
    """The lines, in the order of the sections; what shares a line stands where the first of it stands.

    Args:
        sections: Anchors and titles; ``photo: classes that gain and lose most`` is a dataset and what is said of it.
    """
    counts = Counter(_said(title) for _, title in sections)
    lines: dict[str, Entry] = {}
    for anchor, title in sections:
        said = _said(title)
        if not said or counts[said] < FEW:
            lines[anchor] = Entry(title, anchor)
            continue
        one = Entry(title.removesuffix(SEPARATOR + said), anchor)
        before = lines[said].entries if said in lines else ()
        lines[said] = Entry(said[0].upper() + said[1:], entries=(*before, one))
    return list(lines.values())


def _said(title: str) -> str:
    """What follows the dataset's name; empty where there is none."""
    return title.rpartition(SEPARATOR)[2] if SEPARATOR in title else ""
