"""DeepSpeed behind a small door: a module and a configuration become forward, backward, step, save and load."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wiseft_dist.config import FinetuneConfig


class Engine:
    """A module whose optimizer state (and from stage 2 and 3 on gradients and parameters) is sharded over the ranks.

    Args:
        module: The whole module, alike on every rank.
        config: Precision, optimizer, ZeRO stage, clipping.
        device: Where this rank computes.
        micro_batch_size: Samples a forward pass on this rank.
        accumulation_steps: Forward passes an optimizer step.
    """

    def __init__(
        self,
        module: nn.Module,
        config: FinetuneConfig,
        *,
        device: torch.device,
        micro_batch_size: int,
        accumulation_steps: int,
    ) -> None:
        deepspeed = _import_deepspeed(device)
        self.device = device
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.parameter_names = list(module.state_dict())
        optimizer = torch.optim.AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
            lr=config.optimizer.lr,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            fused=device.type == "cuda",
        )
        self._engine: Any = deepspeed.initialize(
            model=module.to(device),
            optimizer=optimizer,
            config={
                "train_micro_batch_size_per_gpu": micro_batch_size,
                "gradient_accumulation_steps": accumulation_steps,
                "gradient_clipping": config.gradient_clipping,
                "zero_optimization": {"stage": config.zero_stage},
                "bf16": {"enabled": config.precision == "bf16"},
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 2**31,
            },
        )[0]
        self._engine.train()

    def forward(self, *inputs: Tensor) -> Any:
        """The module's own forward; calling it through the engine gathers sharded parameters."""
        return self._engine(*inputs)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss that is a mean over the micro batch."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> None:
        """After each micro batch: update the weights once the accumulation is complete."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
        self._engine.step()

    def gradient_norm(self) -> float:
        """Global norm of the last step's gradient before clipping."""
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def save(self, folder: Path, *, tag: str, step: int) -> None:
        """Write every rank's shard to ``folder/tag``. All ranks must call it."""
        self._engine.save_checkpoint(str(folder), tag=tag, client_state={"step": step}, save_latest=False)

    def load(self, folder: Path, *, tag: str) -> int:
        """Load every rank's shard from ``folder/tag``.

        Returns:
            The step it was saved at.
        """
        path, state = self._engine.load_checkpoint(str(folder), tag=tag)
        assert path is not None, (folder, tag)  # the commit was checked before
        return int(state["step"])


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # The shared-memory collectives need a compiler and half a minute at first use, and assume that all ranks
        # share a host; gloo needs neither.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
