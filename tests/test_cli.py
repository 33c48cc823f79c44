"""What a person types, and what they are told."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_run import wiseft

import wiseft_dist

HEAVY = ("torch", "open_clip", "deepspeed", "wandb", "matplotlib", "pyarrow")


def refused(*arguments: object) -> str:
    """The one sentence with which a command ends that cannot be carried out."""
    done = wiseft(*arguments)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert done.stderr.startswith("wiseft: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize("module", ["wiseft_dist.cli", "wiseft_dist.launch.start"])
def test_the_command_line_imports_nothing_heavy(module):
    program = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_version():
    assert wiseft("--version").stdout == f"wiseft {wiseft_dist.__version__}\n"


def test_a_misspelt_key_is_answered_with_the_nearest_right_one(world, tmp_path):
    said = refused("run", world.config, f"output={tmp_path / 'run'}", "finetune.optimiser.lr=1")
    assert "finetune.optimiser is not a setting. Did you mean finetune.optimizer?" in said
    assert str(world.config) in said


def test_a_batch_that_does_not_divide_is_answered_with_those_that_do(world, tmp_path):
    said = refused("run", world.config, f"output={tmp_path / 'run'}", "finetune.global_batch_size=7")
    assert "finetune.global_batch_size is 7" in said
    assert "use finetune.global_batch_size=6 or 8" in said
    assert not (tmp_path / "run").exists()


def test_a_missing_shard_is_named(world, tmp_path):
    said = refused("run", world.config, f"output={tmp_path / 'run'}", f"data.train={world.data}/train/{{0..9}}.tar")
    assert f"{world.data}/train/8.tar: this shard does not exist; 2 of 10 are missing (8.tar, 9.tar)." in said


def test_a_truncated_shard_is_named_and_the_mended_run_starts_in_the_same_directory(world, tmp_path):
    shutil.copytree(world.data, tmp_path / "data")
    shard = tmp_path / "data" / "train" / "3.tar"
    shard.write_bytes(shard.read_bytes()[:3000])
    said = refused("run", world.config, f"output={tmp_path / 'run'}", f"data.train={shard.parent}")
    assert str(shard) in said
    assert "Copy this shard again." in said
    assert not (tmp_path / "run").exists()  # its settings would be held against the next command


def test_labels_beyond_the_class_list_are_named(world, tmp_path):
    (tmp_path / "two.txt").write_text("red\ngreen")
    said = refused("run", world.config, f"output={tmp_path / 'run'}", f"data.classnames={tmp_path / 'two.txt'}")
    assert "has label 2, but the class list has 2 names" in said


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_torn_checkpoint_is_found_before_anything_is_submitted(finished, world, tmp_path, name):
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(finished.run.zero_shot / "open_clip_config.json", model)
    weights = load_file(finished.run.zero_shot / "open_clip_model.safetensors")
    (save_file if name.endswith("safetensors") else torch.save)(weights, model / name)
    whole = (model / name).read_bytes()
    (model / name).write_bytes(whole[: len(whole) // 2])
    said = refused("run", world.config, f"output={tmp_path / 'run'}", f"model.architecture={model}")
    assert f"model: {model / name} is not readable as weights" in said
    assert not (tmp_path / "run").exists()


def test_the_directory_of_another_run_is_refused_with_what_differs(world, finished):
    said = refused("run", world.config, "seed=1")
    assert f"{finished.run.path} is the directory of another run: seed is 1 here and 0 there" in said


@pytest.mark.parametrize("stage", ["finetune", "merge", "evaluate", "report"])
def test_a_stage_without_a_run_says_so(tmp_path, stage):
    assert f"{tmp_path / 'nothing'} is not a run directory" in refused(stage, tmp_path / "nothing")


def test_an_unknown_dataset_is_answered_with_those_there_are(copied):
    sentence = "photos is not a dataset of this run. Its datasets: "
    assert sentence in refused("evaluate", copied.path, "--dataset", "photos")


def test_debug_shows_the_traceback_too(tmp_path):
    done = wiseft("--debug", "report", tmp_path)
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"wiseft: {tmp_path} is not a run directory")


def test_plan_says_what_would_run_and_writes_nothing(world, tmp_path):
    before = sorted(world.folder.rglob("*"))
    done = wiseft("plan", world.config, f"output={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert " ".join(lines[0].split()) == "finetune 1 x 2 processes, 0 GPUs a node, 1440 minutes"
    assert [line.split()[0] for line in lines[1:4]] == ["merge", "evaluate/1-of-1", "report"]
    assert lines[2].endswith(
        "0 GPUs a node, 1440 minutes; after merge; images: sketch 13, id_val 12, photo 11, clipart 7"
    )
    assert "batch 8 = 2 ranks x 4 x 1 accumulation" in lines[4]
    assert lines[5] == "3 alphas on: photo 11, sketch 13, clipart 7"
    assert sorted(world.folder.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


def test_plan_as_json_has_the_same_arithmetic(world, tmp_path):
    described = json.loads(wiseft("plan", world.config, f"output={tmp_path / 'run'}", "--json").stdout)
    assert described["training_samples"] + described["held_out_samples"] == 40
    assert described["global_batch_size"] == described["world_size"] * described["micro_batch_size"]
    assert described["steps"] == -(-2 * described["training_samples"] // 8)
    assert described["test_samples"] == {"photo": 11, "sketch": 13, "clipart": 7}
    first = {"name": "finetune", "nodes": 1, "tasks_per_node": 2, "gpus_per_node": 0, "timeout_minutes": 1440}
    assert first.items() <= described["jobs"][0].items()


def test_plan_of_a_finished_run_has_nothing_left(finished, world):
    assert wiseft("plan", world.config).stdout.startswith("nothing left to do\n")


def test_plan_of_a_finished_run_with_one_more_dataset_has_its_job(finished, world):
    done = wiseft("plan", world.config, "--json", f"data.shifts.more={world.data / 'clipart'}")
    assert done.returncode == 0, done.stderr
    jobs = json.loads(done.stdout)["jobs"]
    assert [job["name"] for job in jobs] == ["evaluate/1-of-1", "report"]
    assert jobs[0]["images"]["more"] == 7
