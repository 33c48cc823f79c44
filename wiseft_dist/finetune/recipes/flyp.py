"""FLYP (arXiv 2212.00638): fine-tune as CLIP was pre-trained, contrastively, on prompts of the class names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from wiseft_dist.data.batch import ClassLabel, Target, stack_targets
from wiseft_dist.finetune.recipes import Forward, Scorer
from wiseft_dist.finetune.recipes.classification import score_logits
from wiseft_dist.finetune.recipes.pairs import Pairs
from wiseft_dist.finetune.recipes.prompts import PromptTokens, prompt_tokens
from wiseft_dist.models.classifier import read_vocabulary
from wiseft_dist.models.clip import Clip, create_unweighted, read_config
from wiseft_dist.models.zero_shot import TEXTS_PER_PASS, zero_shot_head

SCORED_TEMPLATES = 8
"""Prompts a class in the head that held-out batches are scored with in mid-training; the final head has all."""


class Flyp(Pairs):
    """Both towers, CLIP's loss. As in the paper, pairs of one class in a batch are negatives of each other."""

    name = "flyp"
    needs_head = True

    def target(self, zero_shot: Path) -> Target:
        """Tokens of a random template around the class name."""
        vocabulary = read_vocabulary(zero_shot)
        return PromptTokens(zero_shot, len(vocabulary.classnames), len(vocabulary.templates))

    def validation_target(self, zero_shot: Path) -> Target:
        """Class labels."""
        return ClassLabel(len(read_vocabulary(zero_shot).classnames))

    def scorer(self, forward: Forward, zero_shot: Path, *, device: torch.device) -> Scorer:
        """Top-1 and cross-entropy of a head that the text tower, as it is now, makes of the first few templates."""
        weight = _head_weight(forward, zero_shot, device)
        return lambda images, labels: score_logits(forward(images, None)[0].float() @ weight.T, labels)


def rebuilt_head(zero_shot: Path, weights: Mapping[str, Tensor], *, device: torch.device) -> nn.Linear:
    """The head of theta_1: its text tower's embeddings of every class in all templates.

    Args:
        zero_shot: The folder of theta_0, for the architecture, the classes and the templates.
        weights: Those of theta_1 by open_clip's names; one element may come in any number of dimensions.
        device: Where the text tower runs.

    Returns:
        A linear layer, weight fp32 ``[classes, embedding]``, with the logit scale folded in.
    """
    config, vocabulary = read_config(zero_shot), read_vocabulary(zero_shot)
    model = create_unweighted(config)
    shaped = {name: weights[name].reshape(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(shaped, strict=True)
    return zero_shot_head(Clip(model, config), vocabulary.classnames, vocabulary.templates, device=device)


def _head_weight(forward: Forward, zero_shot: Path, device: torch.device) -> Tensor:
    """The head of the first few templates, fp32 ``[classes, embedding]``, from as many passes on every rank."""
    vocabulary = read_vocabulary(zero_shot)
    num_classes, num_templates = len(vocabulary.classnames), min(SCORED_TEMPLATES, len(vocabulary.templates))
    prompts = [(label, template) for label in range(num_classes) for template in range(num_templates)]
    tokens = stack_targets([prompt_tokens(zero_shot, *prompt) for prompt in prompts]).to(device)
    features = []
    for start in range(0, len(tokens), TEXTS_PER_PASS):
        _, encoded, scale = forward(None, tokens[start : start + TEXTS_PER_PASS])
        features.append(encoded.float())
    per_class = torch.cat(features).reshape(num_classes, num_templates, -1).mean(dim=1)
    weight: Tensor = functional.normalize(per_class, dim=-1) * scale.float()
    return weight
