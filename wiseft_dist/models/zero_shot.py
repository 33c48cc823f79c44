"""The zero-shot head: class names and prompt templates become the rows of a linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from wiseft_dist.data.vocabulary import prompt
from wiseft_dist.models.clip import Clip
from wiseft_dist.progress import progress_bar

TEXTS_PER_PASS = 512


@torch.no_grad()
def zero_shot_head(
    clip: Clip, classnames: Sequence[str], templates: Sequence[str], *, device: torch.device
) -> nn.Linear:
    """Build the head of the zero-shot classifier (arXiv 2109.01903, section 2).

    Per class: encode every template, normalise each, average, normalise again, multiply by ``exp(logit_scale)``. The
    scale is folded in here and nowhere else; the bias is zero.

    Returns:
        A linear layer from embeddings to logits; weight fp32 ``[classes, embedding]``.
    """
    model: Any = clip.model.to(device).eval()
    tokenizer = clip.tokenizer()
    prompts = [prompt(template, name) for name in classnames for template in templates]
    features = []
    with progress_bar("encoding prompts", total=len(prompts), unit="prompts") as bar:
        for start in range(0, len(prompts), TEXTS_PER_PASS):
            tokens = tokenizer(prompts[start : start + TEXTS_PER_PASS]).to(device)
            features.append(model.encode_text(tokens, normalize=True).float())
            bar.advance(len(tokens))
    per_class = torch.cat(features).reshape(len(classnames), len(templates), -1)
    weight = functional.normalize(per_class.mean(dim=1), dim=-1) * model.logit_scale.float().exp()
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.weight.copy_(weight)
    head.bias.zero_()
    return head
