"""One writer at a time for each W&B run: two that go on from the same row would each lose rows of the other.

A live mirror locks ``RUN/wandb/ID.lock`` and writes into it where it writes to; `wiseft sync` locks the same file, or,
where the mirror writes offline files only, one of its own.
"""

from __future__ import annotations

import errno
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wiseft_dist.run import Run

HELD = (errno.EAGAIN, errno.EACCES)


@contextmanager
def only_sender(run: Run, wandb_id: str) -> Iterator[str]:
    """Hold the right to send one W&B run; it goes with the process, however that ends.

    Yields:
        Who has it instead, in words; empty where this process has it. Where files cannot be locked or written, nothing
        is known of others: then it has.
    """
    folder = run.path / "wandb"
    with _locked(folder / f"{wandb_id}.lock") as is_free:
        if is_free:
            yield ""
            return
        if mode_of_mirror(run, wandb_id) != "offline":
            yield "a running stage or another `wiseft sync` is sending it now"
            return
        with _locked(folder / f"{wandb_id}.sync.lock") as is_free:
            yield "" if is_free else "another `wiseft sync` is sending it now"


def mode_of_mirror(run: Run, wandb_id: str) -> str:
    """What the mirror that holds the lock has written into it: ``online`` or ``offline``; empty where nothing."""
    try:
        return (run.path / "wandb" / f"{wandb_id}.lock").read_text().strip()
    except OSError:
        return ""


@contextmanager
def _locked(file: Path) -> Iterator[bool]:
    try:
        file.parent.mkdir(exist_ok=True)
        handle = file.open("a")
    except OSError:  # somebody else's run, that may be read only
        yield True
        return
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield error.errno not in HELD
            return
        handle.truncate(0)
        yield True
