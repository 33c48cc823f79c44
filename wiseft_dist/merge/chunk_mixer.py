"""One chunk after the other: every input read once into memory that is used again, then mixed at any alpha."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from wiseft_dist.errors import UserError
from wiseft_dist.merge.direct_io import aligned_buffer
from wiseft_dist.merge.inputs import Constants, InputReader, first_beyond, set_aside
from wiseft_dist.merge.layout import Chunk, Piece
from wiseft_dist.merge.methods.method import Method, Slices

SLICE_ELEMENTS = 2**17
"""Elements that are mixed at a time, so that they stay in the processor's cache."""


@dataclass(frozen=True)
class _Mixed:
    """Elements that depend on alpha."""

    slices: Slices
    out: Tensor
    constants: Constants | None
    """NaN and Inf that are the same in all models, where such numbers are allowed."""


@dataclass(frozen=True)
class _Copied:
    """Elements that are one model's or another's."""

    below_one: Tensor
    at_one: Tensor
    out: Tensor


class ChunkMixer:
    """The memory of one thread: a chunk's inputs, and the chunk at one alpha. It serves one chunk after the other.

    Args:
        inputs: What is read.
        method: How it is mixed; past its statistics.
        chunk_bytes: The longest chunk.
    """

    def __init__(self, inputs: InputReader, method: Method, chunk_bytes: int) -> None:
        self._inputs, self._method = inputs, method
        most_elements = chunk_bytes // inputs.dtype.itemsize
        self._held = [aligned_buffer(max(4 * most_elements, chunk_bytes)) for _ in inputs.sources]
        self._stored = aligned_buffer(8 * max(most_elements, chunk_bytes))
        self._out = aligned_buffer(chunk_bytes)
        self._parts: list[_Mixed | _Copied] = []
        self.chunk: Chunk
        """The one that was read last."""
        self.num_bytes_read = 0
        """Of that one's inputs, as they are stored."""

    @property
    def memory(self) -> memoryview:
        """Room for a chunk, until the next call."""
        return memoryview(self._out)

    def load(self, chunk: Chunk) -> list[bytes]:
        """Read a chunk of every input.

        Returns:
            The digest of each input's bytes, as they are stored.

        Raises:
            UserError: as :meth:`InputReader.read`.
            RunError: as :meth:`InputReader.read`.
        """
        self.chunk, self._parts, self.num_bytes_read = chunk, [], 0
        digests = [xxhash.xxh3_128() for _ in self._held]
        held_bytes = out_bytes = 0
        for piece in chunk.pieces():
            held: dict[int, Tensor] = {}
            dtype = self._inputs.held_dtype(piece.dtype)
            for source in self._inputs.holders(piece.name):
                held[source] = _view(self._held[source], dtype, piece.numel, held_bytes)
                stored = self._inputs.read(source, piece.name, piece.start, held[source], self._allot)
                digests[source].update(stored.view(torch.uint8).numpy().data)
                self.num_bytes_read += stored.numel() * stored.itemsize
            self._add_parts(piece, held, _view(self._out, piece.dtype, piece.numel, out_bytes))
            held_bytes += piece.numel * dtype.itemsize
            out_bytes += piece.numel * piece.dtype.itemsize
        return [digest.digest() for digest in digests]

    def mix(self, alpha: float) -> memoryview:
        """The bytes of the chunk that was read last at ``alpha``; they stay until the next call.

        Raises:
            UserError: if the mixture has a number that the written dtype cannot hold.
        """
        for part in self._parts:
            if isinstance(part, _Copied):
                part.out.copy_(part.at_one if alpha == 1.0 else part.below_one)
            else:
                self._method.mix(part.slices, alpha, part.out)
                if part.constants is not None:
                    part.constants.put_back(part.out)
                if not self._inputs.allow_nonfinite:
                    _check(part, alpha)
        return self.memory[: self.chunk.stop - self.chunk.start]

    def _allot(self, numel: int, dtype: torch.dtype) -> Tensor:
        return _view(self._stored, dtype, numel, 0)

    def _add_parts(self, piece: Piece, held: dict[int, Tensor], out: Tensor) -> None:
        tensors = list(held.values())
        if not self._inputs.models.is_mixed(piece.name):
            self._parts.append(_Copied(tensors[0], tensors[-1], out))
            return
        num_models = 1 + len(self._inputs.models.finetuned)
        whole = Slices(piece.name, piece.start, tensors[:num_models], tensors[num_models:])
        for start in range(0, piece.numel, SLICE_ELEMENTS):
            stop = min(start + SLICE_ELEMENTS, piece.numel)
            slices = whole.piece(start, stop)
            constants = set_aside(slices.models) if self._inputs.allow_nonfinite else None
            self._parts.append(_Mixed(self._method.prepare(slices), out[start:stop], constants))


def memory_per_byte(inputs: InputReader) -> float:
    """Bytes that a mixer touches for each byte of a chunk: inputs, what a method prepares, the output."""
    stored = {
        record.dtype for weights in inputs.sources for record in weights.values() if record.dtype.is_floating_point
    }
    converted = max((dtype.itemsize for dtype in stored - {torch.float32}), default=0)
    return (4 * (len(inputs.sources) + 1) + converted) / inputs.dtype.itemsize + 1


def _view(memory: object, dtype: torch.dtype, numel: int, offset: int) -> Tensor:
    return torch.frombuffer(memory, dtype=dtype, count=numel, offset=offset)


def _check(part: _Mixed, alpha: float) -> None:
    bad = first_beyond(part.out, part.out.dtype)
    if bad is not None:
        raise UserError(
            f"alpha {alpha}: tensor {part.slices.name} becomes {part.out[bad].item()} at element "
            f"{part.slices.start + bad}. {part.out.dtype} cannot hold that: choose fp32, or another alpha."
        )
