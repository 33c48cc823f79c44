"""The configuration: its sections, how a YAML file becomes them, and the arithmetic of the batch."""

from wiseft_dist.config.batch import batch_arithmetic
from wiseft_dist.config.data import AugmentConfig, DataConfig
from wiseft_dist.config.reading import dump_config, load_config, parse_section
from wiseft_dist.config.section import Section
from wiseft_dist.config.sections import (
    CheckpointConfig,
    DistributedConfig,
    EvaluateConfig,
    FinetuneConfig,
    LaunchConfig,
    MergeConfig,
    ModelConfig,
    OptimizerConfig,
    Precision,
    Resources,
    RunConfig,
    ScheduleConfig,
    WandbConfig,
)

__all__ = [
    "AugmentConfig",
    "CheckpointConfig",
    "DataConfig",
    "DistributedConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "LaunchConfig",
    "MergeConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Precision",
    "Resources",
    "RunConfig",
    "ScheduleConfig",
    "Section",
    "WandbConfig",
    "batch_arithmetic",
    "dump_config",
    "load_config",
    "parse_section",
]
