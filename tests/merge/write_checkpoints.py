"""A process that has imported DeepSpeed once and writes checkpoints on request; `real_checkpoints.py` starts it.

Each request is a line of JSON on standard input, answered by a line: `done`, or what failed. Ranks are forked from
here, because importing DeepSpeed takes longer than everything that they do.

    {"folder": F, "cases": [CASE...], "world_size": W}    W ranks train a module for each case and save F/CASE/tag
    {"universal": OUT, "checkpoint": TAG}                 DeepSpeed's own tool converts a checkpoint

A case is `ZERO_STAGE-PRECISION` or `ZERO_STAGE-PRECISION-OPTIMIZER`. Beside `F/CASE/tag` rank 0 leaves what the live
module held at the start and at the end (`start.pt`, `live.pt`), and what the optimizer held of each parameter
(`optimizer.pt`).
"""

import importlib
import json
import os
import signal
import socket
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wiseft_dist.config import EmaConfig, OptimizerConfig
from wiseft_dist.finetune.deepspeed_settings import import_deepspeed
from wiseft_dist.finetune.optimizer import make_optimizer

DECAY = 0.75
NUM_UPDATES = 3
IMPORTED_BY_TRAINING = ("torch._dynamo", "torch._inductor.compile_fx", "torch.onnx")
"""What torch imports at the first step and takes seconds: better once than in every rank."""
SECONDS = 300
"""After which a process is killed."""
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
    """`bf16_fp32` adds up gradients in fp32; `_aligned` pads parameters, `_robin` lays them out in another order."""
    zero: dict[str, Any] = {"stage": stage}
    if stage == 3:
        zero |= {"sub_group_size": 7, "stage3_param_persistence_threshold": 0}
    zero |= {"parameter_alignment": True} if precision.endswith("_aligned") else {}
    zero |= {"round_robin_gradients": True} if precision.endswith("_robin") else {}
    return {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": zero,
        "bf16": {"enabled": precision.startswith("bf16")},
        "data_types": {"grad_accum_dtype": "fp32" if precision == "bf16_fp32" else None},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }


def live_state(module: nn.Module, deepspeed: Any, *, sharded: bool) -> dict[str, Tensor]:
    """The masters of trained parameters and everything else as it is; every rank must call it."""
    state = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.requires_grad and sharded and parameter.dtype != torch.float32:
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
        engine.backward(engine(torch.randn(2, 7).to(torch.bfloat16 if precision.startswith("bf16") else torch.float32)))
        engine.step()
    engine.save_checkpoint(str(folder / case), tag="tag", save_latest=False)
    state = live_state(engine.module, deepspeed, sharded=stage != "0")
    held = optimizer_state(engine, groups, STATE_KEYS[named[0] if named else "torch"], deepspeed)
    if deepspeed.comm.get_rank() == 0:
        torch.save(start, folder / case / "start.pt")
        torch.save(state, folder / case / "live.pt")
        torch.save(held, folder / case / "optimizer.pt")
    deepspeed.comm.barrier()


def train(request: dict[str, Any], deepspeed: Any) -> None:
    """What a rank does."""
    deepspeed.init_distributed("gloo")
    for case in request["cases"]:
        write_checkpoint(Path(request["folder"]), case, deepspeed)
    torch.distributed.destroy_process_group()


def convert(request: dict[str, Any]) -> None:
    from deepspeed.checkpoint import ds_to_universal

    workers = {"num_extract_workers": 1, "num_merge_workers": 1}
    options = {"keep_temp_folder": False, "strict": True, "inject_missing_state": True}
    ds_to_universal.main(
        Namespace(input_folder=request["checkpoint"], output_folder=request["universal"], **workers, **options)
    )


def forked(work: Callable[[], None], log: Path, environment: dict[str, str]) -> int:
    """The id of a new process that does the work and nothing else."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(SECONDS)
    code = 1
    try:
        with log.open("w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        os.environ.update(environment)
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # all is written; threads that DeepSpeed's engines leave behind can abort an orderly exit


def failure(logs: dict[int, Path]) -> str | None:
    """What a process wrote that failed, by its id; the others are then killed."""
    waiting = set(logs)
    while waiting:
        pid, status = os.wait()
        waiting.discard(pid)
        if status:
            for other in waiting:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            return logs[pid].read_text()[-4000:]
    return None


def answer(request: dict[str, Any], deepspeed: Any) -> str | None:
    if "universal" in request:
        log = Path(f"{request['universal']}.log")
        return failure({forked(lambda: convert(request), log, {}): log})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    logs = {}
    for rank in range(request["world_size"]):
        log = Path(request["folder"]) / f"rank_{rank}.log"
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["world_size"])}
        logs[forked(lambda: train(request, deepspeed), log, place | ranks)] = log
    return failure(logs)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    torch.set_num_threads(1)
    imported = import_deepspeed(torch.device("cpu"))
    for module in IMPORTED_BY_TRAINING:
        importlib.import_module(module)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), imported) or "done"), file=answers)
