"""One rank that works, waits for the others at each step, and is watched: ``watched_rank.py FOLDER MINUTES [RANK]``.

The rank that is named waits for data that never comes, at step 5.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch.distributed as dist

from wiseft_dist.distributed import process_group
from wiseft_dist.finetune.watchdog import Watchdog
from wiseft_dist.ranks import discover_ranks


def main(folder: Path, minutes: float, starving: int | None) -> None:
    ranks = discover_ranks()
    watchdog = Watchdog(folder / "events.jsonl", ranks, timeout_minutes=minutes)
    with process_group(ranks, timeout_minutes=minutes), watchdog:
        for step in range(1, 100_000):
            watchdog.enter("data", step)
            if step == 5 and ranks.rank == starving:
                time.sleep(1000)
            watchdog.enter("computing", step)
            dist.barrier()
            (folder / f"rank_{ranks.rank}").write_text(str(step))
            time.sleep(0.05)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)
