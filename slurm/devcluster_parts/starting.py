"""Starting the daemons in their order, waiting for the nodes, and stopping it all."""

import contextlib
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path

from devcluster_parts.processes import ask, daemons, kill_leftovers, send_signal, start_in_background, wait_until
from devcluster_parts.shape import DevclusterError, Shape, conf_file

READY_LIMIT = 60.0  # seconds in which `up` wants all nodes idle
JOBS_LIMIT = 10.0  # seconds that `down` gives cancelled jobs; more than KillWait
DAEMONS_LIMIT = 10.0  # seconds that `down` gives daemons before SIGKILL
DATABASE_LIMIT = 60.0  # seconds in which the accounting's database answers


def start_slurmd(directory: Path, name: str) -> None:
    """Start a node's daemon. What it starts in turn inherits the variable by which it is found again."""
    ask(directory, "slurmd", "-N", name, "-f", str(conf_file(directory)), DEVCLUSTER_NODE=name)


def start_accounting(directory: Path) -> None:
    """A database without network and passwords behind a socket in our private directory, and slurmdbd on it."""
    data, socket_file = directory / "database", directory / "mariadb.sock"
    as_root = ["--user=root"] if os.getuid() == 0 else []
    install = ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--skip-test-db", "--skip-name-resolve"]
    ask(directory, *install, "--auth-root-authentication-method=normal", *as_root)
    log, pid_file = directory / "mariadbd.log", directory / "mariadbd.pid"
    serve = ["mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={socket_file}", f"--pid-file={pid_file}"]
    start_in_background(directory, *serve, f"--log-error={log}", "--skip-networking", "--skip-grant-tables", *as_root)
    if not wait_until(socket_file.exists, seconds=DATABASE_LIMIT):
        raise DevclusterError(f"the database does not answer after {DATABASE_LIMIT:.0f} s.")
    ask(directory, "slurmdbd", MYSQL_UNIX_PORT=str(socket_file))
    if not wait_until(lambda: _cluster_is_registered(directory), seconds=DATABASE_LIMIT):
        raise DevclusterError(f"slurmdbd does not answer after {DATABASE_LIMIT:.0f} s.")


def _cluster_is_registered(directory: Path) -> bool:
    try:
        ask(directory, "sacctmgr", "--immediate", "add", "cluster", "devcluster")
    except DevclusterError:
        return False
    return True


def wait_until_idle(directory: Path, shape: Shape) -> None:
    """Return once every node waits for work."""
    wanted = {f"{name} idle" for name in shape.node_names()}
    if not wait_until(lambda: _node_states(directory) == wanted, seconds=READY_LIMIT):
        states = ", ".join(sorted(_node_states(directory)))
        raise DevclusterError(f"not all nodes are idle after {READY_LIMIT:.0f} s ({states}).")


def nodes_in_states(directory: Path, states: Iterable[str]) -> str:
    """Names of the nodes that are in one of some states, each followed by a blank."""
    return ask(directory, "sinfo", "--noheader", "--Node", "--format=%N ", f"--states={','.join(states)}")


def _node_states(directory: Path) -> set[str]:
    try:
        return set(ask(directory, "sinfo", "--noheader", "--Node", "--format=%N %T").splitlines())
    except DevclusterError as error:
        return {str(error)}


def last_words(directory: Path) -> str:
    """The end of every daemon's log."""
    tails = {log: log.read_text(errors="replace").splitlines()[-8:] for log in sorted(directory.glob("*.log"))}
    return "".join(f"\n{log}:\n" + "\n".join(lines) for log, lines in tails.items())


def stop(directory: Path) -> None:
    """Cancel the jobs, stop the daemons and remove the directory."""
    if "slurmctld" in daemons(directory):
        with contextlib.suppress(DevclusterError):
            _cancel_jobs(directory)
    for others in ({"slurmdbd", "mariadbd"}, {"mariadbd"}, set()):  # who reports goes before who listens
        send_signal((pid for name, pid in daemons(directory).items() if name not in others), signal.SIGTERM)
        wait_until(lambda others=others: daemons(directory).keys() <= others, seconds=DAEMONS_LIMIT)
    if not wait_until(lambda: not kill_leftovers(directory), seconds=DAEMONS_LIMIT):
        raise DevclusterError(f"processes of {directory} survive SIGKILL; find them with `ps`, then try again.")
    shutil.rmtree(directory)


def _cancel_jobs(directory: Path) -> None:
    jobs = set(ask(directory, "squeue", "--noheader", "--format=%F").split())
    if jobs:
        ask(directory, "scancel", "--quiet", *jobs)
        wait_until(lambda: not ask(directory, "squeue", "--noheader"), seconds=JOBS_LIMIT)
