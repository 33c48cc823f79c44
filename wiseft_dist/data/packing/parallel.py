"""``wiseft shards pack``: from labelled pictures to shards, by several processes, resumable at any point."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from wiseft_dist import storage
from wiseft_dist.commits import write_atomically
from wiseft_dist.data.locks import locked
from wiseft_dist.data.pack import (
    CLASSNAMES_FILE,
    COUNT_FILE,
    SIZES_FILE,
    TEMPLATES_FILE,
    EncodedSample,
    write_shard,
)
from wiseft_dist.data.packing.huggingface import find_splits, list_dataset
from wiseft_dist.data.packing.plan import Layout, ShardPlan, image_format, make_plan, record_plan
from wiseft_dist.data.packing.sources import Classes, Columns, Listing, list_files, local_source
from wiseft_dist.data.vocabulary import read_lines, read_templates
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.progress import progress_bar

DEFAULT_TEMPLATE = "a photo of a {c}."
DEFAULT_SPLIT = "train"
LOCK_FILE = ".pack.lock"
UNPACKED_FOLDER = ".pack-unpacked"


@dataclass(frozen=True)
class PackSettings:
    """What is packed where, and how."""

    source: str
    output: str
    split: str | None = None
    """None: every split of a ``datasets`` folder, else ``train``."""
    layout: Layout = field(default_factory=Layout)
    columns: Columns = field(default_factory=Columns)
    classnames: str | None = None
    templates: str | None = None
    root: str | None = None
    workers: int | None = None
    """Processes; None for one on each core."""


@dataclass(frozen=True)
class Packed:
    """What a split holds now."""

    folder: Path
    num_samples: int
    num_classes: int
    num_shards: int
    num_bytes: int
    num_written: int
    """Shards written by this call; the others were there."""
    notes: tuple[str, ...]


def pack(settings: PackSettings) -> list[Packed]:
    """Write the splits of a source as shards; run again, it goes on where it was interrupted.

    Raises:
        UserError: if the source cannot be packed, or the output belongs to another one.
        RunError: if a picture changes or a process dies under way.
    """
    if storage.is_remote(settings.output):
        raise UserError(
            f"{settings.output}: `wiseft shards pack` writes to a local folder; copy it with your store's tool."
        )
    source, output = Path(local_source(settings.source)), Path(storage.absolute(settings.output))
    splits = find_splits(source) if source.is_dir() else None
    if splits is None or set(splits) == {None}:
        return [_pack_split(settings, source, output / (settings.split or DEFAULT_SPLIT), (splits or {}).get(None))]
    wanted = list(splits) if settings.split is None else [settings.split]
    if settings.split is not None and settings.split not in splits:
        raise UserError(f"{source}: has no split {settings.split!r}, only {', '.join(map(str, splits))}.")
    return [_pack_split(settings, source, output / str(split), splits[split]) for split in wanted]


def _pack_split(settings: PackSettings, source: Path, folder: Path, files: list[Path] | None) -> Packed:
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK_FILE):
        classes = _classes(settings, folder.parent)
        if files is None:
            listing = list_files(str(source), columns=settings.columns, classes=classes, root=settings.root)
        else:
            scratch = folder / UNPACKED_FOLDER
            listing = list_dataset(source, files, columns=settings.columns, classes=classes, scratch=scratch)
        if not listing.num_samples:
            raise UserError(f"{source}: holds no samples.")
        plans = make_plan(listing, settings.layout)
        record_plan(plans, folder, _described(settings))
        note = _settle_vocabulary(settings, folder.parent, listing)
        _remove_leftovers(folder)
        written = _write_missing(plans, folder, settings.workers)
        _finish(plans, folder)
    return Packed(
        folder,
        listing.num_samples,
        len(listing.classnames),
        len(plans),
        sum(plan.num_bytes for plan in plans),
        written,
        listing.notes + note,
    )


def _described(settings: PackSettings) -> dict[str, object]:
    layout = settings.layout
    return {"source": settings.source, "seed": layout.seed, "samples_per_shard": layout.samples_per_shard,
            "bytes_per_shard": layout.bytes_per_shard}  # fmt: skip


def _classes(settings: PackSettings, output: Path) -> Classes:
    """The list that was given, else the one that an earlier split left in the output folder."""
    file = settings.classnames or str(output / CLASSNAMES_FILE)
    if settings.classnames is None and not Path(file).exists():
        return Classes()
    return Classes(read_lines(file), file, is_given=settings.classnames is not None)


def _settle_vocabulary(settings: PackSettings, output: Path, listing: Listing) -> tuple[str, ...]:
    """Write class names and templates, which all splits share; says where templates were made up."""
    _write_same(output / CLASSNAMES_FILE, listing.classnames)
    if settings.templates is not None:
        _write_same(output / TEMPLATES_FILE, read_templates(settings.templates, settings.templates))
    elif not (output / TEMPLATES_FILE).exists():
        _write_same(output / TEMPLATES_FILE, (DEFAULT_TEMPLATE,))
        return (f"{TEMPLATES_FILE} holds the single template {DEFAULT_TEMPLATE!r}; give others by --templates",)
    return ()


def _write_same(path: Path, lines: tuple[str, ...]) -> None:
    if not path.exists():
        write_atomically(path, "\n".join(lines))
    elif read_lines(str(path)) != lines:
        raise UserError(f"{path}: holds other lines than this source and these options give. Pack into another folder.")


def _remove_leftovers(folder: Path) -> None:
    """Shards that an interrupted run had not finished."""
    for path in folder.glob(".*.tar.*"):
        path.unlink()


def _write_missing(plans: list[ShardPlan], folder: Path, workers: int | None) -> int:
    todo = [plan for plan in plans if not plan.is_whole(folder)]
    with progress_bar("packing", total=len(todo), unit="shards") as bar:
        for _ in _written(todo, folder, min(workers or len(os.sched_getaffinity(0)), len(todo))):
            bar.advance()
    return len(todo)


def _written(todo: list[ShardPlan], folder: Path, workers: int) -> Iterator[str]:
    """Names of shards as they are written."""
    if workers <= 1:
        yield from map(partial(_write, folder=folder), todo)
        return
    with _pool(workers) as pool:
        try:
            for done in as_completed([pool.submit(_write, plan, folder) for plan in todo]):
                yield done.result()
        except BrokenProcessPool as error:
            raise RunError(f"{folder}: a packing process died (out of memory?). Run the same command again.") from error


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _write(plan: ShardPlan, folder: Path) -> str:
    write_shard(_samples(plan), folder / plan.name, first_key=plan.first_key)
    return plan.name


def _samples(plan: ShardPlan) -> Iterator[EncodedSample]:
    for entry in plan.entries:
        try:
            data = plan.pictures.read(entry.name)
        except OSError as error:
            raise RunError(f"{plan.pictures.where(entry.name)}: cannot be read: {error.strerror or error}.") from error
        if len(data) != entry.size or image_format(data[:16]) != entry.image_format:
            raise RunError(f"{plan.pictures.where(entry.name)}: has changed while it was being packed.")
        yield EncodedSample(data, entry.image_format, entry.label, entry.caption)


def _finish(plans: list[ShardPlan], folder: Path) -> None:
    """Write the counts, the number of shards last: with it the split is complete."""
    write_atomically(folder / SIZES_FILE, json.dumps({plan.name: len(plan.entries) for plan in plans}, indent=1))
    write_atomically(folder / COUNT_FILE, str(len(plans)))
    shutil.rmtree(folder / UNPACKED_FOLDER, ignore_errors=True)
