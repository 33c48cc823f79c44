"""The diagonal Fisher information of a model: tensors of the same names, or Adam's second moment in its place."""

from __future__ import annotations

import json
from pathlib import Path

from wiseft_dist.commits import COMMIT_FILE
from wiseft_dist.errors import UserError
from wiseft_dist.weights.places import find_file, open_folder, read_text
from wiseft_dist.weights.records import Weights
from wiseft_dist.weights.sources import open_weights
from wiseft_dist.weights.zero import open_zero_states
from wiseft_dist.weights.zero_files import is_zero_checkpoint, tagged_folder

SECOND_MOMENT = "exp_avg_sq"


def open_fisher(source: str | Path) -> Weights:
    """Open anything that ``open_weights`` does; of a DeepSpeed checkpoint Adam's second moment is taken.

    Adam's second moment is a moving average of squared gradients, which the diagonal Fisher information is in
    expectation, up to a factor that is the same for all parameters.

    Raises:
        UserError: if it cannot be opened, or the checkpoint's optimizer is not Adam.
    """
    folder = open_folder(source)
    if find_file(str(source)) is not None or not is_zero_checkpoint(folder):
        return open_weights(source)
    folder = tagged_folder(folder)
    commit = folder.file(COMMIT_FILE)
    groups = json.loads(read_text(commit)).get("groups") if commit is not None else None
    tensors = open_zero_states(folder, groups).tensors
    if SECOND_MOMENT not in tensors:
        raise UserError(
            f"{folder}: its optimizer holds no {SECOND_MOMENT}; Fisher information can be read from Adam's."
        )
    return tensors[SECOND_MOMENT]
