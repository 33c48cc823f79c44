"""The numbers of one dataset, as reports show them and ``statistics.json`` holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from wiseft_dist.evaluate.statistics.diversity import Diversity
from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.evaluate.statistics.metrics.calibration import ReliabilityBin
from wiseft_dist.evaluate.statistics.paired import Comparison, Endpoint

Role = Literal["reference", "shift", "id_val"]


@dataclass(frozen=True)
class AlphaStatistics:
    """One alpha on one dataset. Accuracies, intervals, ECE: fractions."""

    alpha: float
    value: float
    """The dataset's primary metric (``DatasetStatistics.metric``)."""
    interval: Interval
    """Of ``value``: Clopper-Pearson for a proportion of unclustered samples, otherwise bootstrap."""
    num_correct: int
    """Samples whose most likely class is (one of) the right one(s)."""
    top1: float
    """``num_correct`` over all samples (of a video set: all frames)."""
    top1_interval: Interval
    """Clopper-Pearson; bootstrap of clusters where the dataset asks for it."""
    top5: float
    """Fraction with a right class among the five most likely."""
    mean_per_class: float | None
    """Mean over the classes with samples of the accuracy on each; ``None`` with several right labels a sample."""
    ece: float
    """Expected calibration error, 15 equal-width bins, all of them."""
    nll: float
    """Mean negative log-likelihood of the right class, in nats."""
    brier: float
    """Mean squared distance between the class probabilities and the right class, between 0 and 2."""
    reliability: tuple[ReliabilityBin, ...]
    """The 15 bins behind ``ece``."""
    groups: dict[str, float]
    """Accuracy by group where the dataset has groups (excluded ones too), by name; otherwise empty."""
    pm_k: float | None
    """Fraction of anchors that are right with all their neighbours; ``None`` unless the metric is pm0."""


@dataclass(frozen=True)
class ClassAccuracy:
    """One class at three alphas; ``None`` where that alpha was not evaluated."""

    label: int
    num_samples: int
    zero_shot: float | None
    """Accuracy at alpha 0, a fraction."""
    chosen: float | None
    """Accuracy at ``Statistics.chosen``, a fraction."""
    finetuned: float | None
    """Accuracy at alpha 1, a fraction."""


@dataclass(frozen=True)
class DatasetStatistics:
    """All that is known of one dataset."""

    name: str
    title: str
    """What tables and figures call it."""
    role: Role
    metric: str
    """Of ``value``: top1, mean_per_class, macro_f1, worst_group or pm0."""
    num_units: int
    """What the metric counts: anchors for pm0, otherwise samples."""
    num_samples: int
    """Samples that were scored."""
    num_skipped: int
    """Samples that could not be decoded: they count in no number."""
    alphas: tuple[AlphaStatistics, ...]
    """Rising in alpha."""
    output_space: tuple[AlphaStatistics, ...]
    """Ensembles of outputs instead of weights, for comparison; empty where they were not evaluated."""
    comparisons: tuple[Comparison, ...]
    """Each alpha against the endpoints that were evaluated; fine-tuned against zero-shot once."""
    diversity: Diversity | None
    """``None`` unless both endpoints were evaluated."""
    classes: tuple[ClassAccuracy, ...]
    """Classes with samples, by label; empty with several right labels a sample."""
    num_published_units: int | None = None
    """Anchors that the catalog says there are; None where the metric counts samples, or where that is not known."""
    group: str | None = None
    """The column of ``AlphaStatistics.groups``, such as ``region``; None without groups."""
    class_map: str | None = None
    """What led from the head's classes to its own; None where the head has them. Tells protocols of one set apart."""

    def at(self, alpha: float) -> AlphaStatistics:
        """The numbers of one alpha."""
        return next(entry for entry in self.alphas if entry.alpha == alpha)

    @property
    def values(self) -> dict[float, float]:
        """The primary metric by alpha, fractions."""
        return {entry.alpha: entry.value for entry in self.alphas}

    def compared(self, alpha: float, against: Endpoint) -> Comparison | None:
        """Alpha against an endpoint, where that was done."""
        return next((c for c in self.comparisons if c.alpha == alpha and c.against == against), None)
