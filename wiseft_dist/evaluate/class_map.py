"""From a head's logits to those of a dataset with other classes: subsets, merged classes, classes without a source."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wiseft_dist import storage
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.lists import list_names, read_class_map, read_classnames

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from wiseft_dist.evaluate.catalog.entries import Dataset

SAME_NAMES = 0.9
"""Share of the names that two lists of the same classes have in common. Names vary between versions of a list."""


@dataclass(frozen=True)
class ClassMap:
    """Which classes of a head stand for each class of a dataset."""

    name: str
    num_source: int
    """Classes of the head."""
    groups: tuple[tuple[int, ...], ...]
    """For each of the dataset's classes the head's: the largest of their logits counts; without any it is -inf."""
    source: str | None = None
    """The class list that the head must have, one of the catalog or a file; None: any of that length."""

    @property
    def num_classes(self) -> int:
        """Classes of the dataset."""
        return len(self.groups)

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits of the dataset's classes.

        Args:
            logits: ``[..., num_source]``, of any floating type, on any device.

        Returns:
            ``[..., num_classes]`` of the same type and on the same device; -inf for classes without a source.

        Raises:
            ValueError: if the last dimension is another.
        """
        if logits.shape[-1] != self.num_source:
            raise ValueError(f"{self.name} takes logits of {self.num_source} classes, not of {logits.shape[-1]}")
        columns, is_empty = _columns(self.groups, logits.device)
        mapped = logits[..., columns[:, 0]]
        for column in columns.unbind(dim=1)[1:]:  # memory of two results, not of the largest group's size
            mapped = mapped.maximum(logits[..., column])
        return mapped.masked_fill(is_empty, float("-inf"))

    def class_of(self, label: int) -> int | None:
        """The dataset's class that a class of the head belongs to, the first if there are several; None if to none."""
        return next((index for index, group in enumerate(self.groups) if label in group), None)


@lru_cache(maxsize=32)
def _columns(groups: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The head's classes of each group, int64 ``[groups, largest]``, and which groups are empty, bool ``[groups]``.

    A shorter group repeats its first class, which changes no maximum.
    """
    import torch

    length = max(map(len, groups), default=0) or 1
    rows = [(*group, *[group[0] if group else 0] * (length - len(group))) for group in groups]
    columns = torch.tensor(rows, dtype=torch.int64, device=device)
    return columns, torch.tensor([not group for group in groups], device=device)


def load_class_map(source: str, key: str) -> ClassMap:
    """A class map of the catalog, or of a JSON file.

    The file holds ``{"source": "imagenet", "num_source": 1000, "groups": [[409, 530], [414], []]}``: for each of the
    dataset's classes the head's. ``source`` names the class list that those numbers are of (a list of the catalog, or
    a file, its path relative to this one) and may be left out.

    Args:
        source: The map's name, or the file.
        key: The setting that names it, for errors.

    Raises:
        UserError: if there is none, or a number in it is no class of the head.
    """
    tree = read_class_map(source, key)
    where = f"{key}: {source}"
    if not isinstance(tree, dict) or not isinstance(tree.get("groups"), list) or not any(tree["groups"]):
        raise UserError(f'{where} holds no class map: write {{"num_source": 1000, "groups": [[409, 530], [414]]}}.')
    named = tree.get("source")
    if named is not None and (not isinstance(named, str) or not named):
        raise UserError(f"{where}: source is {named!r}: name the head's class list, or leave it out.")
    named = _beside(source, named)
    num_source = tree.get("num_source")
    if num_source is None and named is not None:
        num_source = len(read_classnames(named, where))
    if type(num_source) is not int or num_source < 1:
        raise UserError(f"{where}: num_source is {num_source!r}: give the number of the head's classes.")
    groups = tuple(_group(group, index, num_source, where) for index, group in enumerate(tree["groups"]))
    return ClassMap(_map_name(source), num_source, groups, named)


def _beside(source: str, named: str | None) -> str | None:
    if named is None or source in list_names("class_map") or named in list_names("classnames"):
        return named
    is_relative = not storage.is_remote(named) and not Path(named).expanduser().is_absolute()
    return storage.join(storage.parent(storage.absolute(source)), named) if is_relative else storage.absolute(named)


def _group(group: Any, index: int, num_source: int, where: str) -> tuple[int, ...]:
    is_list = isinstance(group, list) and all(type(each) is int for each in group)
    if not is_list or len(set(group)) != len(group):
        raise UserError(f"{where}: class {index} maps from {group!r}: give a list of different classes of the head.")
    wrong = [each for each in group if not 0 <= each < num_source]
    if wrong:
        raise UserError(
            f"{where}: class {index} maps from {wrong[0]}, but the head has the classes 0 to {num_source - 1}."
        )
    return tuple(group)


def _map_name(source: str) -> str:
    return re.sub(r"\.json$", "", source.rstrip("/").rsplit("/", 1)[-1])


def map_for(dataset: Dataset, head_classnames: Sequence[str]) -> ClassMap | None:
    """The class map between a head and a dataset.

    Lists of classes are compared position by position, as names may repeat (ImageNet has "missile" twice).

    Returns:
        None if the head's classes are the dataset's own, or nothing is known of those; else the dataset's map.

    Raises:
        UserError: if the head's classes are neither the dataset's nor those that its map takes.
    """
    own, class_map = dataset.classnames, dataset.class_map
    if own is not None and same_classes(own, head_classnames):
        return None
    if class_map is not None and _is_source(class_map, head_classnames, dataset.key):
        return class_map
    # Where the dataset's own classes are not known, only their number tells a head of them.
    if own is None and (class_map is None or len(head_classnames) == class_map.num_classes):
        return None
    raise UserError(_wrong_head(dataset, head_classnames))


def _is_source(class_map: ClassMap, head_classnames: Sequence[str], key: str) -> bool:
    if class_map.source is None:
        return len(head_classnames) == class_map.num_source
    source = read_classnames(class_map.source, f"{key}.class_map")
    return same_classes(source, head_classnames)


def _wrong_head(dataset: Dataset, head_classnames: Sequence[str]) -> str:
    """Both numbers of classes, the first that differs, what the dataset's map takes, and what to do."""
    own, class_map = dataset.classnames, dataset.class_map
    num_own = len(own) if own is not None else class_map.num_classes if class_map is not None else 0
    said = f"{dataset.name} has {num_own} classes and the head {len(head_classnames)}"
    if own is not None:
        at, pair = first_difference(own, head_classnames)
        said += f": class {at} is {pair[0]} there and {pair[1]} here"
    if class_map is not None:
        of_source = f" of {class_map.source}" if class_map.source else ""
        said += f"; its map {class_map.name} takes the {class_map.num_source} classes{of_source}"
    return (
        f"{said}. Evaluate it with a head of its classes, or name with {dataset.key}.class_map the map from the head's."
    )


def same_classes(first: Sequence[str], second: Sequence[str], *, share: float = SAME_NAMES) -> bool:
    """Whether two lists name the same classes in the same order.

    Equally long, this share of the names equal but for case, spaces, dashes and underscores, and none of the others
    at another place: versions of a list spell names differently, but do not move them.
    """
    if len(first) != len(second) or _first_moved(first, second) is not None:
        return False
    num_same = sum(_plain(one) == _plain(two) for one, two in zip(first, second, strict=True))
    return num_same >= share * len(first)


def first_difference(first: Sequence[str], second: Sequence[str]) -> tuple[int, tuple[str, str]]:
    """The first position at which two lists differ, and what stands there, for people.

    In lists of one length it is the first whose name stands elsewhere in the other, if there is any.
    """
    length = min(len(first), len(second))
    moved = _first_moved(first, second) if len(first) == len(second) else None
    at = next((i for i in range(length) if _plain(first[i]) != _plain(second[i])), length) if moved is None else moved
    one, two = (repr(names[at]) if at < len(names) else "nothing" for names in (first, second))
    return at, (one, two)


def _first_moved(first: Sequence[str], second: Sequence[str]) -> int | None:
    """The first position at which the lists differ and whose name stands at another of the other list."""
    places = [_places(names) for names in (first, second)]
    moved = [{at, places[1][name]} for name, at in places[0].items() if places[1].get(name, at) != at]
    return min((min(pair) for pair in moved), default=None)


def _places(names: Sequence[str]) -> Mapping[str, int]:
    """Where each name stands, without those that a list has twice: they have no one place."""
    plain = [_plain(name) for name in names]
    counts = Counter(plain)
    return {name: at for at, name in enumerate(plain) if counts[name] == 1}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()
