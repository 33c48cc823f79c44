"""The physical limit: forward, backward and a fused AdamW step of the same module, on tensors in memory.

python -m benchmarks.finetune_limit ZERO_SHOT CASE
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks.finetune_cases import Case, run_ranks


def train_bare(case: Case, zero_shot: Path) -> list[float]:
    """Train the module of ``zero_shot`` in one process on one batch.

    Returns:
        Samples/s of each reading but that of the start.
    """
    settings = json.dumps(asdict(case) | {"folder": str(case.folder)})
    seconds = json.loads(run_ranks("benchmarks.finetune_limit", [str(zero_shot), settings], case).splitlines()[-1])
    return [case.global_batch_size * case.window / of_a_window for of_a_window in seconds[1:]]


def main(zero_shot: str, settings: str) -> None:
    """Print the seconds of each window of steps, as JSON."""
    import torch

    from wiseft_dist.config import FinetuneConfig
    from wiseft_dist.data.batch import stack_targets
    from wiseft_dist.finetune.recipes import make_recipe
    from wiseft_dist.models.clip import preprocess_of, read_config, tokenizer_of
    from wiseft_dist.models.short_texts import without_padding

    case, folder = Case(**json.loads(settings)), Path(zero_shot)
    device, config = torch.device(case.device), read_config(folder)
    half = case.precision == "bf16"
    recipe = make_recipe(FinetuneConfig(recipe="contrastive"))
    module = recipe.module(folder).to(device).train()
    if case.compile:
        module.compile(dynamic=False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    size = preprocess_of(config).size
    images = torch.randn(case.global_batch_size, 3, size, size, device=device)
    captions = [f"a photo of a number {index}." for index in range(case.global_batch_size)]
    rows = tokenizer_of(config)(captions).numpy()
    tokens = stack_targets([without_padding(row) for row in rows]).to(device)
    seconds = []
    for _ in range(case.windows):
        started = time.perf_counter()
        for _ in range(case.window):
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss = recipe.loss(module, images, tokens)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
        loss.item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
