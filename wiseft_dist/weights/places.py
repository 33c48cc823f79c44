"""Where the files of a model lie: on disk, in a bucket, or on a web server; all are read by position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO, TypeAlias

from wiseft_dist import storage
from wiseft_dist.errors import UserError
from wiseft_dist.storage import StoredObject

File: TypeAlias = Path | StoredObject
"""A local file, or a remote object as it was when it was found. Either has a ``name``, and ``str`` says where it is."""
SUFFIXES = (".safetensors", ".safetensors.index.json", ".pt", ".pth", ".bin", ".ckpt")
"""By which files are told from folders on web servers."""
LOOKING_THREADS = 16
"""Files asked for at a time where nothing can be listed."""


def open_file(file: File) -> AbstractContextManager[BinaryIO]:
    """A seekable reader for headers and directories; of a remote file only what is looked at is fetched."""
    return file.open("rb") if isinstance(file, Path) else storage.open_ranged(file)


def size_of(file: File) -> int:
    """Size in bytes."""
    return file.stat().st_size if isinstance(file, Path) else file.num_bytes


def read_bytes(file: File, start: int = 0, count: int | None = None) -> bytes:
    """``count`` bytes from ``start`` on, or all; fewer where the file ends."""
    stop = size_of(file) if count is None else min(start + count, size_of(file))
    if isinstance(file, Path):
        with file.open("rb") as handle:
            handle.seek(start)
            return handle.read(max(0, stop - start))
    content = bytearray(max(0, stop - start))
    storage.read_range(file, min(start, stop), memoryview(content))
    return bytes(content)


def read_text(file: File) -> str:
    """A small file as UTF-8 text, with a mark for what is none."""
    return read_bytes(file).decode("utf-8", errors="replace")


def fingerprint(file: File) -> dict[str, int | str]:
    """What tells a file from one that was changed, without reading it."""
    if isinstance(file, Path):
        status = file.stat()
        return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
    return {"bytes": file.num_bytes, "version": file.version}


def find_file(source: str) -> File | None:
    """The file of that path or URL, if it is one. On a web server, which answers for folders too, by its suffix.

    Raises:
        UserError: if a store does not let one look.
        RunError: if it does not answer.
    """
    if not storage.is_remote(source):
        path = storage.local_path(source)
        return path if path.is_file() else None
    if source.endswith("/") or (source.startswith("http") and not is_named_like_file(source)):
        return None
    return storage.stat(source)


def is_named_like_file(url: str) -> bool:
    """Whether a URL ends as files of weights do."""
    return url.endswith(SUFFIXES)


def open_folder(source: str | Path) -> Folder:
    """The folder of that path or URL, whether or not it is there."""
    source = str(source)
    if not storage.is_remote(source):
        return _LocalFolder(str(storage.local_path(source)))
    return (_WebFolder if source.startswith("http") else _BucketFolder)(source.rstrip("/"))


class Folder(ABC):
    """Files by their names in a folder; ``str`` says where it is."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __str__(self) -> str:
        return self.url

    @abstractmethod
    def names(self) -> list[str] | None:
        """The names of the files right in it, sorted; None where that cannot be found out."""

    @abstractmethod
    def look_up(self, names: Iterable[str]) -> dict[str, File]:
        """Those files of these names that are there; a name may have slashes."""

    def file(self, name: str) -> File | None:
        """The file of that name, if it is there."""
        return self.look_up([name]).get(name)

    def needed(self, name: str) -> File:
        """The file of that name.

        Raises:
            UserError: if it is not there.
        """
        found = self.file(name)
        if found is None:
            raise UserError(f"{storage.join(self.url, name)}: this file of the checkpoint is missing.")
        return found

    def folder(self, name: str) -> Folder:
        """A folder in it."""
        return type(self)(storage.join(self.url, name))


class _LocalFolder(Folder):
    def names(self) -> list[str]:
        folder = Path(self.url)
        return sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []

    def look_up(self, names: Iterable[str]) -> dict[str, File]:
        return {name: path for name in names if (path := Path(self.url) / name).is_file()}


class _BucketFolder(Folder):
    @cached_property
    def _direct(self) -> dict[str, StoredObject]:
        return {stored.name: stored for stored in storage.list_folder(self.url)}

    @cached_property
    def _all(self) -> dict[str, StoredObject]:
        return {stored.url.removeprefix(f"{self.url}/"): stored for stored in storage.list_tree(self.url)}

    def names(self) -> list[str]:
        return sorted(self._direct)

    def look_up(self, names: Iterable[str]) -> dict[str, File]:
        return {
            name: found
            for name in names
            if (found := (self._all if "/" in name else self._direct).get(name)) is not None
        }


class _WebFolder(Folder):
    def names(self) -> None:
        return None

    def look_up(self, names: Iterable[str]) -> dict[str, File]:
        names = list(names)
        if not names:
            return {}
        with ThreadPool(min(LOOKING_THREADS, len(names))) as pool:
            found = pool.map(storage.stat, [storage.join(self.url, name) for name in names])
        return {name: stored for name, stored in zip(names, found, strict=True) if stored is not None}
