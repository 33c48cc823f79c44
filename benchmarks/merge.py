"""K ensembles of two CLIP models, one of them a DeepSpeed checkpoint: ours, the peers and the physical limit.

On made-up weights of a real size (by default ViT-L/14's visual tower with a head of 1,000 classes, 305 M parameters;
theta_1 as ZeRO-2 on 8 ranks leaves it, with Adam's moments), in bf16 and in fp32, everything synced to disk:

* ours: all ensembles in one pass, straight from the ranks' files;
* limit: the same bytes read and written with nothing computed, through the page cache or past it, whichever is faster;
* peer: ``zero_to_fp32``, then for each alpha load both, interpolate, save;
* mergekit: method ``linear`` once for each alpha, on the consolidated weights; its consolidation is not counted.

Ours and the limit take turns, with inputs out of the page cache. Then the peak memory on a model of 2.5 G parameters,
whose input files are holes, and what setting an ensemble in memory takes. Ratios to the peers are of whole programs,
their start included; the room needed is about 25 GB.

    python -m benchmarks.merge [--architecture NAME] [--folder DIR] [--peer-alphas N] [--mergekit-env DIR] [--quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.merge_in_memory import measure_in_memory, read_folder
from benchmarks.merge_limit import drop_cache, move_bytes
from benchmarks.merge_mergekit import install_mergekit, merge_with_mergekit, mergekit_version, start_seconds
from benchmarks.merge_model import MadeUp, shapes_of, write_models
from benchmarks.merge_ours import merge_ours
from benchmarks.merge_peer import CONSOLIDATED, consolidate, merge_with_a_script, script_file
from wiseft_dist.progress import progress_bar
from wiseft_dist.run import alpha_name
from wiseft_dist.weights.sources import open_weights

DTYPES = {"bf16": 2, "fp32": 4}
"""Of the written ensembles, with bytes a parameter."""
BIG_ARCHITECTURE = "ViT-bigG-14"
BIG_ALPHAS = (0.5, 1.0)


@dataclass
class Bench:
    """What all parts of a run share."""

    folder: Path
    models: MadeUp
    alphas: list[float]
    peer_alphas: list[float]
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    """By dtype and contestant."""
    memory_mb: dict[str, float] = field(default_factory=dict)

    @property
    def middle(self) -> float:
        """The alpha whose ensemble is kept and compared."""
        return self.alphas[len(self.alphas) // 2]

    def kept(self, dtype: str) -> Path:
        """Our ensemble of the middle alpha."""
        return self.folder / f"kept_{dtype}"

    def median(self, dtype: str, contestant: str) -> float:
        """Seconds."""
        return median(self.seconds[dtype][contestant])


def main() -> None:
    """Measure and print; the last line is one JSON object."""
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="wiseft-benchmark-") as temporary:
        bench = _prepare(Path(temporary), options)
        with progress_bar("measuring", total=2 * options.rounds + 5, unit="parts") as bar:
            for dtype in DTYPES:
                for _ in range(options.rounds):
                    _measure_ours_and_limit(bench, dtype)
                    bar.advance()
            consolidation = _measure_script(bench)
            bar.advance()
            environment = options.mergekit_env or bench.folder / "mergekit"
            mergekit = None if options.no_mergekit else _measure_mergekit(bench, environment)
            bar.advance()
            in_memory = measure_in_memory(bench.models, bench.kept("fp32"), bench.middle)
            bar.advance()
            _measure_memory(bench, big=not options.quick)
            bar.advance(2)
        print(json.dumps(_figures(bench, consolidation, mergekit, in_memory)))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--architecture", default="ViT-L-14", help="one of open_clip's; its visual tower is merged")
    parser.add_argument("--alphas", type=int, default=11, help="how many ensembles")
    parser.add_argument("--peer-alphas", type=int, help="measure the peers on fewer, and scale")
    parser.add_argument("--rounds", type=int, default=3, help="of ours and the limit")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; the temporary directory by default")
    parser.add_argument("--mergekit-env", type=Path, help="a virtual environment to keep; made where it is missing")
    parser.add_argument("--no-mergekit", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a smoke test: a small model, figures that say nothing")
    options = parser.parse_args()
    if options.quick:
        options.architecture, options.alphas, options.rounds = "ViT-S-32-alt", 3, 1
    return options


def _prepare(folder: Path, options: argparse.Namespace) -> Bench:
    models = write_models(folder, shapes_of(options.architecture))
    count = max(2, options.alphas)
    alphas = [index / (count - 1) for index in range(count)]
    from_the_middle = sorted(alphas, key=lambda alpha: abs(alpha - alphas[count // 2]))
    return Bench(folder, models, alphas, from_the_middle[: options.peer_alphas])


def _measure_ours_and_limit(bench: Bench, dtype: str) -> None:
    output, seconds = bench.folder / "output", bench.seconds[dtype]
    for name, direct in (("limit_buffered", False), ("limit_direct", True)):
        drop_cache(bench.models.files())
        output.mkdir()
        seconds[name].append(move_bytes(bench.models, output, len(bench.alphas), DTYPES[dtype], direct=direct))
        shutil.rmtree(output)
    drop_cache(bench.models.files())
    reading = merge_ours(bench.models, output, dtype, bench.alphas)
    seconds["ours"].append(reading.seconds)
    seconds["ours_with_start"].append(reading.seconds_with_start)
    bench.memory_mb[dtype] = max(reading.peak_memory_mb, bench.memory_mb.get(dtype, 0))
    shutil.rmtree(bench.kept(dtype), ignore_errors=True)
    (output / alpha_name(bench.middle)).rename(bench.kept(dtype))
    shutil.rmtree(output)


def _measure_script(bench: Bench) -> float:
    """The published way; its ensembles are held against ours.

    Returns:
        Seconds of the consolidation, which is the same for both dtypes.
    """
    drop_cache(bench.models.files())
    consolidation = consolidate(bench.models, bench.folder / "consolidated")
    consolidated, output = bench.folder / "consolidated" / CONSOLIDATED, bench.folder / "script"
    _check_same_bits(bench.models.finetuned, consolidated.parent)
    for dtype in DTYPES:
        seconds = merge_with_a_script(bench.models.zero_shot, consolidated, output, dtype, bench.peer_alphas)
        bench.seconds[dtype]["script"].append(consolidation + _scaled(bench, seconds))
        theirs, ours = read_folder(script_file(output, bench.middle).parent), read_folder(bench.kept(dtype))
        torch.testing.assert_close(ours, theirs)
        shutil.rmtree(output)
    return consolidation


def _check_same_bits(checkpoint: Path, consolidated: Path) -> None:
    """What we read from the ranks' files is what DeepSpeed's own program makes of them."""
    theirs = read_folder(consolidated)
    with open_weights(checkpoint) as ours:
        differing = [name for name in theirs.keys() | ours.keys() if not torch.equal(ours.tensor(name), theirs[name])]
    if differing:
        raise SystemExit(f"benchmarks.merge: zero_to_fp32 reads {min(differing)} otherwise than we do.")


def _measure_mergekit(bench: Bench, environment: Path) -> dict[str, Any] | None:
    program = install_mergekit(environment)
    if program is None:
        return None
    models = (bench.models.zero_shot, bench.folder / "consolidated" / CONSOLIDATED)
    start = min(start_seconds(program, bench.folder / f"start_{number}") for number in range(3))
    for dtype in DTYPES:
        seconds = merge_with_mergekit(program, models, bench.folder / "mergekit_out", dtype, bench.peer_alphas)
        bench.seconds[dtype]["mergekit"].append(_scaled(bench, seconds))
        bench.seconds[dtype]["mergekit_without_start"].append(_scaled(bench, seconds - start * len(bench.peer_alphas)))
    return {"version": mergekit_version(program), "start_seconds": round(start, 2)}


def _measure_memory(bench: Bench, *, big: bool) -> None:
    """Two alphas of the benchmark's model, and of one that is eight times as large."""
    output = bench.folder / "output"
    reading = merge_ours(bench.models, output, "bf16", BIG_ALPHAS)
    bench.memory_mb |= {"two_alphas": reading.peak_memory_mb, "before_merging": reading.start_memory_mb}
    shutil.rmtree(output)
    if big:
        models = write_models(bench.folder / "big", shapes_of(BIG_ARCHITECTURE, whole=True), empty=True)
        reading = merge_ours(models, output, "bf16", BIG_ALPHAS)
        bench.memory_mb[f"two_alphas_of_{models.num_parameters / 1e9:.1f}G"] = reading.peak_memory_mb
        shutil.rmtree(output)


def _scaled(bench: Bench, seconds: float) -> float:
    return seconds * len(bench.alphas) / len(bench.peer_alphas)


def _figures(
    bench: Bench, consolidation: float, mergekit: dict[str, Any] | None, in_memory: dict[str, float]
) -> dict[str, Any]:
    limit = {dtype: min(bench.median(dtype, f"limit_{way}") for way in ("buffered", "direct")) for dtype in DTYPES}
    vs_limit = {dtype: min(1.0, limit[dtype] / bench.median(dtype, "ours")) for dtype in DTYPES}
    ratios = {
        name: {dtype: bench.median(dtype, peer) / bench.median(dtype, ours) for dtype in DTYPES}
        for name, peer, ours in (
            ("vs_peer", "script", "ours_with_start"),
            ("vs_mergekit", "mergekit", "ours_with_start"),
            ("vs_mergekit_without_start", "mergekit_without_start", "ours"),
        )
        if peer in bench.seconds["fp32"]
    } | {"vs_limit": vs_limit}
    numel, count = bench.models.num_parameters, len(bench.alphas)
    gigabytes = {dtype: numel * (8 + count * size) / 1e9 for dtype, size in DTYPES.items()}
    figures: dict[str, Any] = {"benchmark": "merge", "vs_mergekit": None}
    figures |= {name: round(min(by_dtype.values()), 3) for name, by_dtype in ratios.items()}
    figures |= {
        f"{name}_by_dtype": {dtype: round(ratio, 3) for dtype, ratio in by_dtype.items()}
        for name, by_dtype in ratios.items()
    }
    return figures | {
        "vs_loading": round(in_memory["loading"] / in_memory["setting"], 3),
        "vs_loading_from_disk": round(in_memory["loading_from_disk"] / in_memory["setting"], 3),
        "peak_memory_mb": round(max(bench.memory_mb.values())),
        "memory_mb": {name: round(value) for name, value in bench.memory_mb.items()},
        "parameters": numel,
        "alphas": count,
        "scaled_from": len(bench.peer_alphas),
        "gigabytes": {dtype: round(value, 2) for dtype, value in gigabytes.items()},
        "gigabytes_per_second": {
            dtype: {"ours": round(value / bench.median(dtype, "ours"), 2), "limit": round(value / limit[dtype], 2)}
            for dtype, value in gigabytes.items()
        },
        "seconds": {
            dtype: {name: [round(value, 2) for value in values] for name, values in of.items()}
            for dtype, of in bench.seconds.items()
        },
        "consolidation_seconds": round(consolidation, 2),
        "in_memory_seconds": {name: round(value, 4) for name, value in in_memory.items()},
        "mergekit": mergekit,
        "versions": {"torch": torch.__version__},
    }


if __name__ == "__main__":
    main()
