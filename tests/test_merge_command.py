"""`wiseft merge` without a run, as people call it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import wiseft

VALUES = {"zero_shot": 0.0, "finetuned": 1.0, "other": 3.0}
ALPHAS = (0, 0.25, 1)
FOLDERS = ("alpha_0.00", "alpha_0.25", "alpha_1.00")


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """theta_0 and two fine-tuned models."""
    files = [tmp_path / f"{name}.safetensors" for name in VALUES]
    for value, file in zip(VALUES.values(), files, strict=True):
        save_file({"weight": torch.full((3, 2), value), "ids": torch.arange(4)}, file)
    return files


def weights_of(folder: Path) -> torch.Tensor:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)["weight"]


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["--zero-shot", "a", "--output", "b"], "needs RUN, or all of --zero-shot, --finetuned and --output"),
        (["run", "--zero-shot", "a"], "takes either RUN or --zero-shot, --finetuned and --output, not both"),
        (["--zero-shot", "a", "--finetuned", "b", "--output", "c", "--dtype", "fp8"], "dtype is 'fp8'"),
        (["--zero-shot", "a", "--finetuned", "b", "--output", "c", "--alphas", "0:1:0.3"], "do not lead from 0 to 1"),
        (["--zero-shot", "a", "--finetuned", "b", "--output", "c", "--alphas", "0,2"], "alpha 2 is not between 0"),
        (["--zero-shot", "a", "--finetuned", "b", "--output", "c", "--density", ".5"], "density is a setting of ties"),
        (["run", "--average"], "merges as the run's configuration says: leave the other options out"),
        (["run", "--method", "ties"], "merges as the run's configuration says: leave the other options out"),
        (["--zero-shot", "/none", "--finetuned", "/none", "--output", "/none/c"], "/none: no such checkpoint"),
        (["--inspect", "/none"], "/none: no such checkpoint"),
        (["--inspect", "a", "--output", "b"], "looks at one checkpoint and merges nothing"),
        (["--verify", "--output", "/none"], "/none: neither a written model nor a folder of such"),
    ],
)
def test_wrong_options_are_answered_with_what_is_right(options, answer):
    done = wiseft("merge", *options)
    assert done.returncode == 2
    assert answer in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_option_is_a_usage_error():
    done = wiseft("merge", "--finetune", "x")
    assert done.returncode == 2
    assert "No such option" in done.stderr


def test_an_ensemble_is_written_for_each_alpha_and_verified(models: list[Path], tmp_path: Path):
    request = ["merge", "--zero-shot", models[0], "--finetuned", models[1], "--output", tmp_path / "out",
               "--alphas", "0,0.25,1", "--verify"]  # fmt: skip
    done = wiseft(*request)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path / "out" / name) for name in FOLDERS]
    assert "3 ensembles: read" in done.stderr
    assert "3 models, 0.00 GB: every byte is as it was written" in done.stderr
    for alpha, name in zip(ALPHAS, FOLDERS, strict=True):
        assert torch.equal(weights_of(tmp_path / "out" / name), torch.full((3, 2), float(alpha)))
    again = wiseft(*request)
    assert (again.returncode, again.stdout) == (0, done.stdout)
    assert "all of them were there already" in again.stderr
    (file,) = (tmp_path / "out" / FOLDERS[1]).glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    damaged = wiseft("merge", "--verify", "--output", tmp_path / "out")
    assert damaged.returncode == 2
    assert file.name in damaged.stderr and FOLDERS[1] in damaged.stderr


def test_verify_refuses_a_source_with_a_flipped_bit(models: list[Path], tmp_path: Path):
    torch.save({"weight": torch.full((3, 2), 1.0), "ids": torch.arange(4)}, tmp_path / "finetuned.pt")
    content = (tmp_path / "finetuned.pt").read_bytes()
    place = content.index(torch.full((3, 2), 1.0).numpy().tobytes())
    (tmp_path / "finetuned.pt").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    both = ["--zero-shot", models[0], "--finetuned", tmp_path / "finetuned.pt"]
    done = wiseft("merge", *both, "--output", tmp_path / "out", "--verify")
    assert done.returncode == 2
    assert "finetuned.pt" in done.stderr and "is damaged (CRC-32)" in done.stderr
    assert not (tmp_path / "out").exists()


def test_settings_come_from_a_file_and_options_change_them(models: list[Path], tmp_path: Path):
    settings = tmp_path / "merge.yaml"
    settings.write_text("method: task_arithmetic\nalphas: [1]\ndtype: bf16\nlayers: {weight: {scale: 0.5}}\n")
    both = ["--finetuned", models[1], "--finetuned", models[2], "--settings", settings]
    done = wiseft("merge", "--zero-shot", models[0], *both, "--output", tmp_path / "out", "--dtype", "fp32")
    assert done.returncode == 0, done.stderr
    assert torch.equal(weights_of(tmp_path / "out" / "alpha_1.00"), torch.full((3, 2), 2.0))
    settings.write_text("methd: wise\n")
    wrong = wiseft("merge", "--zero-shot", models[0], *both, "--output", tmp_path / "other")
    assert wrong.returncode == 2
    assert "methd is not a setting" in wrong.stderr


@pytest.mark.parametrize(
    ("option", "setting", "said"),
    [("--carry", "nothing*", "has no tensor of such a name"), ("--settings", "FILE", "no tensor is called visul.*")],
)
def test_a_pattern_that_fits_nothing_is_a_mistake(models: list[Path], tmp_path: Path, option, setting, said):
    (tmp_path / "merge.yaml").write_text("layers: {'visul.*': {alpha: 0}}\n")
    given = [option, tmp_path / "merge.yaml" if setting == "FILE" else setting]
    done = wiseft("merge", "--zero-shot", models[0], "--finetuned", models[1], "--output", tmp_path / "out", *given)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_a_checkpoint_holds_is_printed(models: list[Path]):
    shown = wiseft("merge", "--inspect", models[1])
    assert shown.returncode == 0, shown.stderr
    assert "weight" in shown.stdout and "ids" in shown.stdout
    described = json.loads(wiseft("merge", "--inspect", models[1], "--json").stdout)
    assert {tensor["name"]: tensor["shape"] for tensor in described["tensors"]} == {"weight": [3, 2], "ids": [4]}


def test_two_processes_share_the_work_and_speak_once(models: list[Path], tmp_path: Path):
    request = ["-m", "wiseft_dist", "merge", "--zero-shot", models[0], "--finetuned", models[1], "--output", "out"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, *map(str, request)], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 11
    assert torch.equal(weights_of(tmp_path / "out" / "alpha_0.50"), torch.full((3, 2), 0.5))
