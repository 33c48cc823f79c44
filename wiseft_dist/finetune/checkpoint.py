"""Saving and finding the sharded training state: every rank writes aside, rank 0 commits by rename."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from wiseft_dist.commits import commit, read_commit, refuse_damaged
from wiseft_dist.config import CheckpointConfig
from wiseft_dist.distributed import broadcast_from_main, together
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.ranks import Ranks
from wiseft_dist.run import Run, committed_checkpoints, differences, newest_checkpoint
from wiseft_dist.tracking import Tracker

VISIBLE_SECONDS = 30.0
SCORE = "id_val/top1"
"""The metric by which one checkpoint is better than another."""

logger = logging.getLogger(__name__)


class SaveError(RunError):
    """A checkpoint that could not be written; nothing that was saved before is touched."""


class Checkpointer:
    """Says when to save, saves, and keeps the last few and the best. All ranks call every method.

    Args:
        run: Where checkpoints live.
        engine: What is saved.
        config: When and how many.
        ranks: This process's place.
        identity: What the state belongs to, by the settings' names: a checkpoint of something else is refused.
        tracker: On the rank that writes.
    """

    def __init__(
        self,
        run: Run,
        engine: Engine,
        config: CheckpointConfig,
        ranks: Ranks,
        *,
        identity: Mapping[str, Any],
        tracker: Tracker | None = None,
    ) -> None:
        self._run, self._engine, self._config, self._ranks, self._tracker = run, engine, config, ranks, tracker
        self._identity = json.loads(json.dumps(dict(identity)))  # as it is read back
        self._asked = time.monotonic()
        self._best: float | None = None
        self.newest: Path | None = None
        """The newest committed checkpoint, known to every rank."""
        self.unread: dict[str, Any] | None = None
        """What the resumed session's meter had not told of yet."""

    def resume(self) -> int:
        """Load the newest committed checkpoint, if there is one.

        Returns:
            The number of finished steps, 0 at a fresh start.

        Raises:
            UserError: if it belongs to something else, or a file is not what was committed.
        """
        newest = newest_checkpoint(self._run) if self._ranks.is_main else None
        name = broadcast_from_main(newest.name if newest else None)  # other nodes may not see it at once
        if name is None:
            return 0
        self.newest = folder = self._run.checkpoints / name
        together(lambda: self._check(folder))
        record = read_commit(folder)
        now = self._engine.record()
        for key in ("world_size", "zero_stage"):
            if record[key] != now[key]:
                logger.info("%s: its %s was %s and is %s now: it is resharded", folder, key, record[key], now[key])
        self._engine.load(folder)
        self._best = broadcast_from_main(self._best_score() if self._ranks.is_main else None)
        self.unread = record["unread"]
        return int(record["step"])

    def _check(self, folder: Path) -> None:
        """Hold the checkpoint against what is trained now, and its files against their hashes."""
        record = read_commit(folder)
        _refuse_another(folder, record.get("identity", {}), self._identity)
        refuse_damaged(folder, share=self._ranks.rank, num_shares=self._ranks.world_size)

    def is_due_by_step(self, step: int) -> bool:
        """Whether this is one of every so many steps."""
        return self._config.every_steps is not None and step % self._config.every_steps == 0

    def asks_by_clock(self) -> bool:
        """Whether the configured minutes have passed since the last save, by rank 0's clock. Says so once."""
        minutes = self._config.every_minutes
        if minutes is None or not self._ranks.is_main or time.monotonic() - self._asked < 60 * minutes:
            return False
        self._asked = time.monotonic()
        return True

    def is_best(self, metrics: Mapping[str, float]) -> bool:
        """Whether a validation is better than every earlier one, and such states are kept."""
        score = metrics.get(SCORE)
        return self._config.keep_best and score is not None and (self._best is None or score > self._best)

    def save(
        self, step: int, *, final: bool, unread: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Save and commit. The folder exists under its name only when every rank's file is whole.

        A save that fails is reported and forgotten, and training goes on; the last one may not fail.

        Args:
            step: Finished steps.
            final: Whether these are all.
            unread: Of the meter.
            metrics: Of a validation at this step.

        Raises:
            SaveError: if the final state could not be written.
        """
        started = time.monotonic()
        folder = self._run.checkpoints / f"step_{step}"
        record = {"metrics": dict(metrics or {}), "unread": dict(unread), "identity": self._identity}
        try:
            self._save(folder, step=step, final=final, **record)
        except SaveError as error:
            if final:
                raise
            logger.warning("%s", error)
            if self._tracker is not None:
                self._tracker.event("warning", step=step, warning=str(error))
        else:
            self.newest = folder
            if metrics is not None and self.is_best(metrics):
                self._best = metrics[SCORE]
            if self._tracker is not None:
                self._tracker.event("saved", step=step, seconds=round(time.monotonic() - started, 3))
        self._asked = time.monotonic()

    def _save(self, folder: Path, **record: Any) -> None:
        aside = self._run.checkpoints / ".saving"
        together(lambda: self._make_room(aside, folder))
        together(lambda: self._write(aside, folder))
        seen: list[Any] = [None] * self._ranks.world_size
        dist.all_gather_object(seen, _sizes(aside / folder.name))
        files = dict(sorted(set().union(*seen)))  # where machines see different sizes, the largest is the newest
        together(lambda: self._commit(aside, folder, files, record))

    def _make_room(self, aside: Path, folder: Path) -> None:
        if self._ranks.is_main:
            shutil.rmtree(aside, ignore_errors=True)
            try:
                aside.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise _not_saved(folder, error) from error

    def _write(self, aside: Path, folder: Path) -> None:
        try:
            self._engine.save(aside, tag=folder.name)
        except OSError as error:
            raise _not_saved(folder, error) from error

    def _commit(self, aside: Path, folder: Path, files: Mapping[str, int], record: dict[str, Any]) -> None:
        if not self._ranks.is_main:
            return
        try:
            _wait_for(aside / folder.name, files)
            commit(aside / folder.name, folder, **self._engine.record() | record)
        except OSError as error:
            raise _not_saved(folder, error) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._delete_old()

    def _delete_old(self) -> None:
        """Keep the last few and the best. A failed delete is reported, and training goes on."""
        folders = committed_checkpoints(self._run)
        kept = {*folders[-self._config.keep_last :], *self._best_of(folders)[-1:]}
        try:
            for folder in folders:
                if folder not in kept:
                    folder.rename(folder.with_name(f".deleting_{folder.name}"))
            for doomed in self._run.checkpoints.glob(".deleting_*"):  # also what an earlier attempt left
                shutil.rmtree(doomed)
        except OSError as error:
            logger.warning("an old checkpoint could not be deleted: %s", error)

    def _best_score(self) -> float | None:
        best = self._best_of(committed_checkpoints(self._run))
        return _score(best[-1]) if best else None

    def _best_of(self, folders: list[Path]) -> list[Path]:
        """Those that were validated, the best last; of equal ones the later."""
        if not self._config.keep_best:
            return []
        return sorted((each for each in folders if _score(each) is not None), key=lambda each: _score(each) or 0.0)


def _score(folder: Path) -> float | None:
    score = read_commit(folder).get("metrics", {}).get(SCORE)
    return None if score is None else float(score)


def _refuse_another(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    differing = differences(here, there)
    if differing:
        raise UserError(
            f"{folder} was saved by another run: {'; '.join(sorted(differing))}. "
            "Choose another output, or put back what was changed."
        )


def _not_saved(folder: Path, error: OSError) -> SaveError:
    return SaveError(f"{folder} could not be saved: {error}")


def _sizes(folder: Path) -> set[tuple[str, int]]:
    """Names and bytes of the files that this machine sees, its own ranks' at least."""
    return {(str(path.relative_to(folder)), path.stat().st_size) for path in folder.rglob("*") if path.is_file()}


def _wait_for(folder: Path, files: Mapping[str, int]) -> None:
    """Wait until the first node sees what any node has written.

    A barrier does not make a file visible on a network file system; time does.
    """
    deadline = time.monotonic() + VISIBLE_SECONDS
    while missing := files.items() - _sizes(folder):
        if time.monotonic() > deadline:
            raise SaveError(
                f"{folder}: {len(missing)} of {len(files)} files cannot be seen whole from the first node. "
                "Put the run on a file system that all nodes share."
            )
        time.sleep(0.2)
