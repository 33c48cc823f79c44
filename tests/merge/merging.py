"""Small models and what merging them gives, for the tests of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from wiseft_dist.config import MergeConfig
from wiseft_dist.merge.methods.choice import make_method
from wiseft_dist.merge.methods.method import Block, Method, Slices, take_statistics

Model = Mapping[str, Tensor]

METHODS: dict[str, Callable[[], Method]] = {
    **{
        name: lambda name=name: make_method(MergeConfig(method=name))
        for name in ("wise", "slerp", "uniform_soup", "greedy_soup", "model_stock", "task_arithmetic")
    },
    "ties": lambda: make_method(MergeConfig(method="ties", density=0.3)),
    "dare": lambda: make_method(MergeConfig(method="dare", density=0.4, seed=5)),
    "fisher": lambda: make_method(MergeConfig(method="fisher", fisher=("a", "b", "c"))),
    "layers": lambda: make_method(MergeConfig(method="uniform_soup", layers={"visual.conv1.*": {"scale": 0.5}})),
    "lines": lambda: make_method(MergeConfig(method="slerp", lines=0.25)),
}
SINGLE = ("wise", "slerp", "lines")

SHAPES = {
    "visual.conv1.weight": (7, 5),
    "visual.transformer.resblocks.0.bias": (64,),
    "visual.transformer.resblocks.1.weight": (13, 11),
    "visual.proj": (3,),
    "logit_scale": (),
}


def number_of_models(case: str) -> int:
    """Fine-tuned models that a method of ``METHODS`` is tried with."""
    return 1 if case in SINGLE else 3 if case != "fisher" else 2


def zero_shot(seed: int = 0, shapes: Mapping[str, Sequence[int]] = SHAPES) -> dict[str, Tensor]:
    """Numbers of both signs over many orders of magnitude, signed zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    model = {
        name: torch.randn(shape, generator=generator) * torch.exp(2 * torch.randn(shape, generator=generator))
        for name, shape in shapes.items()
    }
    for value in model.values():
        value.view(-1)[1:2] = -0.0
    return model


def finetuned(base: Model, seed: int) -> dict[str, Tensor]:
    """A model near another: some elements are the same, the others moved by a tenth or so."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return {
        name: value
        + 0.1 * torch.randn(value.shape, generator=generator) * (torch.rand(value.shape, generator=generator) < 0.8)
        for name, value in base.items()
    }


def several(num_finetuned: int, seed: int = 0, shapes: Mapping[str, Sequence[int]] = SHAPES) -> list[dict[str, Tensor]]:
    """theta_0 and some fine-tuned models."""
    base = zero_shot(seed, shapes)
    return [base, *(finetuned(base, 10 * seed + index) for index in range(num_finetuned))]


def information(models: Sequence[Model]) -> list[dict[str, Tensor]]:
    """Fisher information of each model: positive, with some zeros."""
    return [
        {name: value.roll(3 + index).square().clamp(max=1e6) * (value.roll(5) > -0.5) for name, value in model.items()}
        for index, model in enumerate(models)
    ]


def slices_of(name: str, models: Sequence[Model], fisher: Sequence[Model] = ()) -> Slices:
    """A whole tensor of every model."""
    return Slices(name, 0, [model[name].reshape(-1) for model in models], [model[name].reshape(-1) for model in fisher])


def learn(method: Method, models: Sequence[Model], fisher: Sequence[Model] = ()) -> Method:
    """The method after its statistics."""

    def read(block: Block) -> Slices:
        return slices_of(block.name, models, fisher).piece(block.start, block.stop)

    take_statistics(method, {name: value.numel() for name, value in models[0].items()}, read)
    return method


def merged(
    method: Method,
    models: Sequence[Model],
    alpha: float,
    *,
    fisher: Sequence[Model] = (),
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """theta_alpha of a method that has not begun."""
    return mixed(learn(method, models, fisher), models, alpha, fisher=fisher, dtype=dtype)


def mixed(
    method: Method,
    models: Sequence[Model],
    alpha: float,
    *,
    fisher: Sequence[Model] = (),
    dtype: torch.dtype = torch.float32,
    cuts: Sequence[int] = (),
    prepared: bool = False,
) -> dict[str, Tensor]:
    """theta_alpha of a method that has its statistics, each tensor cut at some places."""
    ensemble = {}
    for name, value in models[0].items():
        whole, out = slices_of(name, models, fisher), torch.full((value.numel(),), 7.0, dtype=dtype)
        places = [0, *sorted(cut for cut in cuts if 0 < cut < value.numel()), value.numel()]
        for start, stop in pairwise(places):
            piece = whole.piece(start, stop)
            method.mix(method.prepare(piece) if prepared else piece, alpha, out[start:stop])
        ensemble[name] = out.reshape(value.shape)
    return ensemble
