"""`merge_files`: two checkpoints of any kind become committed model folders, or nothing does."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from real_checkpoints import same_bits
from torch import Tensor

from wiseft_dist.commits import COMMIT_FILE, is_committed, read_commit
from wiseft_dist.config import MergeConfig
from wiseft_dist.errors import UserError
from wiseft_dist.merge.files import merge_files
from wiseft_dist.merge.request import PROVENANCE_FILE
from wiseft_dist.models.files import CLASSES_FILE, CONFIG_FILE, HEAD_FILE, WEIGHTS_FILE

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


def merged(zero_shot: Path, finetuned: Path, output: Path, **options: Any) -> list[Path]:
    return merge_files(zero_shot, [finetuned], output, SETTINGS, **options)[0]


def provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / PROVENANCE_FILE).read_text())


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
    folders = merged(zero_shot / WEIGHTS_FILE, finetuned, tmp_path / "out")
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
    folders = merged(tmp_path / "zero_shot.safetensors", checkpoint.tag, tmp_path / "out", carry=("text.*",))
    written = safetensors.torch.load_file(folders[1] / WEIGHTS_FILE)
    assert written.keys() == live.keys() | {"text.w"}
    for name, value in live.items():
        torch.testing.assert_close(written[name], value * 2 if value.dtype == torch.float32 else value)
    (source,) = provenance(folders[1])["sources"]["finetuned"]
    assert set(source["files"]) == {str(path) for path in checkpoint.tag.glob("*.pt")}


def test_a_written_model_says_what_it_is_made_of(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0))
    model = provenance(merged(zero_shot, finetuned, tmp_path / "out")[1])
    assert (model["alpha"], model["method"], model["dtype"]) == (0.5, {"name": "wise"}, "fp32")
    assert model["carried_from_zero_shot"] == model["taken_from_finetuned"] == []
    assert model["mixed"] == ["logit_scale", "visual.w"]  # and not the integers
    paths = {role: [source["path"] for source in sources] for role, sources in model["sources"].items()}
    assert paths == {"zero_shot": [str(zero_shot / WEIGHTS_FILE)], "finetuned": [str(finetuned)], "fisher": []}


def test_the_hash_of_a_source_is_that_of_its_tensors_however_they_are_stored(tmp_path: Path, zero_shot: Path):
    safetensors.torch.save_file(weights(3.0), tmp_path / "finetuned.safetensors")
    stored = [save_torch(tmp_path / "finetuned.pt", weights(3.0)), tmp_path / "finetuned.safetensors"]
    other = save_torch(tmp_path / "other.pt", weights(3.5))
    contents = [
        provenance(merged(zero_shot, finetuned, tmp_path / f"out_{number}")[0])["sources"]["finetuned"][0]["content"]
        for number, finetuned in enumerate([*stored, other])
    ]
    assert contents[0] == contents[1] != contents[2]


def test_a_written_model_is_committed_with_every_file(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0))
    for folder in merged(zero_shot, finetuned, tmp_path / "out"):
        assert is_committed(folder)
        names = {path.name for path in folder.iterdir()} - {COMMIT_FILE}
        assert names == {WEIGHTS_FILE, CONFIG_FILE, CLASSES_FILE, PROVENANCE_FILE}
        assert read_commit(folder)["files"].keys() == names
        assert (folder / CONFIG_FILE).read_bytes() == (zero_shot / CONFIG_FILE).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"alpha_0.00", "alpha_0.50", "alpha_1.00"}


def test_the_same_call_again_writes_what_is_missing_and_nothing_else(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0))
    folders = merged(zero_shot, finetuned, tmp_path / "out")
    before = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    assert merge_files(zero_shot, [finetuned], tmp_path / "out", SETTINGS) == (folders, None)
    kept = (folders[0] / WEIGHTS_FILE).stat().st_mtime_ns
    shutil.rmtree(folders[1])
    merged(zero_shot, finetuned, tmp_path / "out")
    assert {path: path.read_bytes() for folder in folders for path in folder.iterdir()} == before
    assert (folders[0] / WEIGHTS_FILE).stat().st_mtime_ns == kept


def test_a_call_with_another_model_refuses_the_output_of_the_first(tmp_path: Path, zero_shot: Path):
    merged(zero_shot, save_torch(tmp_path / "finetuned.pt", weights(3.0)), tmp_path / "out")
    other = save_torch(tmp_path / "other.pt", weights(4.0))
    with pytest.raises(UserError, match=r"alpha_0\.00: another model is there already"):
        merged(zero_shot, other, tmp_path / "out")


def test_several_models_make_a_soup(tmp_path: Path, zero_shot: Path):
    finetuned = [save_torch(tmp_path / f"{value}.pt", weights(value)) for value in (2.0, 6.0)]
    settings = MergeConfig(alphas=(0.5, 1.0), method="uniform_soup")
    folders, _ = merge_files(zero_shot, finetuned, tmp_path / "out", settings)
    for folder, value in zip(folders, (2.5, 4.0), strict=True):
        written = safetensors.torch.load_file(folder / WEIGHTS_FILE)
        assert same_bits(written["visual.w"], torch.full((3, 5), value))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"method": "wise"}, "wise merges one fine-tuned model, not 2"),
        ({"method": "fisher", "fisher": ("a", "b")}, "fisher needs the Fisher information of 3 models"),
        ({"method": "greedy_soup"}, "greedy_soup chooses its models on a run's ID-val"),
    ],
)
def test_a_method_for_another_number_of_models_is_refused(
    tmp_path: Path, zero_shot: Path, settings: dict[str, Any], said: str
):
    with pytest.raises(UserError, match=said):
        merge_files(zero_shot, ["a", "b"], tmp_path / "out", MergeConfig(**settings))


@pytest.mark.parametrize("headless", ["zero_shot", "finetuned"])
def test_a_head_that_one_model_has_goes_into_every_ensemble(tmp_path: Path, headless: str):
    body, head = {"visual.w": torch.ones(3)}, {"head.weight": torch.full((2, 2), 7.0)}
    files = [tmp_path / "zero_shot.safetensors", tmp_path / "finetuned.safetensors"]
    for file in files:
        safetensors.torch.save_file(body if file.stem == headless else body | head, file)
    with pytest.raises(UserError, match=r"head\.weight"):
        merged(files[0], files[1], tmp_path / "out")
    for folder in merged(files[0], files[1], tmp_path / "out", allow_missing_head=True):
        assert same_bits(safetensors.torch.load_file(folder / HEAD_FILE)["head.weight"], head["head.weight"])


def test_an_output_that_is_there_is_refused_and_kept(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0))
    (tmp_path / "out" / "alpha_0.50").mkdir(parents=True)
    (tmp_path / "out" / "alpha_0.50" / "mine").write_text("mine")
    with pytest.raises(UserError, match=r"alpha_0\.50: another model is there already"):
        merged(zero_shot, finetuned, tmp_path / "out")
    assert [path.name for path in left_behind(tmp_path / "out")] == ["alpha_0.50", "mine"]


def test_a_diverged_model_leaves_nothing(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(float("nan")))
    with pytest.raises(UserError, match=r"holds nan at element 0"):
        merged(zero_shot, finetuned, tmp_path / "out")
    assert left_behind(tmp_path / "out") == []


def test_models_that_do_not_fit_leave_nothing(tmp_path: Path, zero_shot: Path):
    finetuned = save_torch(tmp_path / "finetuned.pt", weights(3.0) | {"new": torch.ones(1)})
    with pytest.raises(UserError, match="only in the fine-tuned model: new"):
        merged(zero_shot, finetuned, tmp_path / "out")
    assert not (tmp_path / "out").exists()
