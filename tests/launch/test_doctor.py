"""`wiseft doctor` says what is broken and what to do; real stores, real limits, real files."""

from __future__ import annotations

import json
import os
import resource
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_run import World, command

from wiseft_dist.config import RunConfig, load_config
from wiseft_dist.doctor_command import table
from wiseft_dist.findings import Finding
from wiseft_dist.launch.doctor.cluster import Partition, parse_partitions
from wiseft_dist.launch.doctor.machine import check_places, check_resources, check_wandb, judge_package
from wiseft_dist.launch.doctor.sources import check_sources, kind_of_login
from wiseft_dist.slurm import num_gpus

if TYPE_CHECKING:
    from tests.swift_store import SwiftStore

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def quick_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WISEFT_STORE_TRIES", "1")
    monkeypatch.setenv("WISEFT_STORE_TIMEOUT", "3")


def config_of(world: World, *overrides: str) -> RunConfig:
    return load_config(world.config, overrides)


def doctor(*arguments: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("doctor", *arguments),
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=os.environ | environment,
    )


def errors(findings: list[Finding]) -> list[str]:
    return [finding.text for finding in findings if finding.level == "error"]


def test_a_key_of_wandb_is_found_and_not_shown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://someone:{KEY}@127.0.0.1:9/?token={KEY}")
    ((check, level, text),) = check_wandb(config_of(world, "wandb.mode=online"))
    assert (check, level) == ("W&B", "warning")
    assert text.startswith("mode online (wandb.mode), a key; http://127.0.0.1:9/ cannot be reached")
    assert KEY not in text


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({}, "mode offline (no WANDB_API_KEY), no key; nothing is sent, `wiseft sync RUN` sends it later"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": KEY}, "mode disabled (WANDB_MODE), a key; nothing is recorded"),
        ({"WANDB_API_KEY": KEY}, "mode online (WANDB_API_KEY), a key; http://127.0.0.1:9 cannot be reached"),
    ],
)
def test_the_mode_of_wandb_is_told_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], text: str
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nonexistent")
    for name, value in ({"WANDB_BASE_URL": "http://127.0.0.1:9"} | environment).items():
        monkeypatch.setenv(name, value)
    ((_, _, told),) = check_wandb(None)
    assert told.startswith(text)


@pytest.mark.matrix
def test_the_command_finds_this_machine_well_names_what_is_not_there_and_shows_no_key(
    world: World, tmp_path: Path
) -> None:
    address = f"http://someone:{KEY}@127.0.0.1:9/?token={KEY}"
    done = doctor(
        world.config, f"output={tmp_path}/run", f"data.train={tmp_path}/nowhere", "wandb.mode=online", "--json",
        WANDB_API_KEY=KEY, WANDB_BASE_URL=address, HOME=str(tmp_path), SLURM_CONF="/nowhere",
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    told = json.loads(done.stdout)
    texts = {finding["check"]: finding["text"] for finding in told["findings"]}
    assert texts["W&B"].startswith("mode online (wandb.mode), a key; http://127.0.0.1:9/ cannot be reached")
    assert {"python", "torch", "deepspeed", "cores", "memory", "/dev/shm", "decoders", "disk"} <= set(texts)
    assert {"data", "model", "all-reduce", "slurm"} <= set(texts)
    (error,) = (finding["text"] for finding in told["findings"] if finding["level"] == "error")
    assert error.startswith(f"data.train: {tmp_path}/nowhere")


def test_data_that_is_there_is_counted_and_read(world: World) -> None:
    findings = check_sources(config_of(world))
    assert errors(findings) == []
    assert any(finding.text.startswith("data.train: 8 shards") for finding in findings)
    assert any(finding.text.startswith("test set sketch: 3 shards") for finding in findings)


def test_a_store_that_does_not_answer_is_an_error(world: World, quick_stores: None) -> None:
    (error,) = errors(check_sources(config_of(world, "data.train=http://127.0.0.1:9/a/{0..1}.tar")))
    assert "127.0.0.1:9" in error


@pytest.mark.swift
def test_a_missing_bucket_is_an_error_and_a_present_one_is_listed(
    world: World, swift: SwiftStore, quick_stores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in swift.environment.items():
        monkeypatch.setenv(name, value)
    findings = check_sources(config_of(world, "data.train=s3://no-such-bucket/train", "publish=s3://bucket/models"))
    (error,) = errors(findings)
    assert error.startswith("data.train: s3://no-such-bucket/train")
    texts = [finding.text for finding in findings]
    assert "s3://bucket/models can be listed: 0 objects" in texts
    assert any(text.startswith("s3: AWS_ACCESS_KEY_ID") for text in texts)
    assert not any(value in text for text in texts for name, value in swift.environment.items() if "KEY" in name)


def test_a_torn_model_file_is_an_error(world: World, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"\x10\0\0\0")
    (error,) = errors(check_sources(config_of(world, f"model.pretrained={tmp_path}/weights.safetensors")))
    assert "weights.safetensors is not readable as weights" in error


def test_where_a_login_comes_from_is_told_and_the_login_is_not() -> None:
    assert kind_of_login("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": KEY}) == "GOOGLE_SERVICE_ACCOUNT_KEY"
    assert kind_of_login("gs", {}).startswith("none found")


def test_a_full_disk_and_few_open_files_are_named(world: World, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    try:
        room = "launch.preflight.min_free_disk_gb=1e9"
        findings = [Finding(*each, host="") for each in check_resources()]
        findings += check_places(config_of(world, f"output={tmp_path}/run", f"data.cache={tmp_path}/cache", room))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len([text for text in errors(findings) if "less than launch.preflight.min_free_disk_gb" in text]) == 3
    assert any(finding.level == "warning" and finding.text.startswith("512 at most") for finding in findings)


def test_a_directory_that_cannot_be_written_is_an_error(world: World) -> None:
    findings = check_places(config_of(world, "output=/proc/self/run"))
    assert any(text.startswith("cannot write to the run directory, /proc/self/run") for text in errors(findings))


def test_a_package_that_is_missing_or_of_another_version_is_told_from_a_good_one() -> None:
    assert judge_package("no-such-package-at-all", None)[0] == "error"
    assert judge_package("torch", "0.0.1")[1].endswith("(tested with 0.0.1)")


def test_gpus_are_read_from_what_slurm_calls_generic_resources() -> None:
    texts = ("(null)", "gpu:2", "gpu:a100:4(S:0-1),gpu:2,nic:1", "gpu:1g.10gb:7", "craynetwork:gpu:3", "nogpu:3")
    assert [num_gpus(text) for text in texts] == [0, 2, 6, 7, 0, 0]


def test_partitions_are_read_from_sinfo() -> None:
    text = "low*|up|idle~|1-00:00:00|gpu:2\nlow*|up|drained|1-00:00:00|gpu:4\nhigh|down|idle|30:00|(null)\n"
    low, high = parse_partitions(text)
    assert low == Partition("low", True, True, 1440.0, 4, {"idle": 1, "drained": 1})
    assert (low.num_usable, high.num_usable, high.time_limit_minutes) == (1, 0, 30.0)


def test_the_table_groups_by_machine_and_shows_no_control_characters() -> None:
    text = table([Finding("disk", "ok", "fine", "a"), Finding("gpu", "error", "bad\x1b[31m", "b")], width=80)
    assert text.splitlines() == [
        "a:",
        "  ok       disk  fine",
        "b:",
        "  error    gpu   bad\\x1b[31m",
        "1 errors, 0 warnings",
    ]
