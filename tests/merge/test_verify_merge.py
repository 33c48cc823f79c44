"""Reading a written model back: every byte counts."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from wiseft_dist.commits import COMMIT_FILE, commit
from wiseft_dist.errors import UserError
from wiseft_dist.merge.methods.wise import Wise
from wiseft_dist.merge.verify import verify
from wiseft_dist.merge.writer import write_ensembles
from wiseft_dist.models.files import WEIGHTS_FILE
from wiseft_dist.weights.pairing import match
from wiseft_dist.weights.sources import open_weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A written ensemble whose data begins at byte 4096: `a` in four chunks, then `b` and `c` in two."""
    weights = {"a": torch.arange(4096.0), "b": torch.ones(500), "c": torch.ones(1000)}
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with open_weights(tmp_path / "model.safetensors") as model:
        models, folders = match(model, [model]), {0.5: tmp_path / "out" / "alpha_0.50"}
        side = {"model.json": b'{"alpha": 0.5}'}
        write_ensembles(
            models, Wise(), folders, dtype=torch.float32, side_files=lambda alpha, inputs: side, chunk_bytes=4096
        )
    return folders[0.5]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def test_what_was_written_is_as_it_was_written(folder: Path):
    heard: list[int] = []
    size = sum(path.stat().st_size for path in folder.iterdir() if path.name != COMMIT_FILE)
    assert verify(folder, on_progress=heard.append) == sum(heard) == size > 5596 * 4


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (4096, r"bytes 4096 to 8192 \(tensor a\)"),
        (20479, r"bytes 16384 to 20480 \(tensor a\)"),
        (20480, r"bytes 20480 to 24576 \(tensors b to c\)"),
        (-1, r"bytes 24576 to 26480 \(tensor c\)"),
        (4000, "bytes 0 to 4096"),
        (20, "bytes 0 to 4096"),
    ],
)
def test_a_flipped_bit_is_found_and_named_by_bytes_and_tensors(folder: Path, place: int, said: str):
    flip(folder / WEIGHTS_FILE, place)
    with pytest.raises(UserError, match=rf"{WEIGHTS_FILE}: {said} are not what was written"):
        verify(folder)


def test_of_several_damages_the_first_is_named(folder: Path):
    for place in (21000, 9000, 13000):
        flip(folder / WEIGHTS_FILE, place)
    with pytest.raises(UserError, match="bytes 8192 to 12288"):
        verify(folder)


def test_a_small_file_that_was_changed_is_named(folder: Path):
    flip(folder / "model.json", 3)
    with pytest.raises(UserError, match=r"model\.json: bytes 0 to 14 are not what was written"):
        verify(folder)


def test_a_file_that_is_missing_or_cut_short_is_named(folder: Path):
    file = folder / WEIGHTS_FILE
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{WEIGHTS_FILE}: has 26479 bytes, where 26480 were written"):
        verify(folder)
    file.unlink()
    with pytest.raises(UserError, match=rf"{WEIGHTS_FILE}: is missing"):
        verify(folder)


def test_a_folder_that_nobody_committed_is_refused(folder: Path):
    (folder / COMMIT_FILE).write_text("{")
    with pytest.raises(UserError, match=f"{COMMIT_FILE}: not a readable commit record"):
        verify(folder)
    (folder / COMMIT_FILE).unlink()
    with pytest.raises(UserError, match="no written model"):
        verify(folder)


def test_any_committed_folder_can_be_verified(tmp_path: Path):
    (tmp_path / "aside").mkdir()
    (tmp_path / "aside" / "file").write_bytes(b"content")
    commit(tmp_path / "aside", tmp_path / "folder")
    assert verify(tmp_path / "folder") == 7
    flip(tmp_path / "folder" / "file", 0)
    with pytest.raises(UserError, match="file: bytes 0 to 7 are not what was written"):
        verify(tmp_path / "folder")
