"""DeepSpeed behind a small door: a module and a configuration become forward, backward, step, save and load."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wiseft_dist.commits import read_commit
from wiseft_dist.config import FinetuneConfig
from wiseft_dist.errors import UserError
from wiseft_dist.finetune.deepspeed_settings import (
    DTYPES,
    deepspeed_config,
    import_deepspeed,
    prepare_module,
    stage_of,
)
from wiseft_dist.finetune.fragments import Fragment, flats, fragments, refresh
from wiseft_dist.finetune.groups import parameter_groups
from wiseft_dist.finetune.optimizer import EMA_KEY, average_weight, make_optimizer
from wiseft_dist.finetune.recipes import Pull
from wiseft_dist.finetune.resharding import load_resharded
from wiseft_dist.finetune.writing import late_failures


class Engine:
    """A module whose optimizer state (and from stage 2 and 3 on gradients and parameters) is sharded over the ranks.

    Masters are fp32 and start at the module's fp32 weights to the bit. At stage 0 in 16 bit the parameters themselves
    are the masters, and forward passes run under torch's autocast; from stage 1 on the module is cast.

    Args:
        module: The whole module in fp32, alike on every rank; what has ``requires_grad`` is trained.
        config: Precision, optimizer, ZeRO stage, clipping, compilation, averaging.
        device: Where this rank computes.
        micro_batch_size: Samples a forward pass on this rank.
        accumulation_steps: Forward passes an optimizer step.
        pull: What pulls on the parameter of a name.

    Raises:
        UserError: if a setting cannot be had with this module or device.
    """

    def __init__(
        self,
        module: nn.Module,
        config: FinetuneConfig,
        *,
        device: torch.device,
        micro_batch_size: int,
        accumulation_steps: int,
        pull: Callable[[str], Pull | None] = lambda name: None,
    ) -> None:
        deepspeed = import_deepspeed(device)
        self.device = device
        self.parameter_names = list(module.state_dict())
        self._stage, self._ema = stage_of(config, accumulation_steps), config.ema
        low = config.precision != "fp32"
        self.dtype = torch.float32 if config.zero_stage == 0 else DTYPES[config.precision]
        prepare_module(module, config)
        groups = parameter_groups(module, config.optimizer, pull)
        self.groups = [list(group.names) for group in groups]
        self._optimizer = make_optimizer([group.as_dict() for group in groups], config.optimizer, config.ema)
        if config.zero_stage == 0:
            self._optimizer.clip = config.gradient_clipping
        start = {n: p.detach().cpu().clone() for n, p in module.named_parameters()} if low and self._stage else {}
        self._accumulation_steps, self._passes = accumulation_steps, 0
        try:
            self._engine: Any = deepspeed.initialize(
                model=module.to(device),
                optimizer=self._optimizer,
                config=deepspeed_config(
                    config,
                    device,
                    micro_batch_size,
                    accumulation_steps,
                    num_parameters=sum(each.numel() for each in module.parameters()),
                ),
            )[0]
        except ValueError as error:
            if "not supported" not in str(error):
                raise
            raise UserError(
                f"finetune.precision is {config.precision}, which this device cannot compute in."
            ) from error
        self._engine.train()
        if self._stage == 0 and dist.get_world_size() == 1:
            self._engine.enable_backward_allreduce = False  # it would copy every gradient twice, to nobody
        for fragment in self.fragments() if start else ():
            fragment.master.copy_(fragment.cut(start[fragment.name]))
        pulls = {name: group.pull for group in groups for name in group.names}
        self._optimizer.remember_start(
            {piece.flat for piece in self.fragments() if (found := pulls[piece.name]) and found.towards_start}
        )
        saved = module.state_dict().keys()
        self._statistics = [b for name, b in module.named_buffers() if name in saved and b.is_floating_point()]
        self._let_loss_scale_reach_its_end()
        self.skipped = False
        """Whether the last update was left out, on all ranks alike, because its gradient was not finite."""
        self.num_updates = 0
        """Updates that were not left out."""

    def forward(self, *inputs: Tensor | None) -> Any:
        """The module's own forward; calling it through the engine gathers sharded parameters.

        Args:
            *inputs: On any device.
        """
        return self._engine(*(each if each is None else each.to(self.device, non_blocking=True) for each in inputs))

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss that is a mean over the micro batch."""
        self._engine.backward(loss)

    def step(self, learning_rate: float) -> None:
        """After each micro batch: update the weights once the accumulation is complete."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_scale"]
        calls = self._optimizer.num_calls
        self._engine.step()
        self._passes += 1
        if self._passes % self._accumulation_steps == 0:
            self.skipped = self._optimizer.num_calls == calls
            self.num_updates += not self.skipped

    def gradient_norm(self) -> float:
        """Global norm of the last step's gradient before clipping. Reading it waits for the device."""
        if self.skipped:
            return math.inf
        norm = self._optimizer.norm if self._stage == 0 else self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    @property
    def loss_scale(self) -> float:
        """What the loss is multiplied by before the backward pass; 1 unless the precision is fp16."""
        return float(self._scaler.get_scale() if self._scaler else getattr(self._engine.optimizer, "loss_scale", 1.0))

    @contextmanager
    def evaluating(self, *, average: bool = False) -> Iterator[None]:
        """Compute without gradients, as in evaluation; with ``average``, with the moving average for weights.

        All ranks enter and leave it together.
        """
        with ExitStack() as stack:
            if average:
                stack.enter_context(self._averaged())
            for statistic in self._statistics:  # of batch norms: each rank has its own, and theta_1 has rank 0's
                dist.broadcast(statistic, src=0)
            self._engine.eval()
            stack.callback(self._engine.train)
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # batches of other shapes than in training
            yield

    def record(self) -> dict[str, Any]:
        """What a reader of this engine's checkpoints needs to know besides their files."""
        return {
            "trained": self.parameter_names,
            "groups": self.groups,
            "zero_stage": self._stage,
            "world_size": dist.get_world_size(),
            "updates": self.num_updates,
            "loss_scale": self.loss_scale,
            "gradient_scaler": self._scaler.state_dict() if self._scaler else None,
            "ema": self._ema.model_dump() | {"updates": self.num_updates} if self._ema else None,
        }

    def save(self, folder: Path, *, tag: str) -> None:
        """Write every rank's shard to ``folder/tag``. All ranks must call it.

        Raises:
            OSError: on the ranks that could not write theirs, once all are through.
        """
        with late_failures(self._engine):
            self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False)

    def load(self, folder: Path) -> None:
        """Load a committed checkpoint, whatever world size and ZeRO stage wrote it. All ranks must call it."""
        record = read_commit(folder)
        if (record["world_size"], record["zero_stage"]) == (dist.get_world_size(), self._stage):
            path, _ = self._engine.load_checkpoint(str(folder.parent), tag=folder.name)
            assert path is not None, folder  # its files were checked before
        else:
            masters = flats(self._engine, self._stage)
            load_resharded(folder, self.fragments(), masters, self._engine.module, groups=record["groups"])
            refresh(self._engine, self._stage)
            if self.dtype == torch.float16:
                self._engine.optimizer.loss_scaler.cur_scale = record["loss_scale"]
        if self._scaler and record["gradient_scaler"]:
            self._scaler.load_state_dict(record["gradient_scaler"])
        self._let_loss_scale_reach_its_end()
        self.num_updates = record["updates"]

    @property
    def _scaler(self) -> Any:
        """What scales the loss at stage 0 in fp16; DeepSpeed has others for the other stages."""
        return self._engine.torch_autocast_z0_gradscaler

    def _let_loss_scale_reach_its_end(self) -> None:
        """A gradient that no scale makes finite is answered with the step and its samples, not by DeepSpeed."""
        scaler: Any = getattr(self._engine.optimizer, "loss_scaler", None)
        if hasattr(scaler, "raise_error_at_min_scale"):
            scaler.raise_error_at_min_scale = False

    def fragments(self) -> list[Fragment]:
        """Where this rank's masters and optimizer state lie."""
        return fragments(self._engine, self._stage)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        assert self._ema is not None
        pieces = [piece for piece in self.fragments() if EMA_KEY in piece.state]
        weight = average_weight(self._ema, self.num_updates)
        kept = [piece.master.clone() for piece in pieces]
        for piece in pieces:
            piece.master.copy_(piece.state[EMA_KEY] / weight)
        refresh(self._engine, self._stage)
        try:
            yield
        finally:
            for piece, master in zip(pieces, kept, strict=True):
                piece.master.copy_(master)
            refresh(self._engine, self._stage)
