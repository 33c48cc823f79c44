"""Setting an ensemble in memory, against loading a written one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.merge_limit import drop_cache
from benchmarks.merge_model import MadeUp
from wiseft_dist.merge.ensemble import Ensemble
from wiseft_dist.weights.sources import open_weights

REPEATS = 7


def measure_in_memory(models: MadeUp, written: Path, alpha: float) -> dict[str, float]:
    """Seconds to set a live fp32 module to theta_alpha, and to load it from files in the page cache, or out of it.

    Args:
        models: theta_0 and theta_1.
        written: The folder of a written ensemble in fp32.
        alpha: Its alpha; both ways must give the same module to the bit.
    """
    with open_weights(models.zero_shot) as zero_shot, open_weights(models.finetuned) as finetuned:
        first, second = ({name: weights.tensor(name) for name in weights} for weights in (zero_shot, finetuned))
    module = _module_of(first)
    ensemble = Ensemble(module, first, [second])
    ensemble.set_alpha(alpha)
    if not all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in read_folder(written).items()):
        raise SystemExit("benchmarks.merge: the ensemble in memory is not the written one.")
    alphas = iter(index / (REPEATS + 2) for index in range(1, REPEATS + 2))

    def load() -> None:
        module.load_state_dict(read_folder(written))

    return {
        "setting": _median_seconds(lambda: ensemble.set_alpha(next(alphas))),
        "loading": _median_seconds(load),
        "loading_from_disk": _median_seconds(load, before=lambda: drop_cache(sorted(written.iterdir()))),
    }


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def _module_of(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module with parameters of these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        place = root
        for part in path:
            if part not in dict(place.named_children()):
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        place.register_parameter(last, nn.Parameter(torch.empty_like(tensor)))
    return root


def _median_seconds(step: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Of some repetitions, after one that touches all memory; what is done before each does not count."""
    seconds = []
    for _ in range(1 + REPEATS):
        before()
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
