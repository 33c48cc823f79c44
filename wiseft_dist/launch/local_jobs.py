"""Which jobs of this machine are alive: submitit's controllers, found again by their process ids."""

from __future__ import annotations

from pathlib import Path

from wiseft_dist.launch.ledger import Entry


def is_alive(entry: Entry) -> bool:
    """Whether the processes of a local job live; its id is that of the one that started the others.

    Process ids are used again: one that does not name the job's folder is somebody else's.
    """
    try:
        command = Path(f"/proc/{int(entry.job_id)}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return any(entry.folder.encode() in word for word in command)
