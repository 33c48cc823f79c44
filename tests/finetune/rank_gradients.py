"""What each of two ranks does in the gradient test; spawned processes import it by name."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from wiseft_dist.config import FinetuneConfig
from wiseft_dist.finetune.recipes import make_recipe


class Towers(nn.Module):
    """Two towers and a scale, in fp64: what the contrastive recipe asks of a CLIP model and no more."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(12, 5).double(), nn.Linear(4, 5).double()
        self.logit_scale = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = [nn.functional.normalize(x, dim=-1) for x in (self.image(images), self.text(texts))]
        return features[0], features[1], self.logit_scale.exp()


def global_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(6, 12, generator=generator, dtype=torch.float64),
        torch.randn(6, 4, generator=generator, dtype=torch.float64),
    )


def on_rank(rank: int, world_size: int, folder: str) -> None:
    """Back-propagate this rank's share of the batch, average the gradients as the engine does, write them down."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world_size)
    module = Towers()
    images, texts = (part[rank::world_size] for part in global_batch())
    loss = make_recipe(FinetuneConfig(recipe="contrastive")).loss(module, images, texts)
    loss.backward()
    for parameter in module.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= world_size
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    torch.save(gradients | {"loss": loss.detach()}, Path(folder) / f"rank_{rank}.pt")
    dist.destroy_process_group()
