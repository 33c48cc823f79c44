"""The CLIP objective (arXiv 2103.00020) with the negatives of every rank, for the recipes that train both towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from wiseft_dist.errors import UserError
from wiseft_dist.models.classifier import read_clip
from wiseft_dist.models.short_texts import let_texts_be_short

MAX_LOGIT_SCALE = 100.0


def both_towers(zero_shot: Path, recipe: str) -> nn.Module:
    """The whole open_clip model, which reads texts without their padding where it can.

    Its logit scale gets one dimension: DeepSpeed 0.19 cannot shard a parameter of none.

    Raises:
        UserError: if the model was made for another loss.
    """
    clip = read_clip(zero_shot)
    model: Any = clip.model
    if getattr(model, "logit_bias", None) is not None:
        raise UserError(
            "model.architecture: a model with a logit_bias is trained with SigLIP's sigmoid loss, "
            f"finetune.recipe={recipe} is CLIP's softmax loss: choose an architecture without one."
        )
    model.logit_scale = nn.Parameter(model.logit_scale.detach().reshape(1))
    let_texts_be_short(model, clip.config)
    return model  # type: ignore[no-any-return]


def clip_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """Symmetric cross-entropy of this rank's pairs against the images and texts of all ranks.

    Each rank computes the rows of its own pairs, ``[batch, world_size * batch]`` in both directions. The mean over
    the ranks is the loss of the one global batch. The gather's backward sums what all ranks' rows ask of a feature
    and the engine averages over ranks, which together is the gradient of that mean.

    Args:
        images: Normalised embeddings ``[batch, embedding]``, equally many on each rank.
        texts: Those of their texts.
        scale: Of the logits; at most 100 is used.
    """
    images, texts = images.float(), texts.float()
    all_images, all_texts = _gathered(images, texts)
    scale = scale.float().clamp(max=MAX_LOGIT_SCALE)
    own = _first_row(len(images)) + torch.arange(len(images), device=images.device)
    of_images = functional.cross_entropy(scale * images @ all_texts.T, own)
    of_texts = functional.cross_entropy(scale * texts @ all_images.T, own)
    return (of_images + of_texts) / 2


def score_pairs(images: Tensor, texts: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """How many images are nearest to their own text within the batch, and the summed loss; fp32 scalars.

    Equal texts are equally right.
    """
    images, texts = images.float(), texts.float()
    logits = scale.float().clamp(max=MAX_LOGIT_SCALE) * images @ texts.T
    own = torch.arange(len(logits), device=logits.device)
    correct = (logits.diagonal() >= logits.amax(dim=1)).float().sum()
    losses = functional.cross_entropy(logits, own, reduction="sum")
    return correct, (losses + functional.cross_entropy(logits.T, own, reduction="sum")) / 2


def _gathered(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Both features of all ranks, ``[world_size * batch, embedding]`` each, differentiable on each; one message."""
    if not _is_distributed():
        return images, texts
    both: Tensor = _Gather.apply(torch.cat([images, texts], dim=1))
    width = images.shape[1]
    return both[:, :width], both[:, width:]


class _Gather(torch.autograd.Function):
    """The rows of all ranks, in their order; a row's gradient is the sum of what every rank asks of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gathered = rows.new_empty((dist.get_world_size() * len(rows), *rows.shape[1:]))
        dist.all_gather_into_tensor(gathered, rows)
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        own = gradient.new_empty((len(gradient) // dist.get_world_size(), *gradient.shape[1:]))
        dist.reduce_scatter_tensor(own, gradient.contiguous())
        return own


def _first_row(batch: int) -> int:
    """Where this rank's pairs begin among all."""
    return dist.get_rank() * batch if _is_distributed() else 0


def _is_distributed() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
