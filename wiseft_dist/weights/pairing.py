"""Whether models can be merged, and which tensors only some of them have."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from wiseft_dist.errors import UserError
from wiseft_dist.weights.records import TensorRecord, Weights


@dataclass(frozen=True)
class Models:
    """theta_0 and n fine-tuned models that can be merged.

    Every ensemble has the tensors of :attr:`records`: those of theta_0, and those of theta_1 that were let in.
    """

    zero_shot: Weights
    finetuned: tuple[Weights, ...]
    carried: frozenset[str] = frozenset()
    """Tensors that fine-tuning left out; every ensemble has the zero-shot model's."""
    taken: frozenset[str] = frozenset()
    """Tensors that the zero-shot model has not; every ensemble has the first fine-tuned model's."""
    fisher: tuple[Weights, ...] = ()
    """The diagonal Fisher information of theta_0, theta_1, ..., by the same names; or none."""

    @property
    def records(self) -> dict[str, TensorRecord]:
        """Every tensor of an ensemble, as the model has it whose tensor is taken at alpha = 0."""
        return dict(self.zero_shot) | {name: self.finetuned[0][name] for name in sorted(self.taken)}

    def is_mixed(self, name: str) -> bool:
        """Whether a tensor depends on alpha: it is in all models, and of floating point."""
        return name not in self.carried | self.taken and self.zero_shot[name].dtype.is_floating_point


def match(
    zero_shot: Weights,
    finetuned: Sequence[Weights],
    *,
    carry: Sequence[str] = (),
    take: Sequence[str] = (),
    fisher: Sequence[Weights] = (),
) -> Models:
    """Check that models fit together.

    Args:
        zero_shot: theta_0.
        finetuned: theta_1, ... theta_n; at least one.
        carry: Patterns (``transformer.*``) of tensors that only theta_0 needs to have.
        take: Patterns of tensors that only the fine-tuned models need to have.
        fisher: Empty, or the Fisher information of each model, theta_0's first.

    Raises:
        UserError: with the list of tensors that only one of two models has, or whose shapes or kinds differ.
    """
    matched = [_match(zero_shot, other, carry, take) for other in finetuned]
    carried, taken = (frozenset[str]().union(*names) for names in zip(*matched, strict=True))
    for other in finetuned[1:]:
        if differing := sorted((carried & other.keys()) | (taken - other.keys())):
            raise UserError(
                f"{finetuned[0].source} and {other.source} do not fit together: "
                f"only in one of them: {_listed(differing)}."
            )
    models = Models(zero_shot, tuple(finetuned), carried, taken, tuple(fisher))
    for other in fisher:
        _check_fisher(models, other)
    return models


def _check_fisher(models: Models, fisher: Weights) -> None:
    mixed = [name for name in models.zero_shot if models.is_mixed(name)]
    wrong = [n for n in mixed if n not in fisher or not same_shape(fisher[n].shape, models.zero_shot[n].shape)]
    if wrong:
        raise UserError(
            f"{fisher.source} is no Fisher information of {models.zero_shot.source}: "
            f"it lacks, or has in another shape: {_listed(wrong)}."
        )


def _match(
    zero_shot: Weights, finetuned: Weights, carry: Sequence[str], take: Sequence[str]
) -> tuple[set[str], set[str]]:
    surplus, absent = finetuned.keys() - zero_shot.keys(), zero_shot.keys() - finetuned.keys()
    taken, carried = _named(surplus, take), _named(absent, carry)
    shared = zero_shot.keys() & finetuned.keys()
    reshaped = [name for name in shared if not same_shape(zero_shot[name].shape, finetuned[name].shape)]
    mixed = [
        name for name in shared if zero_shot[name].dtype.is_floating_point != finetuned[name].dtype.is_floating_point
    ]
    problems = [
        f"{label}: {_listed(sorted(names))}"
        for label, names in (
            ("only in the fine-tuned model", surplus - taken),
            ("only in the zero-shot model", absent - carried),
            ("of another shape", reshaped),
            ("integers in only one of them", mixed),
        )
        if names
    ]
    if problems or not shared:
        reason = "; ".join(problems) or "they have no tensor in common"
        raise UserError(f"{zero_shot.source} and {finetuned.source} do not fit together: {reason}.")
    return carried, taken


def _named(names: Collection[str], patterns: Sequence[str]) -> set[str]:
    return {name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}


def same_shape(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Equal, or a single number either way: the engine trains ``logit_scale`` as one element, open_clip has none."""
    return first == second or {first, second} == {(), (1,)}


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
