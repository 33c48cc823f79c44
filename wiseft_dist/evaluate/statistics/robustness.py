"""Effective robustness: accuracy on a shift beyond what accuracy on the reference predicts.

Source: Taori et al., Measuring robustness to natural distribution shifts (arXiv 2007.00644), section 3; WiSE-FT (arXiv
2109.01903), section 2. The prediction is a straight line through standard models on logit axes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import expit, logit

from wiseft_dist.evaluate.catalog.lists import data_file
from wiseft_dist.evaluate.statistics.intervals import Interval, clopper_pearson

SMALLEST = 1e-6
"""Accuracies nearer to 0 or 1 than this are moved here: their logit would be infinite."""


@dataclass(frozen=True)
class Piece:
    """A straight line on logit axes over a stretch of reference accuracies."""

    slope: float
    intercept: float
    low: float = 0.0
    """Reference accuracies from here (a fraction) ..."""
    high: float = 1.0
    """... up to here."""
    r2: float | None = None
    """Coefficient of determination on the logit axes."""
    num_models: int | None = None
    """Standard models that it was fitted on."""


@dataclass(frozen=True)
class BandPoint:
    """The line and its 95 % bootstrap band at one reference accuracy. All fractions."""

    reference: float
    predicted: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """What standard models reach on a shift, by their accuracy on the reference."""

    name: str
    pieces: tuple[Piece, ...]
    """Rising in ``low``; usually one."""
    fitted_low: float | None = None
    """Lowest reference accuracy among the fitted models, a fraction; ``None``: not known."""
    fitted_high: float | None = None
    """Highest reference accuracy among the fitted models, a fraction; ``None``: not known."""
    source: str = ""
    """Where the fit comes from, for people."""
    merged: bool = True
    """Whether, on the reference axis, classes that the shift takes for one count as one."""
    band: tuple[BandPoint, ...] = ()
    """Rising in ``reference``; empty for published fits, whose models are not at hand."""

    def predict(self, reference: float) -> float:
        """What a standard model of this reference accuracy reaches on the shift; both fractions."""
        # Where two pieces meet, the upper one counts.
        piece = next((p for p in reversed(self.pieces) if reference >= p.low), self.pieces[0])
        return float(expit(piece.slope * _logit(np.array(reference)) + piece.intercept))

    def extrapolates(self, reference: float) -> bool | None:
        """Whether no model this good, or this bad, was fitted; None where the end on that side is not known."""
        if self.fitted_low is not None and reference < self.fitted_low:
            return True
        if self.fitted_high is not None and reference > self.fitted_high:
            return True
        if self.fitted_low is not None and reference <= self._sure_high:
            return False
        return None

    @property
    def _sure_high(self) -> float:
        """A reference accuracy up to which models were fitted: the known end, or else where the last piece begins."""
        return self.pieces[-1].low if self.fitted_high is None else self.fitted_high


@dataclass(frozen=True)
class RobustnessPoint:
    """One alpha above or below the line of the standard models."""

    alpha: float
    reference: float
    """Accuracy on the reference restricted to the shift's classes (their images, their logits), a fraction."""
    reference_interval: Interval
    shift: float
    """Primary metric on the shift, a fraction."""
    shift_interval: Interval
    predicted: float
    """What a standard model of this reference accuracy reaches on the shift, a fraction."""
    effective_robustness: float
    """``shift - predicted`` in percentage points."""
    extrapolated: bool | None
    """Whether the reference accuracy lies outside what the line was fitted on; ``None`` where that is not known: the
    upper end of the published fits is not."""
    undetermined: float
    """Fraction of the reference's samples with none of these classes among the five kept ones. They count as wrong, so
    the accuracy lies between ``reference`` and ``reference + undetermined``."""
    lowest: float
    """``effective_robustness`` if all undetermined samples were right, in percentage points: it cannot be below."""


@dataclass(frozen=True)
class Robustness:
    """Effective robustness of every alpha on one shift."""

    reference: str
    """The dataset on the reference axis."""
    num_reference_classes: int
    """Classes with samples that the reference axis is restricted to."""
    num_reference_samples: int
    """Samples of these classes."""
    fit: Fit
    points: tuple[RobustnessPoint, ...]
    """Rising in alpha."""

    def at(self, alpha: float) -> RobustnessPoint:
        """The point of an alpha."""
        return next(point for point in self.points if point.alpha == alpha)


@dataclass(frozen=True)
class ReferenceAxis:
    """K ensembles on the reference, on a shift's classes: only their images, and only their logits."""

    name: str
    num_classes: int
    """Classes with samples."""
    num_samples: int
    num_correct: np.ndarray
    """int64 ``[K]``."""
    num_undetermined: np.ndarray
    """int64 ``[K]``: samples with none of these classes among the five that are kept, so that the best of them is not
    known. They are not among the correct ones."""


@dataclass(frozen=True)
class ShiftValue:
    """One alpha on the shift."""

    alpha: float
    value: float
    """Primary metric, a fraction."""
    interval: Interval


def reference_axis(
    name: str, labels: np.ndarray, top5: np.ndarray, groups: Sequence[Sequence[int]] | None, *, merged: bool = True
) -> ReferenceAxis:
    """Accuracy on some of the reference's classes, as the published fits take it.

    The likeliest of these classes is the first of them in the order of all classes, so five kept classes nearly always
    tell. Images are picked by label: a class may have any number of them. Source: ``val-on-...`` of imagenet-testbed.

    Args:
        name: The reference dataset.
        labels: int64 ``[n]``.
        top5: ``[K, n, 5]``, the best class first, -1 fills.
        groups: The reference's classes behind each of the shift's classes; None: all classes.
        merged: Whether classes of one group count as one.
    """
    num_known = int(max(labels.max(initial=0), top5.max(initial=0), *(max(g, default=0) for g in groups or ()), 0)) + 1
    class_of = np.arange(num_known + 1) if groups is None else np.full(num_known + 1, -1)
    for index, group in enumerate(groups or ()):
        class_of[list(group)] = index if merged else list(group)
    class_of[-1] = -1  # where fills lead to
    own = class_of[labels]
    kept = own >= 0
    found = class_of[top5[:, kept]]
    is_known = found >= 0
    best = np.take_along_axis(found, is_known.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    is_determined = is_known.any(axis=-1)
    return ReferenceAxis(
        name,
        num_classes=len(np.unique(labels[kept])),
        num_samples=int(kept.sum()),
        num_correct=(is_determined & (best == own[kept])).sum(axis=1),
        num_undetermined=(~is_determined).sum(axis=1),
    )


def effective_robustness(fit: Fit, reference: ReferenceAxis, shift: Sequence[ShiftValue]) -> Robustness | None:
    """Every alpha against the line; None if the reference has no sample of these classes.

    Args:
        fit: What standard models reach.
        reference: K alphas on the reference.
        shift: The same K alphas on the shift.
    """
    if not reference.num_samples:
        return None
    intervals = clopper_pearson(reference.num_correct, reference.num_samples)

    def point(index: int) -> RobustnessPoint:
        entry = shift[index]
        at = float(reference.num_correct[index] / reference.num_samples)
        undetermined = float(reference.num_undetermined[index] / reference.num_samples)
        predicted = fit.predict(at)
        return RobustnessPoint(
            alpha=entry.alpha,
            reference=at,
            reference_interval=intervals[index],
            undetermined=undetermined,
            shift=entry.value,
            shift_interval=entry.interval,
            predicted=predicted,
            effective_robustness=100 * (entry.value - predicted),
            lowest=100 * (entry.value - fit.predict(at + undetermined)),
            extrapolated=fit.extrapolates(at),
        )

    points = tuple(point(index) for index in range(len(shift)))
    return Robustness(reference.name, reference.num_classes, reference.num_samples, fit, points)


@cache
def published_fits() -> Mapping[str, Fit]:
    """The catalog's fits, by name."""
    content = data_file("fits.yaml")
    return {name: _published(name, entry, content["source"]) for name, entry in content["fits"].items()}


def _published(name: str, entry: Mapping[str, Any], source: str) -> Fit:
    pieces = tuple(sorted((Piece(**piece) for piece in entry["pieces"]), key=lambda piece: piece.low))
    return Fit(
        name,
        pieces,
        entry.get("fitted_low"),
        entry.get("fitted_high"),
        entry.get("source", source),
        entry.get("merged", True),
    )


def _logit(accuracies: np.ndarray) -> np.ndarray:
    return np.asarray(logit(np.clip(accuracies, SMALLEST, 1 - SMALLEST)))
