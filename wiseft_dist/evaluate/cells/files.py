"""The files of a cell: one Parquet file for each part that was scored, committed by its rename.

A file holds one row a sample. Its footer says which positions it stands for, what was skipped and which cell it belongs
to; a file that is cut, or whose footer does not fit its name, does not exist for a reader.
"""

from __future__ import annotations

import io
import json
import re
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wiseft_dist.commits import sync
from wiseft_dist.data.receipt import BadSample
from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.cells.parts import Part
from wiseft_dist.evaluate.predictions import NUM_TOP, FeatureMoments, Predictions

if TYPE_CHECKING:
    import pyarrow

FILE_NAME = re.compile(r"part-(\d{8,})-(\d{8,})\.parquet")
COLUMNS = {
    "classes": "class",
    "top5": "top5",
    "confidences": "confidence",
    "margins": "margin",
    "log_probs": "log_prob",
    "briers": "brier",
    "divergences": "divergence",
}
"""What a cell keeps of each sample beside its identity: the field of :class:`Predictions`, and the column."""
METADATA = "metadata."
"""Begins the names of a dataset's own columns."""
FEATURES = "feature_moments"
"""Column with the sums over the part's features in its first row."""
LEFT_BEHIND_SECONDS = 3600
"""A file that is being written is renamed long before; older ones are of writers that were killed."""


@dataclass(frozen=True)
class PartFile:
    """A committed file."""

    path: Path
    start: int
    stop: int
    bad: tuple[BadSample, ...]
    """Positions of the part that have no row."""
    metadata: tuple[str, ...]
    """The dataset's own columns."""
    has_features: bool


def write_part_file(
    folder: Path, part: Part, predictions: Predictions, index: int, *, key: str, with_features: bool
) -> Path:
    """Commit what the ``index``-th ensemble said about a part.

    Args:
        folder: The cell's.
        part: Which positions the predictions are of.
        predictions: Of all ensembles.
        index: Of this one.
        key: The cell's content key.
        with_features: Keep the sums over features too.

    Raises:
        RunError: if the predictions are not those of every position of the part.
    """
    import pyarrow.parquet

    _refuse_other_positions(part, predictions)
    table = _table(predictions, index, with_features=with_features and len(predictions) > 0)
    record = {"start": part.start, "stop": part.stop, "key": key, "bad": [asdict(entry) for entry in predictions.bad]}
    table = table.replace_schema_metadata({"wiseft": json.dumps(record)})
    path = folder / f"part-{part.start:08d}-{part.stop:08d}.parquet"
    aside = folder / f".{path.name}.{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        pyarrow.parquet.write_table(
            table, aside, compression="zstd", use_dictionary=False, write_statistics=False, write_page_checksum=True
        )
        sync(aside)
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(folder)
    _remove_left_behind(folder)
    return path


def part_files(folder: Path, key: str) -> list[PartFile]:
    """The committed files of a cell, by rising start; of those that start together the longest first."""
    found = []
    for path in folder.glob("part-*.parquet"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        file = _read_footer(path, key, status.st_size, status.st_mtime_ns)
        if file is not None:
            found.append(file)
    return sorted(found, key=lambda file: (file.start, -file.stop))


def cover(files: Sequence[PartFile], start: int, stop: int) -> list[tuple[PartFile, int]] | None:
    """Files that hold every position of ``[start, stop)``, each with the first position that is taken from it.

    Args:
        files: As :func:`part_files` gives them.
        start: The first position that is wanted.
        stop: The first that is not.

    Returns:
        None if some position is in no file.
    """
    chosen: list[tuple[PartFile, int]] = []
    for file in files:
        if start >= stop or file.start > start:
            break
        if file.stop > start:
            chosen.append((file, start))
            start = file.stop
    return chosen if start >= stop else None


def read_columns(path: Path, names: Sequence[str]) -> pyarrow.Table:
    """Columns of a committed file.

    Raises:
        RunError: if the file is damaged.
    """
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path, page_checksum_verification=True) as file:
            return file.read(columns=list(names), use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
        raise RunError(f"{path} is damaged ({error}): delete it and evaluate again.") from error


def matrix(table: pyarrow.Table, name: str) -> np.ndarray:
    """A column as an array ``[rows]``, or ``[rows, width]`` of one that holds lists."""
    import pyarrow

    chunks = table[name].combine_chunks()
    if not pyarrow.types.is_fixed_size_list(chunks.type):
        return np.asarray(chunks.to_numpy(zero_copy_only=False))
    return np.asarray(chunks.flatten().to_numpy(zero_copy_only=False).reshape(-1, chunks.type.list_size))


def read_features(path: Path) -> FeatureMoments:
    """The sums over features of a file that has them."""
    stored = read_columns(path, [FEATURES])[FEATURES][0].as_py()
    with np.load(io.BytesIO(stored), allow_pickle=False) as arrays:
        x, y, count = arrays["x"], arrays["y"], int(arrays["num_samples"])
        xx, yy = _symmetric(arrays["xx"], len(x)), _symmetric(arrays["yy"], len(y))
        xy = arrays["xy"].astype(np.float64)
    return FeatureMoments(
        count, x, y, xx + np.outer(x, x) / count, yy + np.outer(y, y) / count, xy + np.outer(x, y) / count
    )


def _remove_left_behind(folder: Path) -> None:
    """Files beside the committed ones that a killed writer never renamed."""
    for path in folder.glob(".part-*.parquet.*"):
        try:
            if time.time() - path.stat().st_mtime > LEFT_BEHIND_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue  # renamed or removed meanwhile


def _refuse_other_positions(part: Part, predictions: Predictions) -> None:
    found = np.concatenate([predictions.positions, [entry.position for entry in predictions.bad]])
    if not np.array_equal(np.sort(found), np.arange(part.start, part.stop)):
        raise RunError(
            f"{part.dataset}: {len(found)} samples came for the positions {part.start} to {part.stop - 1}, or one of "
            "them twice: look for shards that changed."
        )


def _table(predictions: Predictions, index: int, *, with_features: bool) -> pyarrow.Table:
    """The rows of one ensemble, sorted by position."""
    import pyarrow

    order = np.argsort(predictions.positions)
    keys = pyarrow.array(predictions.keys, pyarrow.string()).take(pyarrow.array(order))
    columns: dict[str, Any] = {"key": keys, "position": predictions.positions[order].astype(np.int64)}
    columns["label"] = _lists(predictions.labels[order].astype(np.int64))
    for name, values in predictions.metadata.items():
        columns[METADATA + name] = values[order].astype(np.int64)
    for field, column in COLUMNS.items():
        values = getattr(predictions, field)[index][order]
        columns[column] = values.astype(np.int32 if field == "classes" else np.float32) if values.ndim == 1 else (
            _lists(values.astype(np.int32))
        )  # fmt: skip
    if with_features and predictions.features is not None:
        stored = [_packed(predictions.features), *[None] * (len(predictions) - 1)]
        columns[FEATURES] = pyarrow.array(stored, pyarrow.large_binary())
    return pyarrow.table(columns)


def _lists(values: np.ndarray) -> pyarrow.Array:
    import pyarrow

    return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values.reshape(-1)), values.shape[1])


def _packed(features: FeatureMoments) -> bytes:
    """A third of the bytes of the fp64 sums: products around the means in fp32, of symmetric ones the upper triangle.

    Around the means nothing cancels later, so fp32 changes the alignment by 1e-7.
    """
    count, x, y = features.num_samples, features.x, features.y
    upper_x, upper_y = np.triu_indices(len(x)), np.triu_indices(len(y))
    stream = io.BytesIO()
    np.savez(
        stream,
        num_samples=count,
        x=x,
        y=y,
        xx=(features.xx - np.outer(x, x) / count)[upper_x].astype(np.float32),
        yy=(features.yy - np.outer(y, y) / count)[upper_y].astype(np.float32),
        xy=(features.xy - np.outer(x, y) / count).astype(np.float32),
    )
    return stream.getvalue()


def _symmetric(upper: np.ndarray, width: int) -> np.ndarray:
    """The fp64 matrix of an upper triangle."""
    whole = np.zeros((width, width))
    whole[np.triu_indices(width)] = upper
    return np.asarray(whole + np.triu(whole, 1).T)


@lru_cache(maxsize=2**16)
def _read_footer(path: Path, key: str, num_bytes: int, changed: int) -> PartFile | None:
    """What the footer says, if it fits; size and time of the last change make a replaced file another one."""
    import pyarrow
    import pyarrow.parquet

    name = FILE_NAME.fullmatch(path.name)
    try:
        footer = pyarrow.parquet.read_metadata(path)
        record = json.loads(footer.metadata[b"wiseft"])
        columns = footer.schema.to_arrow_schema().names
        bad = tuple(BadSample(**entry) for entry in record["bad"])
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException):
        return None
    start, stop = record["start"], record["stop"]
    is_its_own = name is not None and (int(name[1]), int(name[2])) == (start, stop) and record["key"] == key
    if not is_its_own or footer.num_rows + len(bad) != stop - start:
        return None
    metadata = tuple(column.removeprefix(METADATA) for column in columns if column.startswith(METADATA))
    return PartFile(path, start, stop, bad, metadata, FEATURES in columns)


_WIDTHS = {"top5": (NUM_TOP,)}


def empty(field: str, num_members: int, num_samples: int) -> np.ndarray:
    """An array for a field of :class:`Predictions`, ``[members, samples]`` or ``[members, samples, 5]``."""
    dtype = np.int32 if field in ("classes", "top5") else np.float32
    return np.empty((num_members, num_samples, *_WIDTHS.get(field, ())), dtype=dtype)
