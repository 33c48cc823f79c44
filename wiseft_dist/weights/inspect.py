"""What a checkpoint holds, without reading its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wiseft_dist.printable import printable
from wiseft_dist.weights.places import size_of
from wiseft_dist.weights.records import TensorRecord, Weights
from wiseft_dist.weights.sources import open_weights


@dataclass(frozen=True)
class InspectedTensor:
    """A tensor of a checkpoint."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_parts: int
    """Places in files that, joined, are the tensor: more than one where it is spread over ranks."""
    num_bytes: int


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds."""

    source: str
    kind: str
    """For people: ``DeepSpeed ZeRO stage 2, 8 ranks``."""
    step: int | None
    """Optimizer steps before it was saved, if it says so."""
    tensors: tuple[InspectedTensor, ...]
    num_elements: int
    """Numbers in all tensors; what has several names is counted once."""
    num_bytes: int
    """Of those."""
    files: dict[str, int]
    """By place, the size in bytes of every file that holds tensors, with whatever else is in it."""
    states: tuple[str, ...]
    """What it holds of the optimizer beside the weights."""

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        tensors = [asdict(tensor) | {"shape": list(tensor.shape)} for tensor in self.tensors]
        return asdict(self) | {"tensors": tensors, "states": list(self.states)}

    def as_text(self, limit: int | None = None) -> str:
        """A summary and a table of tensors for people, of at most ``limit`` rows if that is given."""
        shown = self.tensors if limit is None else self.tensors[:limit]
        left_out = len(self.tensors) - len(shown)
        rows = [("tensor", "shape", "dtype", "parts", "bytes"), *map(_row, shown)]
        summary = [
            ("source", self.source),
            ("kind", self.kind),
            *([("step", f"{self.step:,}")] if self.step is not None else []),
            ("holds", f"{len(self.tensors):,} tensors, {self.num_elements:,} elements, {self.num_bytes:,} bytes"),
            *([("optimizer", ", ".join(self.states))] if self.states else []),
            ("files", f"{len(self.files):,}, {sum(self.files.values()):,} bytes"),
            *(("", f"{place}  {size:,}") for place, size in self.files.items()),
        ]
        more = [f"and {left_out:,} more"] if left_out else []
        return "\n".join([*_aligned(summary, right=()), "", *_aligned(rows, right=(3, 4)), *more])


def inspect(source: str | Path) -> Inspection:
    """Look into anything that :func:`open_weights` opens.

    Raises:
        UserError: if it cannot be opened.
        RunError: if a store fails for good.
    """
    with open_weights(source) as weights:
        distinct = {record.extents: record for record in weights.values()}.values()
        return Inspection(
            source=str(source),
            kind=weights.origin.kind,
            step=weights.origin.step,
            tensors=tuple(_inspected(name, record) for name, record in sorted(weights.items())),
            num_elements=sum(record.numel for record in distinct),
            num_bytes=sum(record.num_bytes for record in distinct),
            files=_files(weights),
            states=weights.origin.states,
        )


def _inspected(name: str, record: TensorRecord) -> InspectedTensor:
    dtype = str(record.dtype).removeprefix("torch.")
    return InspectedTensor(name, record.shape, dtype, len(record.extents), record.num_bytes)


def _files(weights: Weights) -> dict[str, int]:
    return {str(file): size_of(file) for file in weights.files()}


def _row(tensor: InspectedTensor) -> tuple[str, ...]:
    return tensor.name, str(list(tensor.shape)), tensor.dtype, f"{tensor.num_parts:,}", f"{tensor.num_bytes:,}"


def _aligned(rows: Iterable[Sequence[str]], *, right: Sequence[int]) -> list[str]:
    """Lines in which columns begin, or those in ``right`` end, under each other, without control characters."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
