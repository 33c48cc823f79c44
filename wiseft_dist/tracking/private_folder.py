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

TEXTS = ("model.json", "README.md")
"""Of a merged model: where it comes from, with the paths of its sources."""


@cache
def private_folder() -> Path:
    """This process's own; gone when it ends."""
    parent = TEMPORARY if os.access(TEMPORARY, os.W_OK | os.X_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="wiseft_wandb_", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


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
