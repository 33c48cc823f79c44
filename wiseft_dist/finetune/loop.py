"""The training loop: batches in, steps out, and between two steps whatever is due."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.batch import Batch
from wiseft_dist.data.receipt import Account
from wiseft_dist.distributed import Agreement
from wiseft_dist.errors import RunError
from wiseft_dist.finetune.bad_steps import BadSteps
from wiseft_dist.finetune.checkpoint import Checkpointer
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.finetune.meter import Meter, Phase
from wiseft_dist.finetune.mixing import Mixing
from wiseft_dist.finetune.recipes import Recipe
from wiseft_dist.finetune.schedule import learning_rate
from wiseft_dist.finetune.stopping import StopRequest
from wiseft_dist.finetune.validation import Validator
from wiseft_dist.finetune.watchdog import Doing, Watchdog
from wiseft_dist.progress import Bar, Rated, progress_bar
from wiseft_dist.ranks import Ranks
from wiseft_dist.tracking import Tracker
from wiseft_dist.tracking.system import SystemSampler

logger = logging.getLogger(__name__)

NUM_AGREED = 2
"""What the ranks agree on at each step: which signal came to one of them, and whether rank 0's clock asks to save."""

DOING: dict[Phase, Doing] = {"data": "data", "checkpoint": "saving", "validation": "validating"}
"""The meter's words for what takes time, and the watchdog's."""


@dataclass(frozen=True)
class Loop:
    """The parts that a training run is made of."""

    engine: Engine
    recipe: Recipe
    prepare: Callable[[Tensor], Tensor]
    """From a batch's images or features, on the device, to what the recipe takes."""
    config: FinetuneConfig
    micro_batch_size: int
    total_steps: int
    ranks: Ranks
    seed: int
    account: Account
    meter: Meter
    validator: Validator
    checkpointer: Checkpointer
    watchdog: Watchdog
    timeout_minutes: float
    """Of the process group."""
    mixing: Mixing | None = None
    tracker: Tracker | None = None
    """On the rank that writes."""
    system: SystemSampler | None = None
    """Of that rank's machine."""

    def run(self, batches: Iterator[Batch], *, first_step: int) -> None:
        """Train from ``first_step`` to the last step and save the final state.

        Raises:
            RunError: if too many steps in a row have no finite loss or gradient.
            KeyboardInterrupt, SystemExit: if the run was told to stop, after a checkpoint was saved.
        """
        agreement = Agreement(NUM_AGREED, timeout_minutes=self.timeout_minutes)
        stop = StopRequest(self.ranks)
        bad_steps = BadSteps(self.ranks, self.config.max_bad_steps)
        told = 0
        if self.checkpointer.unread is not None:
            self.meter.restore(self.checkpointer.unread)
        with stop, self.watchdog, self._bar(first_step) as bar:
            for finished in range(first_step + 1, self.total_steps + 1):
                with self._phase("data", finished):
                    batch = next(batches)
                self._count(batch)
                self.watchdog.enter("computing", finished)
                self._judge(finished, self._step(batch, finished - 1), batch, bad_steps)
                self._settle(finished)
                told, asked = agreement.exchange(stop.told, self.checkpointer.asks_by_clock())
                if self._is_last(finished) or finished % self.config.log_every == 0:
                    values = self._log(finished)
                    bar.update(note=f"{self._epoch(finished)}, loss {values.get('loss', math.nan):.3f}")
                bar.advance()
                metrics = self._validate(finished)
                self._save(finished, metrics, asked=bool(told or asked))
                if told:
                    break
            agreement.close()
            self._conclude()
        if told and not self._is_last(finished):
            stop.hand_over(told)

    def _bar(self, first_step: int) -> AbstractContextManager[Bar]:
        return progress_bar(
            "fine-tuning",
            total=self.total_steps,
            unit="steps",
            completed=first_step,
            rated=Rated("samples", self.config.global_batch_size),
            is_main=self.ranks.is_main,
        )

    def _epoch(self, finished: int) -> str:
        """``epoch 2 of 5``."""
        size, epoch_size = self.config.global_batch_size, self.account.num_samples
        return f"epoch {-(-finished * size // epoch_size)} of {-(-self.total_steps * size // epoch_size)}"

    def _is_last(self, finished: int) -> bool:
        return finished == self.total_steps

    @contextmanager
    def _phase(self, name: Phase, finished: int) -> Iterator[None]:
        """Time that is not computing, for the meter and for the watchdog."""
        self.watchdog.enter(DOING[name], finished)
        with self.meter.phase(name):
            yield

    def _count(self, batch: Batch) -> None:
        self.account.add(batch.positions, batch.bad)
        for entry in batch.bad:
            logger.warning("%s; another sample stands in for it", entry)

    def _step(self, batch: Batch, step: int) -> Tensor:
        """One optimizer step.

        Returns:
            This rank's mean loss, on the device: reading it would make the host wait.
        """
        # Whatever the model draws (dropout) depends on the step alone, so a resumed run draws the same.
        torch.manual_seed(int(np.random.SeedSequence([self.seed, step, self.ranks.rank]).generate_state(1)[0]))
        rate = self._learning_rate(step)
        losses = []
        for index, micro in enumerate(batch.split(self.micro_batch_size)):
            inputs = self.prepare(micro.images.to(self.engine.device, non_blocking=True))
            targets = micro.targets.to(self.engine.device, non_blocking=True)
            if self.mixing is not None:
                inputs, targets = self.mixing(inputs, targets, step=step, rank=self.ranks.rank, micro=index)
            loss = self.recipe.loss(self.engine.forward, inputs, targets)
            self.engine.backward(loss)
            self.engine.step(rate)
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _learning_rate(self, step: int) -> float:
        config = self.config
        return learning_rate(step, peak=config.optimizer.lr, total_steps=self.total_steps, schedule=config.schedule)

    def _judge(self, finished: int, loss: Tensor, batch: Batch, bad_steps: BadSteps) -> None:
        """Count the loss of a step that was taken, and find out about one that the engine left out."""
        if not self.engine.skipped:
            bad_steps.good()
            self.meter.add(loss)
            return
        bad = bad_steps.examine(finished, loss=loss, keys=batch.keys, loss_scale=self.engine.loss_scale)
        if bad is None:
            return
        if self.tracker is not None:
            logger.warning("left out: %s", bad)
            self.tracker.event("bad_step", step=finished, reason=str(bad))
        bad_steps.refuse_more(bad, self.checkpointer.newest)

    def _settle(self, finished: int) -> None:
        """Write the receipt of every epoch that ended with the last step."""
        size, epoch_size = self.config.global_batch_size, self.account.num_samples
        for epoch in range((finished - 1) * size // epoch_size, finished * size // epoch_size):
            shares: list[Any] = [None] * self.ranks.world_size
            dist.all_gather_object(shares, self.account.share(epoch))
            receipt = self.account.close(epoch, shares)
            if self.tracker is not None:
                self.tracker.event(
                    "epoch", epoch=epoch, seen=receipt.seen, of=receipt.num_samples, skipped=list(map(str, receipt.bad))
                )

    def _log(self, finished: int) -> dict[str, float]:
        values = self.meter.read(
            finished,
            learning_rate=self._learning_rate(finished - 1),
            gradient_norm=self.engine.gradient_norm(),
        )
        if not math.isfinite(values.get("loss", 0.0)):  # though all gradients were: rare, and no reason to go on
            raise RunError(
                f"the mean loss up to step {finished} is {values['loss']}. The last good checkpoint is "
                f"{self.checkpointer.newest}: look at the samples, or start a new run with a lower "
                "finetune.optimizer.lr."
            )
        if self.tracker is not None:
            self.tracker.metrics(values | (self.system.sample() if self.system is not None else {}), step=finished)
        return values

    def _validate(self, finished: int) -> dict[str, float] | None:
        if not self.validator.is_due(finished):
            return None
        with self._phase("validation", finished):
            metrics = self.validator.run()
        if self.tracker is not None:
            self.tracker.metrics(metrics, step=finished)
        return metrics

    def _save(self, finished: int, metrics: dict[str, float] | None, *, asked: bool) -> None:
        checkpointer, final = self.checkpointer, self._is_last(finished)
        is_best = metrics is not None and checkpointer.is_best(metrics)
        if final or asked or is_best or checkpointer.is_due_by_step(finished):
            with self._phase("checkpoint", finished):
                checkpointer.save(finished, final=final, unread=self.meter.unread(), metrics=metrics)

    def _conclude(self) -> None:
        """One line on what the time went to."""
        bottleneck = self.meter.bottleneck()
        if self.tracker is not None:
            logger.info("%s", bottleneck)
            self.tracker.event("bottleneck", summary=bottleneck)
