"""The configuration: its sections, how a YAML file becomes them, and the arithmetic of the batch."""

from wiseft_dist.config.batch import batch_arithmetic
from wiseft_dist.config.checking import parse_section
from wiseft_dist.config.data import AugmentConfig, DataConfig
from wiseft_dist.config.dataset import DatasetSpec, Metric
from wiseft_dist.config.finetune import (
    CheckpointConfig,
    EmaConfig,
    FinetuneConfig,
    HeadConfig,
    L2SpConfig,
    OptimizerConfig,
    ScheduleConfig,
    ValidationConfig,
)
from wiseft_dist.config.launch import LaunchConfig, PreflightConfig, Resources
from wiseft_dist.config.reading import dump_config, load_config
from wiseft_dist.config.section import Precision, Section
from wiseft_dist.config.sections import (
    DistributedConfig,
    EvaluateConfig,
    MergeConfig,
    ModelConfig,
    ReportConfig,
    RunConfig,
    WandbConfig,
    refuse_number_of_models,
)
from wiseft_dist.config.trees import load_tree

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "DatasetSpec",
    "DistributedConfig",
    "EmaConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "HeadConfig",
    "L2SpConfig",
    "LaunchConfig",
    "MergeConfig",
    "Metric",
    "ModelConfig",
    "OptimizerConfig",
    "Precision",
    "PreflightConfig",
    "ReportConfig",
    "Resources",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "ValidationConfig",
    "WandbConfig",
    "batch_arithmetic",
    "dump_config",
    "load_config",
    "load_tree",
    "parse_section",
    "refuse_number_of_models",
]
