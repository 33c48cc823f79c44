"""Writing to local paths and object stores; nothing half-written is ever seen under its final name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.pool import ThreadPool
from pathlib import Path

from wiseft_dist.errors import RunError, UserError
from wiseft_dist.progress import BYTES, progress_bar
from wiseft_dist.storage.faults import persist
from wiseft_dist.storage.objects import stat
from wiseft_dist.storage.stores import open_store
from wiseft_dist.storage.urls import is_remote, join, local_path, refuse_credentials

UPLOAD_PART = 8 * 2**20
"""Bytes of one part of a multipart upload; a smaller file goes up in one request."""
FILES_AT_A_TIME = 4
PARTS_AT_A_TIME = 4


def write_bytes(url: str, data: bytes) -> None:
    """Write a whole object; readers see the old one or the new one.

    Raises:
        UserError: if it cannot be written there.
        RunError: if the store fails for good.
    """
    if is_remote(url):
        _put(url, data, len(data))
        return
    with replacing(local_path(url), url) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)


def write_text(url: str, text: str) -> None:
    """Write UTF-8 text; see :func:`write_bytes`."""
    write_bytes(url, text.encode("utf-8"))


@contextmanager
def replacing(path: Path, name: str) -> Iterator[Path]:
    """A file beside ``path`` to write to, which becomes ``path`` when the block ends without an error.

    Raises:
        UserError: if it cannot be written, by the ``name`` that the user knows the file by.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(f"{name}: cannot be written: {error.strerror}.") from error
    finally:
        partial.unlink(missing_ok=True)


def refuse_as_target(url: str) -> None:
    """Refuse a place that nothing can be uploaded to; worth asking before any work is done for it.

    Raises:
        UserError: if the URL carries credentials or is a web server's.
    """
    refuse_credentials(url)
    if url.startswith("http"):
        raise UserError(
            f"{url}: cannot be written: a web server takes no uploads. Name a bucket (s3, gs or az) or a folder."
        )


def upload_folder(folder: Path, url: str, *, last: str) -> None:
    """Copy every file under a folder to a store, or to another folder, and check that each has its size there.

    Args:
        folder: The local folder; folders inside it keep their names.
        url: Where it goes.
        last: A file of the folder, written when all others are there: whoever finds it finds all.

    Raises:
        UserError: if ``last`` is not in the folder, or the place cannot be written.
        RunError: if the store fails for good, or holds another size than was sent.
    """
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    if last not in names:
        raise UserError(f"{folder}: {last}, which is to be uploaded last, is not there.")
    others = [name for name in names if name != last]
    sizes = {name: (folder / name).stat().st_size for name in names}
    with progress_bar(f"uploading {folder.name}", total=sum(sizes.values()), unit=BYTES) as bar:
        if others:
            with ThreadPool(min(FILES_AT_A_TIME, len(others))) as pool:
                copied = pool.imap(lambda name: _copy(folder / name, join(url, name)), others)
                for name, _ in zip(others, copied, strict=True):
                    bar.advance(sizes[name])
        _copy(folder / last, join(url, last))


def _copy(path: Path, url: str) -> None:
    if is_remote(url):
        _put(url, path, path.stat().st_size)
        return
    with replacing(local_path(url), url) as partial:
        partial.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, partial)


def _put(url: str, data: bytes | Path, num_bytes: int) -> None:
    """Upload, in parts where it is large, and ask the store what it has."""
    import obstore

    refuse_as_target(url)
    store, name = open_store(url)
    # A part that fails fails its upload, which then starts again: stores show no half of one.
    persist(
        url,
        lambda: obstore.put(store, name, data, chunk_size=UPLOAD_PART, max_concurrency=PARTS_AT_A_TIME),
        verb="written",
    )
    there = stat(url)
    if there is None or there.num_bytes != num_bytes:
        size = "nothing" if there is None else f"{there.num_bytes:,} bytes"
        raise RunError(f"{url}: {num_bytes:,} bytes were uploaded, but the store has {size}. Upload it again.")
