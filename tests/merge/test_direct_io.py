"""Positioned writes, with and without the page cache."""

import os
import resource
from pathlib import Path

import pytest

from wiseft_dist.errors import RunError
from wiseft_dist.merge.direct_io import PositionedFile, aligned_buffer, create_sized


@pytest.mark.parametrize("length", [1, 4096, 4097, 3 * 4096 - 1])
@pytest.mark.parametrize("misaligned", [0, 1])
def test_what_is_written_stands_where_it_belongs(tmp_path: Path, length: int, misaligned: int):
    """Memory that does not begin at a page cannot be written past the cache, and is written through it."""
    path, content = tmp_path / "file", os.urandom(length)
    create_sized(path, 4096 + length, b"header")
    memory = memoryview(aligned_buffer(4 * 4096))[misaligned : misaligned + length]
    memory[:] = content
    file = PositionedFile(path)
    file.write(memory, 4096)
    file.flush()
    file.close()
    assert path.read_bytes() == b"header".ljust(4096, b"\0") + content


def test_a_file_that_is_made_again_keeps_what_was_written_into_it(tmp_path: Path):
    path = tmp_path / "file"
    create_sized(path, 10_000, b"header")
    with path.open("r+b") as file:
        file.seek(5000)
        file.write(b"data")
    create_sized(path, 10_000, b"header")
    assert path.read_bytes()[5000:5004] == b"data" and path.stat().st_size == 10_000


def test_a_file_too_many_is_named(tmp_path: Path):
    create_sized(tmp_path / "file", 4096, b"header")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(RunError, match=r"file: cannot be opened: Too many open files\. Merge fewer alphas"):
            PositionedFile(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
