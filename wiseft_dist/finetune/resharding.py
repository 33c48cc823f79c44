"""Going on with another number of ranks, or at another ZeRO stage.

Each rank reads of the old shards just the elements that it now holds, by position and without unpickling, and for any
optimizer. (DeepSpeed's own conversion, ``ds_to_universal``, writes a second copy of the whole state first, and knows no
state but Adam's two moments.)
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from wiseft_dist.finetune.fragments import Fragment
from wiseft_dist.weights.sources import open_weights
from wiseft_dist.weights.zero import open_zero_states


@torch.no_grad()
def load_resharded(
    folder: Path,
    fragments: Sequence[Fragment],
    flats: Sequence[Tensor],
    module: nn.Module,
    *,
    groups: Sequence[Sequence[str]],
) -> None:
    """Fill this rank's masters and optimizer state, and the module's buffers, from shards that others have written.

    Args:
        folder: DeepSpeed's files of one saved step.
        fragments: Where this rank's elements go.
        flats: All vectors that its optimizer updates.
        module: Whose buffers are loaded.
        groups: Names of the parameters in each of the saving optimizer's groups.
    """
    states = open_zero_states(folder, groups=groups)
    state_of = fragments[0].optimizer.state
    with ExitStack() as stack:
        tensors = {key: stack.enter_context(weights) for key, weights in states.tensors.items()}
        masters = tensors.pop("fp32")
        for flat in flats:
            state_of[flat] |= {key: torch.zeros_like(flat) for key in tensors}
            if states.step is not None:
                state_of[flat]["step"] = torch.tensor(float(states.step), device=flat.device)
        for fragment in fragments:
            end = fragment.start + fragment.numel
            fragment.master.copy_(masters.read(fragment.name, fragment.start, end))
            for key, view in fragment.state.items():
                view.copy_(tensors[key].read(fragment.name, fragment.start, end))
        saved = stack.enter_context(open_weights(folder))
        for name, buffer in module.named_buffers():
            if name in saved:
                buffer.copy_(saved.tensor(name))
