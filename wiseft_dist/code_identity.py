"""Which code this is: its version, a digest of its files and, in a git checkout, the revision."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from wiseft_dist import __version__

PACKAGE = Path(__file__).parent
IDENTITY_FILE = "code.json"
"""Beside a snapshot of the package: what it was a snapshot of."""
GIT_SECONDS = 20.0


@dataclass(frozen=True)
class CodeIdentity:
    """What tells two states of the code apart."""

    version: str
    digest: str
    """Of every file's name and content."""
    revision: str | None = None
    """The checkout's commit, where the package lies in one."""
    is_dirty: bool | None = None
    """Whether the package there has changes that are not committed."""

    def to_json(self) -> str:
        """As :func:`code_identity` reads it beside a snapshot."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        revision = f", revision {self.revision[:12]}{' with changes' if self.is_dirty else ''}" if self.revision else ""
        return f"{self.version} ({self.digest}{revision})"


@functools.cache
def code_identity() -> CodeIdentity:
    """The identity of the package that runs, as it was when it was first asked for."""
    digest = package_digest()
    try:
        recorded = json.loads((PACKAGE.parent / IDENTITY_FILE).read_text())
        revision, is_dirty = recorded["revision"], recorded["is_dirty"]
    except (OSError, ValueError, LookupError, TypeError):
        revision, is_dirty = _git_revision()
    return CodeIdentity(__version__, digest, revision, is_dirty)


def package_files(package: Path = PACKAGE) -> list[Path]:
    """Python and data files of the package, without what Python or an editor leaves beside them."""
    return sorted(
        path
        for path in package.rglob("*")
        if path.is_file() and not any(_is_left_over(part) for part in path.relative_to(package).parts)
    )


def package_digest(package: Path = PACKAGE) -> str:
    """A short hash of the files of the package, or of a copy: 16 hexadecimal digits."""
    whole = hashlib.sha256()
    for path in package_files(package):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        whole.update(f"{path.relative_to(package)}\0{content}\n".encode())
    return whole.hexdigest()[:16]


def _is_left_over(name: str) -> bool:
    return name == "__pycache__" or name.startswith((".", "#")) or name.endswith((".pyc", "~"))


def _git_revision() -> tuple[str | None, bool | None]:
    """The commit of the checkout that the package belongs to, and whether the package differs from it."""
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None  # no checkout, or one that only happens to lie around an installation
    revision, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--", ".")
    return revision, None if changes is None else bool(changes)


def _git(*arguments: str) -> str | None:
    """What git answers about the package's folder, or nothing."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=GIT_SECONDS,
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
