"""What is known about an object without reading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wiseft_dist.errors import UserError
from wiseft_dist.storage.faults import ReplacedError, persist
from wiseft_dist.storage.stores import open_store
from wiseft_dist.storage.urls import is_remote, local_path

BY_TIME = "modified "
"""Start of a version that is a time, for servers without ETags."""


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing saw it."""

    url: str
    num_bytes: int
    version: str
    """The ETag without quotes, else the time of the last change; a local file's change in nanoseconds."""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rsplit("/", 1)[-1]


def stat(url: str) -> StoredObject | None:
    """Size and version of an object; None if it is not there.

    Raises:
        UserError: if the store does not let one look.
        RunError: if the store does not answer.
    """
    if not is_remote(url):
        return _stat_local(url)
    import obstore

    store, name = open_store(url)
    try:
        meta = persist(url, lambda: obstore.head(store, name))
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise
    return describe(url, meta)


def exists(url: str) -> bool:
    """Whether the object, or the local file or folder, is there; raises what :func:`stat` raises."""
    return stat(url) is not None if is_remote(url) else local_path(url).exists()


def existing(url: str) -> StoredObject:
    """Size and version of an object that has to be there.

    Raises:
        UserError: if it is not.
    """
    found = stat(url)
    if found is None:
        raise UserError(f"{url}: cannot be read: not found.")
    return found


def describe(url: str, meta: Mapping[str, Any]) -> StoredObject:
    """An ``ObjectMeta`` of obstore in our terms."""
    if meta["e_tag"]:
        version = meta["e_tag"].replace('"', "")
    else:
        changed = meta["last_modified"]
        version = BY_TIME + changed.isoformat() if changed.timestamp() > 0 else ""
    return StoredObject(url, meta["size"], version)


def strong_etag(version: str) -> str | None:
    """The version as a value of ``If-Match``; None for times and weak ETags, which that header cannot compare."""
    return None if not version or version.startswith((BY_TIME, "W/")) else f'"{version}"'


def check_same(expected: StoredObject, meta: Mapping[str, Any]) -> None:
    """Compare what a store sends with what was listed, as far as the store says.

    Raises:
        ReplacedError: naming the difference.
    """
    actual = describe(expected.url, meta)
    if actual.num_bytes != expected.num_bytes:
        raise ReplacedError(f"it has {actual.num_bytes:,} bytes and had {expected.num_bytes:,}")
    comparable = actual.version.startswith(BY_TIME) == expected.version.startswith(BY_TIME)
    if actual.version and expected.version and comparable and actual.version != expected.version:
        raise ReplacedError(f"its version is {actual.version} and was {expected.version}")


def _stat_local(url: str) -> StoredObject | None:
    try:
        status = local_path(url).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{url}: cannot be read: {error.strerror}.") from error
    return StoredObject(url, status.st_size, str(status.st_mtime_ns))
