"""The text of `wiseft evaluate --list`: what the catalog knows, a line a dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from wiseft_dist.config import DatasetSpec
from wiseft_dist.evaluate.catalog.entries import Entry, describe_dataset, entries

COLUMNS = ("dataset", "samples", "classes", "metric", "templates", "class map", "reference")
SHORT_MAP = "imagenet_to_"
"""What nearly every class map begins with, shortened to fit a line."""


def listing(*, as_json: bool = False) -> str:
    """Every dataset of the catalog: a table under one heading a family, or JSON with every field of each."""
    if as_json:
        return json.dumps({name: _description(entry) for name, entry in entries().items()}, indent=2)
    rows: dict[str, dict[str, tuple[str, ...]]] = {}
    for entry in entries().values():
        row = _row(entry)
        rows.setdefault(entry.family, {}).setdefault(row[0], row)
    return _table(rows)


def _description(entry: Entry) -> Mapping[str, Any]:
    dataset = describe_dataset(entry.name, None)
    return {
        **{name: getattr(entry.spec, name) for name in DatasetSpec.model_fields if name != "catalog"},
        "family": entry.family,
        "aliases": list(entry.aliases),
        "num_classes": len(dataset.classnames or ()) or None,
        "num_templates": len(dataset.templates or ()) or None,
        "num_anchors": entry.num_anchors,
    }


def _row(entry: Entry) -> tuple[str, ...]:
    spec, known = entry.spec, _description(entry)
    class_map = (spec.class_map or "").replace(SHORT_MAP, "")
    samples = f"{spec.num_samples:,}" if spec.num_samples else f"{entry.num_anchors:,}+" if entry.num_anchors else ""
    return (
        entry.listed_as or entry.name,
        samples,
        str(known["num_classes"] or ""),
        spec.metric,
        str(known["num_templates"] or ""),
        class_map,
        spec.reference or "",
    )


def _table(rows: Mapping[str, Mapping[str, tuple[str, ...]]]) -> str:
    every = [COLUMNS, *(row for family in rows.values() for row in family.values())]
    widths = [max(len(row[column]) for row in every) for column in range(len(COLUMNS))]
    lines = [_line(COLUMNS, widths)]
    for family, of_family in rows.items():
        lines += ["", family, *(_line(row, widths) for row in of_family.values())]
    lines += ["", f"2,030+ counts anchors, not frames. Names of class maps begin with {SHORT_MAP}, left out here."]
    return "\n".join(lines)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    is_number = {1, 2, 4}
    cells = (
        cell.rjust(width) if column in is_number else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    )
    return "  ".join(cells).rstrip()
