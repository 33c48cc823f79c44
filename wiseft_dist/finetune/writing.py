"""Failures to write a file of a save, kept until every rank is through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def late_failures(deepspeed_engine: Any) -> Iterator[None]:
    """Let DeepSpeed save; a rank whose disk is full goes on, and complains at the end.

    Inside a save the ranks wait for each other several times: one that leaves early leaves the others there.

    Raises:
        OSError: at the end, on the ranks that could not write, with the first file's name.
    """
    failures: list[OSError] = []
    writer = deepspeed_engine.checkpoint_engine
    write = writer.save

    def try_to_write(state_dict: Any, path: str) -> None:
        try:
            write(state_dict, path)
        except (OSError, RuntimeError) as error:  # the latter is what torch's writer makes of a full disk
            failures.append(OSError(f"{path} cannot be written: {error}"))

    writer.save = try_to_write
    deepspeed_engine._copy_recovery_script = lambda folder: None  # fails alike, and nobody needs the script
    try:
        yield
    finally:
        writer.save = write
    if failures:
        raise failures[0]
