"""The classifier that is fine-tuned and evaluated: CLIP's visual tower and a linear head on normalised features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from wiseft_dist.data.vocabulary import Vocabulary
from wiseft_dist.models.clip import Clip, create_unweighted, read_config
from wiseft_dist.models.files import CLASSES_FILE, CONFIG_FILE, HEAD_FILE, HEAD_PREFIX, INDEX_FILE, WEIGHTS_FILE


class Head(nn.Linear):
    """A linear layer that computes in fp32 whatever its weights are kept in.

    The logit scale of about 100 is folded into the weights: logits rounded to bf16 would tie.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Logits fp32 ``[batch, classes]`` of features ``[batch, embedding]``."""
        with torch.autocast("cuda" if features.is_cuda else "cpu", enabled=False):  # autocast knows no meta device
            return functional.linear(features.float(), self.weight.float(), self.bias.float())


class Classifier(nn.Module):
    """Image to class logits. Parameter names are open_clip's ``visual.*``, and ``head.*``."""

    def __init__(self, visual: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.visual = visual
        self.head = head

    def features(self, images: Tensor) -> Tensor:
        """Normalised embeddings ``[batch, embedding]`` of normalised images ``[batch, 3, height, width]``."""
        return functional.normalize(self.visual(images), dim=-1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits fp32 ``[batch, classes]``."""
        logits: Tensor = self.head(self.features(images))
        return logits


def write_zero_shot(folder: Path, clip: Clip, head: nn.Linear | None, vocabulary: Vocabulary | None) -> None:
    """Write theta_0: open_clip weights and configuration, and the head where there is one."""
    weights = {name: value.detach().cpu().contiguous() for name, value in clip.model.state_dict().items()}
    safetensors.torch.save_file(weights, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(clip.config, indent=1))
    if head is not None and vocabulary is not None:
        write_head(folder, head, vocabulary)


def write_head(folder: Path, head: nn.Linear, vocabulary: Vocabulary) -> None:
    """Write the head and its class names beside the open_clip weights, which stay loadable by open_clip."""
    weights = {HEAD_PREFIX + name: value.detach().cpu() for name, value in head.state_dict().items()}
    safetensors.torch.save_file(weights, folder / HEAD_FILE)
    text = {"classnames": vocabulary.classnames, "templates": vocabulary.templates}
    (folder / CLASSES_FILE).write_text(json.dumps(text, indent=1))


def read_vocabulary(folder: Path) -> Vocabulary:
    """The class names and templates of a written head."""
    text = json.loads((folder / CLASSES_FILE).read_text())
    return Vocabulary(tuple(text["classnames"]), tuple(text["templates"]))


def read_head(folder: Path) -> nn.Linear:
    """The head of a written classifier."""
    weights = safetensors.torch.load_file(folder / HEAD_FILE)
    num_classes, width = weights[HEAD_PREFIX + "weight"].shape
    head = Head(width, num_classes)
    head.load_state_dict({name.removeprefix(HEAD_PREFIX): value for name, value in weights.items()})
    return head


def read_classifier(folder: Path) -> Classifier:
    """The classifier of a folder that holds open_clip weights and a head: theta_0 or a written ensemble."""
    model: Any = create_unweighted(read_config(folder))
    model.load_state_dict(_read_weights(folder), strict=True)
    return Classifier(model.visual, read_head(folder))


def read_clip(folder: Path) -> Clip:
    """The whole CLIP model of such a folder."""
    config = read_config(folder)
    model = create_unweighted(config)
    model.load_state_dict(_read_weights(folder), strict=True)
    return Clip(model, config)


def _read_weights(folder: Path) -> dict[str, Tensor]:
    """open_clip's weights, which lie in one file or in several."""
    files = {WEIGHTS_FILE}
    if (folder / INDEX_FILE).is_file():
        files = set(json.loads((folder / INDEX_FILE).read_text())["weight_map"].values()) - {HEAD_FILE}
    return {name: value for file in sorted(files) for name, value in safetensors.torch.load_file(folder / file).items()}
