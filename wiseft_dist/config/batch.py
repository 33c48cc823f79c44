"""How a global batch is shared by the processes of a job."""

from __future__ import annotations

import math

from wiseft_dist.config.sections import RunConfig
from wiseft_dist.errors import UserError


def batch_arithmetic(config: RunConfig, world_size: int) -> tuple[int, int]:
    """Samples a forward pass and gradient accumulation steps, on each rank.

    Raises:
        UserError: if the global batch does not divide, naming the nearest batch sizes that do; if pictures are to be
            mixed in pairs and their number is odd.
    """
    finetune, lanes = config.finetune, config.data.lanes
    if lanes % world_size:
        fitting = lanes // math.gcd(lanes, world_size) * world_size
        raise UserError(
            f"data.lanes is {lanes}, which {world_size} processes cannot share evenly: "
            f"set data.lanes={fitting}, or use a world size that divides {lanes}."
        )
    batch, unit = finetune.global_batch_size, (finetune.micro_batch_size or 1) * world_size
    if batch % unit:
        lower = batch // unit * unit
        nearest = f"{lower} or {lower + unit}" if lower else f"{unit}"
        samples = f" x {finetune.micro_batch_size} samples" if finetune.micro_batch_size else ""
        raise UserError(
            f"finetune.global_batch_size is {batch}, which is not a multiple of "
            f"{world_size} processes{samples}: use {nearest}."
        )
    micro = finetune.micro_batch_size or batch // world_size
    if (config.data.augment.mixup or config.data.augment.cutmix) and micro % 2:
        raise UserError(
            f"data.augment.mixup and data.augment.cutmix blend pictures in pairs, but each forward pass has {micro} of "
            "them: set an even finetune.micro_batch_size, or both to 0."
        )
    return micro, batch // (micro * world_size)
