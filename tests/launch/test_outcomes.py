"""What Slurm says about a job, read from its own texts, and what a person is told about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from wiseft_dist.config import load_config
from wiseft_dist.errors import RunError, UserError
from wiseft_dist.launch.endings import ended_without_result, last_lines
from wiseft_dist.launch.ledger import Entry, log_file, read_ledger, record
from wiseft_dist.launch.outcomes import Outcome, explain, outcome_of, why_it_waits
from wiseft_dist.run import Run, identity
from wiseft_dist.slurm import JobState, cancel_jobs, job_states, parse_accounting, parse_minutes, parse_queue

QUEUE = """\
2|CANCELLED|None|15|0|127.0.0.11|1795476071|1795476074|365-00:00:00|
1|FAILED|NonZeroExitCode|768|0|127.0.0.11|1795476071|1795476071|1-02:03:00|
5|FAILED|JobLaunchFailure|9|0|127.0.0.14|1795476071|1795476071|30:00|
3_3|PENDING|JobArrayTaskLimit|0|0||N/A|N/A|UNLIMITED|
4|PENDING|DependencyNeverSatisfied|0|0||N/A|N/A|UNLIMITED|
10|PENDING|BeginTime|0|1||1795476083|NONE|UNLIMITED|
3_0|PENDING|job requeued in held state|0|1||1795476083|NONE|UNLIMITED|
3_2|RUNNING|None|0|0|127.0.0.[13-14]|1795476077|NONE|UNLIMITED|
3_1|COMPLETING|None|0|2|127.0.0.[12-13]|1795476071|1827012071|365-00:00:00|
16_2|CANCELLED|DependencyNeverSatisfied|0|0||N/A|1795476189|UNLIMITED|
"""
"""Of squeue 22.05.8, as wiseft asks it."""

ACCOUNTING = """\
7|REQUEUED|0:0|node1|1795476071|1795476090|01:00:00
7.batch|CANCELLED|0:15|node1|1795476071|1795476090|
7|CANCELLED by 0|0:15|node2|1795476290|1795476390|01:00:00
7.batch|CANCELLED|0:15|node2|1795476290|1795476390|
8_1|FAILED|1:0|node1|1795476071|1795476090|01:00:00
8_1.batch|FAILED|1:0|node1|1795476071|1795476090|
8_1.0|OUT_OF_MEMORY|0:125|node1|1795476072|1795476089|
8_[2-9%4]|PENDING|0:0|None assigned|Unknown|Unknown|01:00:00
9|NODE_FAIL|1:0|node[1-4]|1795476071|1795476090|2-00:00:00
"""


def test_one_answer_of_the_queue_holds_state_reason_exit_nodes_times_and_limit_of_every_job():
    states = parse_queue(QUEUE)
    assert states["1"] == JobState(
        *("1", "FAILED", "NonZeroExitCode", 3, None, 0, "127.0.0.11", 1795476071.0, 1795476071.0, 1563.0)
    )
    assert (states["5"].exit_code, states["5"].signal, states["5"].time_limit_minutes) == (0, 9, 30.0)
    assert (states["3_1"].restarts, states["3_1"].state, states["3_1"].ended) == (2, "COMPLETING", None)
    assert (states["3_2"].nodes, states["3_2"].reason, states["3_2"].exit_code) == ("127.0.0.[13-14]", "", None)
    assert states["10"].started is None  # what Slurm gives there is when it may start
    assert {job_id for job_id, state in states.items() if state.is_active} == {"3_3", "4", "10", "3_0", "3_2", "3_1"}


def test_of_a_requeued_job_accounting_tells_the_newest_end_and_who_cancelled_it():
    state = parse_accounting(ACCOUNTING)["7"]
    assert (state.state, state.reason, state.restarts, state.nodes) == ("CANCELLED", "by root", 1, "node2")


def test_a_job_whose_step_ran_out_of_memory_did_too():
    assert parse_accounting(ACCOUNTING)["8_1"].state == "OUT_OF_MEMORY"


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("1:00", 1), ("30:30", 30.5), ("10:00:00", 600), ("7-00:00:00", 10080), ("UNLIMITED", None), ("INVALID", None)],
)
def test_time_limits_are_read_as_slurm_writes_them(text, minutes):
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize(
    ("state", "reason", "outcome"),
    [
        ("PENDING", "Resources", "waiting"),
        ("PENDING", "DependencyNeverSatisfied", "blocked"),
        ("REQUEUE_HOLD", "", "waiting"),
        ("SPECIAL_EXIT", "", "waiting"),
        ("COMPLETING", "", "running"),
        ("CONFIGURING", "", "running"),
        ("COMPLETED", "", "failed"),
        ("TIMEOUT", "TimeLimit", "timed_out"),
        ("DEADLINE", "", "timed_out"),
        ("OUT_OF_MEMORY", "", "out_of_memory"),
        ("NODE_FAIL", "", "node_failed"),
        ("BOOT_FAIL", "", "node_failed"),
        ("PREEMPTED", "", "preempted"),
        ("CANCELLED", "by alice", "cancelled"),
        ("CANCELLED", "DependencyNeverSatisfied", "blocked"),
    ],
)
def test_every_state_of_slurm_has_its_outcome(state, reason, outcome):
    assert outcome_of(JobState("1", state, reason), has_result=False, failure=None) == outcome


def test_a_result_on_disk_counts_more_than_how_slurm_calls_the_end():
    assert outcome_of(JobState("1", "NODE_FAIL"), has_result=True, failure=None) is Outcome.finished
    assert outcome_of(None, has_result=True, failure=None) is Outcome.finished


def test_a_job_that_slurm_has_forgotten_failed_if_it_could_say_so():
    assert outcome_of(None, has_result=False, failure=None) is Outcome.forgotten
    assert outcome_of(None, has_result=False, failure={"kind": "RunError", "error": "x"}) is Outcome.failed


def test_memory_that_a_process_or_the_node_lacked_is_told_apart_from_other_failures():
    failed = JobState("1", "FAILED", "NonZeroExitCode", exit_code=1)
    killed = "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks have been OOM Killed."
    assert outcome_of(failed, has_result=False, failure=None, log=killed) is Outcome.out_of_memory
    assert outcome_of(failed, has_result=False, failure={"kind": "MemoryError"}) is Outcome.out_of_memory
    assert outcome_of(failed, has_result=False, failure={"kind": "ValueError"}) is Outcome.failed


ALLOCATOR = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"


@pytest.mark.parametrize(
    "failure",
    [
        {"kind": type(torch.OutOfMemoryError(ALLOCATOR)).__name__, "error": ALLOCATOR},
        {"kind": "RunError", "error": f"step 7: {ALLOCATOR}"},
        {"kind": "AcceleratorError", "error": "CUDA error: out of memory"},
    ],
)
def test_a_gpu_s_memory_is_told_apart_from_the_host_s_and_has_cures_of_its_own(failure):
    failed = JobState("7", "FAILED", "NonZeroExitCode", exit_code=1)
    outcome = outcome_of(failed, has_result=False, failure=failure)
    assert outcome is Outcome.out_of_gpu_memory
    said = explain(outcome, "finetune", failed, failure)
    assert said.startswith("finetune (job 7) ran out of GPU memory: lower finetune.micro_batch_size, set ")
    assert said.endswith(f"(none of them needs a new output), then run again. Its last words: {failure['error']}")
    assert "lower evaluate.batch_size, then run again." in explain(outcome, "evaluate/1-of-3", failed)
    assert "give launch.merge GPUs with more of it, then run again." in explain(outcome, "merge", failed)


def test_the_cures_for_a_gpu_s_memory_may_change_in_a_run_that_has_begun(world):
    base = identity(load_config(world.config))
    cures = ["finetune.micro_batch_size=1", "finetune.activation_checkpointing=true", "finetune.zero_stage=3"]
    assert identity(load_config(world.config, cures)) == base


def test_a_forgotten_job_whose_log_ends_with_a_gpu_s_lack_of_memory():
    log = f"step 7 of 9\ntorch.OutOfMemoryError: {ALLOCATOR}\nSubmitted job triggered an exception\n"
    assert outcome_of(None, has_result=False, failure=None, log=log) is Outcome.out_of_gpu_memory


@pytest.mark.parametrize(
    ("outcome", "state", "said"),
    [
        (
            Outcome.timed_out,
            JobState("7", "TIMEOUT", time_limit_minutes=90.0),
            "merge (job 7) ran into its time limit of 90 minutes and did not come back: raise "
            "launch.merge.timeout_minutes, or run again to go on from what is committed.",
        ),
        (
            Outcome.out_of_memory,
            JobState("7", "OUT_OF_MEMORY"),
            "merge (job 7) ran out of memory: raise launch.merge.mem_gb, or lower the batch size or data.workers.",
        ),
        (
            Outcome.cancelled,
            JobState("7", "CANCELLED", "by alice"),
            "merge (job 7) was cancelled by alice: run again to go on from what is committed.",
        ),
        (
            Outcome.blocked,
            JobState("7", "CANCELLED", "DependencyNeverSatisfied"),
            "merge (job 7) can never start, because a job that it waits for did not end well: see to that one, "
            "then run again.",
        ),
        (Outcome.failed, JobState("7", "FAILED", exit_code=3), "merge (job 7) failed (exit code 3)."),
        (Outcome.failed, JobState("7", "FAILED", signal=11), "merge (job 7) failed (killed by signal 11)."),
        (Outcome.failed, JobState("7", "FAILED", exit_code=143), "merge (job 7) failed (killed by signal 15)."),
        (
            Outcome.failed,
            JobState("7", "FAILED", exit_code=137),
            "merge (job 7) failed (killed by signal 9: by hand, or by the kernel for want of memory).",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Outcome) else "",
)
def test_each_outcome_is_a_sentence_that_says_what_to_do(outcome, state, said):
    assert explain(outcome, "merge", state) == said


def test_a_bad_end_is_told_with_the_jobs_last_words_but_not_that_it_was_interrupted():
    state = JobState("7", "NODE_FAIL", nodes="node3")
    words = {"kind": "RunError", "error": "rank 2 gives no sign of life"}
    assert explain(Outcome.node_failed, "merge", state, words).endswith(" Its last words: rank 2 gives no sign of life")
    assert "words" not in explain(Outcome.node_failed, "merge", state, {"kind": "KeyboardInterrupt", "error": "x"})


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("Dependency", "for the jobs before it"),
        ("JobHeldUser", "it is held: `scontrol release 7` lets it go"),
        ("PartitionTimeLimit", "launch.merge.timeout_minutes"),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-2]", "the nodes that it asks for are down or reserved"),
        ("QOSMaxJobsPerUserLimit", "QOSMaxJobsPerUserLimit"),
    ],
)
def test_why_a_job_waits_is_said_in_words_where_there_are_any(reason, said):
    assert said in why_it_waits(JobState("7", "PENDING", reason), "merge")


def test_a_mistake_of_the_user_stays_one_when_slurm_only_says_failed(tmp_path):
    entry = Entry("finetune", "7", str(tmp_path), "slurm", 0.0)
    failure = {"kind": "UserError", "error": "data.train: nothing there"}
    error = ended_without_result(entry, JobState("7", "FAILED", exit_code=1), failure)
    assert isinstance(error, UserError)
    assert str(error).startswith("finetune failed: data.train: nothing there\nIts log: ")


def test_a_job_that_never_wrote_a_log_is_said_never_to_have_started(tmp_path):
    entry = Entry("finetune", "7", str(tmp_path), "slurm", 0.0)
    error = ended_without_result(entry, JobState("7", "CANCELLED"), None)
    assert isinstance(error, RunError)
    assert str(error).startswith("finetune (job 7) was cancelled: ") and "it never started" in str(error)


def test_the_end_of_a_long_log_is_read_without_the_rest_and_without_what_a_bar_wrote_over(tmp_path):
    log = tmp_path / "log"
    log.write_text("x\n" * 200_000 + "".join(f"step {n}\r" for n in range(99)) + "step 99\nlast\n")
    assert last_lines(log, 2) == ["step 99", "last"]
    assert last_lines(tmp_path / "none", 2) is None


def entry(name: str, job_id: str, folder: Path, submitted: float) -> Entry:
    return Entry(name, job_id, str(folder), "slurm", submitted)


def test_the_ledger_keeps_the_newest_job_of_each_name_and_moves_with_its_run(tmp_path):
    run, elsewhere = Run(tmp_path / "a"), tmp_path / "sweep" / "jobs"
    record(run, [entry("finetune", "1", run.jobs / "finetune", 1.0), entry("merge", "2", elsewhere, 2.0)])
    record(run, [entry("finetune", "3", run.jobs / "finetune", 3.0)])
    run.path.rename(tmp_path / "b")
    moved = read_ledger(Run(tmp_path / "b"))
    assert {name: each.job_id for name, each in moved.items()} == {"merge": "2", "finetune": "3"}
    assert log_file(moved["finetune"], 4) == tmp_path / "b" / "jobs" / "finetune" / "3_4_log.out"
    assert log_file(moved["merge"], 0) == elsewhere / "2_0_log.out"


def test_a_ledger_that_is_none_is_an_empty_one(tmp_path):
    run = Run(tmp_path)
    assert read_ledger(run) == {}
    run.jobs.mkdir()
    for text in ("", "[]", '{"finetune": "17"}', '{"jobs": [{"name": 1}, 2]}'):
        (run.jobs / "submitted.json").write_text(text)
        assert read_ledger(run) == {}


def test_a_controller_that_is_busy_is_asked_again(program, tmp_path):
    answer = "17|RUNNING|None|0|0|node1|1795476071|NONE|UNLIMITED|"
    program("squeue", f'test -e {tmp_path}/asked && echo "{answer}" && exit 0; touch {tmp_path}/asked; exit 1')
    assert job_states(["17"])["17"].nodes == "node1"


def test_a_controller_that_does_not_answer_is_a_sentence(program):
    program("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1")
    said = r"squeue does not answer: slurm_load_jobs error: Unable to contact slurm controller \(connect failure\)"
    with pytest.raises(RunError, match=said):
        job_states(["17"], patience_seconds=0)
    program("squeue", "exec sleep 60")
    with pytest.raises(RunError, match="squeue does not answer: nothing within 1 s"):
        job_states(["17"], patience_seconds=0, command_seconds=1)


def test_a_thousand_tasks_of_an_array_are_one_question_and_one_cancellation(program, tmp_path):
    rows = "\\n".join(f"7_{task}|PENDING|Priority|0|0||N/A|N/A|UNLIMITED|" for task in range(1000))
    program("squeue", f'echo "$@" >> {tmp_path}/squeue.calls; printf "{rows}"')
    program("scancel", f'echo "$@" >> {tmp_path}/scancel.calls')
    ids = [f"7_{task}" for task in range(1000)]
    assert len(job_states(ids)) == 1000
    cancel_jobs([*ids[:3], "8"])
    [asked] = (tmp_path / "squeue.calls").read_text().splitlines()
    assert asked.endswith("--jobs 7,7")  # twice: of one unknown job alone squeue makes an error
    assert (tmp_path / "scancel.calls").read_text() == "--quiet 7_[0,1,2] 8\n"
