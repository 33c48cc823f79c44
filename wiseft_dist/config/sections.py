"""The typed configuration tree: one small frozen class a section, wrong values answered in a sentence."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from wiseft_dist import storage
from wiseft_dist.config.data import DataConfig
from wiseft_dist.config.finetune import FinetuneConfig
from wiseft_dist.config.launch import LaunchConfig
from wiseft_dist.config.section import Precision, Section

Seed = Annotated[int, Field(ge=0, lt=2**32)]
MAX_GRID_STEPS = 10_000


def parse_alphas(value: object) -> object:
    """Expand ``"0:1:0.1"`` (first:last:step, both ends included) or ``"0,0.5,1"`` to a list of numbers."""
    if not isinstance(value, str):
        return [value] if isinstance(value, int | float) else value
    try:
        if ":" not in value:
            return [float(part) for part in value.split(",")]
        first, last, step = (float(part) for part in value.split(":"))
        num_steps = round((last - first) / step)
    except (ValueError, ArithmeticError):
        raise ValueError("not a grid such as 0:1:0.1 nor a list such as 0,0.5,1") from None
    if not 0 <= num_steps <= MAX_GRID_STEPS or abs(first + num_steps * step - last) > 1e-9:
        raise ValueError(f"steps of {step:g} do not lead from {first:g} to {last:g}")
    return [round(first + index * step, 10) for index in range(num_steps + 1)]


def _distinct_alphas(alphas: tuple[float, ...]) -> tuple[float, ...]:
    for alpha in alphas:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha {alpha:g} is not between 0 (zero-shot) and 1 (fine-tuned)")
    if len(set(alphas)) < len(alphas):
        raise ValueError("an alpha occurs twice")
    return alphas


Alphas = Annotated[
    tuple[float, ...], BeforeValidator(parse_alphas), AfterValidator(_distinct_alphas), Field(min_length=1)
]


class ModelConfig(Section):
    """The zero-shot model theta_0."""

    architecture: str
    """An open_clip name (``ViT-B-16``), a JSON file, a folder with an ``open_clip_config.json``, or ``hf-hub:...``."""

    pretrained: str | None = None
    """A pretrained tag, a local file or a URL. Left out: the folder's own weights, or random ones for pre-training."""


class LayerAlpha(Section):
    """What alpha is for some tensors: a number of its own, or a multiple of the ensemble's."""

    alpha: float | None = Field(default=None, ge=0, le=1)
    """Whatever the ensemble's alpha is. An ensemble of alpha = 0 stays the zero-shot model."""

    scale: float | None = Field(default=None, ge=0)
    """Multiplies the ensemble's alpha; the product is cut off at 1."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.alpha is None) == (self.scale is None):
            raise ValueError("takes either alpha or scale")
        return self


SINGLE_MODEL_METHODS = ("wise", "slerp")
"""These merge theta_0 with one fine-tuned model; the others with any number."""


class MergeConfig(Section):
    """Which ensembles are written, and how."""

    alphas: Alphas = tuple(index / 10 for index in range(11))
    """Mixing coefficients, as a list or as ``first:last:step``."""

    method: Literal[
        "wise", "slerp", "uniform_soup", "greedy_soup", "model_stock", "task_arithmetic", "ties", "dare", "fisher"
    ] = "wise"
    """``wise``: theta_alpha = (1 - alpha) theta_0 + alpha theta_1. docs/merging.md has them all."""

    models: tuple[str, ...] = ()
    """Further fine-tuned models: run directories, or anything that ``wiseft merge`` opens."""

    layers: dict[str, LayerAlpha] = Field(default_factory=dict)
    """By pattern of tensor names (``visual.transformer.resblocks.[0-5].*``); the first that matches counts."""

    lines: float | None = Field(default=None, ge=0, le=1)
    """LiNeS: what alpha is multiplied by in the shallowest layer, growing linearly to 1 in the deepest."""

    density: float | None = Field(default=None, gt=0, le=1)
    """The share of a task vector that ``ties`` (0.2 by default) and ``dare`` (0.1) keep."""

    seed: Seed = 0
    """Of what ``dare`` drops."""

    fisher: tuple[str, ...] = ()
    """For ``fisher``: the diagonal Fisher information of theta_0 and of each fine-tuned model, as tensors of the same
    names; of a DeepSpeed checkpoint Adam's second moment is taken."""

    dtype: Precision = "fp32"
    """Of the written weights. The arithmetic is fp32, rounded once."""

    max_shard_size: ByteSize | None = None
    """Weights are cut into files of at most this size (``5GB``). Left out: one file, which open_clip loads as it is."""

    allow_nonfinite: bool = False
    """Merge models that hold NaN or Inf instead of refusing them."""

    @model_validator(mode="after")
    def _settings_of_the_method(self) -> Self:
        for name, methods in (("density", ("ties", "dare")), ("fisher", ("fisher",))):
            if getattr(self, name) and self.method not in methods:
                raise ValueError(f"{name} is a setting of {' and '.join(methods)}, not of {self.method}")
        return self


def refuse_number_of_models(merge: MergeConfig, num_finetuned: int) -> None:
    """Refuse a method that merges another number of fine-tuned models, or has another number of Fisher informations.

    Raises:
        ValueError: saying what is right.
    """
    if num_finetuned > 1 and merge.method in SINGLE_MODEL_METHODS:
        raise ValueError(f"{merge.method} merges one fine-tuned model, not {num_finetuned}: choose uniform_soup")
    if num_finetuned == 1 and merge.method == "model_stock":
        raise ValueError("model_stock needs two fine-tuned models or more")
    if merge.method == "fisher" and len(merge.fisher) != 1 + num_finetuned:
        raise ValueError(f"fisher needs the Fisher information of {1 + num_finetuned} models, theta_0's first")


class EvaluateConfig(Section):
    """How ensembles are scored."""

    batch_size: PositiveInt = 256
    """Images a forward pass."""

    workers: NonNegativeInt = 2
    """Decoding processes of each reader."""

    preprocess: Literal["fast", "exact"] = "fast"
    """``fast``: simplejpeg and torch's antialiased resize. ``exact``: open_clip's own transform, pixel for pixel."""

    max_bad_samples: NonNegativeInt = 0
    """Samples of a dataset that may fail to decode before its evaluation stops. They count in no accuracy."""

    precision: Precision = "fp32"
    """Of the forward pass. Ensembles are interpolated in fp32 and rounded once."""

    cache_images: PositiveInt | None = None
    """Images kept on the device while every alpha is scored on them (224 px in fp32: 0.6 MB each). Left out: chosen
    from the memory that is free."""

    compile: bool = False
    """Compile the forward pass once for all alphas. Fused operations round otherwise: it makes cells of its own."""

    part_samples: PositiveInt = 8192
    """Consecutive samples that a reader scores and commits at a time: what is lost when it is killed."""

    job_images: PositiveInt = 20_000
    """Images that are worth a job of their own."""

    output_space: bool = False
    """Score the mixtures of both ends' logits beside those of their weights (arXiv 2109.01903, section 5)."""


class WandbConfig(Section):
    """Mirroring of ``events.jsonl`` to Weights & Biases. The key comes from the environment, never from here."""

    mode: Literal["online", "offline", "disabled"] | None = None
    """Left out: online where an API key is set, else offline."""

    project: str = "wiseft"
    """W&B project."""

    entity: str | None = None
    """W&B user or team."""

    alerts: bool = True
    """Whether W&B tells of a failed stage and of a finished run."""

    upload_model: bool = False
    """Whether the ensemble of the chosen alpha becomes a W&B artifact."""

    finish_seconds: PositiveFloat = 60.0
    """How long the end of a stage waits for W&B to take what it has not yet; `wiseft sync` sends the rest."""


class ReportConfig(Section):
    """The page of a run."""

    pictures: NonNegativeInt = 6
    """Of each dataset, how many pictures are shown whose prediction changed most; 0: the page has no pictures."""


class DistributedConfig(Section):
    """The process group of fine-tuning."""

    timeout_minutes: PositiveFloat = 30.0
    """A collective that takes longer ends the job."""


class RunConfig(Section):
    """Everything a run needs to know; written resolved to ``RUN/config.yaml``."""

    output: str
    """The run directory."""

    seed: Seed = 0
    """Seed of every source of randomness."""

    model: ModelConfig
    """The zero-shot model."""

    data: DataConfig
    """Shards and classes."""

    finetune: FinetuneConfig = FinetuneConfig()
    """From theta_0 to theta_1."""

    merge: MergeConfig = MergeConfig()
    """From theta_0 and theta_1 to the ensembles."""

    evaluate: EvaluateConfig = EvaluateConfig()
    """From ensembles to accuracies."""

    report: ReportConfig = ReportConfig()
    """From accuracies to a page."""

    wandb: WandbConfig = WandbConfig()
    """Tracking."""

    distributed: DistributedConfig = DistributedConfig()
    """Process group."""

    launch: LaunchConfig = LaunchConfig()
    """Executor and resources."""

    publish: Annotated[str, AfterValidator(storage.absolute)] | None = None
    """A folder in a store (``s3://bucket/runs/mine``) that gets a copy of each committed ensemble and of the report."""

    @model_validator(mode="after")
    def _enough_models(self) -> Self:
        refuse_number_of_models(self.merge, 1 + len(self.merge.models))
        return self

    @model_validator(mode="after")
    def _publish_can_be_written(self) -> Self:
        if self.publish is not None:
            storage.refuse_as_target(self.publish)
        return self

    @model_validator(mode="after")
    def _a_head_to_evaluate(self) -> Self:
        if self.finetune.recipe == "contrastive" and self.data.reference:
            raise ValueError(
                "data.reference needs a classification head, which finetune.recipe=contrastive does not train: "
                "leave it out here and fine-tune from this run's merge/alpha_1.00"
            )
        return self

    @model_validator(mode="after")
    def _labels_to_mix(self) -> Self:
        recipe = self.finetune.recipe
        if (self.data.augment.mixup or self.data.augment.cutmix) and recipe in ("contrastive", "flyp", "linear_head"):
            reason = "which learns from features" if recipe == "linear_head" else "which learns from texts"
            raise ValueError(
                f"data.augment.mixup and data.augment.cutmix blend pictures and class labels, and finetune.recipe is "
                f"{recipe}, {reason}: set both to 0"
            )
        return self

    @model_validator(mode="after")
    def _what_one_process_can_do(self) -> Self:
        choosing = ("merge",) if self.merge.method == "greedy_soup" else ()
        for stage in (*choosing, "report"):
            tasks = getattr(self.launch, stage).num_tasks
            if tasks > 1:
                reason = "a greedy soup is chosen by one" if stage == "merge" else "this stage runs in one a job"
                raise ValueError(f"launch.{stage} asks for {tasks} processes: {reason}")
        return self
