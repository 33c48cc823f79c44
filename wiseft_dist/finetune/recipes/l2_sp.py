"""L2-SP (arXiv 1802.01483): end-to-end fine-tuning whose weights are pulled back to where they came from."""

from __future__ import annotations

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.finetune.recipes import Pull
from wiseft_dist.finetune.recipes.end_to_end import EndToEnd
from wiseft_dist.models.files import HEAD_PREFIX


class L2Sp(EndToEnd):
    """Cross-entropy, lambda/2 ||theta' - theta_0||^2 on the encoder and lambda2/2 ||theta''||^2 on the head."""

    def __init__(self, config: FinetuneConfig) -> None:
        super().__init__(config)
        self._strengths = config.l2_sp

    def pull(self, name: str) -> Pull | None:
        """The head's towards zero, every other parameter's towards theta_0; none where its strength is 0."""
        is_head = name.startswith(HEAD_PREFIX)
        strength = self._strengths.head if is_head else self._strengths.backbone
        return Pull(strength, towards_start=not is_head) if strength else None
