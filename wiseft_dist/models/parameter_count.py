"""How many parameters an open_clip architecture has, by arithmetic on its JSON: no weights and no torch.

Towers as in open_clip's ``transformer.py`` without options that add parameters; the count of ViT-B-16 is 149,620,737.
What is built otherwise (ResNets, towers of timm and Hugging Face) is not known here.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wiseft_dist.models.files import CONFIG_FILE

VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "patch_dropout"}
TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}
TOP_KEYS = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale"}


@dataclass(frozen=True)
class ParameterCount:
    """Of a CLIP model."""

    vision: int
    text: int
    """The logit scale included."""
    embed_dim: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.vision + self.text


def count_parameters(architecture: str) -> ParameterCount | None:
    """Of an open_clip name, a JSON file or a folder; None where that cannot be said without building the model."""
    try:
        return _count(_model_config(architecture))
    except (OSError, ValueError, LookupError, TypeError):
        return None  # what is wrong with it is said where it is opened


def _model_config(architecture: str) -> Mapping[str, Any]:
    path = Path(architecture.removeprefix("local-dir:")).expanduser()
    if path.is_dir():
        path = path / CONFIG_FILE
    elif not path.is_file():
        package = importlib.util.find_spec("open_clip")
        if package is None or package.origin is None:
            raise FileNotFoundError("open_clip")
        path = Path(package.origin).parent / "model_configs" / f"{architecture.replace('/', '-')}.json"
    config: Mapping[str, Any] = json.loads(path.read_text())
    model: Mapping[str, Any] = config.get("model_cfg", config)
    return model


def _count(config: Mapping[str, Any]) -> ParameterCount | None:
    vision, text, embed = config["vision_cfg"], config["text_cfg"], config["embed_dim"]
    if config.keys() - TOP_KEYS or vision.keys() - VISION_KEYS or text.keys() - TEXT_KEYS:
        return None
    width, patch, size = vision.get("width", 768), vision.get("patch_size", 16), vision.get("image_size", 224)
    num_patches = (size // patch) ** 2
    num_vision = (
        3 * width * patch**2
        + width * (num_patches + 2)  # the class token, and a position for it and for each patch
        + 4 * width  # two norms
        + vision.get("layers", 12) * _block(width, vision.get("mlp_ratio", 4.0))
        + width * embed
    )
    width = text.get("width", 512)
    num_text = (
        width * (text.get("vocab_size", 49408) + text.get("context_length", 77))
        + text.get("layers", 12) * _block(width, text.get("mlp_ratio", 4.0))
        + 2 * width
        + width * embed
        + 1
    )
    return ParameterCount(num_vision, num_text, embed)


def _block(width: int, mlp_ratio: float) -> int:
    """A transformer block: two norms, attention with its biases, two layers with theirs."""
    hidden = int(width * mlp_ratio)
    return 4 * width + 4 * width * (width + 1) + 2 * width * hidden + hidden + width
