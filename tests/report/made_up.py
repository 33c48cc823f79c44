"""Statistics that no run would give, with a value of everything that a report can show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from wiseft_dist.evaluate.statistics.diversity import Diversity, Margins, Override
from wiseft_dist.evaluate.statistics.intervals import Interval
from wiseft_dist.evaluate.statistics.metrics.calibration import ReliabilityBin
from wiseft_dist.evaluate.statistics.observations import Gap, Observation
from wiseft_dist.evaluate.statistics.paired import Comparison, McNemar
from wiseft_dist.evaluate.statistics.robustness import Fit, Piece, Robustness, RobustnessPoint
from wiseft_dist.evaluate.statistics.selection import Choice
from wiseft_dist.evaluate.statistics.statistics import (
    AlphaStatistics,
    ClassAccuracy,
    DatasetStatistics,
    ShiftAverage,
    Statistics,
)

ALPHAS = (0.0, 0.5, 1.0)
BOOTSTRAP = "bootstrap"


def interval(low: float, high: float, **more: Any) -> Interval:
    return Interval(low, high, more.pop("method", "clopper_pearson"), **more)


def alpha_statistics(alpha: float, num_correct: int, num_samples: int = 1000, **more: Any) -> AlphaStatistics:
    top1 = num_correct / num_samples
    exact = interval(top1 - 0.02, top1 + 0.02)
    given: dict[str, Any] = {
        "value": top1,
        "interval": exact,
        "mean_per_class": top1 - 0.01,
        "groups": {},
        "pm_k": None,
    }
    return AlphaStatistics(
        alpha=alpha,
        num_correct=num_correct,
        top1=top1,
        top1_interval=exact,
        top5=0.987654321,
        ece=0.0123,
        nll=0.7654,
        brier=0.3456,
        reliability=(ReliabilityBin(0.0, 1.0, num_samples, 0.75, top1),),
        **given | more,
    )


def comparison(alpha: float, against: str, difference: float) -> Comparison:
    test = McNemar(num_only_first=61, num_only_second=39, method="exact", p_value=0.0352)
    around = interval(difference - 1.5, difference + 1.5, method=BOOTSTRAP, num_resamples=1000)
    return Comparison(alpha, against, difference, around, test, adjusted_p_value=0.1408)  # type: ignore[arg-type]


def diversity() -> Diversity:
    margins = Margins(4.0, 1.0, 2.0, 0.5)
    overrides = tuple(Override(alpha, 0.6, 0.3, 0.1, 0.5, 0.7, None) for alpha in ALPHAS)
    return Diversity(0.21, 0.24, 0.2711, 0.1234, None, 0.11, 0.1, margins, margins, overrides)


def dataset(name: str, counts: tuple[int, ...], **more: Any) -> DatasetStatistics:
    """Three alphas with so many right ones of 1,000."""
    given: dict[str, Any] = {
        "title": name,
        "role": "shift",
        "metric": "top1",
        "num_samples": 1000,
        "num_skipped": 0,
        "alphas": tuple(alpha_statistics(alpha, count) for alpha, count in zip(ALPHAS, counts, strict=True)),
        "output_space": (),
        "comparisons": (comparison(0.5, "zero_shot", 2.25), comparison(0.5, "finetuned", -0.75)),
        "diversity": diversity(),
        "classes": tuple(ClassAccuracy(label, 40, 0.5, 0.5 + label / 100, 0.25) for label in range(12)),
    }
    return DatasetStatistics(name=name, num_units=1000, **given | more)


def regions() -> DatasetStatistics:
    """A dataset whose number is the worst region's."""
    around = interval(0.1, 0.3, method=BOOTSTRAP, num_resamples=1000, cluster="location", num_clusters=12)
    alphas = tuple(
        alpha_statistics(alpha, 600, value=value, interval=around, groups={"Asia": 0.7, "Africa": value})
        for alpha, value in zip(ALPHAS, (0.1111, 0.2222, 0.1777), strict=True)
    )
    return dataset("fmow", (0, 0, 0), metric="worst_group", group="region", alphas=alphas)


def robustness() -> Robustness:
    fit = Fit("a_on_val", (Piece(0.9232, -0.4977, r2=0.996, num_models=85),), 0.55, 0.9, "the testbed of 2020")
    points = tuple(
        RobustnessPoint(
            alpha=alpha,
            reference=0.7,
            reference_interval=interval(0.6, 0.8),
            undetermined=0.01 * alpha,
            shift=0.5,
            shift_interval=interval(0.4, 0.6),
            predicted=0.4437,
            effective_robustness=5.63,
            lowest=5.63 - alpha,
            extrapolated=alpha == 1.0,
        )
        for alpha in ALPHAS
    )
    return Robustness("photo", 200, 800, fit, points)


def observation(number: int, name: str) -> Observation:
    gap = Gap(0.5, 0.7, 0.65, 5.0, interval(3.0, 7.0, method=BOOTSTRAP, num_resamples=1000))
    sentence = f"On {name}, observation {number} holds: at alpha 0.5 by 5.00 pp."
    return Observation(number, name, True, False, gap, (gap,), sentence)  # type: ignore[arg-type]


def statistics(**more: Any) -> Statistics:
    """Of a run with a reference, two shifts and a held-out piece; alpha 0.5 was chosen."""
    datasets = {
        "photo": dataset("photo", (700, 800, 850), role="reference"),
        "sketch": dataset("sketch", (600, 650, 500), title="Sketches"),
        "fmow": regions(),
        "id_val": dataset("id_val", (710, 860, 850), role="id_val"),
    }
    averages = (0.35555, 0.4361, 0.33885)
    given: dict[str, Any] = {
        "reference": "photo",
        "shifts": ("sketch", "fmow"),
        "datasets": datasets,
        "shift_average": tuple(
            ShiftAverage(alpha, value, interval(0.3, 0.45, method=BOOTSTRAP, num_resamples=1000))
            for alpha, value in zip(ALPHAS, averages, strict=True)
        ),
        "choices": (Choice("fixed", 0.5, False), Choice("id_val", 0.5, False), Choice("oracle", 1.0, True)),
        "oracles": {
            "photo": Choice("oracle", 1.0, False),
            "sketch": Choice("oracle", 0.5, True),
            "fmow": Choice("oracle", 0.5, True),
        },
        "chosen": 0.5,
        "observations": (observation(1, "photo"), observation(2, "shift average")),
        "robustness": {"sketch": robustness()},
        "corruption": (),
        "own_fits": {},
    }
    given["averaged_shifts"] = more.get("shifts", given["shifts"])
    return Statistics(alphas=ALPHAS, **given | more)


def with_dataset(base: Statistics, name: str, **changes: Any) -> Statistics:
    """The same, but for one dataset."""
    return replace(base, datasets=base.datasets | {name: replace(base.datasets[name], **changes)})


def without_held_out(base: Statistics) -> Statistics:
    """The same run, had nothing been held out."""
    datasets = {name: each for name, each in base.datasets.items() if name != "id_val"}
    return replace(base, datasets=datasets, choices=tuple(c for c in base.choices if c.name != "id_val"))
