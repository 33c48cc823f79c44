"""The work that a sample costs, and the most work that a device can do: together, model FLOPs utilisation.

MFU counts what the model needs, not what is done: activations that are computed again are work of the method (PaLM,
arXiv 2204.02311, appendix B). A multiplication with its addition counts as two operations.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from wiseft_dist.config import Precision

DEVICES_FILE = Path(__file__).with_name("devices.yaml")


def training_flops(module: nn.Module, *inputs: Tensor) -> float | None:
    """Operations of one forward and backward pass: matrix products, convolutions and attention.

    Both passes run on the meta device, on a copy that has shapes and no memory: what is frozen costs its forward pass
    alone, and the gradient of the input is nobody's work. Call it before the engine shards or compiles the module.

    Args:
        module: What is trained, with whole parameters; it is left as it is.
        inputs: Stand-ins for what its forward gets, one sample each: ``torch.empty(1, 3, 224, 224, device="meta")``.

    Returns:
        Operations a sample, or nothing for a module that cannot run without memory.
    """
    try:
        module = _without_memory(module)
        # The plain products of attention: the fused kernels' backward pass computes the scores a second time.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            trained = [output for output in _tensors(module(*inputs)) if output.requires_grad]
            torch.autograd.backward(trained, [torch.empty_like(output) for output in trained])
    except Exception:  # a module may do whatever it likes with values, which meta tensors have not
        return None
    return float(counter.get_total_flops()) or None


def _without_memory(module: nn.Module) -> nn.Module:
    """A copy on the meta device, in training mode, that keeps its activations."""
    shapes: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    for parameter in module.parameters():
        shapes[id(parameter)] = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
    duplicate = copy.deepcopy(module, shapes)  # what it is told to have copied already, it takes as it is
    for part in duplicate.modules():
        if hasattr(part, "grad_checkpointing"):  # open_clip's and timm's name for it
            part.grad_checkpointing = False  # type: ignore[assignment]
    return duplicate.train()


def _tensors(outputs: Any) -> Iterable[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, dict) else outputs
    return [value for value in values if isinstance(value, Tensor)]


def peak_flops(device: torch.device, precision: Precision, override_tflops: float | None = None) -> float | None:
    """The most operations a second that a device can do in a precision, by its name.

    Args:
        device: Where this process computes.
        precision: Of the forward and backward pass.
        override_tflops: What the user says it is, in 10^12 a second.

    Returns:
        Operations a second, or nothing where it is not known: of a CPU, or a device that ``devices.yaml`` lacks.
    """
    if override_tflops is not None:
        return override_tflops * 1e12
    return named_peak(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def named_peak(name: str, precision: Precision) -> float | None:
    """The peak of the device that the driver calls ``name``, in operations a second."""
    short = re.sub(r"^(NVIDIA |Tesla )+", "", name)
    for entry in yaml.safe_load(DEVICES_FILE.read_text()):
        if re.fullmatch(entry["name"], short) and precision in entry:
            return float(entry[precision]) * 1e12
    return None
