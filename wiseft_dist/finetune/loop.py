"""The training loop: batches in, steps out, and what a person watching wants to know."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.batch import Batch
from wiseft_dist.data.receipt import Account
from wiseft_dist.data.transforms import Preprocess, normalize
from wiseft_dist.distributed import Ranks
from wiseft_dist.errors import RunError
from wiseft_dist.finetune.checkpoint import Checkpointer
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.finetune.mixing import Mixing
from wiseft_dist.finetune.recipes import Recipe
from wiseft_dist.finetune.schedule import learning_rate
from wiseft_dist.progress import progress_bar
from wiseft_dist.tracking import Tracker

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loop:
    """The parts that a training run is made of."""

    engine: Engine
    recipe: Recipe
    preprocess: Preprocess
    config: FinetuneConfig
    micro_batch_size: int
    total_steps: int
    ranks: Ranks
    seed: int
    account: Account
    mixing: Mixing | None = None

    def run(
        self,
        batches: Iterator[Batch],
        *,
        first_step: int,
        checkpointer: Checkpointer,
        tracker: Tracker | None,
    ) -> None:
        """Train from ``first_step`` to the last step; ``tracker`` is given on the rank that writes."""
        meter = _Meter(self, first_step)
        with progress_bar("fine-tuning", total=self.total_steps, unit="steps") as bar:
            bar.update(completed=first_step)
            for step in range(first_step, self.total_steps):
                waited = time.perf_counter()
                batch = next(batches)
                meter.data_wait += time.perf_counter() - waited
                self.account.add(batch.positions, batch.bad)
                for entry in batch.bad:
                    logger.warning("%s; another sample stands in for it", entry)
                meter.loss += self._step(batch, step)
                finished = step + 1
                self._settle(finished, tracker)
                is_last = finished == self.total_steps
                logs = is_last or finished % self.config.log_every == 0
                # The clock is asked only where the ranks wait for each other anyway.
                due = checkpointer.is_due_by_step(finished) or (logs and checkpointer.is_due_by_clock())
                saves = due and not is_last
                if saves or logs:
                    values = meter.read(finished)
                    if tracker is not None:
                        tracker.metrics(values, step=finished)
                        bar.update(completed=finished, note=f"loss {values['loss']:.3f}")
                if saves:  # only after the metrics were read: they refuse a run that is beyond repair
                    checkpointer.save(finished, final=False)

    def _settle(self, finished: int, tracker: Tracker | None) -> None:
        """Write the receipt of every epoch that ended with the last step."""
        size, epoch_size = self.config.global_batch_size, self.account.num_samples
        for epoch in range((finished - 1) * size // epoch_size, finished * size // epoch_size):
            shares: list[Any] = [None] * self.ranks.world_size
            dist.all_gather_object(shares, self.account.share(epoch))
            receipt = self.account.close(epoch, shares)
            if tracker is not None:
                tracker.event(
                    "epoch", epoch=epoch, seen=receipt.seen, of=receipt.num_samples, skipped=list(map(str, receipt.bad))
                )

    def _step(self, batch: Batch, step: int) -> torch.Tensor:
        """One optimizer step.

        Returns:
            This rank's mean loss, on the device: reading it would make the host wait.
        """
        rate = learning_rate(
            step, peak=self.config.optimizer.lr, total_steps=self.total_steps, schedule=self.config.schedule
        )
        # Whatever the model draws (dropout) depends on the step alone, so a resumed run draws the same.
        torch.manual_seed(int(np.random.SeedSequence([self.seed, step, self.ranks.rank]).generate_state(1)[0]))
        losses = []
        for index, micro in enumerate(batch.split(self.micro_batch_size)):
            pixels = micro.images.to(self.engine.device, non_blocking=True)
            targets = micro.targets.to(self.engine.device, non_blocking=True)
            images = normalize(pixels, self.preprocess, self.engine.dtype)
            if self.mixing is not None:
                images, targets = self.mixing(images, targets, step=step, rank=self.ranks.rank, micro=index)
            loss = self.recipe.loss(self.engine.forward, images, targets)
            self.engine.backward(loss)
            self.engine.step(rate)
            losses.append(loss.detach())
        return torch.stack(losses).mean()


class _Meter:
    """Sums between two lines of metrics; the only place where the host waits for the device."""

    def __init__(self, loop: Loop, first_step: int) -> None:
        self._loop = loop
        self._restart(first_step)

    def _restart(self, step: int) -> None:
        self.data_wait = 0.0
        self.loss = torch.zeros((), device=self._loop.engine.device)
        self._step, self._started = step, time.perf_counter()

    def read(self, step: int) -> dict[str, float]:
        """Metrics of the steps since the last line: the loss is the mean over all ranks.

        Raises:
            RunError: if the loss or the last gradient is not a finite number.
        """
        loop, config = self._loop, self._loop.config
        steps = step - self._step
        dist.all_reduce(self.loss)
        loss = self.loss.item() / (steps * loop.ranks.world_size)
        norm = loop.engine.gradient_norm()
        seconds = time.perf_counter() - self._started
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RunError(
                f"between steps {self._step} and {step} the loss is {loss:g} and the gradient norm {norm:g}: start a "
                "new run with a lower finetune.optimizer.lr or a longer finetune.schedule.warmup_steps."
            )
        values = {
            "loss": loss,
            "lr": learning_rate(
                step - 1, peak=config.optimizer.lr, total_steps=loop.total_steps, schedule=config.schedule
            ),
            "gradient_norm": norm,
            "samples_per_second": steps * config.global_batch_size / seconds,
            "data_wait_percent": 100 * self.data_wait / seconds,
            "memory_gb": _peak_memory(loop.engine.device) / 1e9,
            "eta_seconds": (loop.total_steps - step) * seconds / steps,
        }
        self._restart(step)
        return values


def _peak_memory(device: torch.device) -> int:
    """Most bytes this process has held: on its GPU, or resident where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
