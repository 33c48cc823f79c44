"""A real Slurm of four nodes for the tests of this folder."""

import contextlib
import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

DEVCLUSTER = Path(__file__).parents[2] / "slurm" / "devcluster"
SLURM_FOLDERS = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


@dataclasses.dataclass(frozen=True)
class Devcluster:
    """A directory in which `slurm/devcluster` has a cluster, or may have one."""

    directory: Path

    @property
    def slurm_conf(self) -> Path:
        return self.directory / "slurm.conf"

    def call(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run `devcluster COMMAND` on this directory; whoever calls looks at the exit status."""
        arguments = [sys.executable, str(DEVCLUSTER), command, *options, "--dir", str(self.directory)]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=120)

    def up(self, *options: str) -> None:
        """Start it, or fail the test with what `up` said."""
        started = self.call("up", *options)
        assert started.returncode == 0, started.stderr

    def slurm(self, *command: str) -> str:
        """The standard output of a Slurm command that is asked of this cluster."""
        env = os.environ | {"SLURM_CONF": str(self.slurm_conf)}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout


@contextlib.contextmanager
def new_devcluster() -> Iterator[Devcluster]:
    """A place for a cluster with a path short enough for Slurm's sockets; taken down in any case."""
    with tempfile.TemporaryDirectory(prefix="devcluster-", dir="/tmp") as folder:
        cluster = Devcluster(Path(folder) / "cluster")
        try:
            yield cluster
        finally:
            down = cluster.call("down")
        assert down.returncode == 0, down.stderr


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skip where Slurm is not installed; fail there under CI, where a skip would go unseen."""
    if shutil.which("slurmctld", path=SLURM_FOLDERS) is None:
        sentence = "slurmctld is not installed, so nothing here runs; run `apt-get install slurm-wlm`."
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)


@pytest.fixture(scope="session")
def devcluster(slurm_installed: None) -> Iterator[Devcluster]:
    """Four idle nodes of two CPUs; SLURM_CONF points the whole session at them."""
    with new_devcluster() as cluster, pytest.MonkeyPatch.context() as patch:
        cluster.up("--nodes", "4")
        patch.setenv("SLURM_CONF", str(cluster.slurm_conf))
        yield cluster


@pytest.fixture(scope="session")
def running_accounting(slurm_installed: None) -> Iterator[Devcluster]:
    """Two nodes with accounting and preemption, where memory is counted and ended jobs are soon forgotten."""
    settings = (
        "MinJobAge=2",
        "KillWait=2",
        "SlurmdTimeout=5",
        "SelectTypeParameters=CR_CPU_Memory",
        "DefMemPerCPU=500",
        "JobAcctGatherParams=OverMemoryKill",
    )
    with new_devcluster() as cluster:
        cluster.up(
            "--nodes", "2", "--preempt", "--accounting", *(part for line in settings for part in ("--set", line))
        )
        yield cluster


@pytest.fixture
def accounting_devcluster(running_accounting: Devcluster, monkeypatch: pytest.MonkeyPatch) -> Devcluster:
    """The cluster with accounting; SLURM_CONF points this test at it."""
    monkeypatch.setenv("SLURM_CONF", str(running_accounting.slurm_conf))
    return running_accounting


@pytest.fixture(scope="session")
def gpu_devcluster(slurm_installed: None) -> Iterator[Devcluster]:
    """Two nodes that promise two GPUs each; tests point themselves at it."""
    with new_devcluster() as cluster:
        cluster.up("--nodes", "2", "--gpus", "2")
        yield cluster


@pytest.fixture
def second_devcluster(slurm_installed: None) -> Iterator[Devcluster]:
    """The place of another cluster, not yet started; taken down in any case."""
    with new_devcluster() as cluster:
        yield cluster
