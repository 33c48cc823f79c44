"""Samples of a ``datasets`` folder, read with pyarrow alone.

Two layouts, as https://huggingface.co/docs/datasets writes them: ``save_to_disk`` (``state.json`` and Arrow streams,
splits in folders named by ``dataset_dict.json``) and the hub's ``data/SPLIT-00000-of-00042.parquet``. The features of
the columns are in ``dataset_info.json``, or in the schema's metadata under ``huggingface``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from wiseft_dist.data.packing.sources import (
    Classes,
    Columns,
    Listing,
    column_texts,
    refuse_missing,
    refuse_negative,
    require_columns,
    table_labels,
)
from wiseft_dist.errors import UserError
from wiseft_dist.progress import progress_bar

ROWS_AT_ONCE = 256
"""Rows of a parquet file that are unpacked together."""
_HUB_FILE = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}.*\.parquet")


@dataclass(frozen=True)
class ArrowPictures:
    """Pictures in a column of Arrow streams, named ``FILE#ROW``; those kept as paths lie below ``root``."""

    root: str
    folder: str
    column: str

    def where(self, name: str) -> str:
        """File and row."""
        file, _, row = name.rpartition("#")
        return f"{Path(self.root, file)} row {int(row) + 1}"

    def head(self, name: str, length: int) -> tuple[int, bytes]:
        """Size and beginning of the picture; touches no other bytes of it."""
        content = self._content(name)
        return len(content), bytes(content[:length])

    def read(self, name: str) -> bytes:
        """The picture's bytes."""
        return bytes(self._content(name))

    def _content(self, name: str) -> memoryview:
        file, _, row = name.rpartition("#")
        contents, paths = _picture_columns(str(Path(self.folder, stream_name(file))), self.column)
        content = contents[int(row)].as_buffer()
        if content is not None:
            return memoryview(content)
        path = None if paths is None else paths[int(row)].as_py()
        if path is None:
            raise OSError("the row has no picture")
        return memoryview(Path(self.root, path).read_bytes())


@cache
def _picture_columns(stream: str, column: str) -> tuple[Any, Any]:
    """The bytes and the paths of a memory-mapped column."""
    import pyarrow as pa
    import pyarrow.compute as pc

    pictures = read_stream(Path(stream)).column(column)
    if not pa.types.is_struct(pictures.type):
        return pictures, None
    return pc.struct_field(pictures, "bytes"), pc.struct_field(pictures, "path")


def read_stream(path: Path) -> Any:
    """An Arrow stream as a table whose bytes stay on disk until they are looked at."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).read_all()
    except pa.ArrowInvalid as error:
        raise UserError(f"{path}: not a readable Arrow stream: {str(error).splitlines()[0]}") from error


def stream_name(file: str) -> str:
    """The Arrow stream of a data file: itself, or what it was unpacked to."""
    return Path(file).name + ".arrow" if file.endswith(".parquet") else file


def find_splits(source: Path) -> dict[str | None, list[Path]] | None:
    """The data files of each split; the split None where the folder has no splits; None if it is no such folder."""
    if (source / "dataset_dict.json").is_file():
        splits = _json(source / "dataset_dict.json").get("splits", [])
        return {split: _saved_files(source / split) for split in splits}
    if (source / "state.json").is_file():
        return {None: _saved_files(source)}
    files = sorted((source / "data").glob("*.parquet")) or sorted(source.glob("*.parquet"))
    found: dict[str | None, list[Path]] = {}
    for file in files:
        match = _HUB_FILE.fullmatch(file.name)
        found.setdefault(match["split"] if match else None, []).append(file)
    return found or None


def _saved_files(folder: Path) -> list[Path]:
    """The Arrow files of a split written by ``save_to_disk``."""
    state = _json(folder / "state.json")
    if state.get("_indices_data_files"):
        raise UserError(f"{folder}: saved as a selection of rows. Save it again after `flatten_indices()`.")
    files = [folder / entry["filename"] for entry in state.get("_data_files", [])]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: does not exist ({len(missing)} of {len(files)} data files). Copy them again.")
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object.")
    return value


def list_dataset(source: Path, files: list[Path], *, columns: Columns, classes: Classes, scratch: Path) -> Listing:
    """List one split.

    Args:
        source: What relative paths of pictures start from.
        files: Arrow streams or parquet files, in their order.
        columns: Names of the columns; None to find them by the features.
        classes: The class list so far.
        scratch: Where parquet files are unpacked to Arrow streams, since their rows cannot be read one by one.

    Raises:
        UserError: if a column is missing or a row has no label.
    """
    import pyarrow as pa

    schema = _schema(files[0])
    features = _features(files[0], schema)
    picture, label = _picture_column(columns, features, schema, files[0]), _label_column(columns, features, files[0])
    needed = [label] + ([columns.caption] if columns.caption else [])
    tables = [_small_columns(file, [picture, *needed], needed) for file in files]
    table = pa.concat_tables(tables)
    labels, classnames = _labels(table, label, features, classes, str(source))
    captions = column_texts(table, columns.caption, str(source)) if columns.caption else None
    names = [
        f"{file.relative_to(source)}#{row}" for file, t in zip(files, tables, strict=True) for row in range(len(t))
    ]
    is_parquet = files[0].suffix == ".parquet"
    if is_parquet:
        _unpack(files, picture, scratch)
    pictures = ArrowPictures(str(source), str(scratch if is_parquet else source), picture)
    return Listing(names, labels, classnames, pictures, captions)


def _schema(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(file) if file.suffix == ".parquet" else read_stream(file).schema
    except pa.ArrowInvalid as error:
        raise UserError(f"{file}: not a readable parquet file: {str(error).splitlines()[0]}") from error


def _features(file: Path, schema: Any) -> dict[str, Any]:
    """What the columns mean: name -> feature, such as ``{"names": ["cat", "dog"], "_type": "ClassLabel"}``."""
    info = file.parent / "dataset_info.json"
    features = _json(info).get("features") if info.is_file() else None
    if not features:
        embedded = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = embedded.get("info", {}).get("features")
    return features if isinstance(features, dict) else {}


def _picture_column(columns: Columns, features: dict[str, Any], schema: Any, file: Path) -> str:
    """The column that was named, else the only one of pictures."""
    import pyarrow as pa

    if columns.path is not None:
        require_columns([columns.path], schema.names, str(file))
        kind = schema.field(columns.path).type
        is_picture = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        if not is_picture and not (pa.types.is_struct(kind) and {"bytes", "path"} <= {each.name for each in kind}):
            raise UserError(f"{file}: column {columns.path!r} holds {kind}, not pictures.")
        return columns.path
    structs = [
        each.name for each in schema if pa.types.is_struct(each.type) and each.type.get_field_index("bytes") >= 0
    ]
    found = _of_type(features, "Image") or structs
    return _only(found, "pictures", "--path-column", file)


def _label_column(columns: Columns, features: dict[str, Any], file: Path) -> str:
    """The column that was named, else ``label``, else the only one of class labels."""
    if columns.label is not None:
        return columns.label
    return "label" if "label" in features else _only(_of_type(features, "ClassLabel"), "labels", "--label-column", file)


def _of_type(features: dict[str, Any], kind: str) -> list[str]:
    return [name for name, each in features.items() if isinstance(each, dict) and each.get("_type") == kind]


def _only(found: list[str], what: str, option: str, file: Path) -> str:
    if len(found) != 1:
        raise UserError(f"{file}: {len(found)} columns of {what} {found or ''}. Name the column with {option}.")
    return found[0]


def _small_columns(file: Path, needed: list[str], wanted: list[str]) -> Any:
    """Labels and captions of a file, once it is known to have all columns."""
    import pyarrow.parquet as pq

    require_columns(needed, _schema(file).names, str(file))
    table = pq.read_table(file, columns=wanted, partitioning=None) if file.suffix == ".parquet" else read_stream(file)
    return table.select(wanted).replace_schema_metadata(None)


def _labels(
    table: Any, name: str, features: dict[str, Any], classes: Classes, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    own = (features.get(name) or {}).get("names")
    if not own:
        return table_labels(table, name, classes, source)
    column = table.column(name)
    refuse_missing(column.is_null().to_numpy(), name, source)
    labels: np.ndarray = column.to_numpy().astype(np.int64)
    refuse_negative(labels, source)
    rows = np.flatnonzero(labels >= len(own))
    if len(rows):
        raise UserError(
            f"{source} row {rows[0] + 1}: label {labels[rows[0]]}, but the feature names {len(own)} classes."
        )
    return labels, _feature_names(tuple(own), classes, source)


def _feature_names(own: tuple[str, ...], classes: Classes, source: str) -> tuple[str, ...]:
    """The feature's names, or the given readable ones if they are as many."""
    if classes.names is None or classes.names == own:
        return own
    if not classes.is_given:
        raise UserError(f"{classes.file}: other class names than those of {source}. Pack into another folder.")
    if len(classes.names) != len(own):
        raise UserError(f"{classes.file}: has {len(classes.names)} names for the {len(own)} classes of {source}.")
    if set(classes.names) == set(own):
        raise UserError(
            f"{classes.file}: the same names as {source}, in another order. Put them in the source's order."
        )
    return classes.names


def _unpack(files: Iterable[Path], column: str, scratch: Path) -> None:
    """Write the picture column of parquet files as Arrow streams; those that are there are not written again."""
    scratch.mkdir(parents=True, exist_ok=True)
    todo = [file for file in files if not (scratch / stream_name(file.name)).exists()]
    with progress_bar("unpacking parquet", total=len(todo), unit="files") as bar, ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda file: _unpack_file(file, column, scratch / stream_name(file.name)), todo):
            bar.advance()


def _unpack_file(file: Path, column: str, target: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    aside = target.with_suffix(".part")
    with pq.ParquetFile(file) as reader:
        schema = pa.schema([reader.schema_arrow.field(column)])
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            for batch in reader.iter_batches(ROWS_AT_ONCE, columns=[column]):
                writer.write_batch(batch.select([column]).cast(schema))
    aside.rename(target)
