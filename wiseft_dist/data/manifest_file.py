"""The saved form of a manifest: JSON with one list a column, checked when it is read.

A hundred thousand shards load in about a second; an object a shard would take ten times that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

FORMAT = "wiseft shard manifest 1"
Column = list[Any]


def encode(source: str, held_out_fraction: float, columns: Mapping[str, Column]) -> str:
    """The text of a manifest file."""
    saved = {"format": FORMAT, "source": source, "held_out_fraction": held_out_fraction, "columns": dict(columns)}
    return json.dumps(saved, separators=(",", ":"))


def decode(data: bytes) -> tuple[str, float, dict[str, Column]]:
    """Source, held-out fraction and columns of a manifest file.

    Raises:
        ValueError: saying in a few words what is wrong with it.
    """
    try:
        saved = json.loads(data)
    except ValueError:
        raise ValueError("it is no JSON, or only a part of one") from None
    if not isinstance(saved, dict) or saved.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    source, fraction, columns = (saved.get(name) for name in ("source", "held_out_fraction", "columns"))
    if not isinstance(source, str) or not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise ValueError("its source or held_out_fraction is missing or wrong")
    if not isinstance(columns, dict) or set(columns) != set(_COLUMNS):
        raise ValueError(f"its columns are not {', '.join(_COLUMNS)}")
    _check_columns(columns)
    return source, float(fraction), columns


def _check_columns(columns: dict[str, Column]) -> None:
    for name, is_right in _COLUMNS.items():
        column = columns[name]
        if not isinstance(column, list) or not column or not all(map(is_right, column)):
            raise ValueError(f"its column {name} is empty or holds something else")
    if len({len(column) for column in columns.values()}) > 1:
        raise ValueError("its columns are not equally long")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)


_COLUMNS: dict[str, Callable[[Any], bool]] = {
    "url": _is_text,
    "num_samples": _is_count,
    "num_bytes": _is_count,
    "version": _is_text,
    "max_label": lambda value: value is None or (type(value) is int and value >= -1),
    "content_digest": lambda value: value is None or isinstance(value, str),
    "marks": lambda value: isinstance(value, list) and all(map(_is_count, value)),
    "mark_step": lambda value: type(value) is int and value >= 1,
}
"""Names of the columns, and what each of their values must be."""
