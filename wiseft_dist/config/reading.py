"""From a YAML file and ``KEY=VALUE`` overrides to a checked configuration, and back.

OmegaConf reads the file (so that ``${oc.env:NAME}`` works), pydantic checks it, and every complaint becomes a sentence.
"""

from __future__ import annotations

import difflib
import re
import types
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from wiseft_dist.config.section import Section
from wiseft_dist.config.sections import RunConfig
from wiseft_dist.errors import UserError

SectionType = TypeVar("SectionType", bound=Section)


def load_config(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> RunConfig:
    """Read a YAML file, apply ``KEY=VALUE`` overrides, resolve interpolations and check everything.

    Raises:
        UserError: naming the file, the key and, for a misspelt key, the nearest right one.
    """
    return parse_section(RunConfig, load_tree(path, overrides), source=str(path))


def load_tree(path: Path | str, overrides: list[str] | tuple[str, ...] = (), *, resolve: bool = True) -> dict[str, Any]:
    """The settings of a YAML file, with overrides and resolved, but not checked.

    Args:
        path: The file.
        overrides: ``KEY=VALUE``, which go before what it says.
        resolve: Replace interpolations, such as ``${oc.env:NAME}``; not in a file that may be anybody's.

    Raises:
        UserError: naming the file.
    """
    tree = _read_yaml(Path(path))
    for override in overrides:
        tree = OmegaConf.merge(tree, _parse_override(override))
    try:
        plain = OmegaConf.to_container(tree, resolve=resolve)
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_interpolation_sentence(error)}") from error
    assert isinstance(plain, dict)  # _read_yaml returns nothing else
    return {str(key): value for key, value in plain.items()}


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file.")
    try:
        tree = OmegaConf.create(yaml.load(path.read_text(encoding="utf-8"), _Loader) or {})
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not readable as YAML: {_yaml_reason(error)}.") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: expected settings such as `output: runs/mine`, found a list.")
    return tree


def _parse_override(override: str) -> DictConfig:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not of the form KEY=VALUE, for example finetune.epochs=5.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:  # such as {0..3}.tar: to YAML the start of a mapping, here a text
        value = text
    tree = OmegaConf.create()
    try:
        OmegaConf.update(tree, key, value)
    except OmegaConfBaseException as error:
        raise UserError(f"{override!r}: {_first_line(error)}.") from error
    return tree


class _Loader(yaml.SafeLoader):
    """YAML without numbers in base 60 (``0:1:0.5`` is a grid, not 60.5) and without keys that occur twice."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - as in its base

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} occurs twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)(e[-+][0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def _yaml_reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return _first_line(error)


def _interpolation_sentence(error: OmegaConfBaseException) -> str:
    reason, key = _first_line(error), getattr(error, "full_key", None)
    unset = re.search(r"Environment variable '(.+)' not found", reason)
    if unset is None:
        return f"{key}: {reason}" if key else reason
    return f"{key} needs the environment variable {unset[1]}, which is not set. Set it with `export {unset[1]}=...`."


def parse_section(section: type[SectionType], plain: dict[Any, Any], *, source: str) -> SectionType:
    """Check a plain dictionary; errors name ``source``."""
    try:
        return section.model_validate(plain)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {_sentence(item)}" for item in error.errors())) from None


def dump_config(config: RunConfig) -> str:
    """The configuration as YAML, readable by :func:`load_config`."""
    text: str = yaml.safe_dump(_escaped(config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)
    return text


def _escaped(tree: Any) -> Any:
    """The tree with every literal ``${`` marked as one, so that OmegaConf does not take it for an interpolation."""
    if isinstance(tree, dict):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


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
