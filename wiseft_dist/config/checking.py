"""From a nested mapping to a checked section; every complaint becomes a sentence for whoever wrote the YAML."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from wiseft_dist.config.launch import LaunchConfig
from wiseft_dist.config.section import Section
from wiseft_dist.config.sections import RunConfig
from wiseft_dist.errors import UserError

SectionType = TypeVar("SectionType", bound=Section)


def parse_section(section: type[SectionType], plain: dict[Any, Any], *, source: str) -> SectionType:
    """Check a plain dictionary; errors name ``source``."""
    try:
        return section.model_validate(plain)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {_sentence(item)}" for item in error.errors())) from None


class _LaunchAlone(Section):
    launch: LaunchConfig


def check_launch_fields(launch: Mapping[str, Any], *, source: str) -> None:
    """Check each setting under ``launch`` by itself; what they must be together depends on other layers.

    Raises:
        UserError: naming ``source``.
    """
    try:
        _LaunchAlone.model_validate({"launch": launch})
    except ValidationError as error:
        alone = [item for item in error.errors() if item["type"] != "value_error" or len(item["loc"]) > 2]
        if alone:
            raise UserError("\n".join(f"{source}: {_sentence(item)}" for item in alone)) from None


def _sentence(error: Any) -> str:
    """One pydantic error as a sentence for the person who wrote the YAML."""
    location = [str(part) for part in error["loc"]]
    key = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"{key} is not a setting.{_nearest(location)}"
    if error["type"] == "missing":
        return f"{key} is missing."
    if error["type"] == "model_type":
        return f"{key} is {error['input']!r}: it is a section, with settings of its own under it."
    message = str(error["msg"]).removeprefix("Value error, ").removesuffix(".")
    if error["type"] == "value_error" and not isinstance(error["input"], str | int | float):
        return f"{message}."
    return f"{key} is {error['input']!r}: {message[0].lower()}{message[1:]}."


def _nearest(location: list[str]) -> str:
    """A suggestion for a misspelt key: this very name elsewhere, a near one in its section, a near one elsewhere."""
    name, section = location[-1], location[:-1]
    siblings = {field: ".".join([*section, field]) for field in _fields_at(section)}
    elsewhere = {key.rsplit(".", 1)[-1]: key for key in reversed(_all_keys(RunConfig))}
    for names, cutoff in ((elsewhere, 1.0), (siblings, 0.6), (elsewhere, 0.75)):
        if near := difflib.get_close_matches(name, names, n=1, cutoff=cutoff):
            return f" Did you mean {names[near[0]]}?"
    return f" Settings there: {', '.join(siblings.values())}."


def _fields_at(location: list[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    names = iter(location)
    for name in names:
        annotation = section.model_fields[name].annotation if name in section.model_fields else None
        if get_origin(annotation) is dict:  # of sections: the next name is the user's
            annotation = get_args(annotation)[1]
            next(names, None)
        found = _section_of(annotation)
        if found is None:
            return []
        section = found
    return list(section.model_fields)


def _all_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of the tree, sections before what they hold."""
    keys: list[str] = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        inner = _section_of(field.annotation)
        if inner is not None:
            keys += _all_keys(inner, f"{prefix}{name}.")
    return keys


def _section_of(annotation: object) -> type[BaseModel] | None:
    candidates = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
