"""open_clip's pretrained weights by architecture and tag: ``ViT-B-32:openai``."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from wiseft_dist.errors import UserError

if TYPE_CHECKING:
    from wiseft_dist.weights.records import Weights

TAG = re.compile(r"([\w.+/-]+):([\w.-]+)")


def is_tag(source: str) -> bool:
    """Whether this could be an architecture and a tag; a path with a colon in it is one where it is there."""
    return TAG.fullmatch(source) is not None


def download_tag(source: str) -> Path:
    """The file of a tag, from open_clip's cache or, if it is not there yet, from where open_clip knows it to be.

    Raises:
        UserError: if open_clip knows no such architecture or tag, or cannot download it.
    """
    from wiseft_dist.models.without_wandb import open_clip

    name, tag = source.replace("/", "-").split(":")
    if name not in open_clip.list_models():
        raise UserError(f"{source}: {name} is no architecture of open_clip{_near(name, open_clip.list_models())}.")
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        raise UserError(
            f"{source}: open_clip has no weights {tag} for {name}{_near(tag, tags)}; "
            f"it has: {', '.join(tags) or 'none'}."
        )
    try:
        return Path(open_clip.download_pretrained(known))
    except Exception as error:  # urllib, requests and the hub's client each have their own
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(
            f"{source}: could not be downloaded ({lines[0][:200]}); try again, or name a file that you have."
        ) from error


def check_is_open_clip(source: str, weights: Weights) -> None:
    """Refuse weights under the names of another library: open_clip renames them as it loads them, merging does not.

    Raises:
        UserError: naming a tensor.
    """
    if "logit_scale" not in weights or not any(name.startswith("visual.") for name in weights):
        raise UserError(
            f"{source}: its file names tensors as another library does ({min(weights)}); load it with open_clip, "
            "save its state dict with torch.save, and name that file."
        )


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (near: {', '.join(near)})" if near else ""
