"""Contrastive training on image-caption pairs (CLIP, arXiv 2103.00020): both towers, negatives from every rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather
from torch.nn import functional

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.data.batch import Target, caption
from wiseft_dist.data.shards import Sample
from wiseft_dist.errors import UserError
from wiseft_dist.models.classifier import read_clip
from wiseft_dist.models.clip import read_config, tokenizer_of

MAX_LOGIT_SCALE = 100.0


class Contrastive:
    """The CLIP objective; the engine's module is the whole open_clip model."""

    trains_head = False

    def __init__(self, config: FinetuneConfig) -> None:
        pass

    def module(self, zero_shot: Path) -> nn.Module:
        """Both towers. The logit scale gets one dimension: DeepSpeed 0.19 cannot shard a parameter of none.

        Raises:
            UserError: if the model was made for another loss.
        """
        model: Any = read_clip(zero_shot).model
        if getattr(model, "logit_bias", None) is not None:
            raise UserError(
                "model.architecture: a model with a logit_bias is trained with SigLIP's sigmoid loss, "
                "finetune.recipe=contrastive is CLIP's softmax loss: choose an architecture without one."
            )
        model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
        return model  # type: ignore[no-any-return]

    def target(self, zero_shot: Path) -> Target:
        """Tokens of the caption, int64 ``[context]``."""
        return _CaptionTokens(zero_shot)

    def loss(self, forward: Callable[..., Any], images: Tensor, targets: Tensor) -> Tensor:
        """Symmetric cross-entropy over the pairs of all ranks; of one micro batch each, where gradients accumulate.

        Every rank computes the whole loss. The gather's backward sums the ranks' gradients and the engine averages
        them, which together is the gradient of the one global loss.
        """
        image_features, text_features, scale = forward(images, targets)
        image_features, text_features = _gathered(image_features.float()), _gathered(text_features.float())
        logits = scale.float().clamp(max=MAX_LOGIT_SCALE) * image_features @ text_features.T
        pairs = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)) / 2


@dataclass(frozen=True)
class _CaptionTokens:
    """Tokenizes in the loader's processes, where the tokenizer is made once."""

    zero_shot: Path

    def __call__(self, sample: Sample) -> Any:
        return _tokens(self.zero_shot, caption(sample))


@lru_cache(maxsize=2**15)
def _tokens(zero_shot: Path, text: str) -> Any:
    """Tokens int64 ``[context]``; captions repeat, from epoch to epoch and in small vocabularies at once."""
    return _tokenizer(zero_shot)([text])[0].numpy()


@lru_cache(maxsize=1)
def _tokenizer(zero_shot: Path) -> Any:
    return tokenizer_of(read_config(zero_shot))


def _gathered(features: Tensor) -> Tensor:
    """The features of all ranks ``[world_size * batch, embedding]``, differentiable on each."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return features
    return torch.cat(all_gather(features))  # type: ignore[no-untyped-call]
