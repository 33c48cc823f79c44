"""What Slurm would refuse or never start of a run, asked before anything is submitted: partitions, limits, accounts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping

from wiseft_dist.config import Resources
from wiseft_dist.errors import RunError
from wiseft_dist.slurm import has_accounting, parse_minutes

ANSWER_SECONDS = 10.0


def check_site(stages: Mapping[str, Resources]) -> list[str]:
    """Sentences about what Slurm will refuse or never start; empty where there is no Slurm or nothing is wrong."""
    if shutil.which("scontrol") is None:
        return ["Slurm's commands are not installed here, so nothing is known of partitions and limits."]
    partitions = _partitions(_answer("scontrol", "--oneliner", "show", "partition"))
    if not partitions:
        return ["Slurm does not answer, so nothing is known of partitions and limits."]
    found: list[str] = []
    for stage, resources in stages.items():
        found += _of_stage(stage, resources, partitions)
    return found + _accounts(stages)


def _of_stage(stage: str, resources: Resources, partitions: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    default = next((name for name, fields in partitions.items() if fields.get("Default") == "YES"), None)
    name = resources.partition or default
    if name is None:
        yield f"launch.{stage}.partition is not set, and Slurm has no default: there are {', '.join(partitions)}."
        return
    for each in name.split(","):
        if each not in partitions:
            yield f"launch.{stage}.partition is {each!r}, which Slurm does not have: there are {', '.join(partitions)}."
        else:
            yield from _of_partition(stage, resources, each, partitions[each])


def _of_partition(stage: str, resources: Resources, name: str, fields: Mapping[str, str]) -> Iterable[str]:
    limit = parse_minutes(fields.get("MaxTime", ""))
    if limit is not None and resources.timeout_minutes > limit:
        yield (
            f"launch.{stage}.timeout_minutes is {resources.timeout_minutes}, and partition {name} allows {limit:.0f}: "
            "the job would wait forever. It saves and comes back at its limit, so set that."
        )
    if fields.get("State", "UP") != "UP":
        yield f"launch.{stage}: partition {name} is {fields['State']}: it starts no jobs."
    num_nodes = int(fields["TotalNodes"]) if fields.get("TotalNodes", "").isdecimal() else None
    if num_nodes is not None and resources.nodes > num_nodes:
        yield f"launch.{stage}.nodes is {resources.nodes}, and partition {name} has {num_nodes}."
    gpus = _most_gpus(_answer("sinfo", "--noheader", "--partition", name, "--format=%G"))
    if gpus is not None and resources.gpus_per_node > gpus:
        yield f"launch.{stage}.gpus_per_node is {resources.gpus_per_node}, and no node of {name} has more than {gpus}."


def _accounts(stages: Mapping[str, Resources]) -> list[str]:
    wanted = {resources.account: stage for stage, resources in stages.items() if resources.account}
    try:
        if not wanted or not has_accounting():
            return []
    except RunError:
        return []
    text = _answer("sacctmgr", "--noheader", "--parsable2", "show", "associations", "format=account")
    known = set(text.split())
    unknown = [account for account in wanted if known and account.lower() not in known]
    return [f"launch.{wanted[each]}.account is {each!r}, which Slurm's accounting does not have." for each in unknown]


def _partitions(text: str) -> dict[str, dict[str, str]]:
    """``scontrol --oneliner show partition``: the fields of each, by its name."""
    lines = [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in text.splitlines()]
    return {fields["PartitionName"]: fields for fields in lines if "PartitionName" in fields}


def _most_gpus(text: str) -> int | None:
    """The most GPUs of a node, from lines such as ``gpu:a100:4(S:0-1),gpu:1`` or ``(null)``; None for no answer."""
    if not text:
        return None
    lines = [re.findall(r"gpu(?::[A-Za-z][^:,(]*)?:(\d+)", line) for line in text.splitlines()]
    return max(sum(map(int, numbers)) for numbers in lines)


def _answer(*command: str) -> str:
    """What Slurm says, or nothing: a plan is made without it too."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
