"""Faults of processes, nodes and the queue. Each is made while every rank stands still, and lets them go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from job_processes import send_all
from scene import Scene
from waiting import wait_until

GRACE_SECONDS = 30


def kill_last_rank(scene: Scene) -> None:
    scene.victims()[-1].send(signal.SIGKILL)
    scene.go_on()


def kill_first_rank(scene: Scene) -> None:
    scene.victims()[0].send(signal.SIGKILL)
    scene.go_on()


def kill_tasks_of_a_node(scene: Scene) -> None:
    node = scene.victims()[-1].node
    send_all([task for task in scene.victims() if task.node == node], signal.SIGKILL)
    scene.go_on()


def kill_slurmd(scene: Scene) -> None:
    """Slurm gives the node up; the tasks on it know nothing of that and live on."""
    node = scene.victims()[-1].node
    scene.cluster.kill_slurmd(node)
    scene.cluster.wait_until_down(node)
    scene.go_on()


def kill_whole_node(scene: Scene) -> None:
    """The node of rank 0, of the batch script and of srun."""
    node = scene.victims()[0].node
    scene.cluster.kill_node(node)
    scene.cluster.wait_until_down(node)
    scene.go_on()


def preempt_twice(scene: Scene) -> None:
    """All nodes are taken: once at once and, as soon as the stage is at work again, with time to save."""
    _take_all_nodes(scene)
    scene.wait_for_brakes(attempt=1)
    scene.cluster.slurm("scontrol", "update", "partitionname=low", f"GraceTime={GRACE_SECONDS}")
    go_on_when_told = scene.going_on_when_told()
    with _taking_all_nodes(scene):
        go_on_when_told()
    scene.go_on()


def reach_time_limit(scene: Scene) -> None:
    """A minute is the shortest limit that Slurm knows; the warning comes before, and finds the ranks at work."""
    job, go_on_when_told = scene.victim_job(), scene.going_on_when_told()
    scene.cluster.slurm("scontrol", "update", f"jobid={job}", "TimeLimit=1")
    go_on_when_told()
    scene.cluster.slurm("scontrol", "update", f"jobid={job}", "TimeLimit=60")
    scene.go_on()


def cancel(scene: Scene) -> None:
    scene.cluster.slurm("scancel", scene.victim_job())
    scene.go_on()


def _take_all_nodes(scene: Scene) -> None:
    pids = {task.pid for task in scene.tasks()}
    with _taking_all_nodes(scene):
        wait_until(lambda: not pids & {task.pid for task in scene.tasks()})


@contextmanager
def _taking_all_nodes(scene: Scene) -> Iterator[None]:
    """A job of the higher partition that asks for every node, to its end."""
    command = ["srun", "--quiet", "--partition=high", "--nodes=4", "--exclusive", "true"]
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(scene.cluster.slurm, *command)
        yield
        taking.result()
