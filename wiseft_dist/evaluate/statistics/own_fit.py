"""The line of effective robustness through the user's own models, where no published fit exists.

The recipe is that of the published fits: logits of both axes, ``scipy.stats.linregress``, a band by resampling models.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import expit, logit
from scipy.stats import linregress

from wiseft_dist import storage
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.statistics.intervals import LEVEL, NUM_RESAMPLES
from wiseft_dist.evaluate.statistics.robustness import BandPoint, Fit, Piece

MIN_MODELS = 5
"""A line through fewer says little of the next model."""
MIN_SPREAD = 1e-4
"""Between the smallest and the largest logit of the reference accuracies: less has no direction but rounding's."""
NUM_BAND_POINTS = 41
COLUMNS = ("dataset", "reference", "shift")


@dataclass(frozen=True)
class StandardModel:
    """A model that was trained on the reference distribution alone. Accuracies are fractions."""

    reference: float
    """On the reference (restricted to the shift's classes, where the shift has fewer)."""
    shift: float
    """The dataset's primary metric."""


def own_fit(dataset: str, source: str) -> Fit:
    """The line through the models that a file has of a dataset.

    Raises:
        UserError: if it has none, or too few; see also :func:`read_models` and :func:`fit_models`.
    """
    models = read_models(source)
    if dataset not in models:
        raise UserError(
            f"data.datasets.{dataset}.robustness_fit: {source} has no models of {dataset}, only of "
            f"{', '.join(sorted(models)) or 'nothing'}: add rows whose dataset is {dataset}."
        )
    return fit_models(dataset, models[dataset])


def read_models(source: str) -> dict[str, list[StandardModel]]:
    """Standard models by dataset, from a CSV file with a header or a JSON list of objects.

    Args:
        source: Its path or URL. Columns, or keys: ``dataset``, ``reference``, ``shift`` (fractions); others, such as a
            model's name, are not read.

    Raises:
        UserError: naming the file and the model, if it cannot be read, a column is missing or a number is no fraction.
    """
    models: dict[str, list[StandardModel]] = {}
    for number, row in enumerate(_rows(source), start=1):
        missing = [name for name in COLUMNS if row.get(name) in (None, "")]
        if missing:
            raise UserError(f"{source}: model {number} has no {missing[0]}. It takes {', '.join(COLUMNS)}.")
        models.setdefault(str(row["dataset"]), []).append(
            StandardModel(_fraction(source, number, row, "reference"), _fraction(source, number, row, "shift"))
        )
    return models


def fit_models(name: str, models: Sequence[StandardModel], *, min_reference: float = 0.0, seed: int = 0) -> Fit:
    """The line through some models, with its bootstrap band.

    Args:
        name: The dataset.
        models: Standard models. Those at exactly 0 or 1 on an axis have no logit and are left out.
        min_reference: Models below this reference accuracy, a fraction, are left out.
        seed: Of the band.

    Raises:
        UserError: if fewer than five models are left, or they all have the same reference accuracy.
    """
    used = [m for m in models if m.reference >= min_reference and 0 < m.reference < 1 and 0 < m.shift < 1]
    if len(used) < MIN_MODELS:
        raise UserError(
            f"{name}: a line of standard models needs at least {MIN_MODELS} of them, there are {len(used)} "
            f"(of {len(models)} given). Give more models, or none."
        )
    reference = np.array([model.reference for model in used])
    x, y = logit(reference), logit(np.array([model.shift for model in used]))
    if np.ptp(x) < MIN_SPREAD:
        raise UserError(
            f"{name}: all {len(used)} models have nearly the same reference accuracy: no line goes through them. "
            "Give models that differ more, or none."
        )
    line = linregress(x, y)
    piece = Piece(float(line.slope), float(line.intercept), r2=float(line.rvalue**2), num_models=len(used))
    low, high = float(reference.min()), float(reference.max())
    band = _band(x, y, piece, np.random.default_rng(seed))
    return Fit(name, (piece,), low, high, f"{len(used)} models given by the user", band=band)


def _band(x: np.ndarray, y: np.ndarray, piece: Piece, rng: np.random.Generator) -> tuple[BandPoint, ...]:
    """Percentiles of the lines through resampled models, over the fitted range."""
    drawn = rng.integers(len(x), size=(NUM_RESAMPLES, len(x)))
    xs, ys = x[drawn], y[drawn]
    dx = xs - xs.mean(axis=1, keepdims=True)
    spread = (dx**2).sum(axis=1)
    usable = spread > 1e-12  # all drawn models may be the same one
    slopes = (dx * ys).sum(axis=1)[usable] / spread[usable]
    intercepts = ys.mean(axis=1)[usable] - slopes * xs.mean(axis=1)[usable]
    grid = np.linspace(x.min(), x.max(), NUM_BAND_POINTS)
    tail = (1 - LEVEL) / 2
    lows, highs = np.quantile(slopes[:, None] * grid + intercepts[:, None], [tail, 1 - tail], axis=0)
    columns = (grid, piece.slope * grid + piece.intercept, lows, highs)
    return tuple(BandPoint(*map(float, values)) for values in zip(*map(expit, columns), strict=True))


def _rows(source: str) -> list[dict[str, Any]]:
    text = storage.read_text(source)
    if not source.endswith(".json"):
        return list(csv.DictReader(io.StringIO(text)))
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{source} is not JSON: {error}. It takes a list of objects.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"{source}: it takes a list of objects, one a model.")
    return rows


def _fraction(source: str, number: int, row: dict[str, Any], column: str) -> float:
    try:
        value = float(row[column])
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value <= 1:
        raise UserError(f"{source}: model {number}: {column} is {row[column]!r}. Write a fraction between 0 and 1.")
    return value
