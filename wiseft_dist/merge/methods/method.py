"""What a merging method is: elementwise arithmetic on flat slices, the same for written files and live parameters.

Some methods need to know something of whole tensors first (norms, angles, quantiles). They say so by passes of
statistics: sums over blocks of a fixed size, added up in the blocks' order, so that they come out the same to the bit
however the work was cut into chunks and ranks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

BLOCK_ELEMENTS = 2**20
"""Elements of a tensor that one step of statistics sees."""


@dataclass(frozen=True)
class Slices:
    """The same elements of one floating-point tensor, in every model; all 1-D, fp32 and of equal length."""

    name: str
    start: int
    """The first element's place in the flattened tensor."""
    models: Sequence[Tensor]
    """theta_0, theta_1, ... theta_n."""
    fisher: Sequence[Tensor] = ()
    """The diagonal Fisher information of each of the models, where the method asks for it."""
    endpoint: Tensor | None = None
    """What alpha = 1 gives, where :meth:`Method.prepare` has worked it out; of the models only theta_0 is needed."""

    def piece(self, start: int, stop: int) -> Slices:
        """The elements ``[start, stop)`` of these, as views."""
        return replace(
            self,
            start=self.start + start,
            models=tuple(model[start:stop] for model in self.models),
            fisher=tuple(fisher[start:stop] for fisher in self.fisher),
            endpoint=None if self.endpoint is None else self.endpoint[start:stop],
        )


class Method(ABC):
    """A way to merge theta_0 with n fine-tuned models. Integers, masks and carried tensors never get here.

    :meth:`begin` comes first, then the passes of statistics; after them the method no longer changes, and slices may
    be prepared and mixed from several threads.
    """

    name: str
    """As people write it: ``wise``."""
    num_passes: int = 0
    """Passes of statistics before the first call of :meth:`mix`."""
    keeps_equal: bool = False
    """Whether elements that are finite and equal in all models, bit for bit, are so in every ensemble."""

    def begin(self, sizes: Mapping[str, int]) -> None:  # noqa: B027, most methods have no use for it
        """Called once before everything else, with the number of elements of each tensor that is mixed.

        Raises:
            UserError: if the method cannot merge such a model.
        """

    def observe(self, number: int, slices: Slices) -> Tensor:
        """What pass ``number`` needs of one block: 1-D numbers (float64 or int64) that are added over the blocks."""
        raise NotImplementedError

    def conclude(self, number: int, totals: Mapping[str, Tensor]) -> None:
        """End of pass ``number``: the sums by tensor name, for all tensors."""
        raise NotImplementedError

    def prepare(self, slices: Slices) -> Slices:
        """The same slices with what every alpha shares worked out; several alphas are mixed faster from them."""
        return slices

    @abstractmethod
    def mix(self, slices: Slices, alpha: float, out: Tensor) -> None:
        """Write the elements of theta_alpha into ``out``, computed in fp32 and rounded once to its dtype.

        ``alpha = 0`` gives theta_0 bit for bit. The result depends on the elements, their place and the statistics
        alone, not on how a tensor is cut, nor on whether the slices are prepared.

        Args:
            slices: The inputs; left as they are.
            alpha: The mixing coefficient in [0, 1].
            out: 1-D, fp32, bf16 or fp16, not aliasing an input.
        """

    def describe(self) -> dict[str, Any]:
        """Settings and statistics for a model's provenance."""
        return {"name": self.name}


@dataclass(frozen=True)
class Block:
    """Elements ``[start, stop)`` of a tensor."""

    name: str
    start: int
    stop: int


def blocks(sizes: Mapping[str, int]) -> Iterator[Block]:
    """The blocks of statistics, from the number of elements of each tensor."""
    for name, numel in sizes.items():
        for start in range(0, numel, BLOCK_ELEMENTS):
            yield Block(name, start, min(start + BLOCK_ELEMENTS, numel))


def add_up(found: Mapping[Block, Tensor]) -> dict[str, Tensor]:
    """The sum over each tensor's blocks, in their order."""
    totals: dict[str, Tensor] = {}
    for block in sorted(found, key=lambda block: (block.name, block.start)):
        totals[block.name] = totals[block.name] + found[block] if block.name in totals else found[block]
    return totals


def take_statistics(method: Method, sizes: Mapping[str, int], read: Callable[[Block], Slices]) -> None:
    """Begin a method and take it through all its passes, one block after the other.

    Args:
        method: Learns what it asks for.
        sizes: Elements of each floating-point tensor that is mixed.
        read: The inputs of a block, on the host.

    Raises:
        UserError: as :meth:`Method.begin`.
    """
    method.begin(sizes)
    for number in range(method.num_passes):
        method.conclude(number, add_up({block: method.observe(number, read(block)) for block in blocks(sizes)}))
