"""Whether confidence says how often a model is right: ECE and reliability, NLL, Brier score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NUM_BINS = 15
"""Of equal width, as in Guo et al., On calibration of modern neural networks (arXiv 1706.04599), section 2."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The samples of one stretch of confidence."""

    low: float
    """Confidences above this (the first bin: from 0) ..."""
    high: float
    """... up to and with this."""
    num_samples: int
    confidence: float | None
    """Mean confidence, a fraction; ``None`` in an empty bin."""
    accuracy: float | None
    """Fraction that is right; ``None`` in an empty bin."""


def reliability(confidences: np.ndarray, correct: np.ndarray) -> tuple[ReliabilityBin, ...]:
    """The 15 bins of one ensemble, rising in confidence; a confidence of 1 is in the last.

    Args:
        confidences: float32 ``[n]``.
        correct: bool ``[n]``.
    """
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    # In the confidences' own precision: 0.2 is in the bin that ends at 0.2.
    places = (np.searchsorted(edges.astype(confidences.dtype), confidences) - 1).clip(0, NUM_BINS - 1)
    counts = np.bincount(places, minlength=NUM_BINS)
    confidence = np.bincount(places, confidences, NUM_BINS)
    right = np.bincount(places, correct, NUM_BINS)
    return tuple(
        ReliabilityBin(
            float(edges[index]),
            float(edges[index + 1]),
            int(count),
            float(confidence[index] / count) if count else None,
            float(right[index] / count) if count else None,
        )
        for index, count in enumerate(counts)
    )


def expected_calibration_error(bins: tuple[ReliabilityBin, ...]) -> float:
    """The mean gap between confidence and accuracy over all bins, weighted by their samples; a fraction."""
    total = sum(entry.num_samples for entry in bins)
    gaps = (
        entry.num_samples * abs(entry.confidence - entry.accuracy)
        for entry in bins
        if entry.confidence is not None and entry.accuracy is not None
    )
    return sum(gaps) / total if total else float("nan")


def negative_log_likelihood(log_probs: np.ndarray) -> float:
    """Mean over samples in nats; infinite where a right class was given no probability at all."""
    return float(-log_probs.mean(dtype=np.float64))


def brier_score(briers: np.ndarray) -> float:
    """Mean over samples of the squared distance between probabilities and the right class, between 0 and 2."""
    return float(briers.mean(dtype=np.float64))
