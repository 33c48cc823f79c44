"""Top-1, top-5 and mean per class accuracy."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from wiseft_dist.evaluate.statistics.metrics.tally import Tally, distinct, ratio


def single_labels(labels: np.ndarray) -> np.ndarray | None:
    """The right class of each sample, int64 ``[n]``; None where a sample has several, or none.

    Args:
        labels: int64 ``[n, L]``, -1 fills.
    """
    if (labels[:, 1:] >= 0).any() or (labels[:, 0] < 0).any():
        return None
    return labels[:, 0]


def top5(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The fraction of samples with a right class among the five likeliest, float64 ``[K]``.

    Args:
        labels: int64 ``[n, L]``, -1 fills.
        classes: ``[K, n, 5]``, -1 fills.
    """
    found = np.zeros(classes.shape[:2], dtype=bool)
    for column in labels.T:  # one label at a time: [K, n, 5, L] would be large
        found |= ((classes == column[:, None]) & (column >= 0)[:, None]).any(axis=-1)
    return np.asarray(found.mean(axis=1))


def class_counts(labels: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples of each class, and how many of them are right.

    Args:
        labels: int64 ``[n]``.
        correct: bool ``[K, n]``.

    Returns:
        int64 ``[classes]`` and int64 ``[K, classes]``; classes up to the largest label.
    """
    num_classes = int(labels.max()) + 1
    return np.bincount(labels, minlength=num_classes), np.stack(
        [np.bincount(labels[row], minlength=num_classes) for row in correct]
    )


def mean_per_class(labels: np.ndarray, correct: np.ndarray) -> Tally:
    """The mean over classes with samples of the accuracy on each (balanced accuracy).

    Args:
        labels: int64 ``[n]``.
        correct: bool ``[K, n]``.
    """
    first, kinds = distinct(labels, correct)
    _, present = np.unique(labels[first], return_inverse=True)
    num_alphas, num_classes = len(correct), int(present.max()) + 1
    alphas, rows = np.nonzero(correct[:, first])
    columns = np.concatenate([alphas * num_classes + present[rows], num_alphas * num_classes + present])
    rows = np.concatenate([rows, np.arange(len(first))])
    shape = (len(first), (num_alphas + 1) * num_classes)
    sums = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)

    def finish(totals: np.ndarray) -> np.ndarray:
        by_class = totals.reshape(*totals.shape[:-1], num_alphas + 1, num_classes)
        return mean_of_known(ratio(by_class[..., :-1, :], by_class[..., -1:, :]))

    return Tally(sums, kinds, finish)


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    return ratio(np.where(known, values, 0.0).sum(axis=-1), known.sum(axis=-1))
