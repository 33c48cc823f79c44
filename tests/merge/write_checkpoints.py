"""One rank of a group that writes DeepSpeed checkpoints; `real_checkpoints.py` starts W of these and waits.

Usage: write_checkpoints.py FOLDER CASE..., each case `ZERO_STAGE-PRECISION`; RANK and the rest come from the
environment. Beside `FOLDER/CASE/tag` rank 0 leaves `FOLDER/CASE/live.pt`: what the live module held.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wiseft_dist.finetune.engine import _import_deepspeed


class Small(nn.Module):
    """Odd sizes everywhere, frozen and tied parameters, one-element parameters, and buffers of three kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.second = nn.Linear(5, 11)
        self.tied = nn.Linear(5, 11)
        self.tied.weight = self.second.weight
        self.scale = nn.Parameter(torch.randn(1))
        self.frozen = nn.Linear(11, 3, bias=False).requires_grad_(False)
        self.tied_frozen = nn.Linear(11, 3, bias=False)
        self.tied_frozen.weight = self.frozen.weight
        self.register_buffer("running_mean", torch.randn(11))
        self.register_buffer("position_ids", torch.arange(77).reshape(1, 77))
        self.register_buffer("num_batches_tracked", torch.tensor(3))
        self.register_buffer("mask", torch.rand(5) > 0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs).relu()
        outputs = self.second(hidden) + self.tied(hidden) + self.running_mean.to(hidden.dtype)
        return (self.frozen(outputs) + self.tied_frozen(outputs * self.scale)).square().mean()


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.dim() > 1], "weight_decay": 0.1},
        {"params": [parameter for parameter in trained if parameter.dim() == 1], "weight_decay": 0.0},
    ]


def settings(stage: int, precision: str) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero |= {"sub_group_size": 7, "stage3_param_persistence_threshold": 0}
    return {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": zero,
        "bf16": {"enabled": precision == "bf16"},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


def live_state(module: nn.Module, deepspeed: Any) -> dict[str, Tensor]:
    """The masters of trained parameters and everything else as it is; every rank must call it."""
    state = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            state[name] = deepspeed.utils.safe_get_full_fp32_param(parameter).detach().clone()
        else:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                state[name] = parameter.detach().clone()
    return state


def write_checkpoint(folder: Path, case: str, deepspeed: Any) -> None:
    stage, precision = case.split("-")
    torch.manual_seed(0)
    module = Small()
    optimizer = torch.optim.AdamW(parameter_groups(module), lr=1e-2)
    config = settings(int(stage), precision)
    engine = deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
    for step in range(2):
        torch.manual_seed(10 * step + deepspeed.comm.get_rank())
        engine.backward(engine(torch.randn(2, 7).to(torch.bfloat16 if precision == "bf16" else torch.float32)))
        engine.step()
    engine.save_checkpoint(str(folder / case), tag="tag", save_latest=False)
    state = live_state(engine.module, deepspeed)
    if deepspeed.comm.get_rank() == 0:
        torch.save(state, folder / case / "live.pt")
    deepspeed.comm.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = _import_deepspeed(torch.device("cpu"))
    loaded.init_distributed("gloo")
    for each in sys.argv[2:]:
        write_checkpoint(Path(sys.argv[1]), each, loaded)
    torch.distributed.destroy_process_group()
