"""How a global batch is shared by the processes of a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from wiseft_dist.config.sections import RunConfig
from wiseft_dist.errors import UserError

MIXING_RECIPES = ("end_to_end", "lp_ft", "l2_sp")
"""Those that see pictures with labels, which mixup and CutMix blend."""
COMPARING_RECIPES = ("flyp", "contrastive")
"""Those whose loss holds the samples of a forward pass against each other."""


def batch_arithmetic(config: RunConfig, world_size: int) -> tuple[int, int]:
    """Samples a forward pass and gradient accumulation steps, on each rank.

    Raises:
        UserError: if the processes cannot share the lanes or the global batch; if pictures are to be mixed in pairs
            and their number is odd; if samples are to be compared and there is one. It names the nearest numbers
            below and above that can.
    """
    finetune, augment = config.finetune, config.data.augment
    split = _Split(
        "finetune",
        lanes=config.data.lanes,
        world_size=world_size,
        global_batch_size=finetune.global_batch_size,
        micro_batch_size=finetune.micro_batch_size,
        mixes=finetune.recipe in MIXING_RECIPES and bool(augment.mixup or augment.cutmix),
        compares=finetune.recipe in COMPARING_RECIPES,
    )
    _refuse(split)
    if finetune.recipe == "lp_ft":
        head = finetune.head.global_batch_size
        _refuse(replace(split, section="finetune.head", global_batch_size=head, micro_batch_size=None, mixes=False))
    return split.samples_a_pass, split.global_batch_size // (split.samples_a_pass * world_size)


@dataclass(frozen=True)
class _Split:
    """A global batch and those who share it."""

    section: str
    """Where the batch's settings stand."""
    lanes: int
    world_size: int
    global_batch_size: int
    micro_batch_size: int | None
    mixes: bool
    compares: bool

    @property
    def samples_a_pass(self) -> int:
        return self.micro_batch_size or self.global_batch_size // self.world_size

    def problems(self) -> Iterator[str | None]:
        """For each requirement in turn what is wrong, or nothing."""
        batch, micro, world_size = self.global_batch_size, self.micro_batch_size, self.world_size
        yield (
            f"data.lanes is {self.lanes}, which {_count(world_size)} cannot share evenly"
            if self.lanes % world_size
            else None
        )
        samples = f" x {micro} samples" if micro else ""
        yield (
            f"{self.section}.global_batch_size is {batch}, which is not a multiple of {_count(world_size)}{samples}"
            if batch % ((micro or 1) * world_size)
            else None
        )
        yield (
            "data.augment.mixup and data.augment.cutmix blend pictures in pairs, but each forward pass has "
            f"{self.samples_a_pass} of them"
            if self.mixes and self.samples_a_pass % 2
            else None
        )
        yield (
            "the recipe compares the samples of a forward pass with each other, but over all processes there is one"
            if self.compares and self.samples_a_pass * world_size < 2
            else None
        )

    def first_problem(self) -> tuple[int, str] | None:
        """The first requirement that is not met, by its number, and what is wrong."""
        return next(((number, problem) for number, problem in enumerate(self.problems()) if problem), None)


def _refuse(split: _Split) -> None:
    found = split.first_problem()
    if found is None:
        return
    requirement, problem = found
    undivided = replace(split, micro_batch_size=None)
    batches = f"{split.section}.global_batch_size={{}}"
    ways = [
        *_ways(split, "global_batch_size", requirement, batches),
        *_ways(split, "micro_batch_size", requirement, f"{split.section}.micro_batch_size={{}}"),
        *_ways(split, "lanes", requirement, "data.lanes={}"),
        *_ways(split, "world_size", requirement, "a world size of {} (launch.finetune)"),
    ] or _ways(undivided, "global_batch_size", requirement, f"{batches} without {split.section}.micro_batch_size")
    raise UserError(f"{problem}: use {', or '.join(ways)}.")


def _ways(split: _Split, name: str, requirement: int, sentence: str) -> list[str]:
    values = _nearest(split, name, requirement)
    return [sentence.format(" or ".join(map(str, values)))] if values else []


def _nearest(split: _Split, name: str, requirement: int) -> list[int]:
    """The next values of a number below and above that meet this requirement and those before it."""
    value: int | None = getattr(split, name)
    if value is None:
        return []
    most = 2 * max(split.lanes, split.global_batch_size, 2 * split.samples_a_pass * split.world_size)

    def fits(candidate: int) -> bool:
        left = replace(split, **{name: candidate}).first_problem()  # type: ignore[arg-type]
        return left is None or left[0] > requirement

    below = next(filter(fits, range(value - 1, 0, -1)), None)
    above = next(filter(fits, range(value + 1, most + 1)), None)
    return [candidate for candidate in (below, above) if candidate is not None]


def _count(processes: int) -> str:
    return "1 process" if processes == 1 else f"{processes} processes"
