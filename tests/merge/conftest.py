"""Real checkpoints for the tests of this folder: W processes train a small module with DeepSpeed and save it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real_checkpoints import CASES, Checkpoint, Writer


@pytest.fixture(scope="session")
def checkpoint_writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    writer = Writer(tmp_path_factory.mktemp("writer") / "log.txt")
    yield writer
    writer.close()


@pytest.fixture(scope="session")
def zero_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, checkpoint_writer: Writer
) -> Callable[[int, str], Checkpoint]:
    """The checkpoint of W ranks and a case (`3-fp32`), written when it is first asked for; copy it to damage it."""
    folders: dict[int, Path] = {}

    def written(world_size: int, case: str) -> Checkpoint:
        if world_size not in folders:
            folders[world_size] = tmp_path_factory.mktemp(f"world_size_{world_size}")
            checkpoint_writer.train(folders[world_size], CASES[world_size], world_size)
        return Checkpoint(folders[world_size] / case)

    return written


@pytest.fixture(scope="session")
def universal_checkpoint(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoint_writer: Writer,
    zero_checkpoint: Callable[[int, str], Checkpoint],
) -> Callable[[int, str], Path]:
    """That checkpoint as DeepSpeed's own tool converts it; copy it to damage it."""
    folders: dict[tuple[int, str], Path] = {}

    def converted(world_size: int, case: str) -> Path:
        if (world_size, case) not in folders:
            folder = tmp_path_factory.mktemp("universal") / "tag"
            checkpoint_writer.convert(zero_checkpoint(world_size, case).tag, folder)
            folders[world_size, case] = folder
        return folders[world_size, case]

    return converted
