"""A batch of samples, and how the shares of several decoding processes become one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from wiseft_dist.data.receipt import BadSample
from wiseft_dist.data.shards import BadSampleError, Sample
from wiseft_dist.data.tar import CAPTION_FIELDS, LABEL_FIELDS
from wiseft_dist.errors import RunError

Target = Callable[[Sample, np.random.Generator], Any]
"""What is learnt from a sample: an integer label, or the tokens of a text. Draws from random numbers of its own."""


class Slot(NamedTuple):
    """A place in :class:`wiseft_dist.data.workers.PixelRing`."""

    worker: int
    turn: int
    num_images: int


@dataclass(frozen=True)
class Batch:
    """Samples side by side."""

    images: torch.Tensor
    """uint8 ``[batch, height, width, 3]``; or their features, fp32 ``[batch, embedding]``."""
    targets: torch.Tensor
    """int64 ``[batch]`` (labels) or ``[batch, width]`` (tokens)."""
    keys: tuple[str, ...]
    positions: np.ndarray
    """Where each sample stands: in the endless training stream, or in the test set; int64 ``[batch]``."""
    bad: tuple[BadSample, ...] = ()
    """Samples that could not be used."""
    slot: Slot | None = None
    """On its way from a decoding process: where the images are."""

    def __len__(self) -> int:
        """Samples in the batch."""
        return len(self.keys)

    def split(self, size: int) -> Iterator[Batch]:
        """Consecutive parts of ``size`` samples."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield Batch(self.images[part], self.targets[part], self.keys[part], self.positions[part])


def class_label(sample: Sample, random: np.random.Generator) -> int:
    """The label of a classification sample; nothing about it is random.

    Raises:
        BadSampleError: if it has none.
    """
    text = sample.first(LABEL_FIELDS)
    if not text.strip().isdigit():
        raise BadSampleError(f"has the label {text[:20]!r}, which is not a class number")
    return int(text)


@dataclass(frozen=True)
class ClassLabel:
    """The label of a sample, held against the class list: not every manifest has seen the labels."""

    num_classes: int

    def __call__(self, sample: Sample, random: np.random.Generator) -> int:
        """The label.

        Raises:
            BadSampleError: if the sample has none.
            RunError: if there is no such class: that is no damage, but another class list.
        """
        label = class_label(sample, random)
        if label >= self.num_classes:
            raise RunError(
                f"{sample.shard}: sample {sample.key!r} has label {label}, but the class list has {self.num_classes} "
                f"names (0 to {self.num_classes - 1}). Check data.classnames."
            )
        return label


def caption(sample: Sample) -> str:
    """The caption of an image-text sample.

    Raises:
        BadSampleError: if it has none, or one that is not UTF-8.
    """
    try:
        return sample.first(CAPTION_FIELDS).decode("utf-8")
    except UnicodeDecodeError:
        raise BadSampleError("has a caption that is not UTF-8") from None


def stack_targets(targets: Sequence[Any]) -> torch.Tensor:
    """Labels, or tokens of different lengths, as one int64 tensor; zeros fill the shorter ones up."""
    if np.ndim(targets[0]) == 0:
        return torch.tensor(targets, dtype=torch.int64)
    stacked = np.zeros((len(targets), max(map(len, targets))), dtype=np.int64)
    for row, tokens in zip(stacked, targets, strict=True):
        row[: len(tokens)] = tokens
    return torch.from_numpy(stacked)


def weave(parts: Sequence[Batch], *, pin_memory: bool) -> Batch:
    """One batch from the shares of several processes, in the order of the positions.

    Args:
        parts: The shares; some may be empty.
        pin_memory: Leave the pixels and targets in page-locked memory, from which a GPU copies without waiting.
    """
    bad = tuple(entry for part in parts for entry in part.bad)
    parts = [part for part in parts if len(part)] or list(parts[:1])
    if len(parts) == 1 and not pin_memory:
        only = parts[0]
        images = only.images if only.slot is None else only.images.clone()
        return Batch(images, only.targets, only.keys, only.positions, bad)
    positions = np.concatenate([part.positions for part in parts])
    order = np.argsort(positions)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    keys = [key for part in parts for key in part.keys]
    return Batch(
        _placed([part.images for part in parts], place, pin_memory),
        _placed([part.targets for part in parts], place, pin_memory),
        tuple(keys[index] for index in order),
        positions[order],
        bad,
    )


def _placed(tensors: Sequence[torch.Tensor], place: np.ndarray, pin_memory: bool) -> torch.Tensor:
    """The rows of all tensors, row ``i`` of their concatenation at ``place[i]``; each byte is copied once.

    Tokens of different lengths are filled up with zeros.
    """
    shape = (len(place), *np.max([tensor.shape[1:] for tensor in tensors], axis=0).astype(int).tolist())
    is_ragged = any(tensor.shape[1:] != shape[1:] for tensor in tensors)
    make = torch.zeros if is_ragged else torch.empty
    woven = make(shape, dtype=tensors[0].dtype, pin_memory=pin_memory)
    start = 0
    for tensor in tensors:
        rows = woven.numpy()[:, : tensor.shape[1]] if is_ragged else woven.numpy()
        rows[place[start : start + len(tensor)]] = tensor.numpy()  # whole rows; torch copies single bytes
        start += len(tensor)
    return woven
