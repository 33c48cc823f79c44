"""What became of a job, on a Slurm with accounting: also when the controller has forgotten it, and by whose hand."""

from __future__ import annotations

import contextlib
import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from waiting import wait_until

from wiseft_dist.config import Resources
from wiseft_dist.launch.outcomes import Outcome, explain, outcome_of
from wiseft_dist.launch.requeues import why_requeued
from wiseft_dist.launch.site_checks import site_findings
from wiseft_dist.slurm import JobState, has_accounting, job_states

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = pytest.mark.slurm

GREEDY = "import time; held = bytearray(300 << 20); held[::4096] = bytes(len(held[::4096])); time.sleep(600)"


def test_a_cancelled_job_names_who_did_it_and_a_preempted_one_that_stays_away_is_preempted(
    accounting_devcluster: Devcluster,
) -> None:
    cluster = accounting_devcluster
    assert has_accounting()
    cancelled = submit(cluster, "--begin=now+1hour", "--wrap", "true")
    preempted = submit(cluster, "--no-requeue", "-N2", "--exclusive", "--mem=0", "--wrap", "sleep 600")
    await_state(preempted, "RUNNING")
    cluster.slurm("scancel", cancelled)
    cluster.slurm("srun", "-p", "high", "-N2", "--exclusive", "--mem=0", "true")
    by_hand, by_slurm = await_state(cancelled, "CANCELLED"), await_state(preempted, "PREEMPTED")
    assert outcome(by_hand) is Outcome.cancelled
    assert outcome(by_slurm) is Outcome.preempted
    assert f"by {getpass.getuser()}" in explain(Outcome.cancelled, "merge", accounted(cluster, cancelled))


def test_a_preempted_job_that_comes_back_is_known_for_one(accounting_devcluster: Devcluster) -> None:
    cluster = accounting_devcluster
    job = submit(cluster, "--requeue", "-N2", "--exclusive", "--mem=0", "--wrap", "sleep 600")
    before = await_state(job, "RUNNING")
    cluster.slurm("srun", "-p", "high", "-N2", "--exclusive", "--mem=0", "true")
    wait_until(lambda: why_requeued([before]) == ["preempted"])
    assert job_states([job])[job].restarts == 1
    cluster.slurm("scancel", job)


def test_a_job_that_slurm_killed_for_its_memory_ran_out_of_memory(
    accounting_devcluster: Devcluster, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job = submit(accounting_devcluster, "--mem=50", f"--output={log}", "--wrap", f"python3 -c '{GREEDY}'", output=False)
    state = await_state(job, "FAILED", "OUT_OF_MEMORY")
    wait_until(lambda: "memory limit" in log.read_text())
    assert outcome_of(state, has_result=False, failure=None, log=log.read_text()) is Outcome.out_of_memory


def test_a_qos_or_account_that_is_not_ours_is_known_before_anything_is_submitted(
    second_devcluster: Devcluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, me = second_devcluster, getpass.getuser()
    cluster.up("--nodes", "1", "--accounting", "--set", "AccountingStorageEnforce=associations,limits,qos")
    monkeypatch.setenv("SLURM_CONF", str(cluster.slurm_conf))
    for words in ("user name={me} account=root", "qos name=theirs", "qos name=short MaxWall=10 Flags=DenyOnLimit"):
        with contextlib.suppress(AssertionError):  # root is a user already
            cluster.slurm("sacctmgr", "--immediate", "create", *words.format(me=me).split())
    cluster.slurm("sacctmgr", "--immediate", "modify", "user", me, "set", "qos+=short")

    def said(**settings: Any) -> str:
        return " ".join(f"{found.level}: {found.text}" for found in site_findings({"merge": Resources(**settings)}))

    wait_until(lambda: said(qos="short", timeout_minutes=10) == "")  # the controller has heard of it
    assert said(qos="theirs") == "error: launch.merge: sbatch says: Invalid qos specification."
    assert said(account="theirs").startswith("error: launch.merge: sbatch says: Invalid account or account/partition")
    assert said(qos="short", timeout_minutes=11).startswith(
        "warning: launch.merge: sbatch says: Job violates accounting/QOS policy"
    )


@pytest.mark.matrix
def test_what_slurm_has_forgotten_is_known_by_accounting(accounting_devcluster: Devcluster) -> None:
    job = submit(accounting_devcluster, "--wrap", "exit 3")
    await_forgotten(accounting_devcluster, job)
    state = job_states([job])[job]
    assert (state.state, state.exit_code) == ("FAILED", 3)
    assert outcome(state) is Outcome.failed


@pytest.mark.matrix
def test_what_slurm_has_forgotten_without_accounting_is_forgotten(
    second_devcluster: Devcluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_devcluster.up("--nodes", "1", "--set", "MinJobAge=2")
    monkeypatch.setenv("SLURM_CONF", str(second_devcluster.slurm_conf))
    assert not has_accounting()
    job = submit(second_devcluster, "--wrap", "exit 3")
    await_forgotten(second_devcluster, job)
    assert job_states([job]) == {}
    assert outcome(None) is Outcome.forgotten


@pytest.mark.matrix
def test_a_time_limit_and_a_dead_node_have_outcomes_of_their_own(accounting_devcluster: Devcluster) -> None:
    cluster = accounting_devcluster
    late = submit(cluster, "--time=1", "-w", "127.0.0.11", "--wrap", "sleep 600")
    lost = submit(cluster, "--no-requeue", "-w", "127.0.0.12", "--wrap", "sleep 600")
    await_state(lost, "RUNNING")
    assert cluster.call("kill-node", "127.0.0.12").returncode == 0
    assert outcome(await_state(lost, "NODE_FAIL")) is Outcome.node_failed
    assert cluster.call("start-node", "127.0.0.12").returncode == 0
    assert outcome(await_state(late, "TIMEOUT")) is Outcome.timed_out


def submit(cluster: Devcluster, *options: str, output: bool = True) -> str:
    """The id of a new batch job."""
    return cluster.slurm("sbatch", "--parsable", *(["--output=/dev/null"] if output else []), *options).strip()


def outcome(state: JobState | None) -> Outcome:
    return outcome_of(state, has_result=False, failure=None)


def accounted(cluster: Devcluster, job: str) -> JobState:
    """What accounting alone says."""
    from wiseft_dist.slurm import ACCOUNTING_FIELDS, parse_accounting

    fields = ",".join(ACCOUNTING_FIELDS)
    return parse_accounting(cluster.slurm("sacct", "-nP", "--duplicates", "--format", fields, "--jobs", job))[job]


def await_state(job: str, *wanted: str) -> JobState:
    wait_until(lambda: job in (states := job_states([job])) and states[job].state in wanted)
    return job_states([job])[job]


def await_forgotten(cluster: Devcluster, job: str) -> None:
    wait_until(lambda: f"JobId={job} " not in cluster.slurm("scontrol", "--oneliner", "show", "jobs"))
