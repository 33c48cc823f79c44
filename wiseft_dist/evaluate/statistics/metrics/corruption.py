"""ImageNet-C: errors under corruption, relative to AlexNet's.

Source: Benchmarking neural network robustness to common corruptions (arXiv 1903.12261), section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from wiseft_dist.evaluate.catalog.lists import data_file

PREFIX = "imagenet_c"
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class CorruptionError:
    """mCE of one alpha."""

    alpha: float
    mce: float | None
    """Mean over the 15 corruptions, a fraction of AlexNet's (1.0 = as bad); ``None`` while a corruption is missing."""
    corruption_errors: dict[str, float]
    """CE by corruption, a fraction of AlexNet's; only corruptions whose five severities were all evaluated."""


def alexnet_errors() -> Mapping[str, float]:
    """AlexNet's mean error over the five severities of each corruption, fractions."""
    return {str(name): float(error) for name, error in data_file("alexnet_errors.yaml").items()}


def corruption_of(dataset: str) -> tuple[str, int] | None:
    """Corruption and severity in the name of a dataset, ``imagenet_c.fog.3``; None for other datasets."""
    prefix, _, rest = dataset.partition(".")
    corruption, _, severity = rest.partition(".")
    if prefix != PREFIX or corruption not in alexnet_errors() or severity not in map(str, SEVERITIES):
        return None
    return corruption, int(severity)


def mean_corruption_error(
    errors: Mapping[tuple[str, int], np.ndarray], alphas: Sequence[float]
) -> tuple[CorruptionError, ...]:
    """CE and mCE of each alpha; empty where no corruption is complete.

    Args:
        errors: Top-1 errors as fractions, float64 ``[K]``, by corruption and severity.
        alphas: K.
    """
    complete = {
        corruption: np.sum([errors[corruption, severity] for severity in SEVERITIES], axis=0)
        / (len(SEVERITIES) * alexnet)
        for corruption, alexnet in alexnet_errors().items()
        if all((corruption, severity) in errors for severity in SEVERITIES)
    }
    if not complete:
        return ()
    all_there = len(complete) == len(alexnet_errors())
    return tuple(
        CorruptionError(
            alpha,
            float(np.mean([values[index] for values in complete.values()])) if all_there else None,
            {corruption: float(values[index]) for corruption, values in complete.items()},
        )
        for index, alpha in enumerate(alphas)
    )
