"""Models in memory, ready to be scored on any dataset: with the head they bring, or with one of its prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from wiseft_dist.data.vocabulary import Vocabulary
from wiseft_dist.errors import UserError
from wiseft_dist.evaluate.standalone.model_sources import OpenedModels
from wiseft_dist.merge.ensemble import Ensemble, load_weights
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.models.classifier import Classifier, Head
from wiseft_dist.models.clip import Clip, create_unweighted
from wiseft_dist.models.files import HEAD_PREFIX
from wiseft_dist.models.zero_shot import zero_shot_head
from wiseft_dist.weights.pairing import same_shape


@dataclass(frozen=True)
class _Loaded:
    """What an ensemble is made of, by the names of the module that it is set in."""

    zero_shot: dict[str, Tensor]
    finetuned: list[dict[str, Tensor]]
    fisher: list[dict[str, Tensor]]


def load_models(opened: OpenedModels, *, device: torch.device, dtype: torch.dtype) -> HeadedModels | ZeroShotModels:
    """Load models onto a device; their image towers compute in ``dtype``.

    Raises:
        UserError: if a tensor is missing, or is of another shape than the architecture's.
    """
    return (HeadedModels if opened.has_head else ZeroShotModels)(opened, device=device, dtype=dtype)


class HeadedModels:
    """Models that bring a classification head: one ensemble for every dataset."""

    def __init__(self, opened: OpenedModels, *, device: torch.device, dtype: torch.dtype) -> None:
        num_classes, width = opened.models.records[f"{HEAD_PREFIX}weight"].shape
        module = Classifier(_create(opened, device).visual, Head(width, num_classes))
        self._ensemble = _ensemble(opened, module.to(device=device, dtype=dtype), device)

    def for_classes(self, vocabulary: Vocabulary | None, alphas: Collection[float]) -> Ensemble:
        """The ensemble; whatever the dataset, its head stays the same."""
        return self._ensemble


class ZeroShotModels:
    """Models without a head: each theta_alpha classifies with the prompts that its own text tower encodes."""

    def __init__(self, opened: OpenedModels, *, device: torch.device, dtype: torch.dtype) -> None:
        self._device, self._config = device, opened.config
        self._clip: Any = _create(opened, device)
        self._texts = _ensemble(opened, _TextSide(self._clip), device)
        self._images = _ensemble(opened, _ImageSide(self._clip).to(dtype), device)

    def for_classes(self, vocabulary: Vocabulary | None, alphas: Collection[float]) -> ZeroShotEnsemble:
        """The ensemble for a dataset's classes.

        Args:
            vocabulary: Class names and prompts.
            alphas: Of the members. Heads are built once where the text tower does not depend on alpha.
        """
        assert vocabulary is not None  # `classify` has refused a dataset without class names
        heads = {}
        for alpha in sorted(alphas) if self._texts.varying else [0.0]:
            self._texts.set_alpha(alpha)
            clip = Clip(self._clip, self._config)
            head = zero_shot_head(clip, vocabulary.classnames, vocabulary.templates, device=self._device)
            heads[alpha] = head.weight.detach()
        return ZeroShotEnsemble(self._clip.visual, self._images, heads)


class ZeroShotEnsemble:
    """A classifier whose image tower and head are set to those of an alpha."""

    def __init__(self, visual: nn.Module, images: Ensemble, heads: Mapping[float, Tensor]) -> None:
        self._images, self._heads = images, heads
        first = next(iter(heads.values()))
        head = Head(first.shape[1], first.shape[0]).to(first.device).requires_grad_(False)
        head.weight.copy_(first)
        head.bias.zero_()
        self.module = Classifier(visual, head)

    @property
    def varying(self) -> frozenset[str]:
        """The names of the module's tensors that depend on alpha."""
        return frozenset(self._images.varying) | ({f"{HEAD_PREFIX}weight"} if len(self._heads) > 1 else set())

    def set_alpha(self, alpha: float) -> None:
        """Make the module theta_alpha; alpha is one of those that heads were built for."""
        self._images.set_alpha(alpha)
        if len(self._heads) > 1:
            self.module.head.weight.copy_(self._heads[alpha])


class _ImageSide(nn.Module):
    """The image tower under its name in the whole model."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.visual = clip.visual


class _TextSide(nn.Module):
    """Everything but the image tower, under the names of the whole model and in the same memory."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        for name, child in clip.named_children():
            if name != "visual":
                self.add_module(name, child)
        for name, parameter in clip.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in clip.named_buffers(recurse=False):
            self.register_buffer(name, buffer, persistent=name in clip.state_dict())


def _create(opened: OpenedModels, device: torch.device) -> Any:
    return create_unweighted(opened.config).to(device).eval().requires_grad_(False)


def _ensemble(opened: OpenedModels, module: nn.Module, device: torch.device) -> Ensemble:
    method = make_method(opened.merge)
    loaded = _load(opened, module, device, others=method.num_passes > 0)
    return Ensemble(module, loaded.zero_shot, loaded.finetuned, method=method, fisher=loaded.fisher)


def _load(opened: OpenedModels, module: nn.Module, device: torch.device, *, others: bool = False) -> _Loaded:
    """Every model's tensors. A plain model is its own theta_0 and theta_1: nothing of it depends on alpha."""
    models = opened.models
    _refuse_misfit(opened, module)
    # A method's statistics are those of the whole model, of which the module is only a part.
    names = [name for name in models.records if models.is_mixed(name)] if others else []
    load = partial(load_weights, module=module, device=device, others=names)
    zero_shot = load(models.zero_shot)
    finetuned = [zero_shot if each is models.zero_shot else load(each, carried=zero_shot) for each in models.finetuned]
    return _Loaded(zero_shot, finetuned, [load(each, carried=zero_shot) for each in models.fisher])


def _refuse_misfit(opened: OpenedModels, module: nn.Module) -> None:
    records, source = opened.models.records, opened.models.zero_shot.source
    for name, target in module.state_dict().items():
        if name not in records:
            raise UserError(f"{source}: has no tensor {name}, which its architecture asks for; check --architecture.")
        if not same_shape(records[name].shape, tuple(target.shape)):
            raise UserError(
                f"{source}: {name} has shape {list(records[name].shape)}, its architecture asks for "
                f"{list(target.shape)}; check --architecture."
            )
