"""Which samples zero-shot, ensemble and fine-tuned judge differently; those of which they differ most come first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from wiseft_dist.evaluate.predictions import Predictions

COLUMNS = ("classes", "confidences", "log_probs")
"""Of predictions: what the choice and the captions need."""


@dataclass(frozen=True)
class Said:
    """What one model says of a sample."""

    model: str
    label: int
    """The likeliest class."""
    confidence: float
    """Its probability, a fraction."""
    is_right: bool
    right: float
    """Probability of the right class (of several, the likeliest), a fraction."""


@dataclass(frozen=True)
class Changed:
    """A sample of which the models say different things."""

    position: int
    """In its dataset."""
    key: str
    labels: tuple[int, ...]
    """The right classes."""
    is_gained: bool
    """Whether the judged model has it right, and another one wrong; else it is the other way round."""
    said: tuple[Said, ...]


def changed_most(predictions: Predictions, models: Mapping[str, int], judged: str, count: int) -> list[Changed]:
    """Samples that the judged model has right and another wrong, and as many for which it is the other way round.

    Of each kind those come first whose right class's probability differs most between the models; among equals the
    earlier in the dataset. Where there are too few of one kind, there are more of the other.

    Args:
        predictions: With :data:`COLUMNS`.
        models: The row of each model in the predictions.
        judged: Which of them is looked at: the ensemble.
        count: How many samples, at most.
    """
    rows = list(models.values())
    correct, right = predictions.correct[rows], np.exp(predictions.log_probs[rows].astype(np.float64))
    is_right = correct[list(models).index(judged)]
    spread = right.max(axis=0) - right.min(axis=0)
    # Rounded: the last bits of a probability depend on the number of threads, and must not choose.
    order = np.lexsort((predictions.positions, -np.round(spread, 6)))
    gained = [int(index) for index in order if is_right[index] and not correct[:, index].all()]
    lost = [int(index) for index in order if not is_right[index] and correct[:, index].any()]
    num_lost = min(len(lost), max(count // 2, count - len(gained)))
    chosen = [*gained[: count - num_lost], *lost[:num_lost]]
    return [_changed(predictions, models, index, bool(is_right[index])) for index in chosen]


def _changed(predictions: Predictions, models: Mapping[str, int], index: int, is_gained: bool) -> Changed:
    labels = tuple(int(label) for label in predictions.labels[index] if label >= 0)
    said = (
        Said(
            name,
            int(predictions.classes[row, index]),
            float(predictions.confidences[row, index]),
            int(predictions.classes[row, index]) in labels,
            float(np.exp(predictions.log_probs[row, index])),
        )
        for name, row in models.items()
    )
    position = int(predictions.positions[index])
    return Changed(position, predictions.keys[index], labels, is_gained, tuple(said))
