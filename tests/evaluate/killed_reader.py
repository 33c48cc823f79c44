"""A rank of the evaluation that is killed at its worst moment: a file is written, and not renamed yet."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from wiseft_dist.commits import sync
from wiseft_dist.evaluate.cells import files as cell_files
from wiseft_dist.pipeline import execute
from wiseft_dist.run import Run


def main(folder: str, num_files: int) -> None:
    """Evaluate a run, and die while so many files are committed and one more is written."""
    written = 0

    def sync_or_die(path: Path) -> None:
        nonlocal written
        written += path.is_file()  # a folder is synced too
        if written > num_files:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    cell_files.sync = sync_or_die
    execute("evaluate", Run(Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
