"""Where packed samples come from: a folder of class folders, a table of paths, or a ``datasets`` folder.

A source becomes a ``Listing``: what samples there are, in the source's own order, and how to get at their pictures.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from wiseft_dist import storage
from wiseft_dist.errors import UserError

TABLES = (".csv", ".tsv", ".parquet")
SPLIT_FOLDERS = {"train", "training", "val", "valid", "validation", "test"}


class Pictures(Protocol):
    """How the bytes of a picture are found by its name; goes to other processes."""

    def where(self, name: str) -> str:
        """The picture's place in words for a person."""

    def head(self, name: str, length: int) -> tuple[int, bytes]:
        """Size in bytes, and the first bytes; OSError if there is nothing to read."""

    def read(self, name: str) -> bytes:
        """All bytes; OSError if there is nothing to read."""


@dataclass(frozen=True)
class FilePictures:
    """Pictures that are files, named by their paths below ``root``."""

    root: str

    def where(self, name: str) -> str:
        """The file's path."""
        return str(Path(self.root, name))

    def head(self, name: str, length: int) -> tuple[int, bytes]:
        """Size and beginning of the file."""
        with Path(self.root, name).open("rb") as handle:
            return os.fstat(handle.fileno()).st_size, handle.read(length)

    def read(self, name: str) -> bytes:
        """The file's content."""
        return Path(self.root, name).read_bytes()


@dataclass(frozen=True)
class Classes:
    """The class list that labels are held against, if there is one already."""

    names: tuple[str, ...] | None = None
    file: str = ""
    is_given: bool = True
    """Named by the user for this source: then it may give readable names to folders called otherwise."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what; None means the usual name."""

    path: str | None = None
    label: str | None = None
    caption: str | None = None


@dataclass(frozen=True)
class Listing:
    """The samples of a source in its own order."""

    names: Sequence[str]
    """What ``pictures`` knows each sample's picture by."""
    labels: np.ndarray
    """int64 ``[samples]``."""
    classnames: tuple[str, ...]
    pictures: Pictures
    captions: Sequence[str] | None = None
    table: str | None = None
    """The file that names the pictures, if there is one: errors tell its row."""
    notes: tuple[str, ...] = field(default=())
    """What was left out, in sentences."""

    @cached_property
    def num_samples(self) -> int:
        """How many samples there are."""
        return len(self.names)

    def where(self, index: int) -> str:
        """The place of a sample, for an error."""
        picture = self.pictures.where(self.names[index])
        return f"{self.table} row {index + 1}: {picture}" if self.table else picture


def list_files(source: str, *, columns: Columns, classes: Classes, root: str | None) -> Listing:
    """List a folder of class folders or a table of paths.

    Args:
        source: The folder, or a ``.csv``, ``.tsv`` or ``.parquet`` file.
        columns: What a table's columns are called.
        classes: The class list so far.
        root: What a table's paths are relative to; None for its own folder.

    Raises:
        UserError: if it is neither, or a sample has no path or no label.
    """
    path = Path(source)
    if path.is_dir():
        for option, given in (("--caption-column", columns.caption), ("--root", root)):
            if given is not None:
                raise UserError(f"{source}: {option} is for tables, and this is a folder of class folders.")
        return list_class_folders(path, classes)
    if path.suffix.lower() not in TABLES:
        raise UserError(f"{source}: not a folder and not a table ({', '.join(TABLES)}).")
    return list_table(path, columns, classes, root)


def list_class_folders(folder: Path, classes: Classes) -> Listing:
    """List ``folder/CLASS/**``: the sorted folder names are the classes, as in torchvision's ``ImageFolder``."""
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    found = [entry.name for entry in folders]
    if not folders:
        raise UserError(f"{folder}: holds no class folders. Give a folder with one folder for each class, or a table.")
    if set(found) <= SPLIT_FOLDERS:
        raise UserError(f"{folder}: its folders are splits, not classes. Pack one at a time, such as {folders[0]}.")
    names: list[str] = []
    counts = []
    for each in folders:
        files = _visible_files(each, folder)
        if not files and not (classes.names and classes.is_given):
            raise UserError(f"{each}: this class folder holds no file. Remove it, or give the classes by --classnames.")
        names += files
        counts.append(len(files))
    labels, classnames = number_classes(found, classes, str(folder))
    beside = len(entries) - len(folders)
    notes = (f"{beside} files beside the class folders are not packed",) if beside else ()
    return Listing(names, np.repeat(labels, counts), classnames, FilePictures(str(folder)), notes=notes)


def _visible_files(folder: Path, root: Path) -> list[str]:
    """Paths of all files in a folder and in folders inside it, relative to ``root``, sorted, hidden ones left out."""
    files = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(place, root)
        files += [f"{relative}/{name}" for name in names if not name.startswith(".")]
    return sorted(files)


def list_table(path: Path, columns: Columns, classes: Classes, root: str | None) -> Listing:
    """List the rows of a table of paths and labels, which may have captions."""
    table = _read_table(path, columns.path or "path", columns.label or "label", columns.caption)
    names = column_texts(table, columns.path or "path", str(path))
    pictures = FilePictures(str(Path(root) if root is not None else path.parent))
    _refuse_repeated([os.path.normpath(name) for name in names], str(path))
    labels, classnames = table_labels(table, columns.label or "label", classes, str(path))
    captions = None if columns.caption is None else column_texts(table, columns.caption, str(path))
    return Listing(names, labels, classnames, pictures, captions, table=str(path))


def _read_table(path: Path, *names: str | None) -> Any:
    """The named columns as a pyarrow table."""
    import pyarrow as pa

    needed = [name for name in names if name is not None]
    try:
        table = _read_parquet(path, needed) if path.suffix.lower() == ".parquet" else _read_text(path, needed)
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable table: {str(error).splitlines()[0]}") from error
    require_columns(needed, table.column_names, str(path))
    return table


def _read_parquet(path: Path, names: list[str]) -> Any:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        require_columns(names, file.schema_arrow.names, str(path))
        return file.read(columns=names)


def _read_text(path: Path, names: list[str]) -> Any:
    """Only a label may become a number, and only nothing at all counts as missing: NA and null are names."""
    import pyarrow as pa
    from pyarrow import csv

    path_name, _, *captions = names
    return csv.read_csv(
        path,
        parse_options=csv.ParseOptions(
            delimiter="\t" if path.suffix.lower() == ".tsv" else ",", newlines_in_values=True
        ),
        convert_options=csv.ConvertOptions(
            column_types=dict.fromkeys([path_name, *captions], pa.string()),
            null_values=[""],
            true_values=[],
            false_values=[],
            strings_can_be_null=True,
        ),
    )


def require_columns(needed: Sequence[str], present: Sequence[str], source: str) -> None:
    """Refuse a table that lacks a column.

    Raises:
        UserError: naming the first one missing, and those that are there.
    """
    for name in needed:
        if name not in present:
            raise UserError(
                f"{source}: has no column {name!r}, only {', '.join(present)}. "
                "Name the columns with --path-column, --label-column and --caption-column."
            )


def column_texts(table: Any, name: str, source: str) -> list[str]:
    """A column as text, none of it missing."""
    import pyarrow as pa

    texts: list[str | None] = table.column(name).cast(pa.string()).to_pylist()
    refuse_missing([text is None or not text.strip() for text in texts], name, source)
    return [text for text in texts if text is not None]


def refuse_missing(is_missing: Sequence[bool] | np.ndarray, column: str, source: str) -> None:
    """Refuse a column with holes.

    Raises:
        UserError: naming the first row, counted from 1, and how many there are.
    """
    rows = np.flatnonzero(np.asarray(is_missing))
    if len(rows):
        raise UserError(
            f"{source} row {rows[0] + 1}: no {column} ({len(rows)} of {len(is_missing)} rows). Fill in or remove them."
        )


def _refuse_repeated(paths: list[str], source: str) -> None:
    times = Counter(paths)
    if len(times) == len(paths):
        return
    repeated = [path for path in times if times[path] > 1]
    rows = [str(row) for row, path in enumerate(paths, 1) if path == repeated[0]]
    raise UserError(
        f"{source} row {rows[1]}: {repeated[0]} is in row {rows[0]} already ({len(repeated)} paths come twice). "
        "Keep one row for each picture."
    )


def table_labels(table: Any, name: str, classes: Classes, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of a column, int64 ``[rows]``, and the class names: integers as they are, text numbered by name."""
    import pyarrow as pa

    column = table.column(name)
    if pa.types.is_integer(column.type):
        refuse_missing(column.is_null().to_numpy(), name, source)
        labels = column.to_numpy().astype(np.int64)
        return labels, _names_of_numbers(labels, classes, source)
    if pa.types.is_floating(column.type) or pa.types.is_null(column.type):
        raise UserError(f"{source}: column {name!r} holds {column.type}, not class numbers or names.")
    texts = column_texts(table, name, source)
    unique = sorted(set(texts))
    numbers, classnames = number_classes(unique, classes, source)
    places = dict(zip(unique, numbers.tolist(), strict=True))
    return np.array([places[text] for text in texts], dtype=np.int64), classnames


def _names_of_numbers(labels: np.ndarray, classes: Classes, source: str) -> tuple[str, ...]:
    refuse_negative(labels, source)
    largest = int(labels.max(initial=-1))
    names = classes.names or tuple(map(str, range(largest + 1)))
    if largest >= len(names):
        raise UserError(
            f"{source} row {int(labels.argmax()) + 1}: label {largest}, but {classes.file} has {len(names)} names "
            f"(0 to {len(names) - 1})."
        )
    return names


def refuse_negative(labels: np.ndarray, source: str) -> None:
    """Refuse labels such as -1, which means that there is none."""
    rows = np.flatnonzero(labels < 0)
    if len(rows):
        raise UserError(
            f"{source} row {rows[0] + 1}: label {labels[rows[0]]} is no class number "
            f"({len(rows)} of {len(labels)} rows). Pack a split that has labels."
        )


def number_classes(found: Sequence[str], classes: Classes, source: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Numbers for the class names of a source.

    Names that are all in the class list have their place there. A list that was given for this source may otherwise
    name the sorted ones anew, one for each.

    Args:
        found: Sorted names, each once.
        classes: The class list so far.
        source: What errors call the source.

    Returns:
        int64 ``[found]``, and the class list.

    Raises:
        UserError: if the list fits neither way.
    """
    names = classes.names
    if names is None:
        return np.arange(len(found)), tuple(found)
    strange = [name for name in found if name not in names]
    if not strange:
        return np.array([names.index(name) for name in found], dtype=np.int64), names
    if not classes.is_given:
        raise UserError(f"{source}: class {strange[0]!r} is not in {classes.file}. Pack into another folder.")
    if len(names) != len(found):
        raise UserError(
            f"{classes.file}: has {len(names)} names for the {len(found)} classes of {source}, "
            f"and {strange[0]!r} is none of them. Give one line for each class."
        )
    for place, name in enumerate(found):
        if name in names and names[place] != name:
            raise UserError(
                f"{classes.file}: line {place + 1} should name the class {name!r} of {source}, but says "
                f"{names[place]!r}. Put the names in the order of the sorted classes."
            )
    return np.arange(len(found)), names


def local_source(source: str) -> str:
    """The path of a source on this machine.

    Raises:
        UserError: if it is a URL or does not exist.
    """
    if storage.is_remote(source):
        raise UserError(f"{source}: samples are packed from a local folder or table; copy it here first.")
    path = storage.absolute(source)
    if not Path(path).exists():
        raise UserError(f"{source}: does not exist.")
    return path
