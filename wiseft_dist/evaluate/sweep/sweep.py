"""Scoring K ensembles on one decode pass: images stay on the device while alpha changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from wiseft_dist.data.batch import Batch
from wiseft_dist.data.labels import split_targets
from wiseft_dist.data.receipt import BadSample
from wiseft_dist.errors import RunError
from wiseft_dist.evaluate.predictions import NUM_TOP, FeatureMoments, Member, Predictions
from wiseft_dist.evaluate.sweep.cache_size import images_that_fit
from wiseft_dist.evaluate.sweep.moments import MomentSums
from wiseft_dist.evaluate.sweep.scores import Scores, score
from wiseft_dist.evaluate.sweep.shared_layers import Adjustable, Layers
from wiseft_dist.merge.methods.wise import interpolate


def sweep(
    ensemble: Adjustable,
    batches: Iterable[Batch],
    members: Sequence[Member],
    *,
    prepare: Callable[[Tensor], Tensor],
    cache_images: int | None = None,
    class_map: Callable[[Tensor], Tensor] | None = None,
    columns: Sequence[str] = (),
    compare: bool = False,
    layers: Layers | None = None,
    dataset: str = "",
    on_progress: Callable[[int], None] = lambda _: None,
) -> Predictions:
    """Score every member on every batch; each batch is decoded, moved and normalised once.

    Args:
        ensemble: The module whose alpha is set.
        batches: uint8 images with labels, or with the vectors of :class:`wiseft_dist.data.labels.EvaluationTarget`.
        members: K alphas, in weight or output space.
        prepare: uint8 ``[batch, height, width, 3]`` on the host to normalised floats on the device.
        cache_images: How many images may stay on the device at a time, but at least one batch; alpha is set once a
            cache-full. None: chosen from the memory that is free.
        class_map: From the head's logits to those of the dataset's classes.
        columns: The names of the metadata behind the labels.
        compare: Score theta_0 too, whether it is a member or not, for divergences from it, and for the moments of its
            features and theta_1's if theta_1 is a member.
        layers: The ensemble's; given where several datasets are scored by the same compiled layers.
        dataset: Its name, for errors.
        on_progress: Called with the number of samples finished since the last call.

    Raises:
        RunError: if a member's logits are NaN or infinite: no class is then the likeliest.
    """
    scorer = _Scorer(ensemble, layers or Layers(ensemble), members, class_map, compare)
    found, group = _Found(len(members)), _Group()

    def finish(group: _Group) -> None:
        scores = scorer.score(group)
        _refuse_not_finite(dataset, members, group, scores)
        found.add(group, scores)
        on_progress(len(group))

    for batch in batches:
        found.bad += batch.bad
        if not len(batch):
            continue
        if cache_images is not None and group.batches and len(group) + len(batch) > cache_images:
            finish(group)
            group = _Group()
        activations = scorer.start(prepare(batch.images))
        group.add(batch, activations, num_columns=len(columns))
        if cache_images is None:
            cache_images = images_that_fit(activations.nbytes // len(activations), activations.device)
    if group.batches:
        finish(group)
    return found.predictions(columns, scorer.moments())


@dataclass(frozen=True)
class _Group:
    """Consecutive batches that stay on the device while alpha changes."""

    batches: list[Batch] = field(default_factory=list)
    """Without their pixels, which are on the device."""
    activations: list[Tensor] = field(default_factory=list)
    """What all alphas share of each batch; where they share no layer, its images."""
    labels: list[Tensor] = field(default_factory=list)
    """int64 ``[batch, labels]`` on the device."""

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for batch in self.batches for key in batch.keys)

    def add(self, batch: Batch, activations: Tensor, *, num_columns: int) -> None:
        labels = batch.targets[:, None] if batch.targets.ndim == 1 else batch.targets
        labels = labels[:, : labels.shape[1] - num_columns]
        self.batches.append(replace(batch, images=_NO_PIXELS))
        self.activations.append(activations)
        self.labels.append(labels.to(activations.device, non_blocking=True))


_NO_PIXELS = torch.empty(0, dtype=torch.uint8)
_Outputs = list[tuple[Tensor, Tensor | None]]
"""Logits and features of each batch of a group."""


class _Scorer:
    """Takes groups through all members; theta_0 comes first where the others are compared with it."""

    def __init__(
        self,
        ensemble: Adjustable,
        layers: Layers,
        members: Sequence[Member],
        class_map: Callable[[Tensor], Tensor] | None,
        compare: bool,
    ) -> None:
        self._ensemble, self._layers, self._members = ensemble, layers, members
        self._class_map, self._compare = class_map, compare
        self._has_moments = compare and Member(1.0) in members
        is_mixed = any(member.space == "output" for member in members)
        self._ends = [0.0] * (is_mixed or compare) + [1.0] * (is_mixed or self._has_moments)
        weights = [member.alpha for member in members if member.space == "weight"]
        self._alphas = tuple(dict.fromkeys([*self._ends, *weights]))
        self._sums = MomentSums()

    def moments(self) -> FeatureMoments | None:
        """Of the features of theta_0 and theta_1, over all groups."""
        return self._sums.moments()

    @torch.inference_mode()
    def start(self, images: Tensor) -> Tensor:
        """What all alphas share of a batch."""
        return self._layers.shared(images)

    @torch.inference_mode()
    def score(self, group: _Group) -> Scores:
        """All members' scores of a group, ``[K, n]`` on the host, which waits for the device once."""
        ends: dict[float, _Outputs] = {}
        scores: dict[Member, Scores] = {}
        reference: Sequence[Tensor | None] = [None] * len(group.batches)
        for alpha in self._alphas:
            outputs = self._outputs(alpha, group)
            if alpha in self._ends:
                ends[alpha] = outputs
            if self._compare and alpha == 0.0:
                reference = [self._mapped(logits).log_softmax(dim=-1) for logits, _ in outputs]
            scores[Member(alpha)] = self._scores([logits for logits, _ in outputs], group, reference)
        for member in self._members:
            if member.space == "output":
                scores[member] = self._scores(_mixed(ends[0.0], ends[1.0], member.alpha), group, reference)
        if self._has_moments:
            self._add_moments(ends[0.0], ends[1.0])
        return Scores.stack([scores[member] for member in self._members]).on_host()

    def _outputs(self, alpha: float, group: _Group) -> _Outputs:
        self._ensemble.set_alpha(alpha)
        return [self._layers.rest(*each) for each in zip(group.activations, map(len, group.batches), strict=True)]

    def _mapped(self, logits: Tensor) -> Tensor:
        return logits if self._class_map is None else self._class_map(logits)

    def _scores(self, logits: Sequence[Tensor], group: _Group, reference: Sequence[Tensor | None]) -> Scores:
        batches = zip(logits, group.labels, reference, strict=True)
        return Scores.join([score(self._mapped(each), labels, of_theta_0) for each, labels, of_theta_0 in batches])

    def _add_moments(self, zero_shot: _Outputs, finetuned: _Outputs) -> None:
        for (_, x), (_, y) in zip(zero_shot, finetuned, strict=True):
            if x is not None and y is not None:
                self._sums.add(x, y)


def _refuse_not_finite(dataset: str, members: Sequence[Member], group: _Group, scores: Scores) -> None:
    """A NaN, +Inf or nothing but -Inf among a sample's logits makes its confidence NaN; `argmax` would name a class."""
    is_wrong = ~scores.confidences.isfinite()
    if not is_wrong.any():
        return
    member, sample = is_wrong.nonzero()[0].tolist()
    of_dataset = f"{dataset}: " if dataset else ""
    raise RunError(
        f"{of_dataset}alpha {members[member].alpha:g} in {members[member].space} space gives sample "
        f"{group.keys[sample]!r} logits that are not finite ({int(is_wrong[member].sum())} of {len(group)} samples): "
        "in fp16 set evaluate.precision to bf16 or fp32; otherwise look at the weights with `wiseft merge --inspect`: "
        "NaN gets into ensembles only with merge.allow_nonfinite."
    )


def _mixed(zero_shot: _Outputs, finetuned: _Outputs, alpha: float) -> list[Tensor]:
    """``(1 - alpha) f(theta_0) + alpha f(theta_1)`` of each batch, the ends bit for bit."""
    mixed = []
    for (first, _), (second, _) in zip(zero_shot, finetuned, strict=True):
        mixed.append(torch.empty_like(first))
        interpolate(first, second, alpha, out=mixed[-1])
    return mixed


class _Found:
    """What came of the groups so far."""

    def __init__(self, num_members: int) -> None:
        self.bad: tuple[BadSample, ...] = ()
        self._keys: list[str] = []
        self._positions: list[np.ndarray] = []
        self._targets: list[Tensor] = []
        empty = torch.empty(num_members, 0)
        self._scores = [Scores(torch.empty(num_members, 0, NUM_TOP, dtype=torch.int32), *[empty] * 5)]

    def add(self, group: _Group, scores: Scores) -> None:
        for batch in group.batches:
            self._keys += batch.keys
            self._positions.append(batch.positions)
            self._targets.append(batch.targets)
        self._scores.append(scores)

    def predictions(self, columns: Sequence[str], moments: FeatureMoments | None) -> Predictions:
        """Everything, in the order of positions: several decoding processes take turns."""
        positions = np.concatenate([np.empty(0, np.int64), *self._positions])
        order = np.argsort(positions, kind="stable")
        targets = torch.cat(self._targets) if self._targets else torch.empty(0, 1 + len(columns), dtype=torch.int64)
        labels, metadata = split_targets(targets, columns)
        scores = Scores.join(self._scores, dim=1).as_arrays()
        return Predictions(
            keys=tuple(self._keys[index] for index in order),
            positions=positions[order],
            labels=labels[order],
            metadata={name: column[order] for name, column in metadata.items()},
            classes=scores["top5"][:, order, 0],
            **{name: values[:, order] for name, values in scores.items()},
            bad=self.bad,
            features=moments,
        )
