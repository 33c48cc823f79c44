"""``KEY=VALUE,VALUE``: from settings with several values to the combinations of a sweep. Pure: nothing is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from wiseft_dist.errors import UserError
from wiseft_dist.run import FREE, IDENTITY

EVALUATED = ("evaluate", "merge.alphas")
"""Sections that decide what is evaluated of a run's weights."""
PAIRS = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes, as they were written."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """What is swept over, and what is the same for all runs."""

    axes: tuple[Axis, ...]
    overrides: tuple[str, ...]
    """``KEY=VALUE`` for every run."""

    @property
    def num_runs(self) -> int:
        """Combinations."""
        return prod(len(axis.values) for axis in self.axes)

    @property
    def keys(self) -> tuple[str, ...]:
        """The settings that differ."""
        return tuple(axis.key for axis in self.axes)

    def in_order_of(self, keys: Sequence[str]) -> Grid:
        """The same grid as if its settings had been given in this order; unknown ones come last."""
        known = {key: place for place, key in enumerate(keys)}
        return replace(self, axes=tuple(sorted(self.axes, key=lambda axis: known.get(axis.key, len(known)))))

    def combinations(self) -> Iterator[list[str]]:
        """All overrides of each run; the last setting changes fastest."""
        for values in product(*(axis.values for axis in self.axes)):
            chosen = [f"{axis.key}={value}" for axis, value in zip(self.axes, values, strict=True)]
            yield [*self.overrides, *chosen]


def parse_grid(settings: Sequence[str]) -> Grid:
    """Tell settings with several values from those with one.

    Raises:
        UserError: if one is not of the form ``KEY=VALUE``, has an empty value or the same one twice, or is given twice;
            or if none has several values.
    """
    axes, overrides = [], []
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"{setting!r} is not of the form KEY=VALUE, for example finetune.epochs=5,10.")
        values = _values(setting, text)
        if len(values) == 1:
            overrides.append(setting)
        else:
            axes.append(Axis(key, values))
    _refuse_given_twice([axis.key for axis in axes], [override.partition("=")[0] for override in overrides])
    if not axes:
        raise UserError(
            "no setting has several values, such as finetune.optimizer.lr=1e-5,3e-5: `wiseft run` does a single run."
        )
    return Grid(tuple(axes), tuple(overrides))


def refuse_what_makes_no_runs(grid: Grid) -> None:
    """Runs differ in what decides their weights or in how these are evaluated.

    Raises:
        UserError: naming a setting with several values that is neither.
    """
    for key in grid.keys:
        _refuse_key(key)


def split_values(text: str) -> list[str]:
    """Cut at the commas that are in no brackets and no quotes.

    Raises:
        ValueError: if a bracket or a quote is left open, or a bracket closes what was not opened.
    """
    values, start, closing, quote = [], 0, "", ""
    for place, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'" and _begins_a_value(text[start:place]):
            quote = character
        elif character in PAIRS:
            closing = PAIRS[character] + closing
        elif character in PAIRS.values():
            if not closing.startswith(character):
                raise ValueError(f"the {character} at character {place + 1} closes nothing")
            closing = closing[1:]
        elif character == "," and not closing:
            values.append(text[start:place].strip())
            start = place + 1
    if quote or closing:
        raise ValueError(f"a {quote or closing[0]} is missing at the end")
    return [*values, text[start:].strip()]


def _begins_a_value(before: str) -> bool:
    """Whether a quote after this opens a text; an apostrophe inside a word does not."""
    return not before.strip() or before.rstrip()[-1] in "[{,:"


def _values(setting: str, text: str) -> tuple[str, ...]:
    try:
        values = split_values(text)
    except ValueError as error:
        raise UserError(f"{setting!r}: {error}.") from None
    if len(values) == 1:
        return (text,)
    if "" in values:
        raise UserError(
            f"{setting!r}: value {values.index('') + 1} of {len(values)} is empty. Write null for no value."
        )
    twice = next((value for place, value in enumerate(values) if value in values[:place]), None)
    if twice is not None:
        raise UserError(f"{setting!r}: {twice} occurs twice.")
    return tuple(values)


def _refuse_key(key: str) -> None:
    if key == "output":
        raise UserError("output has several values: a sweep has one folder, with a folder for each run in it.")
    if key.startswith("launch.") or key == "launch":
        raise UserError(f"{key} has several values: all runs of a sweep are launched alike. Give it one value.")
    if _is_in(key, EVALUATED) or (
        _is_in(key, IDENTITY) and not f"{key}.".startswith(FREE) and not key.startswith(FREE)
    ):
        return
    inner = [section for section in (*IDENTITY, *EVALUATED) if section.startswith(f"{key}.")]
    if inner:
        raise UserError(f"{key} has several values, but holds settings that are no run's own: sweep over {inner[0]}.")
    raise UserError(
        f"{key} has several values, but decides neither a run's weights nor their evaluation: all of these runs would "
        "have the same result. Give it one value."
    )


def _is_in(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _refuse_given_twice(swept: Sequence[str], fixed: Sequence[str]) -> None:
    for place, key in enumerate(swept):
        if key in swept[:place] or key in fixed:
            raise UserError(f"{key} is given twice: write all its values in one list, {key}=A,B.")
