"""Contrastive training on image-caption pairs (CLIP, arXiv 2103.00020): both towers, negatives from every rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.loader import Target, caption
from wiseft_dist.data.shards import Sample
from wiseft_dist.models.classifier import read_clip
from wiseft_dist.models.clip import read_config, tokenizer_of

MAX_LOGIT_SCALE = 100.0


class Contrastive:
    """The CLIP objective; the engine's module is the whole open_clip model."""

    trains_head = False

    def __init__(self, config: FinetuneConfig) -> None:
        pass

    def module(self, zero_shot: Path) -> nn.Module:
        """Both towers. The logit scale gets one dimension: DeepSpeed 0.19 cannot shard a parameter of none."""
        model: Any = read_clip(zero_shot).model
        model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
        return model  # type: ignore[no-any-return]

    def target(self, zero_shot: Path) -> Target:
        """Tokens of the caption, int64 ``[context]``."""
        return _CaptionTokens(zero_shot)

    def loss(self, forward: Callable[..., Any], images: Tensor, targets: Tensor) -> Tensor:
        """Symmetric cross-entropy over the pairs of all ranks.

        Every rank computes the whole loss. The gather's backward sums the ranks' gradients and the engine averages
        them, which together is the gradient of the one global loss.
        """
        image_features, text_features, scale = forward(images, targets)
        image_features, text_features = _gathered(image_features.float()), _gathered(text_features.float())
        logits = scale.float().clamp(max=MAX_LOGIT_SCALE) * image_features @ text_features.T
        pairs = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)) / 2


class _CaptionTokens:
    """Tokenizes in the loader's processes; the tokenizer is made there once."""

    def __init__(self, zero_shot: Path) -> None:
        self._zero_shot = zero_shot
        self._tokenizer: Any = None

    def __call__(self, sample: Sample) -> Any:
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(read_config(self._zero_shot))
        return self._tokenizer([caption(sample)])[0].numpy()


def _gathered(features: Tensor) -> Tensor:
    """The features of all ranks ``[world_size * batch, embedding]``, differentiable on each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return features
    return torch.cat(all_gather(features))  # type: ignore[no-untyped-call]
