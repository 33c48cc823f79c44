"""The metrics of WILDS: macro F1 (iWildCam) and the accuracy on the worst group (FMoW's regions).

Source: WILDS (arXiv 2012.07421), sections 4.1.1 and 4.2.2, and the evaluation of its package.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from scipy import sparse

from wiseft_dist.evaluate.statistics.metrics.tally import Tally, distinct, ratio


def macro_f1(labels: np.ndarray, classes: np.ndarray) -> Tally:
    """The mean of F1 over the classes that occur among the labels; predictions of other classes are plain errors.

    Args:
        labels: int64 ``[n]``.
        classes: int ``[K, n]``, the predictions.
    """
    first, kinds = distinct(labels, classes)
    present = np.unique(labels[first])
    num_alphas, num_classes = len(classes), len(present)
    label = np.searchsorted(present, labels[first])
    # Three blocks of sums by class: right predictions (K alphas), all predictions (K alphas), samples.
    places = np.searchsorted(present, classes[:, first]).clip(max=num_classes - 1)
    alphas, rows = np.nonzero(present[places] == classes[:, first])
    predicted = places[alphas, rows]
    right = predicted == label[rows]
    block = num_alphas * num_classes
    columns = [
        alphas[right] * num_classes + predicted[right],
        block + alphas * num_classes + predicted,
        2 * block + label,
    ]
    all_rows = np.concatenate([rows[right], rows, np.arange(len(first))])
    shape = (len(first), 2 * block + num_classes)
    sums = sparse.csr_array((np.ones(len(all_rows)), (all_rows, np.concatenate(columns))), shape=shape)

    def finish(totals: np.ndarray) -> np.ndarray:
        by_class = totals.reshape(*totals.shape[:-1], 2 * num_alphas + 1, num_classes)
        hits, predictions = by_class[..., :num_alphas, :], by_class[..., num_alphas:-1, :]
        samples = by_class[..., -1:, :]
        f1 = np.where(samples > 0, 2 * hits / np.maximum(predictions + samples, 1), 0.0)
        return ratio(f1.sum(axis=-1), (samples > 0).sum(axis=-1))

    return Tally(sums, kinds, finish)


def worst_group(groups: np.ndarray, correct: np.ndarray, excluded: Collection[int] = ()) -> Tally:
    """The lowest accuracy of any group. A group without samples is not the worst; nor is an excluded one.

    Args:
        groups: int64 ``[n]``, the group of each sample.
        correct: bool ``[K, n]``.
        excluded: Groups that do not count.
    """
    counted = np.unique(groups[~np.isin(groups, list(excluded))])
    first, kinds = distinct(groups, correct)
    num_alphas, num_groups = len(correct), len(counted)
    inside = np.flatnonzero(np.isin(groups[first], counted))
    place = np.searchsorted(counted, groups[first][inside])
    alphas, found = np.nonzero(correct[:, first[inside]])
    # Sparse: a kind is of one group, and there may be many groups.
    columns = np.concatenate([alphas * num_groups + place[found], num_alphas * num_groups + place])
    rows = np.concatenate([inside[found], inside])
    shape = (len(first), (num_alphas + 1) * num_groups)
    sums = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)

    def finish(totals: np.ndarray) -> np.ndarray:
        by_group = totals.reshape(*totals.shape[:-1], num_alphas + 1, num_groups)
        accuracies = ratio(by_group[..., :-1, :], by_group[..., -1:, :])
        lowest = np.where(np.isnan(accuracies), np.inf, accuracies).min(axis=-1, initial=np.inf)
        return np.where(np.isinf(lowest), np.nan, lowest)

    return Tally(sums, kinds, finish)


def group_accuracies(groups: np.ndarray, correct: np.ndarray) -> dict[int, np.ndarray]:
    """Accuracy on each group that has samples, float64 ``[K]`` by group."""
    return {int(group): correct[:, groups == group].mean(axis=1) for group in np.unique(groups)}
