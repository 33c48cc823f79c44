"""One door to bytes: local paths and ``file://`` by the operating system; s3, gs, az and http(s) by obstore."""

from __future__ import annotations

import glob
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import braceexpand

from wiseft_dist.errors import UserError

REMOTE_SCHEMES = ("s3://", "gs://", "az://", "http://", "https://")
READ_BUFFER = 4 * 2**20
"""Bytes a remote reader fetches ahead."""


def is_remote(url: str) -> bool:
    """Whether the URL lives in an object store or on a web server."""
    return url.startswith(REMOTE_SCHEMES)


def absolute(url: str) -> str:
    """The URL in a form that does not depend on the working directory."""
    if is_remote(url) or url.startswith("hf-hub:"):
        return url
    return str(Path(url.removeprefix("file://")).expanduser().absolute())


def join(folder: str, name: str) -> str:
    """A name inside a folder of any kind."""
    return f"{folder.rstrip('/')}/{name}"


def parent(url: str) -> str:
    """The folder that holds the URL."""
    return url.rstrip("/").rsplit("/", 1)[0]


def expand_shards(pattern: str) -> list[str]:
    """The shard URLs behind a folder, a glob or a brace range, in numeric order.

    A folder means its ``*.tar``; a folder on a web server, which cannot be listed, is read by its ``nshards.txt``.

    Raises:
        UserError: if nothing is there, or a named local shard is missing.
    """
    urls: list[str] = []
    try:
        items = list(braceexpand.braceexpand(absolute(pattern)))
    except ValueError:
        raise UserError(f"{pattern}: this brace range has no end. Write it as {{0000..0146}}.tar.") from None
    for item in items:
        urls += _expand_remote(item) if is_remote(item) else _expand_local(item)
    if not urls:
        raise UserError(f"{pattern}: no shard (*.tar) there.")
    return sorted(urls, key=_numeric_order)


def _expand_local(item: str) -> list[str]:
    path = Path(item)
    if path.is_dir():
        return [str(shard) for shard in path.glob("*.tar")]
    if glob.has_magic(item):
        return glob.glob(item)  # noqa: PTH207 - a whole path, not a pattern inside a folder
    if not path.is_file():
        raise UserError(f"{item}: this shard does not exist.")
    return [item]


def _expand_remote(item: str) -> list[str]:
    if item.endswith(".tar") and not glob.has_magic(item):
        return [item]
    if glob.has_magic(item):
        raise UserError(f"{item}: globs are not expanded on a remote store: name a folder or a brace range.")
    if item.startswith("http"):
        count = read_text(join(item, "nshards.txt")).strip()
        if not count.isdigit():
            raise UserError(f"{join(item, 'nshards.txt')}: holds {count[:20]!r}, not the number of shards.")
        return [join(item, f"{index}.tar") for index in range(int(count))]
    return [join(item, name) for name in _list_remote(item) if name.endswith(".tar")]


def _list_remote(folder: str) -> list[str]:
    """Names of the objects in a folder of a bucket, without those in folders inside it."""
    import obstore

    store, prefix = _store(join(folder, ""))
    try:
        listing = obstore.list_with_delimiter(store, prefix=prefix or None)
    except Exception as error:  # obstore's errors share no public base class
        raise UserError(f"{folder}: cannot be listed: {_reason(error)}.") from error
    return [meta["path"].rsplit("/", 1)[-1] for meta in listing["objects"]]


def _numeric_order(url: str) -> list[tuple[int, int | str]]:
    """Sort key that puts ``10.tar`` behind ``9.tar``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", url)]


@contextmanager
def open_bytes(url: str) -> Iterator[IO[bytes]]:
    """A seekable reader of the object.

    Raises:
        UserError: if it cannot be opened, naming the URL and the reason.
    """
    if not is_remote(url):
        try:
            handle: IO[bytes] = Path(url.removeprefix("file://")).open("rb")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{url}: cannot be read: {error.strerror}.") from error
        with handle:
            yield handle
        return
    import obstore

    store, name = _store(url)
    try:
        reader = obstore.open_reader(store, name, buffer_size=READ_BUFFER)
    except Exception as error:  # obstore's errors share no public base class
        raise UserError(f"{url}: cannot be read: {_reason(error)}.") from error
    yield cast(IO[bytes], _RemoteFile(url, reader))


def read_bytes(url: str) -> bytes:
    """The whole object."""
    with open_bytes(url) as handle:
        return handle.read()


def read_text(url: str) -> str:
    """The whole object as UTF-8 text."""
    return read_bytes(url).decode("utf-8")


def exists(url: str) -> bool:
    """Whether the object can be opened."""
    if not is_remote(url):
        return Path(url.removeprefix("file://")).exists()
    try:
        with open_bytes(url):
            return True
    except UserError:
        return False


class _RemoteFile:
    """obstore's reader with the plain ``bytes`` results that tarfile expects, and errors that name the URL."""

    def __init__(self, url: str, reader: Any) -> None:
        self._url, self._reader = url, reader

    def read(self, size: int = -1) -> bytes:
        try:
            return bytes(self._reader.read(None if size is None or size < 0 else size))
        except Exception as error:  # obstore's errors share no public base class
            raise UserError(f"{self._url}: cannot be read: {_reason(error)}.") from error

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


def _store(url: str) -> tuple[Any, str]:
    """The store of a URL and the object's name in it; credentials come from the environment."""
    import obstore.store

    scheme, rest = url.split("://", 1)
    host, _, name = rest.partition("/")
    options: dict[str, Any] = {"client_options": {"allow_http": True}} if scheme == "http" else {}
    return obstore.store.from_url(f"{scheme}://{host}", **options), name


def _reason(error: Exception) -> str:
    """The first line of an obstore error, without its debug dump."""
    return str(error).strip().split("\n")[0].rstrip(".: ") or type(error).__name__


def fork_is_safe() -> bool:
    """Whether a forked child could still read remote objects: the threads of a used obstore stay with the parent."""
    return "obstore" not in sys.modules
