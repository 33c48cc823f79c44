"""The numbers of a run: computed from its cells, or read back from what a report wrote."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from wiseft_dist.config import RunConfig
from wiseft_dist.data.stage import ID_VAL, datasets_to_evaluate
from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.cells.store import CellStore, members_of
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.run_datasets import dataset_of_run
from wiseft_dist.evaluate.statistics.cell_source import CellSource
from wiseft_dist.evaluate.statistics.statistics import Role, Source, Statistics, statistics
from wiseft_dist.run import Run


def gather(config: RunConfig, run: Run) -> Statistics:
    """Every number of a run, from its cells; one dataset is in memory at a time.

    Raises:
        RunError: naming the cells that are missing, or one that does not have every sample of its manifest once; if too
            many samples of a dataset were skipped.
    """
    store = CellStore.of_run(config, run)
    names, members = _in_order(config, run), rising(members_of(config))
    missing = {name: found for name in names if (found := store.missing(name, members))}
    if missing:
        name, found = next(iter(missing.items()))
        raise RunError(
            f"{run.path}: {name} has no result for alpha {', '.join(str(member.alpha) for member in found)}. "
            f"Run `wiseft evaluate {run.path} --dataset {name}` first."
        )
    return statistics(_sources(config, run, store, names, members), members)


def read_statistics(file: Path) -> Statistics:
    """What was written to ``statistics.json``; a null where a number belongs is NaN.

    Raises:
        RunError: if there is none, or it is of another version.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}): write the report again with `wiseft report`.") from error
    return parse_statistics(text, str(file))


def parse_statistics(text: str, file: str) -> Statistics:
    """The same from the file's text.

    Args:
        text: Its content.
        file: Its name, for errors.

    Raises:
        RunError: if it is no such text, or of another version.
    """
    try:
        content = _read(Statistics, json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunError(f"{file} cannot be read ({error}): write the report again with `wiseft report`.") from error
    assert isinstance(content, Statistics)
    return content


def rising(members: list[Member]) -> list[Member]:
    """Alphas in rising order, those in output space last: as statistics want them."""
    return sorted(members, key=lambda member: (member.space == "output", member.alpha))


def _in_order(config: RunConfig, run: Run) -> list[str]:
    """The reference, the shifts as they were given, the held-out piece."""
    evaluated = datasets_to_evaluate(config, run)
    return [name for name in (*config.data.evaluated, ID_VAL) if name in evaluated]


def _sources(
    config: RunConfig, run: Run, store: CellStore, names: list[str], members: list[Member]
) -> Iterator[Source]:
    for name in names:
        role: Role = "id_val" if name == ID_VAL else "reference" if name in config.data.reference else "shift"
        dataset = dataset_of_run(config, run, name)
        class_map = None if dataset.class_map is None else dataset.class_map.name
        yield CellSource(name, dataset.spec, role, store, tuple(members), config.evaluate.max_bad_samples, class_map)


def _read(kind: Any, value: Any) -> Any:
    """A value of a type of :class:`Statistics` from what JSON made of it."""
    if is_dataclass(kind):
        types = get_type_hints(kind)
        return kind(**{field.name: _read(types[field.name], value[field.name]) for field in fields(kind)})  # type: ignore[operator]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (other,) = (each for each in arguments if each is not type(None))
        return None if value is None else _read(other, value)
    if origin is tuple:
        return tuple(_read(arguments[0], entry) for entry in value)
    if origin is dict:
        return {key: _read(arguments[1], entry) for key, entry in value.items()}
    if origin is Literal or kind is not float:
        return value
    return float("nan") if value is None else float(value)
