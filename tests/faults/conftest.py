"""The undisturbed run, made once, and a cluster of its own for each cell of the matrix."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from commands import Command
from fault_cluster import FaultCluster, fault_cluster, has_slurm
from fault_world import make_fault_world
from outcome_table import outcome_table
from tiny_run import World

from wiseft_dist.run import Run


@pytest.fixture(scope="session")
def fault_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_fault_world(tmp_path_factory.mktemp("fault_world"))


@pytest.fixture(scope="session")
def undisturbed(fault_world: World, slurm_is_here: None) -> Run:
    """Shared by all tests: do not change it."""
    with fault_cluster() as cluster:
        said = Command(cluster, fault_world.config).end()
    assert said.code == 0, said.text
    return Run(fault_world.folder / "run")


@pytest.fixture(scope="session")
def slurm_is_here() -> None:
    """Skip where Slurm is not installed; fail there under CI, where a skip would go unseen."""
    if not has_slurm():
        sentence = "slurmctld is not installed, so nothing here runs; run `apt-get install slurm-wlm`."
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)


@pytest.fixture
def cluster(slurm_is_here: None) -> Iterator[FaultCluster]:
    with fault_cluster() as started:
        yield started


ENDINGS = pytest.StashKey[dict[tuple[str, str], str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ENDINGS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how each cell ended."""
    report = yield
    told = dict(item.user_properties)
    if "cell" in told and (report.when == "call" or not report.passed):
        stage, fault = told["cell"]
        ending = f"{told['ending']} ({told['seconds']} s)" if report.passed else report.outcome
        item.config.stash[ENDINGS].setdefault((stage, fault), ending)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table of the matrix; WISEFT_FAULT_TABLE names a file that it is written to as well."""
    endings = config.stash.get(ENDINGS, {})
    if endings:
        table = outcome_table(endings)
        terminalreporter.section("faults")
        terminalreporter.write(table)
        if "WISEFT_FAULT_TABLE" in os.environ:
            Path(os.environ["WISEFT_FAULT_TABLE"]).write_text(table)
