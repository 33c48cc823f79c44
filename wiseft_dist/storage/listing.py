"""Finding shards: folders, globs and brace ranges, on disk, in buckets and on web servers."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections import defaultdict
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import braceexpand

from wiseft_dist.errors import UserError
from wiseft_dist.progress import progress_bar
from wiseft_dist.storage.faults import is_forbidden, persist
from wiseft_dist.storage.objects import StoredObject, describe, stat
from wiseft_dist.storage.reading import read_text
from wiseft_dist.storage.stores import open_store
from wiseft_dist.storage.urls import absolute, is_remote, join, parent, refuse_credentials, without_secrets

LOOKING_THREADS = 16
"""Objects looked up at a time where nothing can be listed: on web servers, and on slow file systems."""
NAMED_IN_MESSAGES = 3


def list_shards(pattern: str) -> list[StoredObject]:
    """The shards behind a folder, a glob or a brace range, in numeric order, each known to be there.

    A folder means its ``*.tar``. A bucket's folder is listed once, however many shards are named in it. A folder on a
    web server, which cannot be listed, is read by its ``nshards.txt``, and every shard of it is asked for.

    Raises:
        UserError: if nothing is there, or named shards are missing: the first few, and how many.
        RunError: if a store does not answer.
    """
    named, found = _resolve(pattern)
    found += _look_up(named)
    return _in_order(pattern, {shard.url: shard for shard in found})


def expand_shards(pattern: str) -> list[str]:
    """The URLs of :func:`list_shards`; remote shards that are named one by one are not asked for.

    Raises:
        UserError: if nothing is there, or a named local shard is missing.
    """
    named, found = _resolve(pattern)
    found += _look_up([url for url in named if not is_remote(url)])
    return _in_order(pattern, {url: url for url in (*(shard.url for shard in found), *filter(is_remote, named))})


def list_folder(folder: str, *, suffix: str = "") -> list[StoredObject]:
    """The objects right in a folder of a bucket, without those in folders inside it.

    Raises:
        UserError: if the store does not let one look.
        RunError: if the store does not answer.
    """
    import obstore

    folder = folder.rstrip("/")
    store, prefix = open_store(f"{folder}/")
    with progress_bar(f"listing {folder}"):
        listing = persist(folder, lambda: obstore.list_with_delimiter(store, prefix=prefix or None)["objects"])
    return _described(folder, (meta for meta in listing if meta["path"].endswith(suffix)))


def list_tree(folder: str) -> list[StoredObject]:
    """Every object under a folder of a bucket; raises what :func:`list_folder` raises."""
    import obstore

    store, prefix = open_store(f"{folder}/")
    with progress_bar(f"listing {folder}"):
        return _described(folder, persist(folder, lambda: obstore.list(store, prefix=prefix or None).collect()))


def _in_order(pattern: str, shards: dict[str, Any]) -> list[Any]:
    if not shards:
        raise UserError(f"{without_secrets(pattern)}: no shard (*.tar) there.")
    return [shards[url] for url in sorted(shards, key=_numeric_order)]


def _numeric_order(url: str) -> list[tuple[int, int | str]]:
    """Sort key that puts ``10.tar`` behind ``9.tar``."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", url)]


def _resolve(pattern: str) -> tuple[list[str], list[StoredObject]]:
    """The shards that the pattern names, not looked up yet, and those that a listing found."""
    refuse_credentials(pattern)
    named: list[str] = []
    found: list[StoredObject] = []
    try:
        items = list(dict.fromkeys(braceexpand.braceexpand(absolute(pattern))))
    except ValueError:
        raise UserError(f"{pattern}: this brace range has no end. Write it as {{0000..0146}}.tar.") from None
    for item in items:
        if item.endswith(".tar") and not glob.has_magic(item):
            named.append(item)
        elif is_remote(item) and item.startswith("http"):
            named += _web_folder(item)
        elif is_remote(item):
            found += _matching(item) if glob.has_magic(item) else list_folder(item, suffix=".tar")
        elif Path(item).is_dir() or glob.has_magic(item):
            paths = glob.glob(item) if glob.has_magic(item) else Path(item).glob("*.tar")  # noqa: PTH207 - whole path
            named += map(str, paths)
        else:
            named.append(item)
    return named, found


def _web_folder(folder: str) -> list[str]:
    if glob.has_magic(folder):
        raise UserError(
            f"{folder}: a web server has no listing to match this with. Write a brace range ({{0000..0146}}.tar), "
            "or name a folder with nshards.txt in it."
        )
    url = join(folder, "nshards.txt")
    count = read_text(url).strip()
    if not count.isdecimal():
        raise UserError(f"{url}: holds {count[:20]!r}, not the number of shards.")
    return [join(folder, f"{index}.tar") for index in range(int(count))]


def _matching(pattern: str) -> list[StoredObject]:
    """Objects that match a glob part by part: ``*`` does not cross a slash."""
    parts = pattern.split("/")
    depth = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    if depth < 3:
        raise UserError(f"{pattern}: the name of a bucket cannot be a glob.")
    folder, wanted = "/".join(parts[:depth]), parts[depth:]
    # One level is listed as such; a glob over folders needs everything under the first.
    objects = list_folder(folder) if len(wanted) == 1 else list_tree(folder)
    return [each for each in objects if _matches(each.url.split("/")[depth:], wanted)]


def _matches(names: list[str], wanted: list[str]) -> bool:
    return len(names) == len(wanted) and all(map(fnmatch.fnmatchcase, names, wanted))


def _described(folder: str, listing: Iterable[Any]) -> list[StoredObject]:
    bucket = "/".join(folder.split("/")[:3])
    return [describe(f"{bucket}/{meta['path']}", meta) for meta in listing]


def _look_up(urls: list[str]) -> list[StoredObject]:
    """Size and version of named shards: a listing of each folder of a bucket, one by one elsewhere."""
    folders: dict[str, list[str]] = defaultdict(list)
    one_by_one: list[str] = []
    for url in urls:
        if is_remote(url) and not url.startswith("http"):
            folders[parent(url)].append(url)
        else:
            one_by_one.append(url)
    known: dict[str, StoredObject | None] = {}
    for folder, named in folders.items():
        try:
            known |= {shard.url: shard for shard in list_folder(folder, suffix=".tar")}
        except UserError as error:
            if not is_forbidden(error.__cause__):
                raise
            one_by_one += named  # many a public bucket may be read but not listed
    if one_by_one:
        known |= _ask(one_by_one)
    return _pick(urls, known)


def _ask(urls: list[str]) -> dict[str, StoredObject | None]:
    """Each by itself."""
    bar_of_shards = progress_bar("looking for shards", total=len(urls), unit="shards")
    with bar_of_shards as bar, ThreadPool(min(LOOKING_THREADS, len(urls))) as pool:
        found = {}
        for url, stored in zip(urls, pool.imap(stat, urls), strict=True):
            found[url] = stored
            bar.advance()
    return found


def _pick(urls: list[str], known: dict[str, StoredObject | None]) -> list[StoredObject]:
    missing = sorted((url for url in urls if known.get(url) is None), key=_numeric_order)
    if len(missing) > 1:
        first = ", ".join(url.rsplit("/", 1)[-1] for url in missing[:NAMED_IN_MESSAGES])
        more = ", ..." if len(missing) > NAMED_IN_MESSAGES else ""
        count = f"{len(missing):,} of {len(urls):,} are missing ({first}{more})"
        raise UserError(f"{missing[0]}: this shard does not exist; {count}.")
    if missing:
        raise UserError(f"{missing[0]}: this shard does not exist.")
    return [shard for url in urls if (shard := known[url]) is not None]
