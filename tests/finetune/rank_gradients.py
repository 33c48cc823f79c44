"""What each of two ranks does in the gradient tests; spawned processes import it by name."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.finetune.recipes import make_recipe
from wiseft_dist.finetune.recipes.prompts import prompt_tokens

PAIRS = 6


def global_batch(zero_shot: Path) -> tuple[Tensor, Tensor]:
    """Pictures in fp64 and the prompts of their classes, some of which are equal."""
    images = torch.randn(PAIRS, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = [torch.from_numpy(prompt_tokens(zero_shot, pair % 3, pair % 2)) for pair in (0, 1, 2, 3, 4, 0)]
    return images, torch.stack(tokens)


def on_rank(rank: int, world_size: int, folder: str, recipes: tuple[str, ...]) -> None:
    """Back-propagate this rank's share of the batch, average the gradients as the engine does, write them down."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    zero_shot = Path(folder) / "zero_shot"
    for recipe_name in recipes:
        recipe = make_recipe(FinetuneConfig(recipe=recipe_name))
        module = recipe.module(zero_shot).double()
        images, texts = (part[rank::world_size] for part in global_batch(zero_shot))
        loss = recipe.loss(module, images, texts)
        loss.backward()
        found = {name: parameter.grad for name, parameter in module.named_parameters()} | {"loss": loss.detach()}
        for value in found.values():
            dist.all_reduce(value)
            value /= world_size
        torch.save(found, Path(folder) / f"{recipe_name}_{rank}.pt")
    dist.destroy_process_group()
