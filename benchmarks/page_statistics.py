"""Statistics of a run that never was, as large as a real one's: every number of a page, and nothing scored."""

from __future__ import annotations

import numpy as np

from wiseft_dist.evaluate.statistics.diversity import Diversity, Margins, Override
from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.evaluate.statistics.metrics.calibration import ReliabilityBin
from wiseft_dist.evaluate.statistics.paired import Comparison, McNemar
from wiseft_dist.evaluate.statistics.robustness import Fit, Piece, Robustness, RobustnessPoint
from wiseft_dist.evaluate.statistics.selection import Choice
from wiseft_dist.evaluate.statistics.statistics import (
    AlphaStatistics,
    ClassAccuracy,
    DatasetStatistics,
    Role,
    ShiftAverage,
    Statistics,
)

NUM_SAMPLES = 50_000
CHOSEN = 0.5
FIT = Fit("standard models", (Piece(0.92, -0.5, r2=0.99, num_models=85),), 0.55, 0.9, "made up")


def made_up_statistics(num_alphas: int, num_datasets: int, num_classes: int) -> Statistics:
    """A reference and shifts; ensembles are better than both ends on all of them.

    Args:
        num_alphas: Even steps from 0 to 1; 0.5 is among them where it is odd.
        num_datasets: The reference, the shifts, and the held-out piece beside them.
        num_classes: Of each dataset.
    """
    alphas = tuple(round(alpha, 6) for alpha in np.linspace(0, 1, num_alphas).tolist())
    shifts = tuple(f"shift_{number:02d}" for number in range(1, num_datasets))
    roles: dict[str, Role] = {"imagenet": "reference", **dict.fromkeys(shifts, "shift"), "id_val": "id_val"}
    datasets = {
        name: _dataset(name, role, alphas, num_classes, np.random.default_rng(number))
        for number, (name, role) in enumerate(roles.items())
    }
    average = tuple(
        ShiftAverage(
            alpha, value := float(np.mean([datasets[name].at(alpha).value for name in shifts])), _around(value)
        )
        for alpha in alphas
    )
    return Statistics(
        reference="imagenet",
        shifts=shifts,
        alphas=alphas,
        datasets=datasets,
        averaged_shifts=shifts,
        shift_average=average,
        choices=(Choice("fixed", CHOSEN, False), Choice("id_val", CHOSEN, False), Choice("oracle", CHOSEN, True)),
        oracles={name: Choice("oracle", CHOSEN, name in shifts) for name in ("imagenet", *shifts)},
        chosen=CHOSEN,
        observations=(),
        robustness={name: _robustness(datasets["imagenet"], datasets[name]) for name in shifts},
        corruption=(),
        own_fits={},
    )


def _dataset(
    name: str, role: Role, alphas: tuple[float, ...], num_classes: int, rng: np.random.Generator
) -> DatasetStatistics:
    base, gain, forgetting = rng.uniform(0.4, 0.6), rng.uniform(0.1, 0.2), rng.uniform(0.05, 0.15)
    if role != "shift":
        forgetting = 0.0
    values = [base + gain * np.sqrt(alpha) * (1.2 - 0.3 * alpha) - forgetting * alpha**2 for alpha in alphas]
    before, gains = rng.uniform(0.2, 0.9, num_classes), rng.normal(0.03, 0.05, (2, num_classes))
    return DatasetStatistics(
        name=name,
        title=name,
        role=role,
        metric="top1",
        num_units=NUM_SAMPLES,
        num_samples=NUM_SAMPLES,
        num_skipped=0,
        alphas=tuple(_alpha(alpha, float(value), rng) for alpha, value in zip(alphas, values, strict=True)),
        output_space=(),
        comparisons=tuple(_comparison(alpha) for alpha in alphas),
        diversity=_diversity(alphas),
        classes=tuple(
            ClassAccuracy(label, 50, float(zero), *(float(np.clip(zero + gain, 0, 1)) for gain in gains[:, label]))
            for label, zero in enumerate(before)
        ),
    )


def _alpha(alpha: float, value: float, rng: np.random.Generator) -> AlphaStatistics:
    edges = np.linspace(0, 1, 16)
    bins = tuple(
        ReliabilityBin(low, high, 3_000, middle := (low + high) / 2, min(middle + rng.uniform(0, 0.08), 1.0))
        for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    )
    return AlphaStatistics(
        alpha=alpha,
        value=value,
        interval=_around(value),
        num_correct=round(value * NUM_SAMPLES),
        top1=value,
        top1_interval=_around(value),
        top5=min(value + 0.2, 1.0),
        mean_per_class=value,
        ece=0.043,
        nll=1.234,
        brier=0.345,
        reliability=bins,
        groups={},
        pm_k=None,
    )


def _around(value: float) -> Interval:
    return Interval(value - 0.004, value + 0.004, "clopper_pearson")


def _comparison(alpha: float) -> Comparison:
    test = McNemar(num_only_first=3_210, num_only_second=1_234, method="chi2", p_value=0.0001)
    return Comparison(alpha, "zero_shot", 4.56, Interval(4.1, 5.0, "bootstrap", 1000), test, adjusted_p_value=0.002)


def _diversity(alphas: tuple[float, ...]) -> Diversity:
    margins = Margins(4.0, 1.0, 2.0, 0.5)
    overrides = tuple(Override(alpha, 1 - alpha, alpha, 0.0, 0.5, 0.7, None) for alpha in alphas)
    return Diversity(0.21, 0.24, 0.27, 0.12, 0.05, 0.11, 0.1, margins, margins, overrides)


def _robustness(reference: DatasetStatistics, shift: DatasetStatistics) -> Robustness:
    points = []
    for on_reference, on_shift in zip(reference.alphas, shift.alphas, strict=True):
        predicted = FIT.predict(on_reference.value)
        points.append(
            RobustnessPoint(
                alpha=on_reference.alpha,
                reference=on_reference.value,
                reference_interval=on_reference.interval,
                shift=on_shift.value,
                shift_interval=on_shift.interval,
                predicted=predicted,
                effective_robustness=100 * (on_shift.value - predicted),
                extrapolated=None,
                undetermined=0.0,
                lowest=100 * (on_shift.value - predicted),
            )
        )
    return Robustness(reference.name, 1000, NUM_SAMPLES, FIT, tuple(points))
