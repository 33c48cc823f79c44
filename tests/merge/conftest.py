"""Real checkpoints for the tests of this folder: W processes train a small module with DeepSpeed and save it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from real_checkpoints import CASES, Checkpoint, launch


@pytest.fixture(scope="session")
def zero_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, str], Checkpoint]:
    """The checkpoint of W ranks and a case (`3-fp32`), written when it is first asked for; copy it to damage it."""
    folders: dict[int, Path] = {}

    def written(world_size: int, case: str) -> Checkpoint:
        if world_size not in folders:
            folders[world_size] = tmp_path_factory.mktemp(f"world_size_{world_size}")
            launch(folders[world_size], CASES[world_size], world_size)
        return Checkpoint(folders[world_size] / case)

    return written
