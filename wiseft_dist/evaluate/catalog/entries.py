"""The catalog's entries, and a dataset with everything that is known of it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from wiseft_dist import storage
from wiseft_dist.config import DatasetSpec, load_tree, parse_section
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.lists import absolute, check_fit, data_file, read_classnames, read_prompts
from wiseft_dist.evaluate.class_map import ClassMap, load_class_map

FILES = ("imagenet", "imagenet_c", "cifar", "wilds", "video", "domains")
"""The files of ``data/datasets``, in the order in which they are listed."""

NAME = re.compile(r"\w[\w.-]{0,199}")
"""Of a dataset: folders and files are called after it."""
NO_ENTRY = "none"
"""As ``catalog``: nothing is taken from the catalog, whatever the dataset is called."""


@dataclass(frozen=True)
class Entry:
    """A dataset of the catalog."""

    name: str
    spec: DatasetSpec
    family: str
    """The title under which it is listed."""
    aliases: tuple[str, ...] = ()
    """Other names that people give it."""
    listed_as: str | None = None
    """One line for all entries of a pattern."""
    num_anchors: int | None = None
    """Published number of anchors, of sets of frames."""


@dataclass(frozen=True)
class Dataset:
    """A test set under its name in the run."""

    name: str
    spec: DatasetSpec
    """What was given, and the catalog's where nothing was; ``catalog`` names the entry, None if there is none."""
    classnames: tuple[str, ...] | None
    """Its own classes, which its labels count; None: not known here."""
    templates: tuple[str, ...] | None
    class_map: ClassMap | None
    key: str
    """What errors call its settings: ``data.datasets.NAME`` in a run."""


def catalog() -> dict[str, DatasetSpec]:
    """Every entry, by name."""
    return {name: entry.spec for name, entry in entries().items()}


@cache
def entries() -> Mapping[str, Entry]:
    """Every entry, by name, in the order in which they are listed."""
    found: dict[str, Entry] = {}
    for file in FILES:
        tree = data_file(f"datasets/{file}.yaml")
        for pattern, fields_of_entry in tree["datasets"].items():
            found.update((entry.name, entry) for entry in _expand(pattern, fields_of_entry, tree["title"]))
    return found


def _expand(pattern: str, given: Mapping[str, Any], family: str) -> Iterator[Entry]:
    """The entries behind a name with braces; the title has the same braces."""
    extra = {field.name for field in fields(Entry)} & set(given)
    more: dict[str, Any] = {name: tuple(value) if isinstance(value := given[name], list) else value for name in extra}
    plain = {name: value for name, value in given.items() if name not in extra and value is not None}
    for name, title in zip(braceexpand(pattern), braceexpand(plain["title"]), strict=True):
        spec = parse_section(DatasetSpec, plain | {"title": title, "catalog": name}, source=f"catalog, {name}")
        yield Entry(name, spec, family, **more)


def find_entry(name: str) -> Entry | None:
    """The entry of a name, in whatever spelling: ``ImageNet-V2``, ``imagenetv2``, ``imagenet_v2``."""
    found = _spellings().get(_spelling(name))
    return None if found is None else entries()[found]


@cache
def _spellings() -> Mapping[str, str]:
    return {_spelling(name): entry.name for entry in entries().values() for name in (*entry.aliases, entry.name)}


def _spelling(name: str) -> str:
    return re.sub(r"[-_.]", "", name).casefold()


def describe_dataset(name: str, given: DatasetSpec | None, *, key: str | None = None) -> Dataset:
    """What is known of a dataset.

    Args:
        name: Its name, which may be one of the catalog, in any spelling.
        given: What the user says of it; goes before what the catalog says.
        key: What errors call its settings; None: ``data.datasets.NAME``, where a run has them.

    Raises:
        UserError: if ``given`` names an entry, a list, a map or a column that does not exist.
    """
    key = f"data.datasets.{name}" if key is None else key
    given = given or DatasetSpec()
    entry = _entry_of(name, given.catalog, key)
    spec = given.model_copy(update={"catalog": None}) if entry is None else _merged(entry.spec, given, key)
    _check_columns(spec, key)
    if spec.robustness_fit is not None:
        check_fit(spec.robustness_fit, f"{key}.robustness_fit")
    classnames = spec.classnames and read_classnames(spec.classnames, f"{key}.classnames")
    templates = spec.templates and read_prompts(spec.templates, f"{key}.templates")
    class_map = load_class_map(spec.class_map, f"{key}.class_map") if spec.class_map else None
    if spec.reference_classes is not None:  # needed only when everything is scored, and then it must be there
        load_class_map(spec.reference_classes, f"{key}.reference_classes")
    if class_map is not None and classnames and class_map.num_classes != len(classnames):
        raise UserError(
            f"{key}.class_map: {spec.class_map} leads to {class_map.num_classes} classes, but {spec.classnames} has "
            f"{len(classnames)}."
        )
    return Dataset(name, spec, classnames or None, templates or None, class_map, key)


def _entry_of(name: str, wanted: str | None, key: str) -> Entry | None:
    if wanted == NO_ENTRY:
        return None
    entry = find_entry(wanted or name)
    if entry is None and wanted is not None:
        near = difflib.get_close_matches(wanted, entries(), n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else "`wiseft evaluate --list` shows them."
        raise UserError(f"{key}.catalog: {wanted} is not in the catalog. {hint}")
    return entry


def _merged(base: DatasetSpec, given: DatasetSpec, key: str) -> DatasetSpec:
    own = given.model_dump(exclude_unset=True, exclude={"catalog"})
    return parse_section(DatasetSpec, base.model_dump(exclude_unset=True) | own, source=key)


def _check_columns(spec: DatasetSpec, key: str) -> None:
    """Whether what the metric and the intervals need is there."""
    for use in ("group", "cluster", "anchor", "offset"):
        column = getattr(spec, use)
        if column is not None and column not in spec.metadata:
            raise UserError(f"{key}.{use}: there is no column {column!r}; say with {key}.metadata where it stands.")
    needed = {"worst_group": ("group",), "pm0": ("anchor", "offset")}.get(spec.metric, ())
    for use in needed:
        if getattr(spec, use) is None:
            raise UserError(f"{key}.metric: {spec.metric} needs {key}.{use}, the column it goes by.")
    unknown = [group for group in spec.excluded_groups if isinstance(group, str) and group not in spec.group_names]
    if unknown:
        raise UserError(f"{key}.excluded_groups: {unknown[0]!r} is not among {key}.group_names.")


def read_dataset_file(path: Path | str) -> tuple[str, str, DatasetSpec]:
    """A user's own dataset in a few lines of YAML: ``shards``, perhaps ``name``, and the settings of DatasetSpec.

    Paths in it are relative to the file. It may come from anybody, so it is taken as it stands: nothing in it is
    replaced by environment variables or other settings.

    Returns:
        Its name (the file's, if it gives none), its shards and its description.

    Raises:
        UserError: naming the file and what is wrong in it.
    """
    path = Path(path)
    tree = load_tree(path, resolve=False)
    if "${" in repr(tree):
        raise UserError(f"{path}: holds ${{...}}, which a dataset file cannot use: write the value itself.")
    shards, name = tree.pop("shards", None), tree.pop("name", path.stem)
    if not isinstance(shards, str):
        raise UserError(f"{path}: shards is missing: give the folder, glob or brace range of its tar files.")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{path}: name is {name!r}: use letters, digits, '-', '_' and '.'.")
    spec = parse_section(DatasetSpec, tree, source=str(path))
    return name, _beside(path, shards), with_absolute_files(spec, path.absolute().parent)


def _beside(file: Path, place: str) -> str:
    return place if storage.is_remote(place) else str(file.absolute().parent / Path(place).expanduser())


def with_absolute_files(spec: DatasetSpec, folder: Path | None = None) -> DatasetSpec:
    """The description with files that do not depend on the working directory.

    Args:
        spec: The description.
        folder: What paths are relative to; None: the working directory.
    """
    changed = {}
    for field in ("classnames", "templates", "class_map", "robustness_fit", "reference_classes"):
        source = getattr(spec, field)
        if source is not None:
            place = absolute("class_map" if field == "reference_classes" else field, source)
            is_relative = place != source and folder is not None and not Path(source).expanduser().is_absolute()
            changed[field] = str(folder / source) if folder is not None and is_relative else place
    return spec.model_copy(update=changed)
