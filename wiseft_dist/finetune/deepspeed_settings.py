"""What DeepSpeed and torch are told: the engine's settings in their words."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

import torch
from torch import nn

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.errors import UserError

BLOCK_NAME = re.compile(r"(?:resblocks|blocks)\.\d+$")
"""Blocks of a transformer's tower, in open_clip and timm: alike, so that they share one compiled code."""
MIN_BUCKET, MAX_BUCKET = 10**6, 5 * 10**7
"""Elements that are sent, or fetched, at a time: fewer wait for the network, more take memory."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare_module(module: nn.Module, config: FinetuneConfig) -> None:
    """Activation checkpointing and compilation, set on the module in place: parameters keep their names."""
    if config.activation_checkpointing:
        towers: list[Any] = [each for each in module.modules() if hasattr(each, "set_grad_checkpointing")]
        for tower in towers:
            tower.set_grad_checkpointing(True)
        if not any(getattr(each, "grad_checkpointing", False) for each in module.modules()):
            raise UserError(
                "finetune.activation_checkpointing: this model has no tower that can do it; set it to false."
            )
    if config.compile:
        blocks = [block for name, block in module.named_modules() if BLOCK_NAME.search(name)]
        if not blocks:
            raise UserError("finetune.compile: this model has no transformer blocks to compile; set it to false.")
        for block in blocks:
            block.compile(dynamic=False)


def stage_of(config: FinetuneConfig, accumulation_steps: int) -> int:
    """The stage that DeepSpeed is told: its stage 1 adds up bf16 gradients in bf16, its stage 2 does so in fp32."""
    adds_up_in_bf16 = config.precision == "bf16" and accumulation_steps > 1 and not config.offload_optimizer
    return 2 if config.zero_stage == 1 and adds_up_in_bf16 else config.zero_stage


def deepspeed_config(
    config: FinetuneConfig, device: torch.device, micro_batch_size: int, accumulation_steps: int, *, num_parameters: int
) -> dict[str, Any]:
    """DeepSpeed's configuration, as far as it is not its default."""
    stage, low = stage_of(config, accumulation_steps), config.precision != "fp32"
    zero: dict[str, Any] = {"stage": stage}
    if stage:
        # DeepSpeed's own sizes are for language models: 2 GB of buffer, and at stage 3 no CLIP would ever give a
        # fetched parameter back.
        bucket = min(MAX_BUCKET, max(MIN_BUCKET, num_parameters // 16 if stage == 3 else num_parameters))
        zero["reduce_bucket_size"] = bucket
    if stage == 3:
        zero |= {"stage3_prefetch_bucket_size": bucket}
        zero |= {"stage3_max_live_parameters": 2 * bucket, "stage3_max_reuse_distance": 2 * bucket}
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    return {
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": config.gradient_clipping if stage else 0.0,  # at stage 0 the optimizer clips
        "zero_optimization": zero,
        "bf16": {"enabled": config.precision == "bf16" and stage > 0, "check_grad_overflow": True},
        "fp16": {"enabled": config.precision == "fp16" and stage > 0},
        "torch_autocast": {
            "enabled": low and stage == 0,
            "dtype": str(DTYPES[config.precision]).removeprefix("torch."),
        },
        "data_types": {"grad_accum_dtype": "fp32" if low and stage and accumulation_steps > 1 else None},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # torch's fused AdamW is as good on a host, and needs no compiler
        "steps_per_print": 2**31,
    }


def import_deepspeed(device: torch.device) -> Any:
    """The package, set up for this device before it looks around by itself."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":
        # The shared-memory collectives need a compiler and half a minute at first use, and assume that all ranks
        # share a host; gloo needs neither.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
