"""How many steps there are, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

from wiseft_dist.config import RunConfig, ScheduleConfig


def learning_rate(step: int, *, peak: float, total_steps: int, schedule: ScheduleConfig) -> float:
    """The learning rate of the update that makes step ``step + 1``.

    Linear warm-up over ``warmup_steps``, then the schedule's shape (arXiv 2109.01903, appendix D: cosine to zero).
    Milestones are fractions of all steps, those of the warm-up included.
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return peak * (step + 1) / warmup
    if schedule.name == "constant":
        return peak
    if schedule.name == "step":
        return peak * schedule.factor ** _num_passed(schedule.milestones, step, total_steps)
    progress = (step - warmup) / max(1, total_steps - warmup)
    if schedule.name == "linear":
        return peak * (1 - progress)
    return peak * 0.5 * (1 + math.cos(math.pi * progress))


def _num_passed(milestones: tuple[float, ...], step: int, total_steps: int) -> int:
    """How many milestones ``step`` finished updates have reached."""
    return sum(step >= round(milestone * total_steps, 6) for milestone in milestones)  # 0.07 of 100 is 7, not above it


def total_steps(config: RunConfig, num_samples: int) -> int:
    """Optimizer steps that show every sample ``epochs`` times; the last batch is filled from the next epoch."""
    steps = config.finetune.epochs * num_samples / config.finetune.global_batch_size
    return math.ceil(round(steps, 6))  # 1.1 epochs of 100 samples are 110, not 110.00000000000001
