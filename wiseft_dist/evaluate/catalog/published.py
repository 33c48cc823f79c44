"""Published zero-shot accuracies to hold one's own against."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from wiseft_dist.evaluate.catalog.lists import data_file


@dataclass(frozen=True)
class PublishedAccuracy:
    """Zero-shot top-1 accuracy of one model on one dataset."""

    architecture: str
    """``ViT-B-32``, as open_clip calls it."""
    pretrained: str
    """Its weights: ``openai``, ``laion2b_s34b_b79k``, ..."""
    dataset: str
    """A name of the catalog."""
    top1: float
    """Percent."""


@cache
def zero_shot_accuracies() -> tuple[PublishedAccuracy, ...]:
    """open_clip's table (docs/openclip_results.csv), as far as the catalog has its datasets."""
    tree = data_file("zero_shot.yaml")
    rows = ((*model.split(" "), row) for model, row in tree["models"].items())
    return tuple(
        PublishedAccuracy(architecture, pretrained, dataset, top1)
        for architecture, pretrained, row in rows
        for dataset, top1 in zip(tree["datasets"], row, strict=True)
    )


def published_accuracy(architecture: str, pretrained: str, dataset: str) -> float | None:
    """A model's zero-shot top-1 accuracy in percent; None if it is not in the table.

    Args:
        architecture: In any spelling: ``ViT-B/32``, ``ViT-B-32-quickgelu``.
        pretrained: The tag of its weights.
        dataset: A name of the catalog.
    """
    wanted = (_plain(architecture), pretrained, dataset)
    table = zero_shot_accuracies()
    return next((row.top1 for row in table if (_plain(row.architecture), row.pretrained, row.dataset) == wanted), None)


def _plain(architecture: str) -> str:
    return re.sub(r"-quickgelu$", "", architecture.lower().replace("/", "-").replace("@", "-"))


def zero_shot_tolerance() -> float:
    """How far an accuracy may lie from the published one, in percentage points."""
    return float(data_file("zero_shot.yaml")["tolerance"])
