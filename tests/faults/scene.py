"""Where a fault is made: a run whose ranks stand still in the middle of a stage, on a cluster of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from commands import Command, Said, brake_environment
from fault_cluster import FaultCluster
from fault_proxy import FaultProxy
from fault_world import NUM_RANKS
from job_processes import JobProcess, tasks_of
from tiny_run import World
from verdict import Stamp, committed_files
from waiting import wait_until

from wiseft_dist.run import Run


@dataclass
class Scene:
    """One cell of the matrix while it is tried."""

    stage: str
    cluster: FaultCluster
    world: World
    undisturbed: Run
    """What it must end as."""
    run: Run
    folder: Path
    """For whatever the fault needs."""
    settings: list[str] = field(default_factory=list)
    """Of the command line."""
    environment: dict[str, str] = field(default_factory=dict)
    before: dict[str, Stamp] = field(default_factory=dict)
    """What was committed when the fault came."""
    command: Command | None = None
    damaged: Path | None = None
    """What was committed and is not whole any more."""
    store: FaultProxy | None = None
    """Where the run's data lie, if not on disk."""
    cleaning: ExitStack = field(default_factory=ExitStack)
    """What is undone at the end."""
    _hidden: list[tuple[Path, Path]] = field(default_factory=list)

    @property
    def brake(self) -> Path:
        return self.folder / "brake"

    def start(self) -> None:
        """`wiseft run`, up to the moment at which every rank of the stage stands still with something committed."""
        environment = brake_environment(self.stage, self.brake) | self.environment
        self.command = Command(self.cluster, self.run.config_file, *self.settings, **environment)
        self.wait_for_brakes()
        self.before = committed_files(self.run)

    def before_without_damaged(self) -> dict[str, Stamp]:
        """Without what had to be deleted."""
        if self.damaged is None:
            return self.before
        gone = str(self.damaged.relative_to(self.run.path))
        return {name: stamp for name, stamp in self.before.items() if name != gone and not name.startswith(gone + "/")}

    def wait_for_brakes(self, *, attempt: int = 0) -> None:
        command = self.command
        assert command is not None

        def all_stand() -> bool:
            if command.has_ended():
                raise AssertionError(f"ended before the fault came: {command.end()}")
            self.cluster.start_requeued_now()
            return len(list(self.brake.glob(f"*.{attempt}.*"))) >= NUM_RANKS[self.stage]

        wait_until(all_stand)

    def go_on(self) -> None:
        """Let every rank go on, and no later one stop."""
        (self.brake / "off").touch()

    def tasks(self) -> list[JobProcess]:
        return tasks_of(self.cluster.conf)

    def going_on_when_told(self) -> Callable[[], None]:
        """Asked for before the fault: what waits until the job has ended, and lets ranks that say they save go on."""
        pids = {task.pid for task in self.victims()}
        logs = self.run.jobs / self.stage
        told = _num_told(logs)

        def is_over() -> bool:
            if _num_told(logs) > told:
                self.go_on()
            return not pids & {task.pid for task in self.tasks()}

        return partial(wait_until, is_over)

    def victim_job(self) -> str:
        """The job that the fault hits: of an array the first."""
        return min((task.job for task in self.tasks()), key=int)

    def victims(self) -> list[JobProcess]:
        """Its ranks, by number."""
        job = self.victim_job()
        return sorted((task for task in self.tasks() if task.job == job), key=lambda task: task.rank)

    def ends(self) -> Said:
        """How the command that is at work ends."""
        assert self.command is not None
        return self.command.end()

    def again(self, *settings: str) -> Said:
        """The same command once more, without brakes."""
        self.command = Command(self.cluster, self.run.config_file, *self.settings, *settings, **self.environment)
        return self.command.end()

    def hide(self, file: Path) -> None:
        """Take a file away until :meth:`unhide`."""
        hidden = self.folder / file.name
        file.rename(hidden)
        self._hidden.append((hidden, file))
        self.cleaning.callback(self.unhide)

    def unhide(self) -> None:
        while self._hidden:
            hidden, file = self._hidden.pop()
            if file.parent.is_dir() and not file.exists():
                hidden.rename(file)

    def rewrite_config(self, old: str, new: str) -> None:
        file = self.run.config_file
        file.write_text(file.read_text().replace(old, new))


def _num_told(logs: Path) -> int:
    """How many ranks say in their logs that they were told to stop."""
    return sum(
        log.read_text(errors="replace").count("saving a checkpoint before stopping") for log in logs.glob("*.out")
    )
