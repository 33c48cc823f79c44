"""`merge_files`: two checkpoints of any kind become committed model folders, or nothing does."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from real_checkpoints import same_bits
from torch import Tensor

from wiseft_dist.config import MergeConfig
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.merge import stage
from wiseft_dist.merge.safetensors_file import SafetensorsFile
from wiseft_dist.models.files import CLASSES_FILE, CONFIG_FILE, WEIGHTS_FILE
from wiseft_dist.run import COMMIT_FILE, is_committed, read_commit

SETTINGS = MergeConfig(alphas=(0.0, 0.5, 1.0))


def weights(value: float) -> dict[str, Tensor]:
    return {"visual.w": torch.full((3, 5), value), "logit_scale": torch.tensor(value), "ids": torch.arange(7)}


@pytest.fixture
def zero_shot(tmp_path: Path) -> Path:
    """A model folder."""
    folder = tmp_path / "zero_shot"
    folder.mkdir()
    safetensors.torch.save_file(weights(1.0), folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text('{"model_cfg": {}}')
    (folder / CLASSES_FILE).write_text('{"classnames": ["cat"]}')
    return folder


def save_torch(path: Path, saved: Any) -> Path:
    torch.save(saved, path)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def left_behind(folder: Path) -> list[Path]:
    return list(folder.rglob("*"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"epoch": 1, "state_dict": state},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    ],
    ids=["plain", "nested", "prefixed"],
)
def test_a_safetensors_file_is_merged_with_a_torch_file(tmp_path: Path, zero_shot: Path, wrap: Any):
    finetuned = save_torch(tmp_path / "finetuned.pt", wrap(weights(3.0)))
    folders = stage.merge_files(zero_shot / WEIGHTS_FILE, finetuned, tmp_path / "out", SETTINGS)
    assert [folder.name for folder in folders] == ["alpha_0.00", "alpha_0.50", "alpha_1.00"]
    for folder, value in zip(folders, (1.0, 2.0, 3.0), strict=True):
        written = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        assert all(same_bits(written[name], wanted) for name, wanted in weights(value).items())


@pytest.mark.parametrize("case", ["1-fp32", "2-fp32", "3-fp32"])
def test_a_safetensors_file_is_merged_with_a_sharded_checkpoint(tmp_path: Path, zero_checkpoint: Any, case: str):
    checkpoint = zero_checkpoint(2, case)
    live = checkpoint.live()
    first = {name: value.clone() if value.dtype != torch.float32 else value * 3 for name, value in live.items()}
    safetensors.torch.save_file(first | {"text.w": torch.ones(2)}, tmp_path / "zero_shot.safetensors")
    folders = stage.merge_files(
        tmp_path / "zero_shot.safetensors", checkpoint.tag, tmp_path / "out", SETTINGS, carry=("text.*",)
    )
    written = safetensors.torch.load_file(folders[1] / WEIGHTS_FILE)
    assert written.keys() == live.keys() | {"text.w"}
    for name, value in live.items():
        torch.testing.assert_close(written[name], value * 2 if value.dtype == torch.float32 else value)
    sources = json.loads((folders[1] / stage.PROVENANCE_FILE).read_text())["sources"]
    assert sources["finetuned"]["sha256"] == {path.name: sha256(path) for path in checkpoint.tag.glob("*.pt")}


def test_a_written_model_says_what_it_is_made_of(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0))
    folder = stage.merge_files(zero_shot, finetuned, tmp_path / "out", SETTINGS)[1]
    provenance = json.loads((folder / stage.PROVENANCE_FILE).read_text())
    assert (provenance["alpha"], provenance["method"], provenance["dtype"]) == (0.5, "wise", "fp32")
    assert provenance["carried_from_zero_shot"] == []
    assert provenance["sources"] == {
        "zero_shot": {
            "path": str(zero_shot / WEIGHTS_FILE),
            "sha256": {WEIGHTS_FILE: sha256(zero_shot / WEIGHTS_FILE)},
        },
        "finetuned": {"path": str(finetuned), "sha256": {"finetuned.pt": sha256(finetuned)}},
    }


def test_a_written_model_is_committed_with_the_hash_of_every_file(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0))
    for folder in stage.merge_files(zero_shot, finetuned, tmp_path / "out", SETTINGS):
        assert is_committed(folder)
        files = {path.name: sha256(path) for path in folder.iterdir() if path.name != COMMIT_FILE}
        assert files.keys() == {WEIGHTS_FILE, CONFIG_FILE, CLASSES_FILE, stage.PROVENANCE_FILE}
        assert {name: entry["sha256"] for name, entry in read_commit(folder)["files"].items()} == files
        assert (folder / CONFIG_FILE).read_bytes() == (zero_shot / CONFIG_FILE).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"alpha_0.00", "alpha_0.50", "alpha_1.00"}


def test_an_output_that_is_there_is_refused_and_kept(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0))
    (tmp_path / "out" / "alpha_0.50").mkdir(parents=True)
    (tmp_path / "out" / "alpha_0.50" / "mine").write_text("mine")
    with pytest.raises(UserError, match=r"alpha_0\.50: is there already"):
        stage.merge_files(zero_shot, finetuned, tmp_path / "out", SETTINGS)
    assert [path.name for path in left_behind(tmp_path / "out")] == ["alpha_0.50", "mine"]


@pytest.mark.parametrize("written_before", [0, 1, 5, 8])
def test_a_disk_that_fails_in_the_middle_leaves_nothing(
    tmp_path: Path, zero_shot: Path, monkeypatch: pytest.MonkeyPatch, written_before: int
):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0))
    remaining = iter(range(written_before))
    write = SafetensorsFile.write

    def failing(self: SafetensorsFile, name: str, start: int, elements: Tensor) -> None:
        if next(remaining, None) is None:
            raise RunError("the disk failed")
        write(self, name, start, elements)

    monkeypatch.setattr(SafetensorsFile, "write", failing)
    with pytest.raises(RunError, match="the disk failed"):
        stage.merge_files(zero_shot, finetuned, tmp_path / "out", SETTINGS)
    assert left_behind(tmp_path / "out") == []


def test_a_diverged_model_leaves_nothing(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(float("nan")))
    with pytest.raises(UserError, match=r"holds nan at element 0"):
        stage.merge_files(zero_shot, finetuned, tmp_path / "out", SETTINGS)
    assert left_behind(tmp_path / "out") == []


def test_models_that_do_not_fit_leave_nothing(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0) | {"new": torch.ones(1)})
    with pytest.raises(UserError, match="only in the fine-tuned model: new"):
        stage.merge_files(zero_shot, finetuned, tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_reported_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zero_shot: Path):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0))
    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(RunError, match=rf"{WEIGHTS_FILE}: no room for .*No space left on device"):
        stage.merge_files(zero_shot, finetuned, tmp_path / "out", SETTINGS)
    assert left_behind(tmp_path / "out") == []
