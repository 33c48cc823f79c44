"""What each rank does in the engine's tests; spawned processes import it by name."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wiseft_dist.commits import commit
from wiseft_dist.config import FinetuneConfig
from wiseft_dist.finetune.engine import Engine
from wiseft_dist.finetune.recipes import Pull

LEARNING_RATE = 1e-2
BATCH = 16
PULLS = {"pull": Pull(0.5, towards_start=True), "shrink": Pull(0.5, towards_start=False)}


@dataclass(frozen=True)
class Case:
    """One training: what to set, how to accumulate, where to begin and what to leave behind."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    accumulation_steps: int = 1
    first_step: int = 0
    last_step: int = 4
    load: str | None = None
    """A folder of another case's, to begin from."""
    save: bool = False
    pull: str | None = None
    poison: int | None = None
    """The step whose loss is not finite on the last rank; -1: every step."""
    echo: float | None = None
    """Forward passes after the first see its samples again, and their losses count only so much."""
    batch_norm: bool = False
    """A normalisation that keeps statistics, in place of the one that keeps none."""

    @property
    def config(self) -> FinetuneConfig:
        optimizer = {"lr": LEARNING_RATE} | self.settings.get("optimizer", {})
        return FinetuneConfig.model_validate(self.settings | {"optimizer": optimizer})

    def pull_on(self, name: str) -> Pull | None:
        if self.pull == "tiny":  # makes a group of five elements, which four ranks cannot share
            return PULLS["shrink"] if name == "5.bias" else None
        return None if self.pull is None or name.startswith("0.") else PULLS[self.pull]


def make_module() -> nn.Sequential:
    """147,700 parameters in the largest: ZeRO-3 keeps those below 100,000 whole. Odd sizes: shards need padding."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(37, 211), nn.GELU(), nn.LayerNorm(211), nn.Linear(211, 700), nn.GELU(), nn.Linear(700, 5)
    )


def batch_of(step: int) -> tuple[Tensor, Tensor]:
    """The global batch of a step: inputs ``[BATCH, 37]`` and labels."""
    generator = torch.Generator().manual_seed(100 + step)
    return torch.randn(BATCH, 37, generator=generator), torch.randint(0, 5, (BATCH,), generator=generator)


def run_cases(cases: Sequence[Case], folder: Path, *, world_size: int, fp16: bool = False) -> dict[str, dict[str, Any]]:
    """Run each case on so many ranks, one after the other in the same processes; what rank 0 found, by case."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    torch.multiprocessing.spawn(_on_rank, (world_size, port, list(cases), str(folder), fp16), nprocs=world_size)
    return {case.name: torch.load(folder / f"{case.name}.pt") for case in cases}


def _on_rank(rank: int, world_size: int, port: int, cases: list[Case], folder: str, fp16: bool) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DEEPSPEED_LOG_LEVEL="error",
        DS_ACCELERATOR="cpu",
    )
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    if fp16:  # torch computes fp16 on any CPU; DeepSpeed would rather have one that is fast at it
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True
    for case in cases:
        found = _run(case, rank, world_size, Path(folder))
        if rank == 0:
            torch.save(found, Path(folder) / f"{case.name}.pt")
    dist.destroy_process_group()


def _run(case: Case, rank: int, world_size: int, folder: Path) -> dict[str, Any]:
    module = make_module()
    if case.batch_norm:
        module[2] = nn.BatchNorm1d(211)
    engine = Engine(
        module,
        case.config,
        device=torch.device("cpu"),
        micro_batch_size=BATCH // world_size // case.accumulation_steps,
        accumulation_steps=case.accumulation_steps,
        pull=case.pull_on,
    )
    if case.load is not None:
        engine.load(Path(case.load))
    found: dict[str, Any] = {"at_start": gathered_state(engine), "groups": engine.groups}
    losses, norms, skipped = [], [], []
    for step in range(case.first_step, case.last_step):
        losses.append(_step(engine, case, step, rank, world_size))
        norms.append(engine.gradient_norm())
        skipped.append(engine.skipped)
    found |= {
        "scaler": engine.record()["gradient_scaler"],
        "losses": losses,
        "norms": norms,
        "skipped": skipped,
        "loss_scale": engine.loss_scale,
    }
    found |= {"state": gathered_state(engine), "updates": engine.num_updates}
    inputs = torch.ones(2, 37, dtype=engine.dtype)
    with engine.evaluating(average=case.config.ema is not None):
        found["evaluated"] = engine.forward(inputs).float()
        found["statistics"] = [None] * world_size
        dist.all_gather_object(found["statistics"], dict(module.named_buffers()))
    found["after_evaluation"] = gathered_state(engine)
    with engine.evaluating():
        found["last"] = engine.forward(inputs).float()
    if case.save:
        target = folder / case.name
        engine.save(target / "saving", tag=f"step_{case.last_step}")
        dist.barrier()
        if rank == 0:
            commit(target / "saving" / f"step_{case.last_step}", target / "saved", **engine.record())
        dist.barrier()
    return found


def _step(engine: Engine, case: Case, step: int, rank: int, world_size: int) -> float:
    """One update; the mean loss of the global batch."""
    inputs, labels = (part[rank::world_size] for part in batch_of(step))
    mean = torch.zeros(())
    for index in range(case.accumulation_steps):
        micro = slice(index if case.echo is None else 0, None, case.accumulation_steps)
        logits = engine.forward(inputs[micro].to(engine.dtype)).float()
        loss = nn.functional.cross_entropy(logits, labels[micro])
        if case.echo is not None and index > 0:
            loss = loss * case.echo
        if case.poison in (step, -1) and rank == world_size - 1:
            loss = loss * float("nan")
        engine.backward(loss)
        engine.step(LEARNING_RATE)
        mean += loss.detach() / case.accumulation_steps
    dist.all_reduce(mean)
    return float(mean) / world_size


def gathered_state(engine: Engine) -> dict[str, dict[str, Tensor]]:
    """The whole masters and optimizer state of every trained parameter, put together from all ranks' pieces."""
    pieces = [
        (piece.name, piece.start, {"fp32": piece.master.clone()} | {k: v.clone() for k, v in piece.state.items()})
        for piece in engine.fragments()
    ]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, pieces)
    whole: dict[str, dict[str, dict[int, Tensor]]] = {}
    for name, start, tensors in (piece for rank_pieces in everyone for piece in rank_pieces):
        for key, values in tensors.items():
            whole.setdefault(name, {}).setdefault(key, {})[start] = values
    return {
        name: {key: torch.cat([parts[start] for start in sorted(parts)]) for key, parts in tensors.items()}
        for name, tensors in whole.items()
    }
