"""The metric that stands for a dataset, as its description names it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.predictions import Predictions
from wiseft_dist.evaluate.statistics.intervals import Clusters
from wiseft_dist.evaluate.statistics.metrics.accuracy import mean_per_class, single_labels
from wiseft_dist.evaluate.statistics.metrics.tally import Tally, proportion
from wiseft_dist.evaluate.statistics.metrics.video import AnchorResults, score_anchors
from wiseft_dist.evaluate.statistics.metrics.wilds import macro_f1, worst_group


@dataclass(frozen=True)
class Primary:
    """The metric of one dataset, computed."""

    tally: Tally
    correct: np.ndarray
    """bool ``[K, units]``: right samples, or right anchors."""
    clusters: Clusters | None
    """Of the units."""
    anchors: AnchorResults | None
    """Only for pm0."""


def primary_metric(dataset: str, spec: DatasetSpec, predictions: Predictions, correct: np.ndarray) -> Primary:
    """Compute the dataset's own metric.

    Args:
        dataset: Its name, for errors.
        spec: Metric, columns, excluded groups.
        predictions: Of K members.
        correct: ``predictions.correct``, bool ``[K, n]``.

    Raises:
        UserError: if the samples lack a column that the description names, or have labels the metric cannot use.
        RunError: if there is nothing to count.
    """
    if not len(predictions):
        raise RunError(f"{dataset}: not one sample was scored, so there is no accuracy. Look at its skipped samples.")
    clusters = None
    if spec.cluster is not None:
        clusters = Clusters(spec.cluster, column(dataset, spec.cluster, "cluster", predictions))
    if spec.metric == "pm0":
        return _video(dataset, spec, predictions, correct, clusters)
    if spec.metric == "top1":
        tally = proportion(correct)
    elif spec.metric == "worst_group":
        groups = column(dataset, spec.group, "group", predictions)
        tally = worst_group(groups, correct, excluded_groups(spec))
    else:
        labels = single_labels(predictions.labels)
        if labels is None:
            raise UserError(
                f"{dataset}: {spec.metric} needs one right class a sample, and its samples have several: "
                f"set data.datasets.{dataset}.metric to top1."
            )
        single = macro_f1(labels, predictions.classes) if spec.metric == "macro_f1" else None
        tally = single or mean_per_class(labels, correct)
    if np.isnan(tally.values).any():
        raise RunError(f"{dataset}: all its samples are in groups that do not count. Look at data.datasets.{dataset}.")
    return Primary(tally, correct, clusters, None)


def column(dataset: str, name: str | None, use: str, predictions: Predictions) -> np.ndarray:
    """A metadata column, int64 ``[n]``.

    Args:
        dataset: For errors.
        name: What the description calls it.
        use: The field of the description that names it.
        predictions: Which have the columns.

    Raises:
        UserError: if there is none of that name.
    """
    if name is None:
        raise UserError(f"{dataset}: its metric needs to know a column: set data.datasets.{dataset}.{use}.")
    if name not in predictions.metadata:
        raise UserError(
            f"{dataset}: {use} is the column {name!r}, which its samples do not have: "
            f"say where it stands in data.datasets.{dataset}.metadata."
        )
    return predictions.metadata[name]


def group_name(spec: DatasetSpec, group: int) -> str:
    """What a group is called; its number where the description has no name for it."""
    return spec.group_names[group] if 0 <= group < len(spec.group_names) else str(group)


def excluded_groups(spec: DatasetSpec) -> set[int]:
    """The numbers of the groups that cannot be the worst; the catalog has seen to it that their names exist."""
    return {spec.group_names.index(group) if isinstance(group, str) else group for group in spec.excluded_groups}


def _video(
    dataset: str, spec: DatasetSpec, predictions: Predictions, correct: np.ndarray, clusters: Clusters | None
) -> Primary:
    """Anchors are the units: neighbours are looked at only through them."""
    names = column(dataset, spec.anchor, "anchor", predictions)
    offsets = column(dataset, spec.offset, "offset", predictions)
    anchors = score_anchors(correct, names, offsets, spec.neighbours)
    if not len(anchors.frames):
        raise RunError(f"{dataset}: no frame has {spec.offset} 0, so there are no anchors. Look at its metadata.")
    if clusters is not None:
        clusters = Clusters(clusters.column, clusters.ids[anchors.frames])
    return Primary(proportion(anchors.pm0), anchors.pm0, clusters, anchors)
