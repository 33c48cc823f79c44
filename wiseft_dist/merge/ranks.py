"""The ranks that merge together, or a process on its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed as dist

from wiseft_dist.distributed import together
from wiseft_dist.errors import RunError

Item = TypeVar("Item")
Result = TypeVar("Result")


def share(items: Sequence[Item], weight: Callable[[Item], int], rank: int, world_size: int) -> list[Item]:
    """The consecutive items that fall to a rank, of about the same weight for all."""
    total = sum(map(weight, items))
    mine, before = [], 0
    for item in items:
        if before * world_size // max(1, total) == rank:
            mine.append(item)
        before += weight(item)
    return mine


@dataclass(frozen=True)
class RankGroup:
    """This process's place among those that merge together."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> RankGroup:
        """The process group, if this process is in one."""
        return cls(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else cls()

    @property
    def is_main(self) -> bool:
        """Whether this process does what is done once."""
        return self.rank == 0

    def everywhere(self, action: Callable[[], Result]) -> list[Result]:
        """Run ``action`` on every rank and wait for all.

        Returns:
            What it returned, by rank; on every rank.

        Raises:
            Exception: what it raised on any rank.
            RunError: if a rank is gone.
        """
        if self.world_size == 1:
            return [action()]
        mine: list[Result] = []
        results: list[Any] = [None] * self.world_size
        try:
            together(lambda: mine.append(action()))
            dist.all_gather_object(results, mine[0])
        except RuntimeError as error:
            if isinstance(error, RunError) or not mine:
                raise
            raise RunError(  # gloo fails as soon as a connection ends
                f"rank {self.rank} of {self.world_size}: another rank is gone. Run again; finished chunks are kept."
            ) from error
        return results

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Run ``action`` on rank 0 while the others wait; its result on every rank. Raises as :meth:`everywhere`."""
        result = self.everywhere(lambda: action() if self.is_main else None)[0]
        return result  # type: ignore[return-value]
