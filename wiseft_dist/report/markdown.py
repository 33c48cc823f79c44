"""Text from data as a Markdown page shows it: as it is, whatever characters are in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from wiseft_dist.printable import printable

SPECIAL = re.compile(r"([\\`*{}\[\]#|~$!^=]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
"""What Markdown, its tables and formulas between dollars give a meaning; underscores only at the edge of a word."""


def escaped(text: str) -> str:
    """A text in one line in which nothing is markup: neither Markdown, nor HTML, nor the end of a table's cell."""
    plain = SPECIAL.sub(r"\\\g<0>", printable(text))
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("://", ":&#47;/")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are escaped already; all columns but the first are aligned to the right."""
    rule = ["---", *("---:" for _ in columns[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, rule, *rows))
