"""Steps whose loss or gradient is no number: where they come from, and when there are too many of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor

from wiseft_dist.errors import RunError
from wiseft_dist.ranks import Ranks

MAX_KEYS = 8
"""Samples of a rank's batch that are named."""


@dataclass(frozen=True)
class BadStep:
    """A step whose update was left out."""

    step: int
    losses: dict[int, float]
    """Of the ranks whose own loss is not finite."""
    keys: dict[int, tuple[str, ...]]
    """What those ranks' batches held."""

    def __str__(self) -> str:
        """``step 7: the loss of rank 1 is nan, on its samples 'a', 'b' and 6 more``."""
        if not self.losses:
            return f"step {self.step}: every rank's loss is finite, and the gradient is not"
        return f"step {self.step}: " + ", ".join(
            f"the loss of rank {rank} is {loss:g}, on its samples {_listed(self.keys[rank])}"
            for rank, loss in self.losses.items()
        )


def _listed(keys: Sequence[str]) -> str:
    named, left = [repr(key) for key in keys[:MAX_KEYS]], len(keys) - MAX_KEYS
    return ", ".join(named) + (f" and {left} more" if left > 0 else "")


class BadSteps:
    """Counts the bad steps that follow one another. Every rank is told of the same steps.

    Args:
        ranks: This process's place.
        max_in_a_row: So many are left out and forgotten.
    """

    def __init__(self, ranks: Ranks, max_in_a_row: int) -> None:
        self._ranks, self._max = ranks, max_in_a_row
        self._row: list[int] = []

    def examine(self, step: int, *, loss: Tensor, keys: Sequence[str], loss_scale: float) -> BadStep | None:
        """Find out with the other ranks what was wrong with a step that the engine has left out.

        Args:
            step: Its number, from 1.
            loss: This rank's, a scalar on the device; reading it waits.
            keys: This rank's samples.
            loss_scale: What it was multiplied by: the search for a scale leaves steps out, which is no harm.

        Returns:
            The bad step, or nothing where the loss scale was only too large.
        """
        shares: list[Any] = [None] * self._ranks.world_size
        dist.all_gather_object(shares, (loss.item(), tuple(keys)))
        losses = {rank: value for rank, (value, _) in enumerate(shares) if not math.isfinite(value)}
        if not losses and loss_scale > 1:
            return None
        self._row.append(step)
        return BadStep(step, losses, {rank: shares[rank][1] for rank in losses})

    def good(self) -> None:
        """A step was taken."""
        self._row.clear()

    def refuse_more(self, last: BadStep, checkpoint: Path | None) -> None:
        """Stop when more steps in a row were bad than may be.

        Args:
            last: The last of them.
            checkpoint: The newest one on disk.

        Raises:
            RunError: on every rank alike.
        """
        if len(self._row) <= self._max:
            return
        steps = f"steps {self._row[0]} to {self._row[-1]} were" if len(self._row) > 1 else f"step {self._row[0]} was"
        good = f"The last good checkpoint is {checkpoint}" if checkpoint else "No checkpoint was saved before"
        raise RunError(
            f"{steps} without a finite loss and gradient, and finetune.max_bad_steps is {self._max}; {last}. "
            f"{good}: look at the samples, or start a new run with a lower finetune.optimizer.lr or a longer "
            "finetune.schedule.warmup_steps."
        )
