"""The commit record of an ensemble: checksums of its weights by chunks, made while they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from wiseft_dist.commits import COMMIT_FILE, is_committed, sha256_file, sync
from wiseft_dist.errors import UserError
from wiseft_dist.merge.direct_io import writing
from wiseft_dist.merge.journal import Finished
from wiseft_dist.merge.plan import Plan


def contents(finished: Mapping[int, Finished], num_inputs: int) -> list[str]:
    """One digest for each input, from those of its chunks in their order."""
    digests = [xxhash.xxh3_128() for _ in range(num_inputs)]
    for number in sorted(finished):
        for digest_, chunk in zip(digests, finished[number].inputs(), strict=True):
            digest_.update(chunk)
    return [digest_.hexdigest() for digest_ in digests]


def weights_entries(plan: Plan, finished: Mapping[int, Finished], index: int) -> dict[str, Any]:
    """The record's entries of the weights: sizes, and the digest of the header and of every chunk.

    Args:
        plan: Of the merge.
        finished: Every chunk.
        index: Which of the alphas.
    """
    entries: dict[str, Any] = {}
    for file in plan.files:
        header = [0, len(file.header), xxhash.xxh3_128(file.header).hexdigest()]
        entries[file.name] = {"bytes": file.num_bytes, "chunks": [header]}
    for chunk in plan.chunks:
        digest = finished[chunk.number].outputs()[index]
        entries[chunk.file.name]["chunks"].append([chunk.start, chunk.stop, digest.hex()])
    return entries


def commit_ensemble(
    aside: Path, folder: Path, record: Mapping[str, Any], weights: Mapping[str, Any], side_files: Mapping[str, bytes]
) -> None:
    """Put small files beside an ensemble's weights, describe all in its commit record, and give it its name.

    Args:
        aside: Holds the weights, written and flushed.
        folder: What becomes of it; what is there without being whole is replaced.
        record: What else the record says.
        weights: The record's entries of the weights.
        side_files: By name.

    Raises:
        UserError: if a whole ensemble is there.
        RunError: if writing fails.
    """
    if is_committed(folder):
        raise UserError(f"{folder}: is there already. Choose another folder, or delete it.")
    with writing(aside):
        _describe(aside, record, weights, side_files)
    with writing(folder):
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
        sync(folder.parent)


def _describe(
    aside: Path, record: Mapping[str, Any], weights: Mapping[str, Any], side_files: Mapping[str, bytes]
) -> None:
    files = dict(weights)
    for name in weights:
        sync(aside / name)
    for name, content in side_files.items():
        (aside / name).write_bytes(content)
        sync(aside / name)
        files[name] = {"bytes": len(content), "sha256": sha256_file(aside / name)}
    text = json.dumps({**record, "files": dict(sorted(files.items()))})
    (aside / COMMIT_FILE).write_text(text)
    sync(aside / COMMIT_FILE)
    sync(aside)
