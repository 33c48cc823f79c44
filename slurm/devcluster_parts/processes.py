"""Asking Slurm's programs, and finding and ending the processes of a cluster."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from devcluster_parts.shape import DevclusterError, conf_file

ANSWER_LIMIT = 60.0  # seconds that one of Slurm's programs may take
DAEMONS = ("slurmctld", "slurmd", "slurmdbd", "mariadbd")
# Debian does not put the daemons' folder into an ordinary user's PATH.
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


def ask(directory: Path, program: str, *arguments: str, **environment: str) -> str:
    """The output of one of Slurm's programs about this cluster; daemons return when they have detached."""
    command, env = _command(directory, program, *arguments)
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=directory,
            env=env | environment,
            timeout=ANSWER_LIMIT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DevclusterError(f"{program} failed in {directory}: {error}.") from None
    if done.returncode:
        raise DevclusterError(f"{program} failed in {directory}: {done.stderr.strip() or done.returncode}.")
    return done.stdout


def start_in_background(directory: Path, program: str, *arguments: str) -> None:
    """Start a program that does not detach by itself."""
    command, env = _command(directory, program, *arguments)
    none = subprocess.DEVNULL
    try:
        subprocess.Popen(command, stdin=none, stdout=none, stderr=none, cwd=directory, env=env, start_new_session=True)
    except OSError as error:
        raise DevclusterError(f"{program} failed in {directory}: {error}.") from None


def _command(directory: Path, program: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """The program where it is installed, and an environment that points it at this cluster."""
    # The settings of a job that we may run in must not reach this cluster's daemons.
    ours = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH_"))}
    found = shutil.which(program, path=SEARCH_PATH) or program
    return [found, *arguments], ours | {"SLURM_CONF": str(conf_file(directory))}


def wait_until(condition: Callable[[], bool], *, seconds: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def daemons(directory: Path) -> dict[str, int]:
    """Process ids by name (`slurmctld` or the node's), from those pid files that tell the truth."""
    alive = {}
    for pid_file in directory.glob("*.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(pid_file.read_text())
            process = Path(f"/proc/{pid}")
            is_daemon = (process / "comm").read_text().strip() in DAEMONS
            if is_daemon and _points_here(process, directory):
                alive[pid_file.stem] = pid
    return alive


def send_signal(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal processes; one that has ended meanwhile is no mistake."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_leftovers(directory: Path) -> bool:
    """SIGKILL daemons that did not stop, slurmstepd, and jobs' processes that escaped it; False if none."""
    return _kill(process for process in _processes_here(directory) if _is_slurms_own(process) or _node_of_task(process))


def kill_what_runs_on(directory: Path, node: str) -> bool:
    """SIGKILL a node's slurmd, its slurmstepds and the tasks; False if none."""
    ours = f"DEVCLUSTER_NODE={node}"
    return _kill(
        process
        for process in _processes_here(directory)
        if _node_of_task(process) == node or (_is_slurms_own(process) and ours in _environment(process))
    )


def _kill(processes: Iterable[Path]) -> bool:
    pids = [int(process.name) for process in processes]
    send_signal(pids, signal.SIGKILL)
    return bool(pids)


def _processes_here(directory: Path) -> list[Path]:
    """Every process under /proc that this cluster's SLURM_CONF has reached, a shell that was pointed at it included."""
    return [process for process in Path("/proc").glob("[0-9]*") if _points_here(process, directory)]


def _points_here(process: Path, directory: Path) -> bool:
    return f"SLURM_CONF={conf_file(directory)}" in _environment(process)


def _node_of_task(process: Path) -> str | None:
    """The node on which the process runs inside a job."""
    variables = _environment(process)
    return next((entry.split("=", 1)[1] for entry in variables if entry.startswith("SLURMD_NODENAME=")), None)


def _is_slurms_own(process: Path) -> bool:
    try:
        name = (process / "comm").read_text()
    except OSError:
        return False
    return name.startswith(("slurmctld", "slurmd", "slurmstepd", "slurmscriptd", "mariadbd"))


def _environment(process: Path) -> list[str]:
    try:
        return (process / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended, or is another user's
        return []
