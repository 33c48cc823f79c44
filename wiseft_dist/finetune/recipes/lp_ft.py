"""LP-FT (arXiv 2202.10054): a linear head on theta_0's features first, then everything from there."""

from __future__ import annotations

from pathlib import Path

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.finetune.recipes.end_to_end import EndToEnd
from wiseft_dist.models.classifier import Classifier, read_head


def head_phase(config: FinetuneConfig) -> FinetuneConfig:
    """The settings of the first phase: ``linear_head``, as ``finetune.head`` says.

    Without what a single layer has no use for: a moving average, recomputed activations, accumulation, compilation.
    """
    head = config.head
    return config.model_copy(
        update={
            "recipe": "linear_head",
            "epochs": head.epochs,
            "global_batch_size": head.global_batch_size,
            "optimizer": head.optimizer,
            "schedule": head.schedule,
            "micro_batch_size": None,
            "ema": None,
            "activation_checkpointing": False,
            "compile": False,
        }
    )


class LpFt(EndToEnd):
    """The second phase: end-to-end fine-tuning that starts from the first phase's head.

    Args:
        config: The run's settings.
        head: The folder with the trained head; needed once the module is made.
    """

    def __init__(self, config: FinetuneConfig, head: Path | None) -> None:
        super().__init__(config)
        self._head = head

    def module(self, zero_shot: Path) -> Classifier:
        """theta_0's visual tower and the trained head."""
        assert self._head is not None  # the stage trains it first
        classifier = super().module(zero_shot)
        classifier.head = read_head(self._head)
        return classifier
