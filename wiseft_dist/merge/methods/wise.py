"""WiSE-FT: the straight line between two models."""

from __future__ import annotations

import torch
from torch import Tensor

from wiseft_dist.merge.methods.method import Method, Slices


class Wise(Method):
    """``(1 - alpha) theta_0 + alpha theta_1``.

    Source: Robust fine-tuning of zero-shot models (arXiv 2109.01903), equation 1.
    """

    name = "wise"
    keeps_equal = True

    def mix(self, slices: Slices, alpha: float, out: Tensor) -> None:
        """As :meth:`Method.mix`; alpha = 1 gives theta_1 bit for bit."""
        interpolate(slices.models[0], slices.models[1], alpha, out=out)


def interpolate(zero_shot: Tensor, finetuned: Tensor, alpha: float, *, out: Tensor) -> None:
    """Write ``(1 - alpha) * zero_shot + alpha * finetuned`` into ``out``, in fp32, rounded once to its dtype.

    The ends are copied bit for bit where the dtypes allow, and equal inputs stay equal to the bit: a multiple of
    the difference is taken off the nearer end. (``torch.lerp`` turns -0.0 into 0.0, and rounds 1 - alpha in fp32.)
    Integers and masks are never interpolated: between the ends they are the zero-shot model's.
    """
    if alpha == 0.0:
        out.copy_(zero_shot)
    elif alpha == 1.0:
        out.copy_(finetuned)
    elif not out.is_floating_point():
        out.copy_(zero_shot)
    elif alpha < 0.5:
        _move(zero_shot.float(), finetuned.float(), alpha, out)
    else:
        _move(finetuned.float(), zero_shot.float(), 1.0 - alpha, out)


def _move(near: Tensor, far: Tensor, weight: float, out: Tensor) -> None:
    """``near - weight * (near - far)``, without a temporary where ``out`` is fp32."""
    mixed = out if out.dtype == torch.float32 else torch.empty_like(near)
    torch.sub(near, far, out=mixed)
    torch.sub(near, mixed, alpha=weight, out=mixed)
    if mixed is not out:
        out.copy_(mixed)
