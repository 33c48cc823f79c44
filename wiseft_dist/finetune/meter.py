"""What a person watching wants to know: how fast, how well the device is used, what holds the run up, until when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.progress import duration
from wiseft_dist.ranks import Ranks

Phase = Literal["data", "checkpoint", "validation"]

WORTH_MENDING = 0.1
"""Part of the time from which on anything but computing is called the bottleneck."""


class Meter:
    """Sums between two lines of metrics. Only :meth:`read` waits for the device.

    What lies in no phase is computing. Rates are those of training: of the time that is neither validation nor
    saving. The ETA counts everything.

    Args:
        device: Where this rank computes.
        ranks: This process's place.
        total_steps: Steps of the whole run.
        global_batch_size: Samples a step, over all ranks.
        flops_per_sample: Operations of a forward and backward pass, where known.
        peak_flops: Operations a second that the device can do, where known.
        first_step: Steps that earlier sessions did.
        advice: What could make computing faster (:func:`untried`).
        clock: Seconds since whenever.
    """

    def __init__(
        self,
        device: torch.device,
        ranks: Ranks,
        total_steps: int,
        global_batch_size: int,
        flops_per_sample: float | None,
        peak_flops: float | None,
        first_step: int,
        *,
        advice: Sequence[str] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device, self._ranks, self._total_steps = device, ranks, total_steps
        self._global_batch_size, self._advice, self._clock = global_batch_size, advice, clock
        self._samples_at_peak = peak_flops / flops_per_sample if peak_flops and flops_per_sample else None
        self._first_step = self._step = first_step
        self._began = self._interval_began = clock()
        self._interval = _no_time()
        self._session = _no_time()
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._num_losses = 0

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Account for the time inside the block."""
        if name != "data" and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the steps that are still under way are computing
        began = self._clock()
        try:
            yield
        finally:
            seconds = self._clock() - began
            self._interval[name] += seconds
            if name != "data":
                self._session[name] += seconds

    def add(self, loss: Tensor) -> None:
        """Count a step's mean loss on this rank, a scalar on the device. All ranks count the same steps."""
        self._loss += loss.detach().double()
        self._num_losses += 1

    def unread(self) -> dict[str, Any]:
        """What :meth:`add` counted since the last line, for a checkpoint: numbers and lists. All ranks call it."""
        return {"losses": self._gathered(self._loss[None])[:, 0].tolist(), "steps": self._num_losses}

    def restore(self, unread: Mapping[str, Any]) -> None:
        """Go on with the line of metrics that the session of a checkpoint had begun, whatever its world size was."""
        losses = unread["losses"]
        own = losses[self._ranks.rank] if len(losses) == self._ranks.world_size else sum(losses) / len(losses)
        self._loss.fill_(own)
        self._num_losses = unread["steps"]

    def read(self, step: int, *, learning_rate: float, gradient_norm: float) -> dict[str, float]:
        """Metrics of the steps since the last call. All ranks call it; none refuses a loss that is no number.

        Args:
            step: Steps that are done; more than at the last call.
            learning_rate: Of the last step.
            gradient_norm: Of the last step, before clipping.

        Returns:
            ``loss``: mean over ranks and over what :meth:`add` counted; left out where it counted nothing. ``lr``,
            ``gradient_norm``.
            ``samples_per_second``, ``samples_per_second_per_device``. ``mfu_percent``: model operations against the
            device's peak, where both are known. ``data_wait_percent``: of the rank that waited longest, which the
            others wait for. ``memory_gb``: the most that any rank has held so far, allocated on its GPU or resident
            where there is none, in 10^9 bytes. ``eta_seconds``.
        """
        steps = step - self._step
        loss, waits, seconds, memory = self._of_all_ranks()
        rate = steps * self._global_batch_size / seconds
        self._session["data"] += waits
        self._step = step
        values = {"loss": loss / self._num_losses} if self._num_losses else {}
        values |= {
            "lr": learning_rate,
            "gradient_norm": gradient_norm,
            "samples_per_second": rate,
            "samples_per_second_per_device": rate / self._ranks.world_size,
            "data_wait_percent": 100 * waits / seconds,
            "memory_gb": memory / 1e9,
            "eta_seconds": (self._total_steps - step) * (seconds / steps + self._pauses_a_step()),
        }
        if self._samples_at_peak is not None:
            values["mfu_percent"] = 100 * rate / self._ranks.world_size / self._samples_at_peak
        self._interval, self._num_losses = _no_time(), 0
        self._loss.zero_()
        return values

    def _of_all_ranks(self) -> tuple[float, float, float, float]:
        """The sum of losses, a mean over ranks; the longest wait for data and training time, seconds; bytes."""
        loss = self._loss.item()  # waits for the device: only now is the time that the steps took known
        now = self._clock()
        seconds = now - self._interval_began - self._interval["checkpoint"] - self._interval["validation"]
        self._interval_began = now
        own = [loss, self._interval["data"], seconds, float(_peak_memory(self._device))]
        rows = self._gathered(torch.tensor(own, dtype=torch.float64, device=self._device))
        _, waits, longest, memory = rows.amax(dim=0).tolist()
        return rows[:, 0].mean().item(), waits, longest, memory

    def _gathered(self, own: Tensor) -> Tensor:
        """The numbers of every rank, on the host: float64 ``[world_size, numbers]``."""
        shares = [torch.empty_like(own) for _ in range(self._ranks.world_size)]
        dist.all_gather(shares, own)
        return torch.stack(shares).cpu()

    def _pauses_a_step(self) -> float:
        """Seconds of validation and saving, spread over the steps of this session."""
        return (self._session["checkpoint"] + self._session["validation"]) / (self._step - self._first_step)

    def bottleneck(self) -> str:
        """One line about where this session's time went, and what to do about it."""
        total = self._clock() - self._began
        parts = {name: seconds / total for name, seconds in self._session.items()}
        longest = max(parts, key=parts.__getitem__)
        worst = longest if parts[longest] >= WORTH_MENDING else "computing"
        parts = {"computing": 1 - sum(parts.values())} | parts
        advice = REMEDIES.get(worst) or self._about_computing(parts["computing"] * total)
        own = f"{TITLES[worst]} ({parts.pop(worst):.0%} of {duration(total)})"
        others = ", ".join(f"{TITLES[name]} {share:.0%}" for name, share in parts.items())
        return f"Bottleneck: {own}; {others}. {advice}".rstrip()

    def _about_computing(self, seconds: float) -> str:
        sentences = []
        if self._samples_at_peak is not None:
            samples = (self._step - self._first_step) * self._global_batch_size / self._ranks.world_size
            sentences.append(f"Computing at {samples / seconds / self._samples_at_peak:.0%} of the device's peak.")
        if self._advice:
            sentences.append(f"To try: {', '.join(self._advice)}.")
        return " ".join(sentences)


TITLES = {
    "computing": "computing",
    "data": "reading data",
    "checkpoint": "checkpoints",
    "validation": "validation",
}
REMEDIES = {
    "data": "Raise data.workers, or keep the shards on the node with data.cache.",
    "checkpoint": "Raise finetune.checkpoint.every_minutes or every_steps, or write to a faster disk.",
    "validation": "Raise finetune.validation.every_epochs or every_steps, or finetune.validation.batch_size.",
}


def untried(config: FinetuneConfig, *, device: torch.device, accumulation_steps: int) -> tuple[str, ...]:
    """Settings that make computing faster on most devices and are not in force."""
    has_blocks = config.recipe != "linear_head"
    choices = {
        "finetune.precision=bf16": device.type == "cuda" and config.precision == "fp32",
        "finetune.compile=true": has_blocks and device.type == "cuda" and not config.compile and config.zero_stage < 3,
        "finetune.activation_checkpointing=false": config.activation_checkpointing,
        "a larger finetune.micro_batch_size": accumulation_steps > 1,
    }
    return tuple(name for name, helps in choices.items() if helps)


def _no_time() -> dict[str, float]:
    return {"data": 0.0, "checkpoint": 0.0, "validation": 0.0}


def _peak_memory(device: torch.device) -> int:
    """Most bytes this process has held: on its GPU, or resident where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not getrusage: its peak is that of whatever this process was before it was this program.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024
