"""On a GPU: images times alphas a second, against the bare forward pass of the same module on pixels in memory.

Weights and pixels are random: what they are does not change what they cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor

from wiseft_dist.data.batch import Batch
from wiseft_dist.data.transforms import Preprocess, normalize
from wiseft_dist.evaluate.predictions import Member
from wiseft_dist.evaluate.sweep.shared_layers import Layers
from wiseft_dist.evaluate.sweep.sweep import sweep
from wiseft_dist.merge.ensemble import Ensemble
from wiseft_dist.models.classifier import Classifier, Head

NUM_IMAGES = {"ViT-B-16": 4096, "ViT-L-14": 2048}
NUM_CLASSES = 1000
PREPROCESS = Preprocess(224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def measure(
    architecture: str,
    num_images: int,
    alphas: list[float],
    *,
    batch_size: int = 256,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
) -> dict[str, Any]:
    """Rates of one architecture, plain and compiled.

    Returns:
        ``bare``: images/s of the forward pass; ``ours`` and ``compiled``: images x alphas/s of the sweep;
        ``vs_bare``: ours / bare; ``peak_memory_mb`` of the device.
    """
    ensemble = _ensemble(architecture, torch.device(device), dtype)
    pixels = torch.randint(0, 256, (num_images, PREPROCESS.size, PREPROCESS.size, 3), dtype=torch.uint8)
    members = [Member(alpha) for alpha in alphas]

    def prepare(host: Tensor) -> Tensor:
        return normalize(host.to(device, non_blocking=True), PREPROCESS, dtype)

    def scored(layers: Layers) -> Callable[[], object]:
        return lambda: sweep(ensemble, _batches(pixels, batch_size), members, prepare=prepare, layers=layers)

    plain, compiled = Layers(ensemble), Layers(ensemble, compile_batch_size=batch_size)
    image_alphas = num_images * len(alphas)
    bare = num_images / _seconds(
        _bare(ensemble.module, [prepare(batch.images) for batch in _batches(pixels, batch_size)])
    )
    ours = image_alphas / _seconds(scored(plain))
    return {
        "bare": round(bare, 1),
        "ours": round(ours, 1),
        "vs_bare": round(ours / bare, 3),
        "compiled": round(image_alphas / _seconds(scored(compiled)), 1),
        "peak_memory_mb": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else None,
    }


def _ensemble(architecture: str, device: torch.device, dtype: torch.dtype) -> Ensemble:
    """theta_1 is theta_0 with noise on every tensor."""
    visual: Any = open_clip.create_model(architecture, pretrained=None).visual
    module = Classifier(visual, Head(visual.output_dim, NUM_CLASSES)).eval().requires_grad_(False).to(device)
    zero_shot = {name: value.clone() for name, value in module.state_dict().items()}
    finetuned = {name: value + 0.01 * torch.randn_like(value) for name, value in zero_shot.items()}
    return Ensemble(module.to(dtype), zero_shot, [finetuned])


def _batches(pixels: Tensor, batch_size: int) -> Iterator[Batch]:
    """As a decoder would hand them over: on the host."""
    for start in range(0, len(pixels), batch_size):
        images = pixels[start : start + batch_size]
        positions = np.arange(start, start + len(images))
        yield Batch(images, torch.from_numpy(positions) % NUM_CLASSES, tuple(map(str, positions)), positions)


def _bare(module: torch.nn.Module, images: list[Tensor]) -> Callable[[], object]:
    @torch.inference_mode()
    def forward() -> Tensor:
        return torch.cat([module(batch) for batch in images]).cpu()

    return forward


def _seconds(work: Callable[[], object]) -> float:
    """The better of two, after one that is not counted; all of them end by waiting for the device."""
    work()
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
