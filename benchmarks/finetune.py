"""Contrastive training: samples a second against open_clip's own trainer and against the bare step.

On the CPU, with one and two processes, on ImageNet-size photographs, in one run:

* ours: ``wiseft finetune`` with its stream, engine and metrics, in real processes;
* peer: ``open_clip_train.main`` with the same shards, architecture, batch, precision, optimizer, threads and workers;
* limit: forward, backward and fused AdamW step of the same module on one batch in memory, one process.

They take turns, and the median of all readings counts: each reading is the mean of some steps, those of the start left
out. Then the peak memory of a rank for each ZeRO stage. With a GPU, ViT-B/16, L/14 and L/14@336 in bf16 instead.

    WISEFT_TEST_DATA=DIR python -m benchmarks.finetune [--rounds N] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.finetune_cases import VIT_S_32, Case, write_architecture, write_shards
from benchmarks.finetune_limit import train_bare
from benchmarks.finetune_memory import measure_memory
from benchmarks.finetune_ours import train_ours
from benchmarks.finetune_peer import train_peer
from wiseft_dist.progress import progress_bar

GPU_BATCHES = {"ViT-B-16": 512, "ViT-L-14": 256, "ViT-L-14-336": 96}
"""Samples a step: what fits 80 GB with room to spare, without activation checkpointing."""


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    options = _options()
    on_gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_shards(Path(os.environ["WISEFT_TEST_DATA"]) / "data" / "photographs", folder / "shards")
        cases = _gpu_cases(folder) if on_gpu else _cpu_cases(folder, quick=options.quick)
        figures = _measure(cases, options.rounds)
        if not on_gpu:
            figures |= measure_memory(_memory_case(folder))
    print(json.dumps(figures | {"versions": {"torch": torch.__version__}}))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=2, help="of all contestants")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few steps, figures that say nothing")
    if "WISEFT_TEST_DATA" not in os.environ:
        sys.exit("benchmarks.finetune: set WISEFT_TEST_DATA to the folder that holds data/photographs.")
    return parser.parse_args()


def _cpu_cases(folder: Path, *, quick: bool) -> dict[str, Case]:
    architecture = write_architecture(folder / "vit-s-32.json", VIT_S_32)
    case = Case(folder, architecture, global_batch_size=32, window=1 if quick else 4, windows=3 if quick else 5)
    return {"cpu_1": case, "cpu_2": replace(case, processes=2)}


def _gpu_cases(folder: Path) -> dict[str, Case]:
    workers = min(16, len(os.sched_getaffinity(0)) - 1)
    cases: dict[str, Case] = {}
    for architecture, batch in GPU_BATCHES.items():
        eager = Case(
            folder,
            architecture,
            batch,
            window=10,
            windows=5,
            device="cuda",
            precision="bf16",
            zero_stage=1,
            workers=workers,
        )
        cases |= {architecture: eager, f"{architecture}_compiled": replace(eager, compile=True)}
    return cases


def _memory_case(folder: Path) -> Case:
    return Case(folder, "", global_batch_size=4, window=2, windows=3, precision="bf16", processes=2, exact_memory=True)


def _measure(cases: dict[str, Case], rounds: int) -> dict[str, Any]:
    """Let the contestants take turns in every case."""
    rates: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in cases}
    metrics: dict[str, list[float]] = defaultdict(list)
    with progress_bar("measuring", total=rounds * len(cases), unit="cases") as bar:
        for _ in range(rounds):
            for name, case in cases.items():
                ours = train_ours(case)
                rates[name]["ours"] += ours.readings("samples_per_second")
                rates[name]["peer"] += train_peer(case)
                if case.processes == 1:
                    rates[name]["limit"] += train_bare(case, ours.run.zero_shot)
                metrics["peak_memory_mb"].append(1000 * max(ours.readings("memory_gb")))
                metrics["data_wait_percent"] += ours.readings("data_wait_percent")
                if "mfu_percent" in ours.lines[-1]:
                    metrics[f"mfu_percent_{name}"] += ours.readings("mfu_percent")
                bar.advance()
    medians = {name: {who: median(values) for who, values in of.items()} for name, of in rates.items()}
    return _ratios(medians) | _summary(metrics)


def _ratios(rates: dict[str, dict[str, float]]) -> dict[str, Any]:
    vs_peer = {name: of["ours"] / of["peer"] for name, of in rates.items()}
    vs_limit = {name: of["ours"] / of["limit"] for name, of in rates.items() if "limit" in of}
    return {
        "benchmark": "finetune",
        "vs_peer": round(min(vs_peer.values()), 3),
        "vs_limit": round(min(vs_limit.values()), 3),
        "vs_peer_by_case": {name: round(ratio, 3) for name, ratio in vs_peer.items()},
        "vs_limit_by_case": {name: round(ratio, 3) for name, ratio in vs_limit.items()},
        "samples_per_second": {name: {who: round(rate, 2) for who, rate in of.items()} for name, of in rates.items()},
    }


def _summary(metrics: dict[str, list[float]]) -> dict[str, float]:
    figures = {name: round(median(values), 2) for name, values in metrics.items()}
    return figures | {"peak_memory_mb": round(max(metrics["peak_memory_mb"]))}


if __name__ == "__main__":
    main()
