"""A folder whose path tells nothing about anybody: W&B's manifests name the local paths of the files that they list."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from wiseft_dist.commits import COMMIT_FILE
from wiseft_dist.tracking.scrubbing import scrubbed

TEMPORARY = "/tmp"
"""Before ``TMPDIR``, which on clusters is often a directory with the user's name."""

VARIABLE = "WISEFT_WANDB_FOLDER"
"""Names the folder that the stage's process has made for its mirror, and removes after it."""
TEXTS = ("model.json", "README.md")
"""Of a merged model: where it comes from, with the paths of its sources."""


@cache
def private_folder() -> Path:
    """This process's own, or the one that it was given; gone when it ends."""
    given = os.environ.get(VARIABLE)
    folder = Path(given) if given else new_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def new_folder() -> Path:
    """An empty folder.

    Raises:
        OSError: if none can be made.
    """
    parent = TEMPORARY if os.access(TEMPORARY, os.W_OK | os.X_OK) else None
    return Path(tempfile.mkdtemp(prefix="wiseft_wandb_", dir=parent))


def remove_private_folder() -> None:
    """Remove it, where there is one, in a process that does not come to its ordinary end."""
    if os.environ.get(VARIABLE) or private_folder.cache_info().currsize:
        shutil.rmtree(private_folder(), ignore_errors=True)


def disguised(model: Path) -> Path:
    """A merged model's files under paths that say nothing, what it was made of without homes, names and secrets.

    The commit record stays behind: it is of the files as they lie there.
    """
    folder = private_folder() / model.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for file in model.iterdir():
        if file.name in TEXTS:
            (folder / file.name).write_text(scrubbed(file.read_text(encoding="utf-8")), encoding="utf-8")
        elif file.name != COMMIT_FILE:
            (folder / file.name).symlink_to(file)
    return folder
