"""Text towers that read a text up to its end, and not the padding behind it.

In CLIP's text tower a token sees only those before it, and a text's embedding is taken at its last token: what stands
behind costs time and changes nothing. Class prompts fill 10 of 77 places.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn import functional

from wiseft_dist.models.without_wandb import open_clip

WIDTH_STEP = 16
"""Texts are cut to a multiple of this, so that few shapes occur."""


class ShortTextClip(open_clip.CLIP):  # type: ignore[misc]
    """open_clip's CLIP; its texts may be shorter than the context."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Embeddings ``[texts, embedding]`` of tokens int64 ``[texts, width]``, width at most the context."""
        width, dtype = text.shape[1], self.transformer.get_cast_dtype()
        hidden = self.token_embedding(text).to(dtype) + self.positional_embedding[:width].to(dtype)
        hidden = self.ln_final(self.transformer(hidden, attn_mask=self.attn_mask[:width, :width]))
        pooled: Tensor = open_clip.transformer.text_global_pool(hidden, text, self.text_pool_type)
        if isinstance(self.text_projection, nn.Linear):
            pooled = self.text_projection(pooled)
        elif self.text_projection is not None:
            pooled = pooled @ self.text_projection
        return functional.normalize(pooled, dim=-1) if normalize else pooled


def reads_short_texts(config: dict[str, Any]) -> bool:
    """Whether the model of an ``open_clip_config.json`` has such a tower: open_clip's own, causal, read at its end."""
    model, text = config["model_cfg"], config["model_cfg"].get("text_cfg", {})
    return (
        not model.get("custom_text", False)
        and "hf_model_name" not in text
        and text.get("pool_type", "argmax") == "argmax"
        and not text.get("no_causal_mask", False)
        and not text.get("embed_cls", False)
    )


def let_texts_be_short(model: nn.Module, config: dict[str, Any]) -> None:
    """Make a model take texts without their padding, where that changes nothing else."""
    if reads_short_texts(config) and type(model) is open_clip.CLIP:
        model.__class__ = ShortTextClip


def without_padding(tokens: np.ndarray) -> np.ndarray:
    """A text's tokens, int64 ``[context]``, up to its end and on to the next multiple of :data:`WIDTH_STEP`.

    The token that ends a text has the largest number of all.
    """
    end = int(tokens.argmax()) + 1
    return tokens[: -(-end // WIDTH_STEP) * WIDTH_STEP]
