"""Saving and finding the sharded training state: every rank writes aside, rank 0 commits by rename."""

from __future__ import annotations

import logging
import shutil
import time
from pathlib import Path

import torch.distributed as dist

from wiseft_dist.config import CheckpointConfig
from wiseft_dist.distributed import Ranks, broadcast_from_main, together
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.run import Run, commit, committed_checkpoints, newest_checkpoint, read_commit, sha256_file

VISIBLE_SECONDS = 30.0


class Checkpointer:
    """Decides when to save, saves, and keeps the last few.

    Args:
        run: Where checkpoints live.
        engine: What is saved.
        config: When and how many.
        ranks: This process's place; all ranks call every method.
    """

    def __init__(self, run: Run, engine: Engine, config: CheckpointConfig, ranks: Ranks) -> None:
        self._run, self._engine, self._config, self._ranks = run, engine, config, ranks
        self._last_save = time.monotonic()

    def resume(self) -> int:
        """Load the newest committed checkpoint, if there is one.

        Returns:
            The number of finished steps, 0 at a fresh start.

        Raises:
            UserError: if it was written by another number of ranks, or a file is not what was committed.
        """
        newest = newest_checkpoint(self._run) if self._ranks.is_main else None
        name = broadcast_from_main(newest.name if newest else None)  # other nodes may not see it at once
        if name is None:
            return 0
        folder = self._run.checkpoints / name
        record = read_commit(folder)
        if record["world_size"] != self._ranks.world_size:
            raise UserError(
                f"{folder} was written by {record['world_size']} processes, this job has {self._ranks.world_size}: "
                "set launch.finetune so that nodes x tasks_per_node is the same."
            )
        together(lambda: self._verify(folder))
        return self._engine.load(folder.parent, tag=folder.name)

    def _verify(self, folder: Path) -> None:
        """Hold the checkpoint's files against their hashes; each rank reads its share."""
        files = sorted(read_commit(folder)["files"].items())
        for name, entry in files[self._ranks.rank :: self._ranks.world_size]:
            if sha256_file(folder / name) != entry["sha256"]:
                raise UserError(
                    f"{folder / name}: not the file that was committed. Delete {folder} to resume from the one before."
                )

    def is_due_by_step(self, step: int) -> bool:
        """Whether this is one of every so many steps."""
        return self._config.every_steps is not None and step % self._config.every_steps == 0

    def is_due_by_clock(self) -> bool:
        """Whether the configured minutes have passed since the last save, by rank 0's clock: a message to all ranks."""
        if self._config.every_minutes is None:
            return False
        return bool(broadcast_from_main(time.monotonic() - self._last_save >= 60 * self._config.every_minutes))

    def save(self, step: int, *, final: bool) -> None:
        """Save and commit. The folder exists under its name only when every rank's file is whole."""
        folder = self._run.checkpoints / f"step_{step}"
        saving = self._run.checkpoints / ".saving"
        if self._ranks.is_main:
            shutil.rmtree(saving, ignore_errors=True)
            saving.mkdir(parents=True)
        dist.barrier()
        self._engine.save(saving, tag=folder.name, step=step)
        dist.barrier()
        if self._ranks.is_main:
            self._wait_for_shards(saving / folder.name)
            commit(
                saving / folder.name,
                folder,
                step=step,
                final=final,
                world_size=self._ranks.world_size,
                trained=self._engine.parameter_names,
            )
            shutil.rmtree(saving, ignore_errors=True)
            self._delete_old()
        dist.barrier()
        self._last_save = time.monotonic()

    def _wait_for_shards(self, folder: Path) -> None:
        """A barrier does not make another node's file visible on a network file system; time does."""
        deadline = time.monotonic() + VISIBLE_SECONDS
        while len(found := list(folder.glob("*_optim_states.pt"))) < self._ranks.world_size:
            if time.monotonic() > deadline:
                raise RunError(
                    f"{folder}: {len(found)} of {self._ranks.world_size} ranks' files can be seen from the first node. "
                    "Put the run on a file system that all nodes share."
                )
            time.sleep(0.2)

    def _delete_old(self) -> None:
        """Keep the last few. A failed delete is reported, and training goes on."""
        for folder in committed_checkpoints(self._run)[: -self._config.keep_last]:
            try:
                shutil.rmtree(folder)
            except OSError as error:
                logging.getLogger(__name__).warning("%s: an old checkpoint could not be deleted: %s", folder, error)
