"""YAML files and ``KEY=VALUE`` as nested mappings, not yet checked.

OmegaConf puts them over each other, so that ``${oc.env:NAME}`` works. In the shell lines of ``launch.STAGE.setup``
every other ``${NAME}`` is the shell's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wiseft_dist.errors import UserError


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


def override_tree(overrides: Sequence[str]) -> dict[str, Any]:
    """What ``KEY=VALUE`` alone say, with interpolations as they stand."""
    tree: Any = OmegaConf.create()
    for override in overrides:
        tree = OmegaConf.merge(tree, _parse_override(override))
    plain = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _read_yaml(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file.")
    try:
        tree = OmegaConf.create(_for_the_shell(yaml.load(path.read_text(encoding="utf-8"), _Loader) or {}))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, RecursionError, OSError) as error:
        raise UserError(f"{path}: not readable as YAML: {_yaml_reason(error)}.") from error
    if not isinstance(tree, DictConfig):
        raise UserError(f"{path}: expected settings such as `output: runs/mine`, found a list.")
    return tree


def _for_the_shell(tree: Any, place: tuple[str, ...] = ()) -> Any:
    """The tree, with ``${NAME}`` in setup lines marked so that OmegaConf leaves it alone; ``${oc.env:NAME}`` stays."""
    if isinstance(tree, dict):
        return {key: _for_the_shell(value, (*place, str(key))) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_for_the_shell(value, place) for value in tree]
    is_shell = isinstance(tree, str) and len(place) >= 3 and (place[0], place[2]) == ("launch", "setup")
    return SHELL_VARIABLE.sub(r"\\${", tree) if is_shell else tree


SHELL_VARIABLE = re.compile(r"(?<!\\)\$\{(?!oc\.)")
"""What is marked already is what a run's own file holds."""


def _parse_override(override: str) -> DictConfig:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not of the form KEY=VALUE, for example finetune.epochs=5.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:  # such as {0..3}.tar: to YAML the start of a mapping, here a text
        value = text
    tree = OmegaConf.create()
    for part in reversed(re.split(r"[.\[]", key)):
        value = {part: value}
    value = _for_the_shell(value)
    for part in re.split(r"[.\[]", key):
        value = value[part]
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


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
