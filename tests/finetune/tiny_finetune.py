"""A fine-tuning small enough to run often, and real processes that run it as torchrun would start them."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from wiseft_dist.commits import read_commit
from wiseft_dist.config import RunConfig
from wiseft_dist.data.pack import EncodedSample, write_split, write_vocabulary
from wiseft_dist.run import Run, open_run
from wiseft_dist.tracking import read_events
from wiseft_dist.weights.zero import open_zero_states

CLASSNAMES = ("red thing", "green thing", "blue thing")
NUM_SAMPLES = 40
MODEL: dict[str, Any] = {
    "embed_dim": 16,
    # Wide enough that ZeRO-3 shards a parameter: DeepSpeed keeps those below 100,000 elements whole.
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 160, "head_width": 32, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def write_shards(folder: Path) -> Path:
    """40 noisy pictures of three classes in 4 shards, with captions."""
    samples = (EncodedSample(_picture(i), "png", i % 3, f"{CLASSNAMES[i % 3]} number {i}") for i in range(NUM_SAMPLES))
    write_split(samples, folder, samples_per_shard=10)
    write_vocabulary(folder, classnames=CLASSNAMES, templates=("a photo of a {c}.", "a {c}."))
    return folder


def _picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 160, (20, 20, 3), dtype=np.uint8)
    pixels[..., number % 3] += 60
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "png")
    return stream.getvalue()


def tiny_config(
    folder: Path,
    shards: Path,
    *,
    processes: int = 1,
    patch_dropout: float = 0.0,
    architecture: str | None = None,
    augment: dict[str, Any] | None = None,
    id_val_fraction: float = 0.0,
    **finetune: Any,
) -> RunConfig:
    """A run in ``folder``; ``finetune`` changes settings of that section."""
    model = folder.with_suffix(".json")
    model.write_text(json.dumps(MODEL | {"vision_cfg": MODEL["vision_cfg"] | {"patch_dropout": patch_dropout}}))
    defaults = {
        "epochs": 2,
        "global_batch_size": 8,
        "log_every": 1,
        "optimizer": {"lr": 1e-3},
        "schedule": {"warmup_steps": 2},
        "checkpoint": {"every_minutes": None},
    }
    return RunConfig.model_validate(
        {
            "output": str(folder),
            "seed": 3,
            "model": {"architecture": architecture or str(model)},
            "data": {"train": str(shards), "lanes": 4, "workers": 0, "augment": augment or {}}
            | {"id_val_fraction": id_val_fraction},
            "finetune": defaults | finetune,
            "wandb": {"mode": "disabled"},
            "launch": {"finetune": {"tasks_per_node": processes}},
        }
    )


def start(run: Run, processes: int) -> list[subprocess.Popen[str]]:
    """Start the stage, one process a rank."""
    return start_ranks([sys.executable, "-m", "wiseft_dist", "finetune", str(run.path)], processes)


def start_ranks(command: list[str], processes: int) -> list[subprocess.Popen[str]]:
    """Start a command once a rank, with the variables that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SUBMITIT"))}
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command,
            env=clean | shared | place | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(ranks: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit code and standard error of every rank."""
    try:
        errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [(rank.returncode, error) for rank, error in zip(ranks, errors, strict=True)]


def launch(run: Run, processes: int) -> list[tuple[int, str]]:
    return finish(start(run, processes))


def trained(config: RunConfig) -> Run:
    """The run of this configuration, trained to its end."""
    run = open_run(config)
    for code, error in launch(run, config.launch.finetune.num_tasks):
        assert code == 0, error[-4000:]
    return run


def metrics(run: Run, name: str) -> dict[int, float]:
    """A metric by step; where a step was done twice, as it was last."""
    return {e["step"]: e[name] for e in read_events(run) if e["event"] == "metrics" and name in e}


def training_state(run: Run) -> dict[str, Tensor]:
    """Every tensor of the final training state, whole: masters, moments and averages of every parameter."""
    checkpoint = run.finished_checkpoint()
    with open_zero_states(checkpoint, groups=read_commit(checkpoint)["groups"]) as states:
        return {f"{key}/{name}": weights.tensor(name) for key, weights in states.tensors.items() for name in weights}
