"""slurm/devcluster starts a Slurm that behaves as a real one, and leaves nothing behind."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import submitit
from waiting import wait_until

if TYPE_CHECKING:
    from tests.cluster.conftest import Devcluster

pytestmark = pytest.mark.slurm


def test_srun_over_three_nodes_runs_on_three_different_nodes(devcluster: "Devcluster") -> None:
    names = devcluster.slurm("srun", "-N", "3", "printenv", "SLURMD_NODENAME").split()
    assert len(set(names)) == 3
    assert set(names) <= {"127.0.0.11", "127.0.0.12", "127.0.0.13", "127.0.0.14"}


def test_sbatch_over_three_nodes_runs_a_step_on_each(devcluster: "Devcluster", tmp_path: Path) -> None:
    script = "srun printenv SLURMD_NODENAME"
    devcluster.slurm("sbatch", "--wait", "-N", "3", f"--output={tmp_path}/out", "--wrap", script)
    assert len(set((tmp_path / "out").read_text().split())) == 3


def test_a_job_that_depends_on_an_array_runs_after_all_its_tasks(devcluster: "Devcluster", tmp_path: Path) -> None:
    task = f"sleep 0.5; echo task >> {tmp_path}/order"
    array = submit(devcluster, "--array=0-3", f"--output={tmp_path}/array", "--wrap", task)
    after = ["--wait", f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes", "--output=/dev/null"]
    submit(devcluster, *after, "--wrap", f"echo dependent >> {tmp_path}/order")
    assert (tmp_path / "order").read_text().split() == ["task"] * 4 + ["dependent"]


def test_a_job_whose_dependency_failed_is_cancelled(devcluster: "Devcluster") -> None:
    failing = submit(devcluster, "--output=/dev/null", "--wrap", "false")
    after = [f"--dependency=afterok:{failing}", "--kill-on-invalid-dep=yes", "--output=/dev/null"]
    dependent = submit(devcluster, *after, "--wrap", "true")
    wait_until(lambda: job_field(devcluster, dependent, "JobState") == "CANCELLED")


def test_cancelling_a_job_ends_processes_that_left_its_process_group(devcluster: "Devcluster", tmp_path: Path) -> None:
    script = f"setsid sleep 600 & echo $! > {tmp_path}/pid; wait"
    job = submit(devcluster, "--output=/dev/null", "--wrap", script)
    wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
    sleeping = int((tmp_path / "pid").read_text())
    assert is_alive(sleeping)
    devcluster.slurm("scancel", job)
    wait_until(lambda: not is_alive(sleeping))


def test_submitit_returns_the_results_of_both_nodes(devcluster: "Devcluster", tmp_path: Path) -> None:
    def rank_and_node() -> tuple[int, str]:
        return submitit.JobEnvironment().global_rank, os.environ["SLURMD_NODENAME"]

    executor = submitit.AutoExecutor(tmp_path, cluster="slurm")
    executor.update_parameters(nodes=2, tasks_per_node=1, timeout_min=2)
    results = executor.submit(rank_and_node).results()
    assert [rank for rank, _ in results] == [0, 1]
    assert len({node for _, node in results}) == 2


def test_up_twice_says_that_it_already_runs_and_prints_the_same_line(devcluster: "Devcluster") -> None:
    again = devcluster.call("up", "--nodes", "4")
    assert again.returncode == 0
    assert "already running" in again.stderr
    assert again.stdout == f"export SLURM_CONF={devcluster.slurm_conf}\n"


@pytest.mark.parametrize(
    "options", [["--nodes", "3"], ["--cpus", "1"], ["--preempt"], ["--gpus", "2"], ["--accounting"], ["--set", "A=1"]]
)
def test_up_with_another_shape_is_refused_and_disturbs_nothing(devcluster: "Devcluster", options: list[str]) -> None:
    refused = devcluster.call("up", *options)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--nodes 4 --cpus 2" in refused.stderr
    assert devcluster.call("status").returncode == 0


def test_status_tells_a_running_cluster_from_none(devcluster: "Devcluster", second_devcluster: "Devcluster") -> None:
    running, none = devcluster.call("status"), second_devcluster.call("status")
    assert (running.returncode, none.returncode) == (0, 3)
    assert "127.0.0.14" in running.stdout


def test_down_leaves_no_process_no_directory_and_the_cluster_beside_it(
    devcluster: "Devcluster", second_devcluster: "Devcluster"
) -> None:
    second_devcluster.up("--nodes", "2")
    stubborn = "trap '' TERM; setsid sleep 600 & sleep 600"
    submit(second_devcluster, "-N", "2", "--output=/dev/null", "--wrap", stubborn)
    submit(second_devcluster, "--output=/dev/null", "--begin=now+1hour", "--wrap", "true")
    wait_until(lambda: processes_mentioning(second_devcluster.slurm_conf).count("sleep 600 ") == 2)
    assert second_devcluster.call("down").returncode == 0
    assert not processes_mentioning(second_devcluster.slurm_conf)
    assert not second_devcluster.directory.exists()
    assert second_devcluster.call("down").returncode == 0
    assert devcluster.slurm("srun", "-N", "4", "echo", "here").split() == ["here"] * 4


def test_up_replaces_a_cluster_whose_controller_was_killed(second_devcluster: "Devcluster") -> None:
    second_devcluster.up("--nodes", "1")
    os.kill(int((second_devcluster.directory / "slurmctld.pid").read_text()), 9)
    wait_until(lambda: second_devcluster.call("status").returncode == 3)
    second_devcluster.up("--nodes", "2")
    assert len(second_devcluster.slurm("sinfo", "-h", "-N").splitlines()) == 2


def test_up_touches_no_directory_that_holds_something_else(second_devcluster: "Devcluster") -> None:
    second_devcluster.directory.mkdir()
    treasure = second_devcluster.directory / "treasure"
    treasure.touch()
    assert second_devcluster.call("up").returncode == 2
    assert second_devcluster.call("down").returncode == 0
    assert treasure.exists()


def test_a_low_job_is_preempted_by_a_high_one_and_starts_again(second_devcluster: "Devcluster", tmp_path: Path) -> None:
    second_devcluster.up("--nodes", "1", "--preempt")
    script = f"echo start ${{SLURM_RESTART_COUNT:-0}} >> {tmp_path}/low; sleep 600"
    low = submit(second_devcluster, "--exclusive", "--output=/dev/null", "--wrap", script)
    wait_until((tmp_path / "low").exists)
    second_devcluster.slurm("srun", "-p", "high", "--exclusive", "true")
    assert job_field(second_devcluster, low, "Restarts") == "1"
    wait_until(lambda: (tmp_path / "low").read_text() == "start 0\nstart 1\n")


def test_tasks_see_all_gpus_of_a_node_or_one_each(gpu_devcluster: "Devcluster") -> None:
    seen = {
        options: sorted(
            gpu_devcluster.slurm("srun", "-N1", "-n2", *options, "printenv", "CUDA_VISIBLE_DEVICES").split()
        )
        for options in (("--gpus-per-node=2",), ("--gpus-per-task=1",))
    }
    assert list(seen.values()) == [["0,1", "0,1"], ["0", "1"]]


def test_a_setting_replaces_the_own_one_and_comes_back_in_the_words_of_status(second_devcluster: "Devcluster") -> None:
    options = ["--nodes", "1", "--set", "killwait=7", "--set", "SlurmctldParameters=preempt_send_user_signal"]
    second_devcluster.up(*options)
    lines = second_devcluster.slurm_conf.read_text().splitlines()
    assert [line for line in lines if line.lower().startswith("killwait")] == ["killwait=7"]
    assert "preempt_send_user_signal" in second_devcluster.slurm("scontrol", "show", "config")
    assert "--set killwait=7" in second_devcluster.call("status").stdout
    assert second_devcluster.call("up", *options).returncode == 0


def test_a_killed_node_has_nothing_running_and_can_be_started_again(second_devcluster: "Devcluster") -> None:
    second_devcluster.up("--nodes", "2", "--set", "SlurmdTimeout=5")
    submit(second_devcluster, "-N2", "--output=/dev/null", "--wrap", "srun sleep 600")
    wait_until(lambda: processes_mentioning(second_devcluster.slurm_conf).count("/usr/bin/sleep 600 ") == 2)
    assert second_devcluster.call("kill-node", "127.0.0.12").returncode == 0
    assert processes_mentioning(second_devcluster.slurm_conf).count("/usr/bin/sleep 600 ") == 1
    assert "the slurmd of 127.0.0.12 is dead" in second_devcluster.call("status").stdout
    assert second_devcluster.call("start-node", "127.0.0.12").returncode == 0
    assert "the slurmd of" not in second_devcluster.call("status").stdout
    assert second_devcluster.call("kill-node", "127.0.0.19").returncode == 2


@pytest.mark.matrix
def test_the_tasks_of_a_node_outlive_its_slurmd(second_devcluster: "Devcluster") -> None:
    second_devcluster.up("--nodes", "1")
    submit(second_devcluster, "--output=/dev/null", "--wrap", "sleep 600")
    wait_until(lambda: processes_mentioning(second_devcluster.slurm_conf).count("sleep 600 ") == 1)
    assert second_devcluster.call("kill-node", "--slurmd-only", "127.0.0.11").returncode == 0
    assert processes_mentioning(second_devcluster.slurm_conf).count("sleep 600 ") == 1
    assert second_devcluster.call("start-node", "127.0.0.11").returncode == 0


def submit(cluster: "Devcluster", *options: str) -> str:
    """The id of a new batch job."""
    return cluster.slurm("sbatch", "--parsable", *options).strip()


def job_field(cluster: "Devcluster", job: str, field: str) -> str:
    """One field of `scontrol show job`."""
    fields = cluster.slurm("scontrol", "--oneliner", "show", "job", job).split()
    return dict(pair.split("=", 1) for pair in fields if "=" in pair)[field]


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def processes_mentioning(conf: Path) -> list[str]:
    """Command lines of the processes, other than this one, that were started with or for that slurm.conf."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            known = command + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(conf).encode() in known and int(process.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode())
    return found
