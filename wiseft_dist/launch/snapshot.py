"""A copy of the code for jobs that start later: what is edited meanwhile is not what runs."""

from __future__ import annotations

import shutil
import uuid
from dataclasses import replace
from pathlib import Path

from wiseft_dist.code_identity import IDENTITY_FILE, PACKAGE, code_identity, package_digest, package_files
from wiseft_dist.commits import sync


def snapshot(folder: Path) -> Path:
    """Copy the package as it lies on disk to ``folder/code/DIGEST``, unless that very content is there already.

    Returns:
        What goes to the front of PYTHONPATH.
    """
    copies = folder.absolute() / "code"
    existing = copies / package_digest()
    return existing if existing.is_dir() else _copy(copies)


def _copy(copies: Path) -> Path:
    """Copy aside, and name the copy by what is in it: the package may be edited meanwhile."""
    aside = copies / f".{uuid.uuid4().hex[:8]}"
    try:
        for source in package_files():
            copy = aside / PACKAGE.name / source.relative_to(PACKAGE)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)
        identity = replace(code_identity(), digest=package_digest(aside / PACKAGE.name))
        (aside / IDENTITY_FILE).write_text(identity.to_json())
        sync(aside / IDENTITY_FILE)
        target = copies / identity.digest
        try:
            aside.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first with the same
                raise
        return target
    finally:
        shutil.rmtree(aside, ignore_errors=True)
