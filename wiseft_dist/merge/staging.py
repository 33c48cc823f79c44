"""Where ensembles lie until all of them are whole: a hidden folder beside them that outlives an interrupted merge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_dist.commits import digest
from wiseft_dist.data.locks import locked_now
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.merge.direct_io import create_sized, writing
from wiseft_dist.merge.journal import journals
from wiseft_dist.merge.layout import FileLayout
from wiseft_dist.run import alpha_name

LOCK_FILE = ".merge.lock"
PREFIX = ".merge-"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Staging:
    """A hidden folder: one folder of sized files for each alpha, journals, and the plan that they belong to."""

    folder: Path

    def ensemble(self, alpha: float) -> Path:
        """The folder of an ensemble that is not whole yet."""
        return self.folder / alpha_name(alpha)

    def prepare(self, alphas: Sequence[float], files: Sequence[FileLayout]) -> None:
        """Make every file in its size and with its header; what was written into it before stays.

        Raises:
            RunError: if there is no room for them. Unless an earlier attempt has finished chunks, nothing is left then.
        """
        try:
            for alpha in alphas:
                with writing(self.ensemble(alpha)):
                    self.ensemble(alpha).mkdir(exist_ok=True)
                for file in files:
                    create_sized(self.ensemble(alpha) / file.name, file.num_bytes, file.header)
        except RunError:
            if not journals(self.folder):
                self.remove()
            raise

    def remove(self) -> None:
        """Remove it with all that is in it; the plan, which says whose it is, goes last."""
        for path in self.folder.glob("*"):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != PLAN_FILE:
                with suppress(OSError):
                    path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)


def staging_of(parent: Path, plan: Mapping[str, Any]) -> Staging:
    """The staging folder of a plan: of everything that decides bytes, but for the alphas."""
    return Staging(parent / f"{PREFIX}{digest(plan)}")


@contextmanager
def opened(staging: Staging, plan: Mapping[str, Any]) -> Iterator[None]:
    """Hold the folder that ensembles are merged into, and make the staging folder in it or take up an earlier one.

    Staging folders of other plans are removed: nobody works on them.

    Raises:
        UserError: if another process merges into the same folder.
        RunError: if nothing can be written there.
    """
    parent = staging.folder.parent
    with ExitStack() as stack:
        try:
            parent.mkdir(parents=True, exist_ok=True)
            (parent / LOCK_FILE).touch()
            is_held = stack.enter_context(locked_now(parent / LOCK_FILE))
        except OSError as error:
            raise RunError(f"{parent}: cannot be written to: {error.strerror}.") from error
        if not is_held:
            raise UserError(f"{parent}: another merge is writing here. Wait for it, or choose another folder.")
        for other in parent.glob(f"{PREFIX}*"):
            if other != staging.folder and (other / PLAN_FILE).is_file():
                Staging(other).remove()
        with writing(staging.folder):
            staging.folder.mkdir(exist_ok=True)
            (staging.folder / PLAN_FILE).write_text(json.dumps(plan, indent=1))
        yield
