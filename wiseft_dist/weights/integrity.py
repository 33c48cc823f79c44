"""Whether the files of a model still hold what was written: their own checksums, where they have some."""

from __future__ import annotations

import zipfile
from pathlib import Path

from wiseft_dist.commits import COMMIT_FILE, read_commit, sha256_file
from wiseft_dist.errors import UserError
from wiseft_dist.progress import BYTES, progress_bar
from wiseft_dist.weights.records import Weights


def check_sources(weights: Weights) -> int:
    """Read the local files of a model whole and compare them with their checksums: a commit's SHA-256, a zip's CRC-32.

    Returns:
        How many of the files have a checksum.

    Raises:
        UserError: naming the first file that differs.
    """
    files = [file for file in weights.files() if isinstance(file, Path)]
    with progress_bar("checking sources", total=sum(file.stat().st_size for file in files), unit=BYTES) as bar:
        checked = 0
        for file in files:
            checked += _check(file)
            bar.advance(file.stat().st_size)
    return checked


def _check(file: Path) -> bool:
    expected = _committed_sha256(file)
    if expected is not None:
        if sha256_file(file) != expected:
            raise UserError(f"{file}: its bytes are not those that were committed (SHA-256). Copy it again.")
        return True
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{file}: {damaged} in it is damaged (CRC-32). Copy or save it again.")
    return True


def _committed_sha256(file: Path) -> str | None:
    if not (file.parent / COMMIT_FILE).is_file():
        return None
    entry = read_commit(file.parent)["files"].get(file.name, {})
    expected: str | None = entry.get("sha256")
    return expected
