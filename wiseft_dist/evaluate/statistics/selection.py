"""The choice of alpha, without looking at the shifts; and the choices that do look, labelled as such."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FIXED_ALPHA = 0.5
"""Recommended where nothing may be tuned: within 0.4 pp of the best (arXiv 2109.01903, section 5)."""


@dataclass(frozen=True)
class Choice:
    """An alpha and how it came about."""

    name: str
    alpha: float
    uses_shifts: bool
    """Whether the test sets of the shifts were looked at: then it is a bound, not a result."""


def choose_alphas(
    id_val: Mapping[float, float], reference: Mapping[float, float], shifts: Mapping[float, float]
) -> list[Choice]:
    """The alphas worth naming, from accuracy by alpha.

    Args:
        id_val: On the held-out piece of the training set; empty where nothing was held out.
        reference: On the reference test set; empty where only shifts were evaluated.
        shifts: Averaged over the shifts; empty where there are none.
    """
    choices = []
    if FIXED_ALPHA in (reference or shifts):
        choices.append(Choice("fixed", FIXED_ALPHA, uses_shifts=False))
    if id_val:
        choices.append(Choice("id_val", best_alpha(id_val), uses_shifts=False))
    if shifts:
        average = {alpha: (reference[alpha] + shifts[alpha]) / 2 if reference else shifts[alpha] for alpha in shifts}
        choices.append(Choice("oracle", best_alpha(average), uses_shifts=True))
    return choices


def oracle_of(accuracies: Mapping[float, float], *, is_shift: bool) -> Choice:
    """The alpha that is best on a dataset's own test labels: what no honest choice can beat there."""
    return Choice("oracle", best_alpha(accuracies), uses_shifts=is_shift)


def reported_alpha(choices: Sequence[Choice]) -> float | None:
    """The alpha to report: ID-val's choice, else the fixed one; None where neither is there. Never an oracle's."""
    by_name = {choice.name: choice.alpha for choice in choices}
    return by_name.get("id_val", by_name.get("fixed"))


def best_alpha(accuracies: Mapping[float, float]) -> float:
    """The alpha of the highest accuracy; among equals the nearest to the fixed choice, of two as near the smaller."""
    rounded = {alpha: round(accuracy, 12) for alpha, accuracy in accuracies.items()}  # sums differ in their last bit
    best = [alpha for alpha, accuracy in rounded.items() if accuracy == max(rounded.values())]
    return min(best, key=lambda alpha: (round(abs(alpha - FIXED_ALPHA), 12), alpha))
