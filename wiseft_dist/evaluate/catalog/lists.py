"""The catalog's files: class lists, templates and class maps, by name; or a user's own, by path or URL."""

from __future__ import annotations

import difflib
import json
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from wiseft_dist import storage
from wiseft_dist.data.vocabulary import read_lines, read_templates
from wiseft_dist.errors import UserError

FOLDERS = {"classnames": ("classes", ".txt"), "templates": ("templates", ".txt"), "class_map": ("maps", ".json")}
"""For each field of a dataset that names a list: the folder in which the catalog's are, and how their files end."""


@cache
def data_file(name: str) -> Any:
    """What a YAML file of the catalog's data holds; not to be changed."""
    return yaml.safe_load(_data().joinpath(name).read_text(encoding="utf-8"))


@cache
def list_names(field: str) -> tuple[str, ...]:
    """The names of the catalog's lists for a field: ``imagenet``, ``imagenet_r``, ..."""
    if field == "robustness_fit":
        return tuple(data_file("fits.yaml")["fits"])
    folder, ending = FOLDERS[field]
    files = (file.name for file in _data().joinpath(folder).iterdir())
    return tuple(sorted(file.removesuffix(ending) for file in files if file.endswith(ending)))


@cache
def read_classnames(source: str, key: str) -> tuple[str, ...]:
    """The classes in a list of the catalog or in a file.

    Args:
        source: The list's name, or the file.
        key: The setting that names it, for errors.

    Raises:
        UserError: if there is no such list or file, or it is empty.
    """
    return read_lines(_locate("classnames", source, key))


@cache
def read_prompts(source: str, key: str) -> tuple[str, ...]:
    """The templates in a list of the catalog or in a file; see :func:`read_classnames`.

    Raises:
        UserError: also if one has no place for the class.
    """
    return read_templates(_locate("templates", source, key), f"{key}: {source}")


@cache
def read_class_map(source: str, key: str) -> Any:
    """The JSON of a class map of the catalog or of a file; see :func:`read_classnames`.

    Raises:
        UserError: also if it is not JSON.
    """
    try:
        return json.loads(storage.read_text(_locate("class_map", source, key)))
    except (ValueError, RecursionError) as error:  # a number of too many digits, or lists in lists in lists
        if isinstance(error, UserError):
            raise
        raise UserError(f"{key}: {source} is not readable as JSON: {error}.") from None


def check_fit(source: str, key: str) -> None:
    """Refuse a fit that is neither published nor a file of models.

    Raises:
        UserError: saying which there are.
    """
    if source not in list_names("robustness_fit"):
        _locate("robustness_fit", source, key)


def absolute(field: str, source: str) -> str:
    """A source that does not depend on the working directory: the name of a list as it is, a file's path absolute."""
    return source if source in list_names(field) else storage.absolute(source)


def _locate(field: str, source: str, key: str) -> str:
    if source in list_names(field):
        folder, ending = FOLDERS[field]
        return str(_data().joinpath(folder, source + ending))
    if not storage.exists(source):
        near = difflib.get_close_matches(source, list_names(field), n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]}?" if near else f" The catalog has {', '.join(list_names(field))}."
        raise UserError(f"{key}: {source} is neither a file nor a list of the catalog.{hint}")
    return source


def _data() -> Traversable:
    return resources.files("wiseft_dist.evaluate.catalog").joinpath("data")
