"""What is known of a test sample beside its picture: its right classes, and columns such as region, location or video.

They stand in the fields of the sample that ``clip-benchmark`` shards carry: ``.cls`` (a class number), ``.npy`` (a
vector, as WILDS metadata are) and ``.json`` (an object).
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from wiseft_dist.data.batch import class_label
from wiseft_dist.data.shards import BadSampleError, Sample
from wiseft_dist.data.text_identity import text_identity
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.printable import printable

MAX_LABELS = 3
"""Right classes of one sample: a frame of ImageNet-Vid-Robust has one to three."""
NO_LABEL = -1
_FORMS = "npy:INDEX or json:KEY"
_NPY_MAGIC = b"\x93NUMPY"
_SHOWN = 80
"""Characters of a sample's content, at most, that an error repeats."""


@dataclass(frozen=True)
class EvaluationTarget:
    """A target of :class:`wiseft_dist.data.evaluation.EvaluationStream`: labels, then a number for each column.

    Raises:
        UserError: if a place is neither ``npy:INDEX`` nor ``json:KEY``.
    """

    num_classes: int
    labels: str | None = None
    """Where several right classes of a sample stand, such as ``json:labels``; else the ``.cls`` number is the label."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Where each column stands: ``npy:2`` (an element of the vector) or ``json:video`` (a key of the object)."""

    def __post_init__(self) -> None:
        for place in (*self.metadata.values(), *([] if self.labels is None else [self.labels])):
            _check_place(place)

    @property
    def num_labels(self) -> int:
        """Right classes that are kept of each sample."""
        return 1 if self.labels is None else MAX_LABELS

    def __call__(self, sample: Sample, random: np.random.Generator) -> np.ndarray:
        """int64 ``[num_labels + columns]``; split by :func:`split_targets`.

        Raises:
            BadSampleError: if a field is missing or is not what it should be.
            RunError: if there is no such class: that is no damage, but another class list.
        """
        fields = _Fields(sample)
        labels = self._labels(sample, fields)
        columns = [_identity(fields.at(place), place) for place in self.metadata.values()]
        return np.asarray([*labels, *[NO_LABEL] * (self.num_labels - len(labels)), *columns], dtype=np.int64)

    def _labels(self, sample: Sample, fields: _Fields) -> list[int]:
        found = [class_label(sample, _UNUSED)] if self.labels is None else _whole_numbers(fields, self.labels)
        for label in found:
            if not 0 <= label < self.num_classes:
                raise RunError(
                    f"{sample.shard}: sample {sample.key!r} has label {label}, but the dataset has {self.num_classes} "
                    f"classes (0 to {self.num_classes - 1}). Check its class list and its class map."
                )
        return found


def split_targets(targets: torch.Tensor, columns: Sequence[str]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Take the vectors of :class:`EvaluationTarget` apart.

    Args:
        targets: int64 ``[n]`` (plain labels) or ``[n, labels + columns]``.
        columns: The names of the columns, in their order.

    Returns:
        Labels int64 ``[n, labels]`` (-1 fills), and each column, int64 ``[n]``.
    """
    values = targets.numpy() if targets.ndim == 2 else targets.numpy()[:, None]
    num_labels = values.shape[1] - len(columns)
    assert num_labels > 0, f"targets of width {values.shape[1]} hold no {len(columns)} columns beside a label"
    return values[:, :num_labels], {name: values[:, num_labels + index] for index, name in enumerate(columns)}


class _Fields:
    """The decoded ``.npy`` and ``.json`` of a sample; each is decoded at most once."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample
        self._decoded: dict[str, Any] = {}

    def at(self, place: str) -> Any:
        """The value at ``npy:INDEX`` or ``json:KEY``."""
        kind, _, key = place.partition(":")
        content = self._content(kind)
        if kind == "json":
            if not isinstance(content, dict) or content.get(key) is None:
                raise BadSampleError(f"has no {key!r} in its .json")
            return content[key]
        if int(key) >= len(content):
            raise BadSampleError(f"has {len(content)} values in its .npy, none at index {key}")
        try:
            return content[int(key)].item()
        except (ValueError, SystemError) as error:  # text of characters that there are not
            raise BadSampleError(f"has no value in its .npy at index {key}: {_reason(error)}") from None

    def _content(self, kind: str) -> Any:
        if kind not in self._decoded:
            data = self._sample.first((kind,))
            try:
                self._decoded[kind] = json.loads(data) if kind == "json" else _vector(data)
            except Exception as error:  # bytes of anybody's: the parsers raise a dozen types, MemoryError among them
                raise BadSampleError(f"has a .{kind} that cannot be read: {_reason(error)}") from None
        return self._decoded[kind]


def _vector(data: bytes) -> np.ndarray:
    """A ``.npy`` file as a vector of numbers or texts; pickled objects are refused.

    Raises:
        ValueError: also if the header promises another size than the file has: nothing is allocated for it.
    """
    if not data.startswith(_NPY_MAGIC):
        raise ValueError("it does not begin as a .npy file does")
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read_header is None:
        raise ValueError(f"version {version[0]}.{version[1]} of the format holds no plain vector")
    shape, _, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects")
    promised, found = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if promised != found or not dtype.itemsize:
        raise ValueError(f"its header promises {promised:,} bytes, and it has {found:,}")
    array: np.ndarray = np.load(io.BytesIO(data), allow_pickle=False)
    return array.reshape(-1)


def _reason(error: Exception) -> str:
    """What a parser said, in one short line; a lack of memory says nothing."""
    return _cut(" ".join(str(error).split()) or type(error).__name__)


def _shown(value: Any) -> str:
    """A value as Python writes it, or the beginning of that."""
    try:
        return _cut(repr(value))
    except RecursionError:
        return f"a deep {type(value).__name__}"


def _cut(text: str) -> str:
    return printable(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _check_place(place: str) -> None:
    kind, _, key = place.partition(":")
    if not ((kind == "npy" and key.isdecimal()) or (kind == "json" and key)):
        raise UserError(f"{place!r} is no place in a sample: write {_FORMS}.")


def _whole_numbers(fields: _Fields, place: str) -> list[int]:
    """One to three class numbers, each once, as they come."""
    value = fields.at(place)
    values = value if isinstance(value, list) else [value]
    numbers = [number for number in dict.fromkeys(map(_whole_number, values)) if number is not None]
    if None in map(_whole_number, values) or not 0 < len(numbers) <= MAX_LABELS:
        raise BadSampleError(f"has {_shown(value)} at {place}, which is not one to {MAX_LABELS} class numbers")
    return numbers


def _whole_number(value: Any) -> int | None:
    """The value as an integer, if it is one that int64 can hold."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) and -(2**63) <= value < 2**63 else None


def _identity(value: Any, place: str) -> int:
    """A number for a value: its own, or a hash of the text. Only which samples share it counts."""
    if isinstance(value, str):
        return text_identity(value)
    number = _whole_number(value)
    if number is None:
        raise BadSampleError(f"has {_shown(value)} at {place}, which is neither a whole number nor a text")
    return number


_UNUSED = np.random.default_rng(0)
"""For signatures: no label is drawn."""
