"""From what was written after ``--dataset`` to a test set: its name, its shards, and what is known of it."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.config import DatasetSpec
from wiseft_dist.data.locks import locked
from wiseft_dist.data.manifest import Manifest, index_shards
from wiseft_dist.data.pack import COUNT_FILE, TEMPLATES_FILE
from wiseft_dist.data.tar import LABEL_FIELDS
from wiseft_dist.data.vocabulary import find_vocabulary_file, read_templates
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.catalog.entries import (
    NAME,
    Dataset,
    Entry,
    catalog,
    describe_dataset,
    find_entry,
    read_dataset_file,
)
from wiseft_dist.evaluate.catalog.lists import data_file
from wiseft_dist.evaluate.dataset_checks import unlike_published, with_own_classes
from wiseft_dist.ranks import discover_ranks

SPLITS = ("test", "val", "validation", "valid", "train", "main", "resolve")
"""Folders inside a dataset's own, on disk and on the hub; none of them tells datasets apart."""
HUB = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class GivenDataset:
    """A test set as it was named on the command line."""

    name: str
    url: str
    spec: DatasetSpec | None = None
    """What a dataset file says of it."""


@dataclass(frozen=True)
class IndexedDataset:
    """A test set that was counted and checked."""

    dataset: Dataset
    """Its class names and templates are known, from the catalog or from beside its shards, if there are any."""
    manifest: Manifest

    @property
    def name(self) -> str:
        """Its name in the results."""
        return self.dataset.name


def given_datasets(texts: Sequence[str], shards: str | None) -> list[GivenDataset]:
    """Find out what is meant by each text.

    Args:
        texts: ``NAME=URL``, a URL or folder, a dataset file (``.yaml``), or a name of the catalog.
        shards: The folder that holds the shards of the catalog's datasets.

    Raises:
        UserError: if nothing is known under a name, or two datasets have one name.
    """
    given = [_given(text, shards) for text in texts]
    names = [each.name for each in given]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"--dataset: two datasets are called {name}; write NAME=URL to tell them apart.")
    return given


def index_dataset(given: GivenDataset, folder: Path) -> IndexedDataset:
    """Count and check a test set; what an earlier call knew of shards that have not changed is not read again.

    Args:
        given: The test set.
        folder: Where its manifest is kept. Several processes may do this side by side; one of them reads.

    Raises:
        UserError: naming the shard or sample that does not fit.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{given.name}.json"
    with locked(folder / f".{given.name}.lock"):
        known = Manifest.load(file) if file.is_file() else None
        manifest = index_shards(given.url, target=LABEL_FIELDS, known=known, unique_keys=True)
        if manifest != known:
            manifest.save(file)
    dataset = with_own_classes(describe_dataset(given.name, given.spec, key=given.name), given.url)
    sentences = unlike_published(dataset, given.spec, manifest)
    for sentence in sentences if discover_ranks().is_main else []:
        print(f"wiseft: {sentence}", file=sys.stderr)
    return IndexedDataset(_with_templates(dataset, given.url), manifest)


def _given(text: str, shards: str | None) -> GivenDataset:
    storage.refuse_credentials(text)
    if text.endswith((".yaml", ".yml")):
        return GivenDataset(*read_dataset_file(text))
    name, equals, url = text.partition("=")
    if equals and NAME.fullmatch(name):
        return GivenDataset(name, _split_of(url))
    if equals and "/" not in name and not Path(text).exists():
        raise UserError(
            f"--dataset {text!r}: {name!r} is no name for a dataset: use letters, digits, '-', '_' and '.'."
        )
    if storage.is_remote(text) or "/" in text or Path(text).exists():
        return GivenDataset(_name_of(text), _split_of(text))
    return _of_catalog(text, shards)


def _name_of(url: str) -> str:
    """The catalog's name of a folder that is known to it; else the folder's."""
    parts = [part for part in storage.absolute(url).split("/") if part]
    while len(parts) > 1 and (parts[-1] in SPLITS or _names_shards(parts[-1])):
        parts.pop()
    known = {folder: name for name, folders in _folders().items() for folder in folders}
    name = known.get(parts[-1], parts[-1].removeprefix("wds_").removesuffix("_test"))
    if not NAME.fullmatch(name):
        raise UserError(f"--dataset {url}: write NAME=URL, as {name!r} is no name for a dataset.")
    return name


def _split_of(url: str) -> str:
    """The folder with the shards: ``test`` inside a folder that holds splits."""
    url = url if storage.is_remote(url) else os.path.normpath(storage.absolute(url))  # one place, one name
    inside = storage.join(url, "test")
    if _names_shards(url) or storage.exists(storage.join(url, COUNT_FILE)):
        return url
    return inside if storage.exists(storage.join(inside, COUNT_FILE)) else url


def _names_shards(url: str) -> bool:
    """Whether it is more than a folder: a shard, a manifest, or a pattern of shards."""
    return url.endswith((".tar", ".json")) or not set(url).isdisjoint("*?[{")


def _of_catalog(name: str, shards: str | None) -> GivenDataset:
    entry = find_entry(name)
    if entry is None:
        near = difflib.get_close_matches(name, catalog(), n=3, cutoff=0.5)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise UserError(
            f"--dataset {name}: neither a folder nor a dataset of the catalog{hint}; `wiseft evaluate --list` "
            "shows those, and NAME=URL names your own."
        )
    folders = _folder_names(entry)
    if shards is None:
        raise UserError(
            f"--dataset {name}: the catalog does not know where you keep it; write {name}=URL, or --shards with the "
            f"folder that holds {folders[0]}."
        )
    places = [_place(shards, folder) for folder in folders]
    found = next((url for url in places if storage.exists(storage.join(url, COUNT_FILE))), None)
    if found is None:
        raise UserError(f"--dataset {name}: no {COUNT_FILE} in any of {', '.join(places)}; write {name}=URL.")
    return GivenDataset(entry.name, found)


def _folder_names(entry: Entry) -> list[str]:
    """What the folder of a dataset may be called, the likeliest name first."""
    names = [name for own in (entry.name, *entry.aliases) for name in (f"wds_{own}", f"wds_{own}_test", own)]
    return list(dict.fromkeys([*_folders().get(entry.name, ()), *names]))


def _place(root: str, folder: str) -> str:
    root = storage.absolute(root).rstrip("/") + "/"
    return f"{root}{folder}/resolve/main/test" if root.startswith(HUB) else f"{root}{folder}/test"


@cache
def _folders() -> dict[str, tuple[str, ...]]:
    """What the hub's copies of the catalog's datasets are called, in ``clip-benchmark/`` and in ``djghosh/``."""
    return {name: tuple(folders) for name, folders in data_file("wds_folders.yaml").items()}


def _with_templates(dataset: Dataset, url: str) -> Dataset:
    """Prompt templates from beside the shards, where neither the catalog nor a file named others."""
    file = find_vocabulary_file(url, TEMPLATES_FILE)
    if file is None or dataset.templates is not None:
        return dataset
    return replace(dataset, templates=read_templates(file, file))
