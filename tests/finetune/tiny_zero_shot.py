"""A real theta_0 in a committed folder, small enough for fp64."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tiny_finetune import CLASSNAMES, MODEL

from wiseft_dist.commits import committing
from wiseft_dist.config import ModelConfig
from wiseft_dist.data.vocabulary import Vocabulary
from wiseft_dist.models.classifier import write_zero_shot
from wiseft_dist.models.clip import create_clip
from wiseft_dist.models.zero_shot import zero_shot_head

TEMPLATES = ("a photo of a {c}.", "a {c}.", "one {c}, drawn")


def write_tiny_zero_shot(folder: Path, *, seed: int = 0) -> Path:
    """Write the model of this seed and its head to ``folder``."""
    architecture = folder.with_suffix(".json")
    architecture.write_text(json.dumps(MODEL))
    clip = create_clip(ModelConfig(architecture=str(architecture)), seed=seed)
    head = zero_shot_head(clip, CLASSNAMES, TEMPLATES, device=torch.device("cpu"))
    with committing(folder) as aside:
        write_zero_shot(aside, clip, head, Vocabulary(CLASSNAMES, TEMPLATES))
    return folder
