"""Whether runs differ on the very same samples: read from their cells, one dataset in memory at a time."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wiseft_dist.config.dataset import DatasetSpec
from wiseft_dist.data.stage import load_manifest
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.evaluate.cells.store import CellStore
from wiseft_dist.evaluate.predictions import Member, Predictions
from wiseft_dist.evaluate.run_datasets import dataset_of_run
from wiseft_dist.evaluate.statistics.intervals import NUM_RESAMPLES, Draws, bootstrap
from wiseft_dist.evaluate.statistics.metrics.primary import primary_metric
from wiseft_dist.report.compare.given import Compared

WANTED = ("classes",)
"""Of a cell: with labels and metadata all that a metric is computed from."""
UNREADABLE = (RunError, UserError, OSError, ValueError)
"""What goes wrong with cells, manifests and models that are not there as they were: no reason to show no page."""
MEASURE = ("metric", "group", "excluded_groups", "group_names", "cluster", "anchor", "offset", "neighbours")
"""What of a dataset's description decides its number."""


@dataclass(frozen=True)
class Model:
    """A model of one of the runs."""

    run: str
    alpha: float


@dataclass(frozen=True)
class SameSamples:
    """What models of several runs said about the samples that all of them were asked about."""

    models: tuple[Model, ...]
    values: np.ndarray
    """The dataset's metric, fractions ``[models]``."""
    draws: Draws
    """Of it, resampled together: differences of its columns are paired."""
    correct: np.ndarray
    """bool ``[models, units]``."""


@dataclass(frozen=True)
class Pairs:
    """One dataset."""

    same: SameSamples | None
    """None where there are not two runs of the same samples."""
    reasons: Mapping[str, str]
    """By run, why it cannot be held against the first sample by sample: a phrase."""


Cells = CellStore | str
"""Those of a run, or why they cannot be read: a phrase."""


def cells_of(run: Compared) -> Cells:
    """The cells of a run; to know which they are, its models are looked at, wherever they lie."""
    if run.run is None or run.config is None:
        return "only its report is there"
    try:
        return CellStore.of_run(run.config, run.run)
    except UNREADABLE as error:
        return f"its cells cannot be read ({error})"


def pair_up(
    dataset: str, runs: Sequence[Compared], cells: Mapping[str, Cells], alphas: Mapping[str, Sequence[float]]
) -> Pairs:
    """Read what runs said of a dataset, as far as they said it of the samples that the first was asked about.

    Args:
        dataset: Its name.
        runs: The first is what the others are held against.
        cells: By run.
        alphas: By run, those that are wanted.
    """
    found: dict[str, Predictions] = {}
    reasons: dict[str, str] = {}
    first = _described(dataset, runs[0])
    for run in runs:
        told = _read(dataset, run, cells[run.name], alphas[run.name], first)
        if isinstance(told, str):
            reasons[run.name] = told
        else:
            found[run.name] = told
        if runs[0].name in reasons:
            return Pairs(None, {run.name: reasons[runs[0].name] for run in runs})
    if len(found) < 2 or isinstance(first, str):
        return Pairs(None, reasons)
    models = tuple(Model(name, alpha) for name in found for alpha in alphas[name])
    return Pairs(same_samples(dataset, first.spec, models, list(found.values())), reasons)


def same_samples(
    dataset: str, spec: DatasetSpec, models: Sequence[Model], predictions: Sequence[Predictions]
) -> SameSamples | None:
    """The metric of all models on the samples that none of the runs skipped; None where there is no such sample.

    Args:
        dataset: Its name.
        spec: How it is measured.
        models: In the order of the predictions' rows, run after run.
        predictions: One a run; the same key is the same sample.
    """
    joined = _joined(predictions)
    if not len(joined):
        return None
    primary = primary_metric(dataset, spec, joined, joined.correct)
    seed = (0, zlib.crc32(dataset.encode()))
    draws = bootstrap(primary.tally, seed=seed, num_resamples=NUM_RESAMPLES, clusters=primary.clusters)
    return SameSamples(tuple(models), primary.tally.values, draws, primary.correct)


@dataclass(frozen=True)
class _Described:
    """What a run knows of a dataset."""

    spec: DatasetSpec
    content: str
    """The digest of its samples' names, sizes and labels."""

    @property
    def measure(self) -> Mapping[str, object]:
        return {name: getattr(self.spec, name) for name in MEASURE}


def _described(dataset: str, run: Compared) -> _Described | str:
    if run.run is None or run.config is None:
        return "only its report is there"
    try:
        spec = dataset_of_run(run.config, run.run, dataset).spec
        return _Described(spec, load_manifest(run.run, dataset).content_digest)
    except UNREADABLE as error:
        return f"its cells cannot be read ({error})"


def _read(
    dataset: str, run: Compared, cells: Cells, alphas: Sequence[float], first: _Described | str
) -> Predictions | str:
    """What the run said at these alphas; or why that cannot be had, or is of other samples than the first run's."""
    if isinstance(first, str):
        return first
    if isinstance(cells, str):
        return cells
    if not alphas:
        return "none of these models was evaluated"
    described = _described(dataset, run)
    if isinstance(described, str):
        return described
    if described.content != first.content:
        return "its samples are others"
    if described.measure != first.measure:
        return "its samples are counted otherwise"
    try:
        predictions = cells.read(dataset, [Member(alpha) for alpha in alphas], WANTED)
    except UNREADABLE as error:
        return f"its cells cannot be read ({error})"
    reported = [run.statistics.datasets[dataset].at(alpha).num_correct for alpha in alphas]
    if predictions.num_correct.tolist() != reported:
        return "its report is of other cells"
    return predictions


def _joined(predictions: Sequence[Predictions]) -> Predictions:
    """One set of predictions with the models of all, over the samples that all have, in the order of the first."""
    common = set(predictions[0].keys).intersection(*(each.keys for each in predictions[1:]))
    places = [_places(each, predictions[0].keys, common) for each in predictions]
    first, rows = predictions[0], sum(len(each.classes) for each in predictions)
    empty = np.empty((rows, 0), dtype=np.float32)
    return Predictions(
        keys=tuple(first.keys[place] for place in places[0]),
        positions=first.positions[places[0]],
        labels=first.labels[places[0]],
        classes=np.concatenate([each.classes[:, place] for each, place in zip(predictions, places, strict=True)]),
        top5=np.empty((rows, 0, 5), dtype=np.int32),
        confidences=empty,
        margins=empty,
        log_probs=empty,
        briers=empty,
        divergences=empty,
        metadata={name: values[places[0]] for name, values in first.metadata.items()},
    )


def _places(predictions: Predictions, keys: Sequence[str], common: set[str]) -> np.ndarray:
    """Where the common samples stand among the predictions, in the order of some keys, int64 ``[common]``."""
    if predictions.keys == keys and len(common) == len(keys):
        return np.arange(len(keys))
    place = {key: index for index, key in enumerate(predictions.keys)}
    return np.array([place[key] for key in keys if key in common], dtype=np.int64)
