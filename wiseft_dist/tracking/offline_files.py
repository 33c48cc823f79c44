"""What W&B's offline files hold already: which rows need not be told again.

Format (wandb 0.31, ``core/pkg/leveldb``): seven bytes of header, then LevelDB's log format in blocks of 32 KiB with the
ordinary CRC-32 instead of Castagnoli's; each record is a ``wandb_internal.Record`` of W&B's own protocol buffers.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wiseft_dist.run import Run

FILE_HEADER = b":W&B\xe1\xbe\x00"
BLOCK_BYTES = 32768
CHUNK_HEADER_BYTES = 7
"""CRC-32 (4), length (2), kind (1), each little-endian."""
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def offline_files(run: Run, wandb_id: str) -> list[Path]:
    """The files of one W&B run, one for each time it was opened, oldest first."""
    return sorted((run.path / "wandb").glob(f"offline-run-*-{wandb_id}/run-{wandb_id}.wandb"))


def last_step(run: Run, wandb_id: str) -> int:
    """The highest step that the offline files of a W&B run hold; -1 where there is none."""
    return max(map(last_step_of, offline_files(run, wandb_id)), default=-1)


def last_step_of(file: Path) -> int:
    """The last step that a file holds; -1 where there is none. Read from its end: steps rise in a file."""
    for data in reversed(list(_payloads(file.read_bytes()))):
        record = _parsed(data)
        if record is not None and record.HasField("history"):
            for item in record.history.item:
                if _name(item) == "_step":
                    return int(json.loads(item.value_json))
            if record.history.HasField("step"):
                return int(record.history.step.num)
    return -1


def history(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of an offline file, as they were logged, with ``_step``; up to where its writer was killed."""
    for record in records(file):
        if record.HasField("history"):
            row = {_name(item): json.loads(item.value_json) for item in record.history.item}
            if "_step" not in row and record.history.HasField("step"):
                row["_step"] = record.history.step.num
            if "_step" in row:
                yield row


def records(file: Path) -> Iterator[Any]:
    """Every record of an offline file."""
    for data in _payloads(file.read_bytes()):
        record = _parsed(data)
        if record is None:
            return
        yield record


def _parsed(data: bytes) -> Any:
    """A record; None where it is none."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()
    try:
        record.ParseFromString(data)
    except DecodeError:
        return None
    return record


def _name(item: Any) -> str:
    """Names with dots are told as their parts."""
    return item.key or ".".join(item.nested_key)


def _payloads(content: bytes) -> Iterator[bytes]:
    """The records' bytes, put together from their chunks; the first damaged chunk is the end."""
    if not content.startswith(FILE_HEADER):
        return
    position, parts = len(FILE_HEADER), list[bytes]()
    while position + CHUNK_HEADER_BYTES <= len(content):
        room = BLOCK_BYTES - position % BLOCK_BYTES
        if room < CHUNK_HEADER_BYTES:  # too little for another chunk: zeros
            position += room
            continue
        crc, size, kind = struct.unpack_from("<IHB", content, position)
        position += CHUNK_HEADER_BYTES
        data = content[position : position + size]
        if kind not in (FULL, FIRST, MIDDLE, LAST) or len(data) < size or zlib.crc32(bytes([kind]) + data) != crc:
            return
        position += size
        parts = [data] if kind in (FULL, FIRST) else [*parts, data]
        if kind in (FULL, LAST):
            yield b"".join(parts)
