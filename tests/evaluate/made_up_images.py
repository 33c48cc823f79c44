"""Tiny classifiers and batches of noise, for tests of what happens to real images on the way to their scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from wiseft_dist.data.batch import Batch
from wiseft_dist.merge.ensemble import Ensemble
from wiseft_dist.models.classifier import Classifier, Head

NUM_CLASSES, NUM_IMAGES = 7, 11


def classifier(seed: int = 0, **settings) -> Classifier:
    """Three blocks on 8 x 8 pixels; every weight is random."""
    torch.manual_seed(seed)
    usual = {"image_size": 8, "patch_size": 4, "width": 16, "layers": 3, "heads": 2, "mlp_ratio": 2.0, "output_dim": 6}
    visual = VisionTransformer(**usual | settings)
    visual.conv1.weight.data.mul_(4)
    return with_head(visual, 6)


def with_head(visual: nn.Module, width: int) -> Classifier:
    """With noise on every weight, so that no two are alike, and a head that tells images apart."""
    module = Classifier(visual, Head(width, NUM_CLASSES)).eval().requires_grad_(False)
    for value in module.parameters():
        value.add_(torch.randn_like(value) * 0.1)
    module.head.weight.copy_(torch.randn_like(module.head.weight) * 20)
    return module


def two_models(module: nn.Module, changed: tuple[str, ...], *, amount: float = 0.1) -> tuple[dict, dict]:
    """theta_0, and theta_1 with noise on the tensors whose names begin with one of ``changed``; the rest are copies."""
    zero_shot = {name: value.clone() for name, value in module.state_dict().items()}
    finetuned = {
        name: value + amount * torch.randn_like(value) if name.startswith(changed) else value.clone()
        for name, value in zero_shot.items()
    }
    return zero_shot, finetuned


def ensemble_of(module: nn.Module, changed: tuple[str, ...] = ("",), **settings) -> Ensemble:
    zero_shot, finetuned = two_models(module, changed, **settings)
    return Ensemble(module, zero_shot, [finetuned])


def images(num_images: int = NUM_IMAGES, size: int = 8) -> Tensor:
    """uint8 ``[images, size, size, 3]``."""
    return torch.randint(
        0, 256, (num_images, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def batches(batch_size: int, pixels: Tensor | None = None, targets: Tensor | None = None) -> Iterator[Batch]:
    """Image ``i`` has the key ``k0i`` and the label ``i % 7``."""
    pixels = images() if pixels is None else pixels
    targets = torch.arange(len(pixels)) % NUM_CLASSES if targets is None else targets
    for start in range(0, len(pixels), batch_size):
        at = slice(start, start + batch_size)
        positions = np.arange(len(pixels))[at]
        keys = tuple(f"k{position:02d}" for position in positions)
        yield Batch(pixels[at], targets[at], keys, positions)


def prepare(pixels: Tensor) -> Tensor:
    """Floats around zero."""
    return pixels.permute(0, 3, 1, 2).float() / 128 - 1
