"""LiNeS: fine-tuning counts the less, the shallower the layer."""

from __future__ import annotations

import re
from collections.abc import Collection

from wiseft_dist.errors import UserError

BLOCK = re.compile(
    r"^(?P<tower>.*(?:resblocks|cross_attn|(?<!\d\.)blocks|encoder\.(?:layers?|block)))\.(?P<index>\d+)\."
)
"""A transformer block of open_clip (``transformer.resblocks.3.``), timm (``trunk.blocks.3.``) or Hugging Face."""
SHALLOWEST = re.compile(
    r"(^|\.)(conv1|class_embedding|positional_embedding|ln_pre|token_embedding"
    r"|patch_embed|cls_token|reg_token|pos_embed|norm_pre|embeddings|cls_emb)(\.|$)"
)
DEEPEST = re.compile(
    r"(^|\.)(ln_post|ln_final|proj|text_projection|head|logit_scale|logit_bias|norm|fc_norm|attn_pool|pooler)(\.|$)"
)


def depth_factors(names: Collection[str], lowest: float, *, own: Collection[str] = ()) -> dict[str, float]:
    """What alpha is multiplied by, from ``lowest`` in the first block of a tower linearly to 1 in its last.

    Embeddings are as deep as the first block, final norms, projections and heads as the last.

    Source: LiNeS (arXiv 2410.17146): lambda_l = alpha + beta (l - 1) / (L - 1).

    Args:
        names: Tensors by open_clip's names.
        lowest: In [0, 1].
        own: Those that need no factor: they have an alpha of their own.

    Raises:
        UserError: if the depth of a tensor cannot be told from its name.
    """
    last_blocks: dict[str, int] = {}
    for found in filter(None, map(BLOCK.search, names)):
        last_blocks[found["tower"]] = max(int(found["index"]), last_blocks.get(found["tower"], 0))
    return {name: lowest + (1.0 - lowest) * _depth(name, last_blocks) for name in names if name not in own}


def _depth(name: str, last_blocks: dict[str, int]) -> float:
    """From 0 (shallowest) to 1 (deepest)."""
    if found := BLOCK.search(name):
        return int(found["index"]) / max(1, last_blocks[found["tower"]])
    if SHALLOWEST.search(name):
        return 0.0
    if DEEPEST.search(name):
        return 1.0
    raise UserError(
        f"merge.lines: the depth of tensor {name} cannot be told from its name, as open_clip's transformers have it: "
        "leave lines out, or give such tensors an alpha in merge.layers."
    )
