"""What `wiseft plan` says a run will cost: arithmetic that can be checked by hand, also for hundreds of GPUs."""

from __future__ import annotations

import json
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_run import wiseft

from wiseft_dist import storage
from wiseft_dist.config import RunConfig, dump_config, load_config
from wiseft_dist.data.manifest import Manifest, Shard
from wiseft_dist.errors import UserError
from wiseft_dist.launch.estimate import (
    describe_disk,
    describe_memory,
    describe_parameters,
    describe_scoring_time,
    describe_training_time,
)
from wiseft_dist.launch.preview import preview
from wiseft_dist.launch.rates import UNKNOWN, Rates, scoring_rate
from wiseft_dist.launch.site_checks import _features, _nodes
from wiseft_dist.models.parameter_count import count_parameters
from wiseft_dist.plan_command import plan_lines
from wiseft_dist.run import Run

SHARD_BYTES = 110_000_000
SHIFTS = 15
PLAN_SECONDS = 2.0
"""Of a processor: how long the command waits for one is the machine's affair."""


def make_shards(folder: Path, num_shards: int) -> None:
    """Files of the right size that take no space on disk."""
    folder.mkdir(parents=True)
    for number in range(num_shards):
        with (folder / f"{number:04d}.tar").open("wb") as shard:
            shard.truncate(SHARD_BYTES)


def save_manifest(run: Run, name: str, folder: Path, samples_a_shard: int, held_out: float = 0.0) -> None:
    """As if this run had read those shards."""
    shards = tuple(
        Shard(each.url, samples_a_shard, each.num_bytes, each.version, 0, "x", (), 1)
        for each in storage.list_shards(str(folder))
    )
    Manifest(str(folder), shards, held_out).save(run.manifests / f"{name}.json")


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet's size on 64 nodes of 8 GPUs, 21 alphas on 16 datasets; returns the configuration."""
    folder = tmp_path_factory.mktemp("large")
    run = Run(folder / "run")
    run.manifests.mkdir(parents=True)
    make_shards(folder / "train", 1280)
    save_manifest(run, "train", folder / "train", 1000)
    for number in range(1 + SHIFTS):
        make_shards(folder / f"test{number}", 20)
        save_manifest(run, f"test{number}", folder / f"test{number}", 500)
    (folder / "train" / "classnames.txt").write_text("\n".join(f"class {number}" for number in range(1000)))
    (folder / "train" / "zeroshot_classification_templates.txt").write_text("a {c}")
    (folder / "config.yaml").write_text(
        json.dumps(
            {
                "output": str(run.path),
                "model": {"architecture": "ViT-L-14"},
                "data": {
                    "train": str(folder / "train"),
                    "reference": {"test0": str(folder / "test0")},
                    "shifts": {f"test{n}": str(folder / f"test{n}") for n in range(1, 1 + SHIFTS)},
                    "id_val_fraction": 0,
                    "lanes": 4096,
                },
                "finetune": {"epochs": 10, "global_batch_size": 4096, "precision": "bf16", "zero_stage": 1},
                "merge": {"alphas": "0:1:0.05"},
                "launch": {
                    "executor": "slurm",
                    "finetune": {"nodes": 64, "tasks_per_node": 8, "gpus_per_node": 8, "timeout_minutes": 60},
                    "evaluate": {"gpus_per_node": 1, "max_parallel": 32},
                },
            }
        )
    )
    run.config_file.write_text(dump_config(load_config(folder / "config.yaml")))
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def planned(large: Path) -> dict[str, Any]:
    return preview(load_config(large), rate=20_000.0)


def test_a_plan_for_512_gpus_and_a_grid_of_21_by_16_takes_the_command_under_two_seconds(large: Path) -> None:
    seconds = []
    for _ in range(3):  # a busy machine's caches are cold
        before = seconds_of_children()
        done = wiseft("plan", large, "--json", "launch.executor=local")
        seconds.append(seconds_of_children() - before)
        assert done.returncode == 0, done.stderr
        if seconds[-1] < PLAN_SECONDS:
            break
    assert json.loads(done.stdout)["world_size"] == 512
    assert min(seconds) < PLAN_SECONDS


def seconds_of_children() -> float:
    """What ended processes that this one started have taken of a processor."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_ranks_batches_and_steps_of_a_large_run(planned: dict[str, Any]) -> None:
    assert (planned["world_size"], planned["micro_batch_size"], planned["accumulation_steps"]) == (512, 8, 1)
    assert (planned["training_samples"], planned["steps"]) == (1_280_000, 3125)
    fewest, most = planned["reading"]["shards_a_rank"]
    assert 8 <= fewest <= most <= 16  # eight lanes of 312.5 samples, each in one shard or two


def test_bytes_and_predictions_of_a_large_run(planned: dict[str, Any]) -> None:
    assert planned["reading"]["bytes_an_epoch"] == 1280 * 110_000_000
    assert planned["reading"]["bytes_of_training"] == 12_800 * 110_000_000
    assert planned["reading"]["bytes_of_evaluation"] == 320 * 110_000_000
    assert planned["scoring"] == {"images": 160_000, "members": 21, "predictions": 3_360_000}


def test_the_graph_of_a_large_run(planned: dict[str, Any]) -> None:
    fields = ("stage", "num_jobs", "max_parallel", "after")
    assert [tuple(step[name] for name in fields) for step in planned["steps_of_jobs"]] == [
        ("finetune", 1, 1, None),
        ("merge", 1, 1, "finetune"),
        ("evaluate", 8, 8, "merge"),  # 160,000 images at 20,000 a job
        ("report", 1, 1, "evaluate"),
    ]  # fmt: skip
    first = planned["jobs"][0]
    assert (first["tasks"], first["gpus"], first["timeout_minutes"]) == (512, 512, 60)
    assert sum(sum(job["images"].values()) for job in planned["jobs"] if "images" in job) == 160_000


def test_a_plan_of_a_thousand_jobs_shows_the_first_ones(large: Path, tmp_path: Path) -> None:
    run = Run(tmp_path)
    shutil.copytree(large.parent / "run", run.path, dirs_exist_ok=True)
    settings = ["launch.evaluate.max_parallel=1000", "evaluate.job_images=160", "evaluate.part_samples=160"]
    described = preview(load_config(large, [f"output={run.path}", "launch.executor=local", *settings]))
    assert sum(sum(job.get("images", {}).values()) for job in described["jobs"]) == 160_000
    lines = [line for line in plan_lines(described) if "evaluate" in line or "more like" in line]
    assert lines[0] == "evaluate: an array of 1000, at most 1000 at the same time"
    assert [line.split()[0] for line in lines[1:4]] == [
        "evaluate/1-of-1000",
        "evaluate/2-of-1000",
        "evaluate/3-of-1000",
    ]
    assert "after merge" in lines[1] and "after" not in lines[2]
    assert re.fullmatch(r" +and 997 more like these, with \d+ to \d+ images each", lines[4])


def test_time_at_a_given_rate(planned: dict[str, Any]) -> None:
    assert planned["time"]["finetune_seconds"] == 640.0
    assert planned["time"]["finetune_jobs"] == 1


def test_a_person_reads_the_same(planned: dict[str, Any]) -> None:
    text = "\n".join(plan_lines(planned))
    assert "64 x 8 processes, 8 GPUs a node, 60 minutes" in text
    assert "evaluate: an array of 8, at most 8 at the same time" in text
    assert "reads 141 GB an epoch, 1.41 TB in all, and 35.2 GB to evaluate" in text
    assert "fine-tuning takes about 11 min at 20000 samples/s (--rate)" in text


@pytest.mark.parametrize(
    ("architecture", "vision", "total"),
    [
        ("ViT-B-16", 86_192_640, 149_620_737),
        ("ViT-L-14", 303_966_208, 427_616_513),
        ("ViT-H-14", 632_076_800, 986_109_441),
    ],
)
def test_parameters_are_counted_without_building_the_model(architecture: str, vision: int, total: int) -> None:
    count = count_parameters(architecture)
    assert count is not None and (count.vision, count.total) == (vision, total)


@pytest.mark.parametrize("architecture", ["RN50", "ViT-B-16-SigLIP", "hf-hub:x/y", "no-such-model"])
def test_what_cannot_be_counted_is_not_known(architecture: str) -> None:
    assert count_parameters(architecture) is None


def config_with(**finetune: Any) -> RunConfig:
    tree = {"output": "x", "model": {"architecture": "ViT-B-16"}, "data": {"train": "x"}, "finetune": finetune}
    return RunConfig.model_validate(tree | {"merge": {"alphas": [0, 0.5, 1]}})


@pytest.mark.parametrize(
    ("recipe", "trained"),
    [("end_to_end", 86_192_640 + 512_000), ("linear_head", 512_000), ("flyp", 149_620_737)],
)
def test_what_a_recipe_trains(recipe: str, trained: int) -> None:
    described = describe_parameters(config_with(recipe=recipe), count_parameters("ViT-B-16"), 1000)
    assert described is not None and described["trained"] == trained


@pytest.mark.parametrize(
    ("settings", "bytes_a_parameter"),
    [
        ({"precision": "fp32", "zero_stage": 0}, 16.0),
        ({"precision": "bf16", "zero_stage": 0}, 16.0),
        ({"precision": "bf16", "zero_stage": 1}, 2 + 2 + 12 / 8),
        ({"precision": "bf16", "zero_stage": 2}, 2 + 14 / 8),
        ({"precision": "bf16", "zero_stage": 3}, 16 / 8),
        ({"precision": "fp32", "zero_stage": 2}, 4 + 12 / 8),
    ],
)
def test_memory_of_a_gpu_is_that_of_the_zero_paper(settings: dict[str, Any], bytes_a_parameter: float) -> None:
    described = describe_memory(config_with(**settings), {"model": 100, "trained": 1000}, world_size=8)
    assert described == 1000 * bytes_a_parameter


def test_disk_of_a_tiny_run_is_what_it_really_took(finished: Any) -> None:
    config = finished.config
    parameters = describe_parameters(config, count_parameters(config.model.architecture), 3)
    disk = describe_disk(config, parameters, {"predictions": 129}, 0)

    def on_disk(folder: Path, pattern: str) -> int:
        return sum(file.stat().st_size for file in folder.rglob(pattern))

    kept = sorted(finished.run.checkpoints.iterdir())
    assert disk["checkpoints"] == pytest.approx(on_disk(kept[-1], "*.pt") * 4, rel=0.1)  # two, the best and one more
    weights = on_disk(finished.run.merged, "*.safetensors") + on_disk(finished.run.zero_shot, "*.safetensors")
    assert disk["ensembles"] == pytest.approx(weights, rel=0.02)


def test_rates_come_from_the_run_that_has_measured_them(finished: Any, tmp_path: Path) -> None:
    tree = ["launch.finetune.tasks_per_node=1", f"output={tmp_path / 'new'}"]
    config = load_config(finished.run.config_file, tree)
    told = preview(config, rate_from=finished.run.path)["time"]
    assert told["samples_per_second"] > 0 and str(finished.run.path) in told["rate_of"]
    assert told["predictions_per_second_a_process"] > 0 and told["scoring_rate_of"] == str(finished.run.path)
    assert told["finetune_seconds"] > 0 and told["evaluate_seconds"] > 0
    assert set(preview(config)["time"].values()) == {None}
    with pytest.raises(UserError, match="has no measured rate"):
        preview(config, rate_from=tmp_path)


def test_a_rate_that_is_given_counts_more_than_one_that_was_measured(finished: Any) -> None:
    told = preview(finished.config, rate=7.0)["time"]
    assert (told["samples_per_second"], told["rate_of"]) == (7.0, "--rate")
    assert told["scoring_rate_of"] == str(finished.run.path)


def test_a_job_that_needs_longer_than_its_limit_comes_back_by_itself() -> None:
    config = config_with(epochs=2)
    times = describe_training_time(config, 86_400, Rates(samples_per_second=1.0))
    assert (times["finetune_seconds"], times["finetune_jobs"]) == (172_800.0, 3)  # two days of 24 hours less a warning
    assert describe_training_time(config, 86_400, UNKNOWN)["finetune_jobs"] is None


def test_the_evaluation_takes_as_long_as_one_of_its_processes() -> None:
    config = config_with()
    launch = config.launch.model_copy(
        update={
            "evaluate": config.launch.evaluate.model_copy(
                update={"tasks_per_node": 4, "timeout_minutes": 3, "warning_seconds": 80, "max_parallel": 5}
            )
        }
    )
    config = config.model_copy(update={"launch": launch})
    sizes = {"large": 9 * config.evaluate.job_images, "small": config.evaluate.job_images}  # more than five jobs' worth
    rates = Rates(predictions_per_second=config.evaluate.job_images / 100)
    times = describe_scoring_time(config, sizes, 2, rates)
    assert times["evaluate_seconds"] == pytest.approx(10 / (5 * 4) * 2 * 100)
    assert times["evaluate_starts_a_job"] == 1  # 100 seconds: three minutes less a warning
    times = describe_scoring_time(config, sizes, 5, rates)
    assert times["evaluate_starts_a_job"] == 3
    assert set(describe_scoring_time(config, sizes, 2, UNKNOWN).values()) == {None}


def test_scoring_is_as_fast_as_the_parts_that_were_finished() -> None:
    def event(name: str, time: float, start: int, **more: Any) -> dict[str, Any]:
        return {
            "stage": "evaluate",
            "event": name,
            "time": time,
            "dataset": "photo",
            "start": start,
            "stop": start + 10,
        } | more

    events = [
        event("started", 100.0, 0, alphas=[0.0, 1.0]),
        event("started", 100.0, 10, alphas=[0.0], output_alphas=[0.5]),
        event("finished", 104.0, 0),
        event("finished", 106.0, 10),
        event("finished", 107.0, 20),  # its start is not among the events
        event("started", 108.0, 30, alphas=[0.0, 1.0]),  # and this has not ended
    ]
    assert scoring_rate(events) == (20 + 20) / (4 + 6)
    assert scoring_rate(events[:2]) is None


def test_plan_says_how_long_it_takes_and_how_often_a_job_comes_back(finished: Any) -> None:
    described = preview(finished.config, rate=1e-4)
    described["time"] |= {"evaluate_seconds": 1e6, "evaluate_starts_a_job": 2}
    text = "\n".join(plan_lines(described))
    assert re.search(r"fine-tuning takes about \d.* at 0.00 samples/s \(--rate\)", text)
    assert re.search(r"more than launch.finetune.timeout_minutes; a Slurm job .* comes back by itself, \d+ times", text)
    assert re.search(rf"the evaluation takes about .* predictions/s of each process \({finished.run.path}\)", text)
    assert re.search(r"more than launch.evaluate.timeout_minutes; a Slurm job .* comes back by itself, once", text)


@pytest.mark.parametrize(
    ("answer", "gpus"),
    [("(null)", [0]), ("gpu:4", [4]), ("gpu:a100:4(S:0-1)\ngpu:8", [4, 8]), ("gpu:a100:2,gpu:h100:3", [5]), ("", [])],
)
def test_gpus_of_nodes_as_sinfo_writes_them(answer: str, gpus: list[int]) -> None:
    nodes = _nodes("".join(f"{line}|64|515000|(null)\n" for line in answer.splitlines()))
    assert [node.gpus for node in nodes] == gpus


def test_cores_memory_and_features_of_nodes_as_sinfo_writes_them() -> None:
    [node] = _nodes("(null)|64+|515000|a100,ib\n")
    assert (node.cpus, node.megabytes, node.features) == (64, 515_000, {"a100", "ib"})


@pytest.mark.parametrize(
    ("constraint", "features"),
    [("a100", ["a100"]), ("(a100|80g)&ib", ["a100", "80g", "ib"]), ("[rack1*2&rack2*4]", ["rack1", "rack2"]), ("", [])],
)
def test_features_in_a_constraint(constraint: str, features: list[str]) -> None:
    assert _features(constraint) == features


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["merge.method=uniform_soup", "merge.models=[/nowhere]"], r"merge.models: /nowhere is not there"),
        (["model.pretrained={folder}/torn.safetensors"], r"torn.safetensors is not readable as weights"),
        (["output={folder}/other"], r"other holds other files and no run"),
    ],
)
def test_a_plan_refuses_what_a_run_would_refuse(
    world: Any, tmp_path: Path, settings: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    overrides = [f"output={tmp_path / 'run'}", *(setting.format(folder=tmp_path) for setting in settings)]
    with pytest.raises(UserError, match=said):
        preview(load_config(world.config, overrides))
    assert not (tmp_path / "run").exists()
