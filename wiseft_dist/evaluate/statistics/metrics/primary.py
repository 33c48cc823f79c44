"""The metric that stands for a dataset, as its description names it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.data.text_identity import text_identity
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.predictions import Member, Predictions
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


def refuse_unknown(dataset: str, members: Sequence[Member], predictions: Predictions) -> None:
    """Refuse predictions of a model that said nothing: its class would be the first, and its calibration no number.

    Args:
        dataset: For errors.
        members: K.
        predictions: Of them.

    Raises:
        RunError: if a confidence is NaN, naming the first alpha.
    """
    for member, confidences in zip(members, predictions.confidences, strict=True):
        if num_unknown := int(np.isnan(confidences).sum()):
            raise RunError(
                f"{dataset}: at alpha {member.alpha:g} {num_unknown} of {len(predictions)} samples have class "
                "probabilities that are not numbers (NaN). Look at the weights of that model; then delete this "
                "alpha's cells of the dataset and evaluate again, perhaps with evaluate.precision fp32."
            )


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


def named_groups(spec: DatasetSpec) -> dict[int, str]:
    """What groups are called, by what stands for them in the column: their index, or the hash of a text."""
    return dict(enumerate(spec.group_names)) | {text_identity(name): name for name in spec.group_names}


def excluded_groups(spec: DatasetSpec) -> set[int]:
    """What stands in the column for groups that cannot be the worst; the catalog has seen to it that names exist."""
    names = named_groups(spec)
    wanted = {names.get(group, group) if isinstance(group, int) else group for group in spec.excluded_groups}
    return {place for place, name in names.items() if name in wanted} | {g for g in wanted if isinstance(g, int)}


def _video(
    dataset: str, spec: DatasetSpec, predictions: Predictions, correct: np.ndarray, clusters: Clusters | None
) -> Primary:
    """Anchors are the units: neighbours are looked at only through them.

    Anchors may be numbered anew in each video: an anchor is told by its video, the cluster column, too.
    """
    names = column(dataset, spec.anchor, "anchor", predictions)
    offsets = column(dataset, spec.offset, "offset", predictions)
    units = _units(names, None if clusters is None else clusters.ids)
    _refuse_repeated(dataset, spec, units, offsets, predictions)
    anchors = score_anchors(correct, units, offsets, spec.neighbours)
    if not len(anchors.frames):
        raise RunError(f"{dataset}: no frame has {spec.offset} 0, so there are no anchors. Look at its metadata.")
    if clusters is not None:
        clusters = Clusters(clusters.column, clusters.ids[anchors.frames])
    return Primary(proportion(anchors.pm0), anchors.pm0, clusters, anchors)


def _units(anchors: np.ndarray, videos: np.ndarray | None) -> np.ndarray:
    """A number for each pair of video and anchor, int64 ``[n]``."""
    if videos is None:
        return anchors
    _, units = np.unique(np.stack([videos, anchors], axis=1), axis=0, return_inverse=True)
    return np.asarray(units.reshape(-1))


def _refuse_repeated(
    dataset: str, spec: DatasetSpec, units: np.ndarray, offsets: np.ndarray, predictions: Predictions
) -> None:
    """An anchor is one frame: several would be anchors of one name, whose frames cannot be told apart."""
    own = np.flatnonzero(offsets == 0)
    _, first, counts = np.unique(units[own], return_index=True, return_counts=True)
    if (counts > 1).any():
        key = predictions.keys[own[first[counts > 1][0]]]
        raise RunError(
            f"{dataset}: {int((counts > 1).sum())} anchors have several frames whose {spec.offset} is 0, such as the "
            f"one of sample {key!r}. Give each anchor its own {spec.anchor}, or name the videos' column as "
            f"data.datasets.{dataset}.cluster."
        )
