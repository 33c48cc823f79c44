"""Whether two models can be merged, and which tensors only one of them has."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from wiseft_dist.errors import UserError
from wiseft_dist.weights.records import Weights


@dataclass(frozen=True)
class Pair:
    """Two models that can be merged."""

    zero_shot: Weights
    finetuned: Weights
    carried: frozenset[str]
    """Tensors that fine-tuning left out; every ensemble has the zero-shot model's."""


def pair(zero_shot: Weights, finetuned: Weights, *, carry: Sequence[str] = ()) -> Pair:
    """Check that two models fit together.

    Args:
        zero_shot: theta_0.
        finetuned: theta_1.
        carry: Patterns (``transformer.*``) of tensors that only theta_0 needs to have.

    Raises:
        UserError: with the list of tensors that only one of them has, or whose shapes or kinds differ.
    """
    only_finetuned = sorted(finetuned.keys() - zero_shot.keys())
    absent = sorted(zero_shot.keys() - finetuned.keys())
    carried = {name for name in absent if any(fnmatch.fnmatchcase(name, pattern) for pattern in carry)}
    only_zero_shot = [name for name in absent if name not in carried]
    shared = zero_shot.keys() & finetuned.keys()
    reshaped = sorted(name for name in shared if not _same_shape(zero_shot[name].shape, finetuned[name].shape))
    mixed = sorted(
        name for name in shared if zero_shot[name].dtype.is_floating_point != finetuned[name].dtype.is_floating_point
    )
    problems = [
        f"{label}: {_listed(names)}"
        for label, names in (
            ("only in the fine-tuned model", only_finetuned),
            ("only in the zero-shot model", only_zero_shot),
            ("of another shape", reshaped),
            ("integers in only one of them", mixed),
        )
        if names
    ]
    if problems or not shared:
        reason = "; ".join(problems) or "they have no tensor in common"
        raise UserError(f"{zero_shot.source} and {finetuned.source} do not fit together: {reason}.")
    return Pair(zero_shot, finetuned, frozenset(carried))


def _same_shape(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Equal, or a single number either way: the engine trains ``logit_scale`` as one element, open_clip has none."""
    return first == second or {first, second} == {(), (1,)}


def _listed(names: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
