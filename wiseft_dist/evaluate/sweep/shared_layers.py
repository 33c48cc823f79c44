"""A classifier cut in two: the layers in front that no alpha changes, whose output serves every alpha, and the rest.

A model that was fine-tuned with a frozen stem shares the stem; with a linear head only, the whole encoder. Cutting
changes no bit: the same modules run in the same order.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from wiseft_dist.errors import UserError
from wiseft_dist.models.classifier import Classifier
from wiseft_dist.models.without_wandb import open_clip

HOST_IMAGES_PER_THREAD = 16
"""Images that a CPU takes through the layers at a time. The activations of more are fresh memory at every step, which
costs a small model a quarter of its time."""


class Adjustable(Protocol):
    """A module that becomes theta_alpha when told to."""

    @property
    def module(self) -> nn.Module:
        """What scores images."""

    @property
    def varying(self) -> Collection[str]:
        """The names of the module's tensors that depend on alpha."""

    def set_alpha(self, alpha: float) -> None:
        """Make the module theta_alpha."""


@dataclass(frozen=True)
class PlainModel:
    """A model that is scored as it is: one member, whatever its alpha is called."""

    module: nn.Module
    varying: Collection[str] = ()

    def set_alpha(self, alpha: float) -> None:
        """Nothing depends on alpha."""


class Layers:
    """The layers of an ensemble's module, cut behind the last one that no alpha changes.

    Args:
        ensemble: Says which tensors depend on alpha.
        compile_batch_size: Compile both halves for batches of this size, once for all alphas; smaller batches are
            filled up to it. None: run them as they are.
        backend: Of ``torch.compile``.

    Raises:
        UserError: if they are to be compiled and there is no compiler.
    """

    def __init__(
        self, ensemble: Adjustable, *, compile_batch_size: int | None = None, backend: str = "inductor"
    ) -> None:
        stages = _stages(ensemble.module)
        self.num_shared = _num_shared(stages, ensemble.varying)
        modules = [stage.module for stage in stages]
        shared = nn.Sequential(*modules[: self.num_shared])
        rest = _Rest(modules[self.num_shared :], has_features=isinstance(ensemble.module, Classifier))
        self._batch_size, self._piece = compile_batch_size, None
        device = next(ensemble.module.parameters()).device
        if compile_batch_size is not None:
            if backend == "inductor":
                _require_compiler(device)
            shared, rest = (cast(Any, torch.compile(half, dynamic=False, backend=backend)) for half in (shared, rest))
        elif device.type == "cpu":
            self._piece = HOST_IMAGES_PER_THREAD * torch.get_num_threads()
        self._shared: Callable[[Tensor], Tensor] = shared
        self._rest: Callable[[Tensor], tuple[Tensor, Tensor | None]] = rest

    def shared(self, images: Tensor) -> Tensor:
        """What every alpha computes alike, of normalised images ``[batch, 3, height, width]``."""
        if self._batch_size is not None:
            images = _filled_up(images, self._batch_size)
        if not self.num_shared:
            return images
        return torch.cat([self._shared(piece) for piece in self._pieces(images)])

    def rest(self, activations: Tensor, count: int) -> tuple[Tensor, Tensor | None]:
        """What depends on alpha, of the first ``count`` images behind :meth:`shared`.

        Returns:
            Logits fp32 ``[count, classes]``, and the normalised features ``[count, embedding]`` of a classifier.
        """
        logits, features = zip(*map(self._rest, self._pieces(activations)), strict=True)
        known = [each for each in features if each is not None]
        return torch.cat(logits)[:count].float(), torch.cat(known)[:count] if known else None

    def _pieces(self, batch: Tensor) -> Sequence[Tensor]:
        if self._piece is None or len(batch) <= self._piece:
            return [batch]
        sizes = [self._piece] * (len(batch) // self._piece)
        if (left := len(batch) % self._piece) == 1:
            sizes[-1] += 1  # a single image goes through other kernels, whose last bit differs
        elif left:
            sizes.append(left)
        return torch.split(batch, sizes)


@dataclass(frozen=True)
class _Stage:
    """A stretch of the forward pass."""

    module: nn.Module
    """From the output of the stage before to that of this one."""
    prefixes: tuple[str, ...]
    """What the names of its tensors begin with."""


class _Rest(nn.Module):
    def __init__(self, stages: Sequence[nn.Module], *, has_features: bool) -> None:
        super().__init__()
        self.front, self.head = nn.Sequential(*stages[:-1]), stages[-1]
        self.has_features = has_features

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        features = self.front(x)
        return self.head(features), features if self.has_features else None


class _Features(nn.Module):
    """The whole encoder."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier.features(images)


class _Stem(nn.Module):
    """Everything in front of the first block of an open_clip ``VisionTransformer``."""

    def __init__(self, visual: open_clip.transformer.VisionTransformer) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.visual._embeds(images))


class _Pooling(nn.Module):
    """Everything behind its last block, and the normalisation."""

    def __init__(self, visual: open_clip.transformer.VisionTransformer) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, tokens: Tensor) -> Tensor:
        pooled, _ = self.visual._pool(tokens)
        if self.visual.proj is not None:
            pooled = pooled @ self.visual.proj
        return functional.normalize(pooled, dim=-1)


def _stages(module: nn.Module) -> list[_Stage]:
    """The forward pass of a module, as finely as it is known."""
    if type(module) is not Classifier or _has_hooks(module):
        return [_Stage(module, ("",))]
    head = _Stage(module.head, ("head.",))
    visual = module.visual
    if not isinstance(visual, open_clip.transformer.VisionTransformer) or not _is_plain(visual):
        return [_Stage(_Features(module), ("visual.",)), head]
    names = [f"visual.transformer.resblocks.{index}." for index in range(len(visual.transformer.resblocks))]
    stem = [name for name, _ in visual.named_children() if name in ("conv1", "patch_dropout", "ln_pre")]
    stem_prefixes = *(f"visual.{name}." for name in stem), "visual.class_embedding", "visual.positional_embedding"
    blocks = [_Stage(block, (name,)) for block, name in zip(visual.transformer.resblocks, names, strict=True)]
    return [_Stage(_Stem(visual), stem_prefixes), *blocks, _Stage(_Pooling(visual), ("visual.",)), head]


def _is_plain(visual: open_clip.transformer.VisionTransformer) -> bool:
    """Whether the tower's forward pass is the one that is known here, of open_clip 3.3."""
    transformer = visual.transformer
    return (
        type(visual) is open_clip.transformer.VisionTransformer
        and type(transformer) is open_clip.transformer.Transformer
        and transformer.batch_first
        and not transformer.grad_checkpointing
        and not visual.output_tokens
        and not visual.training
        and not _has_hooks(visual)
        and not _has_hooks(transformer)
    )


def _has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward pass."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _num_shared(stages: Sequence[_Stage], varying: Collection[str]) -> int:
    """How many stages no alpha changes; the last is never shared, so that features are always at hand.

    A tensor belongs to the first stage with a prefix that fits.
    """
    firsts = [next(index for index, stage in enumerate(stages) if name.startswith(stage.prefixes)) for name in varying]
    return min([len(stages) - 1, *firsts])


def _filled_up(images: Tensor, size: int) -> Tensor:
    """The images, and zeros behind them: shape and strides are the same for every batch."""
    if len(images) == size:
        return images.contiguous()
    filled = images.new_zeros(size, *images.shape[1:])
    filled[: len(images)] = images
    return filled


def _require_compiler(device: torch.device) -> None:
    """torch.compile fails late and at length without one."""
    if device.type == "cpu":
        names = [os.environ.get("CXX", "g++")]
    else:
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
    if not any(shutil.which(name.split()[0]) for name in names):
        raise UserError(
            f"evaluate.compile: torch.compile needs a compiler and {names[0]} is not there: install it, name another "
            f"with {'CXX' if device.type == 'cpu' else 'CC'}, or set evaluate.compile to false."
        )
