"""From logits to the numbers that are kept of each sample; all on the device, in fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wiseft_dist.evaluate.predictions import NUM_TOP


@dataclass(frozen=True)
class Scores:
    """What is kept of n samples; the last axis of ``top5`` is the rank, every other tensor ends in n."""

    top5: Tensor
    """int32 ``[n, 5]``."""
    confidences: Tensor
    """fp32 ``[n]``, as everything that follows."""
    margins: Tensor
    log_probs: Tensor
    briers: Tensor
    divergences: Tensor

    @staticmethod
    def join(parts: Sequence[Scores], *, dim: int = 0) -> Scores:
        """Those of consecutive samples, one after the other along an axis."""
        return Scores(*(torch.cat(each, dim=dim) for each in zip(*map(_tensors, parts), strict=True)))

    @staticmethod
    def stack(members: Sequence[Scores]) -> Scores:
        """Those of K ensembles, with an axis of K in front."""
        return Scores(*(torch.stack(each) for each in zip(*map(_tensors, members), strict=True)))

    def on_host(self) -> Scores:
        """The same; the host waits for the device once, and then copies."""
        top5, *others = _tensors(self)
        numbers = torch.stack(others).cpu()
        return Scores(top5.cpu(), *numbers)

    def as_arrays(self) -> dict[str, np.ndarray]:
        """By name."""
        return {name: tensor.numpy() for name, tensor in zip(_NAMES, _tensors(self), strict=True)}


def _tensors(scores: Scores) -> list[Tensor]:
    return [getattr(scores, name) for name in _NAMES]


_NAMES = tuple(each.name for each in fields(Scores))


def score(logits: Tensor, labels: Tensor, reference: Tensor | None) -> Scores:
    """The numbers of a batch.

    Args:
        logits: fp32 ``[batch, classes]``, after the class map; -Inf for classes that are never predicted.
        labels: int64 ``[batch, labels]``; the first is a class, -1 fills behind it.
        reference: Log-probabilities of theta_0 on the same samples, fp32 ``[batch, classes]``, where it was asked.
    """
    log_probs = logits.log_softmax(dim=-1)
    order = _best_classes(logits)
    best = logits.gather(-1, order)
    right = _likeliest(log_probs, labels)
    right_log_probs = log_probs.gather(-1, right).squeeze(-1)
    num_fills = max(0, NUM_TOP - logits.shape[-1])
    return Scores(
        top5=functional.pad(order, (0, num_fills), value=-1).to(torch.int32),
        confidences=log_probs.max(dim=-1).values.exp(),
        margins=best[:, 0] - best[:, 1] if num_fills < NUM_TOP - 1 else torch.full_like(best[:, 0], torch.inf),
        log_probs=right_log_probs,
        briers=log_probs.exp().scatter_add(-1, right, -torch.ones_like(best[:, :1])).square().sum(dim=-1),
        divergences=_divergences(reference, log_probs),
    )


def _best_classes(logits: Tensor) -> Tensor:
    """The classes of the five largest logits, int64 ``[batch, at most 5]``, of equal ones the lower first.

    ``argmax`` takes the first; ``topk`` does not say which it takes, and a stable sort of 1,000 is ten times slower.
    """
    left = logits.clamp(min=torch.finfo(logits.dtype).min)  # above what is taken
    order = []
    for _ in range(min(NUM_TOP, logits.shape[-1])):
        order.append(left.argmax(dim=-1, keepdim=True))
        left.scatter_(-1, order[-1], -torch.inf)
    return torch.cat(order, dim=-1)


def _likeliest(log_probs: Tensor, labels: Tensor) -> Tensor:
    """The likeliest of each sample's right classes, int64 ``[batch, 1]``."""
    found = log_probs.gather(-1, labels.clamp(min=0)).masked_fill(labels < 0, -torch.inf)
    return labels.gather(-1, found.argmax(dim=-1, keepdim=True))


def _divergences(reference: Tensor | None, log_probs: Tensor) -> Tensor:
    """KL(reference || these) in nats; classes that the reference rules out count nothing. NaN without a reference."""
    if reference is None:
        return log_probs.new_full(log_probs.shape[:1], torch.nan)
    probabilities = reference.exp()
    terms = probabilities * (reference - log_probs)
    return terms.masked_fill(probabilities == 0, 0.0).sum(dim=-1).clamp(min=0)
