"""How differently zero-shot and fine-tuned err, and whom the ensemble follows.

Source: arXiv 2109.01903, section 5 ("Zero-shot and fine-tuned models are complementary") and the appendix on diversity
measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wiseft_dist.evaluate.predictions import FeatureMoments, Predictions


@dataclass(frozen=True)
class Override:
    """Whom an ensemble follows on the samples that zero-shot and fine-tuned classify differently."""

    alpha: float
    follows_zero_shot: float
    """Fraction of these samples with the zero-shot prediction."""
    follows_finetuned: float
    """Fraction with the fine-tuned prediction."""
    follows_neither: float
    """Fraction with a third class; the three add up to 1."""
    right_following_zero_shot: float | None
    """How often it is right where it follows zero-shot, a fraction; ``None`` where it never does."""
    right_following_finetuned: float | None
    """Likewise for fine-tuned."""
    right_following_neither: float | None
    """Likewise for a third class."""


@dataclass(frozen=True)
class Margins:
    """Mean gap of the largest logit over the second, in logits; ``None`` where there is no such sample."""

    right: float | None
    """Where the model is right."""
    wrong: float | None
    """Where it is wrong."""
    only_right: float | None
    """Where it is right and the other endpoint is wrong."""
    other_right: float | None
    """Where it is wrong and the other endpoint is right."""


@dataclass(frozen=True)
class Diversity:
    """Zero-shot (alpha 0) against fine-tuned (alpha 1) on one dataset."""

    prediction_diversity: float
    """Fraction of samples that exactly one of the two has right."""
    disagreement: float
    """Fraction of samples that the two classify differently."""
    kappa_complement: float
    """1 - Cohen's kappa of the two predictions."""
    mean_kl: float | None
    """Mean KL(zero-shot || fine-tuned) of the class probabilities, in nats; ``None`` where it was not kept."""
    cka_complement: float | None
    """1 - linear CKA of the two models' image features; ``None`` where no features were kept."""
    only_zero_shot_right: float
    """Fraction of samples that only zero-shot has right."""
    only_finetuned_right: float
    """Fraction of samples that only fine-tuned has right."""
    zero_shot_margins: Margins
    finetuned_margins: Margins
    overrides: tuple[Override, ...]
    """One an alpha; empty where the two never disagree."""


def diversity(predictions: Predictions, alphas: Sequence[float]) -> Diversity | None:
    """Compare the endpoints; None unless both are there.

    Args:
        predictions: Of the K members.
        alphas: Of the first members, those in weight space.
    """
    if not {0.0, 1.0} <= set(alphas) or not len(predictions):
        return None
    zero_shot, finetuned = list(alphas).index(0.0), list(alphas).index(1.0)
    first, second = predictions.classes[zero_shot], predictions.classes[finetuned]
    correct = predictions.correct
    first_right, second_right = correct[zero_shot], correct[finetuned]
    only_first, only_second = float((first_right & ~second_right).mean()), float((second_right & ~first_right).mean())
    return Diversity(
        prediction_diversity=only_first + only_second,
        disagreement=float((first != second).mean()),
        kappa_complement=1 - cohens_kappa(first, second),
        mean_kl=_known(float(predictions.divergences[finetuned].mean(dtype=np.float64))),
        cka_complement=_cka_complement(predictions.features),
        only_zero_shot_right=only_first,
        only_finetuned_right=only_second,
        zero_shot_margins=margins(predictions.margins[zero_shot], first_right, second_right),
        finetuned_margins=margins(predictions.margins[finetuned], second_right, first_right),
        overrides=overrides(predictions.classes[: len(alphas)], correct[: len(alphas)], alphas, zero_shot, finetuned),
    )


def cohens_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Agreement of two classifications ``[n]`` beyond chance; 1 where both name one class only, the same."""
    num_classes = int(max(first.max(), second.max())) + 1
    shares = [np.bincount(classes, minlength=num_classes) / len(classes) for classes in (first, second)]
    observed, expected = float((first == second).mean()), float(shares[0] @ shares[1])
    return (observed - expected) / (1 - expected) if expected < 1 else 1.0


def margins(values: np.ndarray, right: np.ndarray, other_right: np.ndarray) -> Margins:
    """Mean margins of one endpoint.

    Args:
        values: float32 ``[n]``, in logits. Infinite ones (a single class) do not enter.
        right: bool ``[n]``: it is right.
        other_right: bool ``[n]``: the other endpoint is right.
    """
    finite = np.isfinite(values)

    def mean(where: np.ndarray) -> float | None:
        chosen = values[where & finite]
        return float(chosen.mean(dtype=np.float64)) if len(chosen) else None

    return Margins(mean(right), mean(~right), mean(right & ~other_right), mean(~right & other_right))


def overrides(
    classes: np.ndarray, correct: np.ndarray, alphas: Sequence[float], zero_shot: int, finetuned: int
) -> tuple[Override, ...]:
    """Whom each ensemble follows where the endpoints disagree.

    Args:
        classes: int ``[K, n]``.
        correct: bool ``[K, n]``.
        alphas: K.
        zero_shot: Row of alpha 0.
        finetuned: Row of alpha 1.
    """
    disputed = np.flatnonzero(classes[zero_shot] != classes[finetuned])
    if not len(disputed):
        return ()
    first, second = classes[zero_shot, disputed], classes[finetuned, disputed]

    def override(index: int) -> Override:
        said, right = classes[index, disputed], correct[index, disputed]
        cases = (said == first, said == second, (said != first) & (said != second))
        shares = [float(case.mean()) for case in cases]
        return Override(alphas[index], *shares, *(float(right[case].mean()) if case.any() else None for case in cases))

    return tuple(override(index) for index in range(len(alphas)))


def _cka_complement(features: FeatureMoments | None) -> float | None:
    return None if features is None else _known(1 - features.linear_cka())


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value
