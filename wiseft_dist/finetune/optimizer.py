"""AdamW and SGD of torch, with what has to happen where the masters lie: the pull of L2-SP and the moving average.

DeepSpeed hands the optimizer flat, sharded fp32 masters. What is done here is therefore sharded, offloaded, saved and
loaded together with them, at every ZeRO stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from wiseft_dist.config import EmaConfig, OptimizerConfig

EMA_KEY = "ema"
"""Of the moving average in the optimizer's state, beside ``exp_avg`` and ``exp_avg_sq``."""


class Trained(torch.optim.Optimizer):
    """What AdamW and SGD below have in common."""

    num_calls: int = 0
    """Calls of ``step`` that changed something; DeepSpeed makes several for an update, and none for one left out."""
    norm: Tensor | None = None
    """Gradient norm of the last update, where this optimizer computed it (``clip`` is set)."""
    clip: float | None = None
    """Largest gradient norm, 0 for any. None: whoever calls ``step`` has clipped and has checked the gradient."""
    ema: EmaConfig | None = None

    def remember_start(self, masters: Iterable[Tensor]) -> None:
        """Take the present values of these masters for what L2-SP pulls to, before a checkpoint is loaded into them."""
        self._starts = {master: master.detach().clone() for master in masters}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Clip where asked, pull, update, average. With ``clip``, a gradient that is not finite changes nothing."""
        assert closure is None
        if self.clip is not None and not self._clip():
            return None
        for group, master in self._with_gradients():
            if group["pull"]:
                assert master.grad is not None
                anchor = self._starts[master] if group["towards_start"] else 0.0
                master.grad.add_(master - anchor, alpha=group["pull"])
        starting = self._averages_that_start()
        super().step()
        self._average(starting)
        self.num_calls += 1
        return None

    def _with_gradients(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            for master in group["params"]:
                if master.grad is not None:
                    yield group, master

    def _clip(self) -> bool:
        gradients = [master.grad for _, master in self._with_gradients() if master.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(gradients)
        if not math.isfinite(float(self.norm)):
            return False
        if self.clip:
            masters = [master for _, master in self._with_gradients()]
            torch.nn.utils.clip_grads_with_norm_(masters, self.clip, self.norm)
        return True

    def _averages_that_start(self) -> dict[Tensor, Tensor]:
        """Averages of masters that are about to see their first update: their present values, or nothing."""
        if self.ema is None:
            return {}
        start = torch.zeros_like if self.ema.debias else torch.clone
        return {
            master: start(master.detach()) for _, master in self._with_gradients() if EMA_KEY not in self.state[master]
        }

    def _average(self, starting: dict[Tensor, Tensor]) -> None:
        if self.ema is None:
            return
        for _, master in self._with_gradients():
            average = self.state[master].setdefault(EMA_KEY, starting.get(master))
            average.lerp_(master.detach(), 1 - self.ema.decay)


def average_weight(ema: EmaConfig, num_updates: int) -> float:
    """What the stored average must be divided by: the sum of the weights that went into it."""
    return 1 - ema.decay**num_updates if ema.debias and num_updates else 1.0


class AdamW(Trained, torch.optim.AdamW):
    """Decoupled weight decay (arXiv 1711.05101), fused into one pass over the masters."""


class SGD(Trained, torch.optim.SGD):
    """Momentum SGD, with Nesterov's look ahead if asked."""


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, ema: EmaConfig | None) -> Trained:
    """The configured optimizer over parameter groups that hold ``pull``, ``towards_start`` and ``lr_scale``."""
    made: Trained
    if config.name == "adamw":
        made = AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
    else:
        made = SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=True)
    made.ema = ema
    made._step_supports_amp_scaling = False  # a scaler then unscales before `step`
    return made
