"""What was read, counted: an epoch ends with "N of N seen", and what was skipped is named."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from wiseft_dist.data.shards import BadSampleError, Sample
from wiseft_dist.errors import RunError


@dataclass(frozen=True)
class BadSample:
    """A sample that could not be used."""

    position: int
    """Where it stood: in the endless training stream, or in the test set."""
    shard: str
    key: str
    reason: str

    @staticmethod
    def of(position: int, sample: Sample, error: ValueError) -> BadSample:
        """From what using the sample raised: a reason of ours, or a decoder's."""
        reason = str(error) if isinstance(error, BadSampleError) else f"does not decode: {error}"
        return BadSample(position, sample.shard, sample.key, reason)

    def __str__(self) -> str:
        """``s3://bucket/0.tar: sample 's0000001' does not decode: ...``."""
        return f"{self.shard}: sample {self.key!r} {self.reason}"


@dataclass(frozen=True)
class Receipt:
    """The account of one epoch."""

    epoch: int
    num_samples: int
    """What the manifest says."""
    seen: int
    """Positions that came, over all ranks and sessions."""
    bad: tuple[BadSample, ...]
    """Those among them whose sample was skipped."""

    def __str__(self) -> str:
        """``epoch 3: 1153 of 1153 seen, 1 skipped``."""
        skipped = f", {len(self.bad)} skipped" if self.bad else ""
        return f"epoch {self.epoch}: {self.seen} of {self.num_samples} seen{skipped}"


@dataclass
class Account:
    """Counts what a rank is given of each epoch; :meth:`close` settles an epoch over all ranks.

    Args:
        num_samples: Samples an epoch.
        max_bad: Samples an epoch that may be skipped.
        first_position: Where this session began: what lies before it was seen by earlier ones, or there would be no
            checkpoint to go on from.
    """

    num_samples: int
    max_bad: int
    first_position: int
    _seen: dict[int, int] = field(default_factory=dict)
    _bad: dict[int, list[BadSample]] = field(default_factory=dict)

    def add(self, positions: np.ndarray, bad: tuple[BadSample, ...]) -> None:
        """Count a batch.

        Raises:
            RunError: if more samples of an epoch were skipped than may be, naming the last.
        """
        epochs, counts = np.unique(positions // self.num_samples, return_counts=True)
        for epoch, count in zip(epochs.tolist(), counts.tolist(), strict=True):
            self._seen[epoch] = self._seen.get(epoch, 0) + count
        for entry in bad:
            refuse_more(self._of(entry), entry, self.max_bad)

    def _of(self, entry: BadSample) -> list[BadSample]:
        epoch = self._bad.setdefault(entry.position // self.num_samples, [])
        epoch.append(entry)
        return epoch

    def share(self, epoch: int) -> tuple[int, list[BadSample]]:
        """This rank's count of an epoch and what it skipped."""
        return self._seen.pop(epoch, 0), self._bad.pop(epoch, [])

    def close(self, epoch: int, shares: list[tuple[int, list[BadSample]]]) -> Receipt:
        """The receipt of an epoch from the shares of all ranks.

        Raises:
            RunError: if a position is missing or came twice, or too many samples were skipped.
        """
        earlier = min(max(0, self.first_position - epoch * self.num_samples), self.num_samples)
        seen = earlier + sum(count for count, _ in shares)
        bad = sorted((entry for _, entries in shares for entry in entries), key=lambda entry: entry.position)
        receipt = Receipt(epoch, self.num_samples, seen, tuple(bad))
        if seen != self.num_samples:
            raise RunError(f"{receipt}: a batch was lost or came twice; resume from the last checkpoint.")
        if bad:
            refuse_more(bad, bad[-1], self.max_bad)
        return receipt


def refuse_more(bad: list[BadSample], last: BadSample, max_bad: int) -> None:
    """Stop when more samples were skipped than may be.

    Raises:
        RunError: naming the last of them.
    """
    if len(bad) > max_bad:
        allowed = "none may be" if max_bad == 0 else f"{max_bad} may be"
        raise RunError(
            f"{last}; {len(bad)} skipped so far, {allowed} (max_bad_samples). "
            "`wiseft shards verify` names every damaged sample."
        )
