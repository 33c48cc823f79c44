"""Memory of a rank in training, in bytes a parameter, against the formula of the ZeRO paper."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.finetune_cases import Case, write_architecture
from benchmarks.finetune_ours import train_ours

NARROW, WIDE = 384, 1024
"""Widths of two models that differ in nothing else."""

FOR_THE_UPDATE = 16
"""Bytes a parameter in fp32: master and AdamW's two moments (K = 12 in the paper), and DeepSpeed's gradient of them."""


def measure_memory(case: Case) -> dict[str, float]:
    """Peak memory a rank for each ZeRO stage: what another parameter costs, from two models of different width.

    The difference leaves out what the interpreter and the libraries take.
    """
    figures = {}
    for stage in (1, 2, 3):
        peaks = [max(_train(case, width, stage)) for width in (NARROW, WIDE)]
        measured = 1e9 * (peaks[1] - peaks[0]) / (_num_parameters(WIDE) - _num_parameters(NARROW))
        expected = bytes_a_parameter(stage, case.processes, weight=4 if case.precision == "fp32" else 2)
        figures[f"zero_{stage}_bytes_a_parameter"] = round(measured, 2)
        figures[f"zero_{stage}_memory_vs_formula"] = round(measured / expected, 3)
    return figures


def bytes_a_parameter(stage: int, ranks: int, *, weight: int) -> float:
    """Parameters, gradients and optimizer state of a rank (arXiv 1910.02054, section 5 and figure 1).

    Args:
        stage: 1 shares out the optimizer state, 2 the gradients too, 3 the parameters too.
        ranks: Processes that share.
        weight: Bytes of a parameter, and of a gradient, in the forward and backward pass.
    """
    parameters = weight / ranks if stage >= 3 else weight
    gradients = weight / ranks if stage >= 2 else weight
    return parameters + gradients + FOR_THE_UPDATE / ranks


def _train(case: Case, width: int, stage: int) -> list[float]:
    architecture = write_architecture(case.folder / f"width_{width}.json", _architecture(width))
    return train_ours(replace(case, architecture=architecture, zero_stage=stage)).readings("memory_gb")


def _architecture(width: int) -> dict[str, Any]:
    """Nearly all parameters in the blocks of the visual tower, and few activations."""
    return {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 8, "width": width, "head_width": 64, "patch_size": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1},
    }


def _num_parameters(width: int) -> int:
    import torch
    from open_clip import CLIP

    config = _architecture(width)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CLIP(**config).parameters())
