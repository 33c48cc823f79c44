"""Settings of fine-tuning: the objective, the batch, the optimizer, the engine and what is kept."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from wiseft_dist import storage
from wiseft_dist.config.section import Fraction, Precision, Section

RecipeName = Literal["end_to_end", "linear_head", "lp_ft", "flyp", "l2_sp", "contrastive"]
PositiveFraction = Annotated[float, Field(gt=0.0, le=1.0)]


def _local(folder: str) -> str:
    if storage.is_remote(folder):
        raise ValueError("features are read from a file system: give a local folder that all nodes share")
    return storage.absolute(folder)


class OptimizerConfig(Section):
    """AdamW or Nesterov SGD; the defaults are the paper's (arXiv 2109.01903, appendix D)."""

    name: Literal["adamw", "sgd"] = "adamw"
    """``adamw``: decoupled weight decay. ``sgd``: momentum, with weight decay added to the gradient."""

    lr: PositiveFloat = 3e-5
    """Peak learning rate."""

    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW: decay of the two moment estimates."""

    eps: PositiveFloat = 1e-8
    """AdamW: added to the root of the second moment."""

    momentum: Fraction = 0.9
    """SGD: at a fixed ``lr / (1 - momentum)`` the value matters little (arXiv 2002.11770)."""

    nesterov: bool = True
    """SGD: look ahead along the momentum."""

    weight_decay: NonNegativeFloat = 0.1
    """Strength of weight decay."""

    decay_biases_and_norms: bool = True
    """Whether biases and the weights of normalisation layers decay too, as in the paper's code."""

    layer_decay: PositiveFraction = 1.0
    """Factor on the learning rate from each block to the one below it; 1: all layers alike."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError(
                "finetune.optimizer.nesterov needs a momentum: set finetune.optimizer.momentum, or "
                "finetune.optimizer.nesterov=false"
            )
        return self


class ScheduleConfig(Section):
    """How the learning rate moves: linear warm-up, then the named shape."""

    name: Literal["cosine", "constant", "linear", "step"] = "cosine"
    """``cosine`` and ``linear`` fall to 0 at the last step; ``step`` falls by ``factor`` at each milestone."""

    warmup_steps: NonNegativeInt = 500
    """Optimizer steps from 0 to the peak."""

    milestones: tuple[Fraction, ...] = (0.5, 0.75)
    """``step``: fractions of all steps at which the rate falls."""

    factor: PositiveFraction = 0.1
    """``step``: what the rate is multiplied by at each milestone."""


class CheckpointConfig(Section):
    """When the training state is saved and how much of it is kept. A run that is told to stop saves first."""

    every_steps: PositiveInt | None = None
    """Save every this many optimizer steps."""

    every_minutes: PositiveFloat | None = 15.0
    """Save after this much wall time since the last save."""

    keep_last: PositiveInt = 2
    """Committed checkpoints kept on disk. At least 2: a save that dies must leave a whole one behind."""

    keep_best: bool = True
    """Save whenever the held-out piece is classified better than ever before, and keep the best."""

    @model_validator(mode="after")
    def _keeps_a_spare(self) -> Self:
        if self.keep_last < 2:
            raise ValueError(
                "finetune.checkpoint.keep_last is 1: the only checkpoint would be replaced while the next is "
                "written; use 2 or more"
            )
        return self


class ValidationConfig(Section):
    """Evaluation of the model in training on the held-out piece of the training set (``data.id_val_fraction``)."""

    every_epochs: PositiveFloat | None = 1.0
    """Validate each time that so many passes over the training set are done; nothing for never."""

    every_steps: PositiveInt | None = None
    """Validate every this many optimizer steps, instead."""

    batch_size: PositiveInt = 256
    """Images a forward pass on one rank."""


class EmaConfig(Section):
    """An exponential moving average of the weights, sharded with them; where it is kept, it is theta_1."""

    decay: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.9999
    """Weight of the past at each step."""

    debias: bool = False
    """Start from nothing and divide by ``1 - decay^steps``. Else the average starts at theta_0."""


class L2SpConfig(Section):
    """``recipe=l2_sp``: lambda/2 |theta - theta_0|^2 pulls the weights back (arXiv 1802.01483)."""

    backbone: NonNegativeFloat = 0.01
    """Towards theta_0: everything but the head."""

    head: NonNegativeFloat = 0.01
    """Towards zero: the head."""


class HeadConfig(Section):
    """``recipe=lp_ft``: its first phase, a linear head on the features of theta_0 (arXiv 2202.10054)."""

    epochs: PositiveFloat = 10
    """Passes over the training set's features."""

    global_batch_size: PositiveInt = 256
    """Samples an optimizer step, over all ranks."""

    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-3, weight_decay=0.0)
    """Optimizer settings."""

    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule."""

    @field_validator("optimizer", mode="before")
    @classmethod
    def _keep_own_defaults(cls, optimizer: object) -> object:
        """One setting that is given must not bring back the others' defaults of ``finetune.optimizer``."""
        return {"lr": 1e-3, "weight_decay": 0.0} | optimizer if isinstance(optimizer, dict) else optimizer


class FinetuneConfig(Section):
    """One fine-tuning: objective, batch, optimizer, engine."""

    recipe: RecipeName = "end_to_end"
    """What is learnt.

    ``end_to_end``: encoder and head, cross-entropy. ``linear_head``: the head alone, on features computed once.
    ``lp_ft``: first the head, then everything. ``flyp``: both towers, contrastive on class prompts. ``l2_sp``: as
    ``end_to_end``, pulled back to theta_0. ``contrastive``: both towers on image-caption pairs.
    """

    epochs: PositiveFloat = 10
    """Passes over the training set; the last batch of the last epoch is filled from the next one."""

    global_batch_size: PositiveInt = 512
    """Samples an optimizer step, over all ranks."""

    micro_batch_size: PositiveInt | None = None
    """Samples a forward pass on one rank; gradients are accumulated to the global batch. Left out: all at once.

    With ``flyp`` and ``contrastive`` it also bounds the negatives: those of one forward pass over all ranks.
    """

    zero_stage: Literal[0, 1, 2, 3] = 1
    """What DeepSpeed shards: 0 nothing, 1 optimizer state, 2 gradients too, 3 parameters too."""

    offload_optimizer: bool = False
    """Keep masters and moments in the host's memory and update there. Needs ``zero_stage`` 1, 2 or 3."""

    precision: Precision = "fp32"
    """Arithmetic of forward and backward; masters and moments are fp32. ``fp16`` scales the loss dynamically."""

    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more work."""

    compile: bool = False
    """Compile the towers' blocks with ``torch.compile``. Needs ``zero_stage`` 0, 1 or 2."""

    gradient_clipping: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 for none."""

    label_smoothing: Fraction = 0.0
    """Mass spread over the other classes in the cross-entropy."""

    max_bad_steps: NonNegativeInt = 3
    """Steps in a row whose loss or gradient is not finite before the run stops. Their updates are left out."""

    log_every: PositiveInt = 10
    """Optimizer steps between two lines of metrics."""

    peak_tflops: PositiveFloat | None = None
    """The device's peak in 10^12 operations a second, for model FLOPs utilisation. Left out: looked up by its name."""

    features: Annotated[str, AfterValidator(_local)] | None = None
    """``linear_head``, ``lp_ft``: a folder for features that several runs share. Left out: in the run."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """Optimizer settings."""

    schedule: ScheduleConfig = ScheduleConfig()
    """Learning-rate schedule."""

    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving and keeping."""

    validation: ValidationConfig = ValidationConfig()
    """Evaluation in mid-training."""

    ema: EmaConfig | None = None
    """Moving average of the weights."""

    l2_sp: L2SpConfig = L2SpConfig()
    """Strengths of ``recipe=l2_sp``."""

    head: HeadConfig = HeadConfig()
    """First phase of ``recipe=lp_ft``."""

    @model_validator(mode="after")
    def _stages_that_can(self) -> Self:
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("finetune.offload_optimizer needs finetune.zero_stage 1, 2 or 3")
        if self.compile and self.zero_stage == 3:
            raise ValueError(
                "finetune.compile needs finetune.zero_stage 0, 1 or 2: stage 3 fetches parameters inside the blocks"
            )
        return self
