"""`wiseft doctor --slurm` looks at a node of each partition, by jobs of which nothing is left."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny_run import command

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = pytest.mark.slurm


def test_a_node_of_each_partition_is_checked_and_one_without_nodes_is_named(
    second_devcluster: Devcluster, tmp_path: Path
) -> None:
    second_devcluster.up(
        "--nodes", "2", "--set", "PartitionName=here Nodes=127.0.0.11 Default=YES MaxTime=60",
        "--set", "PartitionName=there Nodes=127.0.0.12",
    )  # fmt: skip
    second_devcluster.slurm("scontrol", "update", "nodename=127.0.0.12", "state=drain", "reason=broken fan")
    done = subprocess.run(
        command("doctor", "--slurm", "--timeout", "15", "--json"),
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
        env=os.environ | {"SLURM_CONF": str(second_devcluster.slurm_conf)},
    )  # fmt: skip
    findings = json.loads(done.stdout)["findings"]
    on_here = {each["check"]: each["level"] for each in findings if each["host"] == "here/127.0.0.11"}
    on_there = [each["text"] for each in findings if each["host"] == "there"]
    assert done.returncode == 1, done.stderr
    assert {on_here[check] for check in ("python", "torch", "all-reduce", "disk", "clock")} == {"ok"}
    assert len(on_there) == 1
    assert on_there[0].startswith("no node of there became free in 15 s")
    assert "1 drained" in on_there[0]
    assert any(each["check"] == "partition" and "limit 60 min" in each["text"] for each in findings)
    assert second_devcluster.slurm("squeue", "--noheader") == ""
    assert list(tmp_path.iterdir()) == []


def test_a_partition_that_does_not_exist_is_refused(devcluster: Devcluster, tmp_path: Path) -> None:
    done = subprocess.run(
        command("doctor", "--slurm", "-p", "nowhere"), capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "nowhere does not exist, or you may not use it; there are dev." in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_a_run_asks_for_is_judged_as_by_the_run_itself(devcluster: Devcluster, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        "output: run\nmodel: {architecture: A}\ndata: {train: t}\n"
        "launch: {executor: slurm, merge: {cpus_per_task: 500}, evaluate: {partition: nowhere}}\n"
    )
    done = subprocess.run(
        command("doctor", "config.yaml", "--json"), capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    told = {each["check"]: each for each in json.loads(done.stdout)["findings"]}
    assert (told["launch.finetune"]["level"], told["launch.finetune"]["text"]) == (
        "ok",
        "1 nodes in the default partition",
    )
    assert told["launch.merge"]["level"] == "error"
    assert "cpus_per_task is 500" in told["launch.merge"]["text"]
    assert "'nowhere', which Slurm does not have: there are dev" in told["launch.evaluate"]["text"]
    assert done.returncode == 1
