"""Holding one's own zero-shot accuracies against the published ones: does this installation measure what others do?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wiseft_dist.evaluate.catalog.published import published_accuracy, zero_shot_tolerance
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.standalone.evaluation import Evaluation


@dataclass(frozen=True)
class Checked:
    """One model on one dataset."""

    model: str
    dataset: str
    measured: float
    """Top-1 accuracy in percent."""
    published: float | None
    """Percent; None where the table has no such model or dataset."""
    tolerance: float
    """Percentage points."""

    @property
    def difference(self) -> float | None:
        """Measured minus published, in percentage points."""
        return None if self.published is None else self.measured - self.published

    @property
    def differs(self) -> bool:
        """Whether it is further away than the tolerance; what is not in the table does not differ."""
        return self.difference is not None and abs(self.difference) > self.tolerance + 1e-9  # 0.3 is no binary number


@dataclass(frozen=True)
class Check:
    """All comparisons of a call."""

    rows: tuple[Checked, ...]

    @property
    def agrees(self) -> bool:
        """Whether nothing differs and something was in the table: to compare nothing shows nothing."""
        return not any(row.differs for row in self.rows) and any(row.published is not None for row in self.rows)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [asdict(row) | {"difference": row.difference, "differs": row.differs} for row in self.rows]
        return {"agrees": self.agrees, "rows": rows}

    def as_text(self) -> str:
        """A line a comparison, and what to make of them."""
        return "\n".join([*map(_line, self.rows), _verdict(self.rows)])


def check_zero_shot(evaluation: Evaluation) -> Check:
    """Compare every model of an evaluation on every dataset with what is published of it."""
    rows: list[Checked] = []
    for scored in evaluation.scored:
        architecture, pretrained = model_and_tag(scored.sources.zero_shot, scored.sources.architecture)
        accuracies: dict[str, float] = {}
        entries: dict[str, str] = {}
        for dataset in scored.datasets:
            predictions = scored.store.read(dataset.name, [Member(0.0)], columns=["classes"])
            accuracies[dataset.name] = float(predictions.correct[0].mean())
            entries[dataset.name] = dataset.dataset.spec.catalog or dataset.name
        title = scored.sources.zero_shot
        rows += compare(title, accuracies, architecture=architecture, pretrained=pretrained, entries=entries)
    return Check(tuple(rows))


def compare(
    model: str,
    accuracies: Mapping[str, float],
    *,
    architecture: str | None,
    pretrained: str | None,
    entries: Mapping[str, str] | None = None,
) -> tuple[Checked, ...]:
    """Look up what is published of a model.

    Args:
        model: What it is called here.
        accuracies: Top-1 as fractions, by dataset.
        architecture: As open_clip calls it; None if that is not known.
        pretrained: The tag of its weights; None if that is not known.
        entries: The datasets' names in the catalog, of which two may have the same; None: their own.
    """

    def published(dataset: str) -> float | None:
        if architecture is None or pretrained is None:
            return None
        return published_accuracy(architecture, pretrained, (entries or {}).get(dataset, dataset))

    return tuple(
        Checked(model, dataset, 100 * accuracy, published(dataset), zero_shot_tolerance())
        for dataset, accuracy in accuracies.items()
    )


def model_and_tag(source: str, architecture: str | None) -> tuple[str, str] | tuple[None, None]:
    """Architecture and tag of a model that was named ``ViT-B-32:openai``, or whose ``--architecture`` was."""
    for text in (source, architecture or ""):
        name, colon, tag = text.rpartition(":")
        if colon and name and tag and "/" not in tag and "://" not in text:
            return name, tag
    return None, None


def _line(row: Checked) -> str:
    place = f"{row.model} on {row.dataset}: {row.measured:.2f} %"
    if row.published is None:
        return f"{place}, not in the published table"
    said = f"{place}, published {row.published:.2f} % ({row.difference:+.2f})"
    return f"{said}: DIFFERS by more than {row.tolerance:g}" if row.differs else said


def _verdict(rows: tuple[Checked, ...]) -> str:
    num_known = sum(row.published is not None for row in rows)
    num_off = sum(row.differs for row in rows)
    if num_known == 0:
        return "nothing to compare with: name a model as ARCH:TAG and datasets of the catalog (wiseft evaluate --list)."
    if num_off == 0:
        return f"{num_known} of {num_known} accuracies are as published."
    return (
        f"{num_off} of {num_known} accuracies differ: look at the preprocessing (--preprocess exact), the prompts "
        "beside the shards, and whether the shards are the whole test set."
    )
