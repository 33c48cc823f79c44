"""One rank of a group that writes DeepSpeed checkpoints; `real_checkpoints.py` starts W of these and waits.

Usage: write_checkpoints.py FOLDER CASE..., each case `ZERO_STAGE-PRECISION` or `ZERO_STAGE-PRECISION-OPTIMIZER`; RANK
and the rest come from the environment. Beside `FOLDER/CASE/tag` rank 0 leaves what the live module held at the start
and at the end (`start.pt`, `live.pt`), and what the optimizer held of each parameter (`optimizer.pt`).
"""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wiseft_dist.config import EmaConfig, OptimizerConfig
from wiseft_dist.finetune.deepspeed_settings import import_deepspeed
from wiseft_dist.finetune.optimizer import make_optimizer

DECAY = 0.75
NUM_UPDATES = 3
STATE_KEYS = {
    "torch": ("exp_avg", "exp_avg_sq"),
    "adamw": ("ema", "exp_avg", "exp_avg_sq"),
    "debiased": ("ema", "exp_avg", "exp_avg_sq"),
    "sgd": ("ema", "momentum_buffer"),
}
"""What each optimizer of a case holds beside the masters."""


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


def optimizer_of(module: nn.Module, name: str) -> torch.optim.Optimizer:
    groups = parameter_groups(module)
    if name == "torch":
        return torch.optim.AdamW(groups, lr=1e-2)
    settings = OptimizerConfig(name="sgd" if name == "sgd" else "adamw", lr=1e-2)
    plain = [group | {"pull": 0.0, "towards_start": False, "lr_scale": 1.0} for group in groups]
    return make_optimizer(plain, settings, EmaConfig(decay=DECAY, debias=name == "debiased"))


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


def live_state(module: nn.Module, deepspeed: Any, *, sharded: bool) -> dict[str, Tensor]:
    """The masters of trained parameters and everything else as it is; every rank must call it."""
    state = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and sharded:
            state[name] = deepspeed.utils.safe_get_full_fp32_param(parameter).detach().clone()
        else:
            with deepspeed.zero.GatheredParameters([parameter], enabled=hasattr(parameter, "ds_id")):
                state[name] = parameter.detach().clone()
    return state


def optimizer_state(engine: Any, groups: list[dict[str, Any]], keys: tuple[str, ...], deepspeed: Any) -> dict[str, Any]:
    """The names of each group's parameters, and each state of each parameter; every rank must call it."""
    if engine.zero_optimization_stage() in (1, 2):  # DeepSpeed links only what has state after the first group's update
        engine.optimizer._hp_optimizer_states_linked = False
        engine.optimizer._lazy_init_hp_params_optimizer_state()
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    trained = {names[id(parameter)]: parameter for group in groups for parameter in group["params"]}

    def state(parameter: nn.Parameter, key: str) -> Tensor:
        if engine.zero_optimization_stage() == 0:
            return engine.optimizer.state[parameter][key]
        return deepspeed.utils.safe_get_full_optimizer_state(parameter, key)

    return {
        "groups": [[names[id(parameter)] for parameter in group["params"]] for group in groups],
        "states": {key: {name: state(p, key).detach().clone() for name, p in trained.items()} for key in keys},
    }


def write_checkpoint(folder: Path, case: str, deepspeed: Any) -> None:
    stage, precision, *named = case.split("-")
    torch.manual_seed(0)
    module = Small()
    groups = parameter_groups(module)
    optimizer = optimizer_of(module, *(named or ["torch"]))
    config = settings(int(stage), precision)
    engine = deepspeed.initialize(model=module, optimizer=optimizer, config=config)[0]
    start = live_state(engine.module, deepspeed, sharded=stage != "0")
    for step in range(NUM_UPDATES):
        torch.manual_seed(10 * step + deepspeed.comm.get_rank())
        engine.backward(engine(torch.randn(2, 7).to(torch.bfloat16 if precision == "bf16" else torch.float32)))
        engine.step()
    engine.save_checkpoint(str(folder / case), tag="tag", save_latest=False)
    state = live_state(engine.module, deepspeed, sharded=stage != "0")
    held = optimizer_state(engine, groups, STATE_KEYS[named[0] if named else "torch"], deepspeed)
    if deepspeed.comm.get_rank() == 0:
        torch.save(start, folder / case / "start.pt")
        torch.save(state, folder / case / "live.pt")
        torch.save(held, folder / case / "optimizer.pt")
    deepspeed.comm.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    loaded = import_deepspeed(torch.device("cpu"))
    loaded.init_distributed("gloo")
    for each in sys.argv[2:]:
        write_checkpoint(Path(sys.argv[1]), each, loaded)
    torch.distributed.destroy_process_group()
    os._exit(0)  # all is written; threads that DeepSpeed's engines leave behind can abort an orderly exit
