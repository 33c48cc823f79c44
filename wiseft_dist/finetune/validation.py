"""Held-out ID validation: the piece of the training set that is never trained on, scored by the model in training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from wiseft_dist.config import ValidationConfig
from wiseft_dist.data.batch import Batch
from wiseft_dist.data.receipt import BadSample, refuse_more
from wiseft_dist.distributed import together
from wiseft_dist.errors import RunError
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.finetune.recipes import Recipe, Scorer
from wiseft_dist.progress import Bar, progress_bar
from wiseft_dist.ranks import Ranks

logger = logging.getLogger(__name__)


class HeldOutStream(Protocol):
    """Pictures or features, each once: :class:`wiseft_dist.data.evaluation.EvaluationStream`, or one like it."""

    @property
    def num_samples(self) -> int:
        """Over all ranks."""

    def batches(self, batch_size: int, *, num_workers: int, rank: int = 0, world_size: int = 1) -> Iterator[Batch]:
        """This rank's batches of at most ``batch_size``."""


@dataclass(frozen=True)
class ValidationTimes:
    """After which steps the model is validated."""

    config: ValidationConfig
    global_batch_size: int
    num_training: int
    """Samples an epoch."""
    total_steps: int

    def is_due(self, step: int) -> bool:
        """Whether ``step`` finished steps are a time: the first at or after each multiple of the interval, or the end.

        ``every_steps`` wins over ``every_epochs``; a pure function, in exact arithmetic.
        """
        if step == self.total_steps:
            return True
        if self.config.every_steps is not None:
            return step % self.config.every_steps == 0
        if self.config.every_epochs is None:
            return False
        interval = Fraction(str(self.config.every_epochs)) * self.num_training  # the decimal number, as it was written
        return step * self.global_batch_size // interval > (step - 1) * self.global_batch_size // interval


@dataclass(frozen=True)
class Validator:
    """Scores the held-out samples, every one exactly once over the ranks.

    All ranks take part in each forward pass, as sharded parameters demand: one that has run out of samples computes
    on zeros.
    """

    stream: HeldOutStream | None
    """Nothing, or one without samples: validation is never due."""
    times: ValidationTimes
    recipe: Recipe
    engine: Engine
    ranks: Ranks
    prepare: Callable[[Tensor], Tensor]
    """From a batch's images or features, on the device, to what the recipe takes."""
    zero_shot: Path
    batch_size: int
    """Samples a forward pass on one rank."""
    workers: int
    """Decoding processes a rank."""
    average: bool = False
    """Score the moving average of the weights."""
    max_bad: int = 0
    """Samples, over all ranks, that may be left out."""

    def is_due(self, step: int) -> bool:
        """Whether the model is validated when ``step`` steps are finished."""
        return self.stream is not None and self.stream.num_samples > 0 and self.times.is_due(step)

    def run(self) -> dict[str, float]:
        """Score the model as it is. All ranks call it.

        Returns:
            The same on every rank: ``id_val/top1``, a fraction; ``id_val/loss``, the mean; ``id_val/num_samples``, how
            many were scored.

        Raises:
            UserError, RunError: on every rank what reading raised on any; if a sample is missing or came twice; if too
                many are damaged.
        """
        # Closed at an error too: decoding processes must not outlive the pass.
        with closing(self._batches()) as batches, self.engine.evaluating(average=self.average):
            correct, loss, scored = self._sums(batches).tolist()
        return {"id_val/top1": correct / scored, "id_val/loss": loss / scored, "id_val/num_samples": int(scored)}

    def _batches(self) -> Generator[Batch, None, None]:
        assert self.stream is not None  # never due otherwise
        rank, world_size = self.ranks.rank, self.ranks.world_size
        yield from self.stream.batches(self.batch_size, num_workers=self.workers, rank=rank, world_size=world_size)

    def _sums(self, batches: Iterator[Batch]) -> Tensor:
        """Correct samples, their losses and their number, over all ranks: float64 ``[3]``."""
        score = self.recipe.scorer(self.engine.forward, self.zero_shot, device=self.engine.device)
        sums = torch.zeros(3, dtype=torch.float64, device=self.engine.device)
        bad: list[BadSample] = []
        with self._bar() as bar:
            for batch, shares in self._rounds(batches):
                bad += [entry for share in shares for entry in share.bad]
                if bad:
                    refuse_more(bad, bad[-1], self.max_bad)
                if batch is not None and len(batch):
                    correct, loss = self._score(score, batch.images, batch.targets)
                    sums += torch.stack([correct.double(), loss.double(), torch.full_like(sums[0], len(batch))])
                    bar.advance(len(batch))
                elif form := next((share.form for share in shares if share.form), None):
                    self._score(score, *form.zeros())
        dist.all_reduce(sums)
        self._check(int(sums[2].item()), len(bad))
        return sums

    def _bar(self) -> AbstractContextManager[Bar]:
        """Over this rank's images: the ranks have about as many each."""
        assert self.stream is not None
        own = math.ceil(self.stream.num_samples / self.ranks.world_size)
        return progress_bar("validating", total=own, unit="images", is_main=self.ranks.is_main)

    def _rounds(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch | None, list[_Share]]]:
        """This rank's batches, then nothing until every rank has had its last; beside each, what all ranks have."""
        while True:
            read: list[Batch | None] = []
            together(lambda: read.append(next(batches, None)))  # noqa: B023
            batch = read[0]
            shares: list[Any] = [None] * self.ranks.world_size
            dist.all_gather_object(shares, _Share.of(batch))
            if all(share.is_last for share in shares):
                return
            for entry in batch.bad if batch is not None else ():
                logger.warning("%s; it is left out of the validation", entry)
            yield batch, shares

    def _score(self, score: Scorer, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        device = self.engine.device
        return score(self.prepare(images.to(device, non_blocking=True)), targets.to(device, non_blocking=True))

    def _check(self, scored: int, num_bad: int) -> None:
        assert self.stream is not None
        expected = self.stream.num_samples
        if scored + num_bad != expected or scored == 0:
            raise RunError(
                f"validation scored {scored} samples and left out {num_bad}, of {expected} that are held out "
                "(data.id_val_fraction). `wiseft shards verify` names damaged and changed shards."
            )


@dataclass(frozen=True)
class _Form:
    """What a batch looks like beside its values."""

    images: tuple[torch.Size, torch.dtype]
    targets: tuple[torch.Size, torch.dtype]

    def zeros(self) -> tuple[Tensor, Tensor]:
        """A batch of one sample."""
        images, targets = (torch.zeros((1, *shape), dtype=dtype) for shape, dtype in (self.images, self.targets))
        return images, targets


@dataclass(frozen=True)
class _Share:
    """What a rank tells the others about its next batch."""

    is_last: bool
    """It has none."""
    form: _Form | None
    """Nothing where there are no samples in it."""
    bad: tuple[BadSample, ...]

    @staticmethod
    def of(batch: Batch | None) -> _Share:
        if batch is None:
            return _Share(True, None, ())
        images, targets = ((tensor.shape[1:], tensor.dtype) for tensor in (batch.images, batch.targets))
        return _Share(False, _Form(images, targets) if len(batch) else None, batch.bad)
