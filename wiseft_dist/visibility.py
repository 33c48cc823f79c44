"""A shared file system may show a node what another one has written only after a while."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from wiseft_dist.ranks import discover_launcher

MAX_PAUSE_SECONDS = 2.0


def wait_until_visible(is_there: Callable[[], bool], place: Path, seconds: float) -> bool:
    """Wait for what an earlier job has written; only in a Slurm job that nobody sits at.

    Whoever starts a stage by hand learns at once what is missing, from the stage: then nothing is looked at here.

    Args:
        is_there: Looks again at each call.
        place: A file or folder beside which, or in which, it will show up.
        seconds: How long to wait at most.

    Returns:
        Whether it is there, or nobody looked.
    """
    if not discover_launcher().is_batch or is_there():
        return True
    print(f"wiseft: waiting for {place}: what it needs is not visible on this node yet.", file=sys.stderr, flush=True)
    deadline, pause = time.monotonic() + seconds, 0.1
    while time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)
        _look_again(place)
        if is_there():
            return True
    return False


def _look_again(place: Path) -> None:
    """List the folders on the way: a network file system then asks its server anew what is in them."""
    for folder in (place.parent, place):
        if folder.is_dir():
            with suppress(OSError):
                os.listdir(folder)  # noqa: PTH208
                for child in folder.iterdir():
                    if child.is_dir():
                        os.listdir(child)  # noqa: PTH208
