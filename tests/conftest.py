"""One complete run, made once by the real command; tests that change a run get a copy."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
from file_server import serve
from swift_store import SwiftStore, need_swift, running_swift
from tiny_run import World, make_world, wiseft

from wiseft_dist.config import RunConfig
from wiseft_dist.data.workers import WORKER_MODULES
from wiseft_dist.run import Run

# Of all tests that share a process the first one starts the fork server: without these, every decoding process that is
# started in a later one imports torch by itself.
multiprocessing.set_forkserver_preload(list(WORKER_MODULES))

hypothesis.settings.register_profile("same examples", derandomize=True)
if "WISEFT_MATRIX" not in os.environ:  # make test-matrix draws others each time
    hypothesis.settings.load_profile("same examples")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "WISEFT_MATRIX" in os.environ:
        return
    for item in items:
        if item.get_closest_marker("matrix"):
            item.add_marker(pytest.mark.skip(reason="make test-matrix"))


@dataclass(frozen=True)
class FinishedRun:
    """A run, and what the command that made it said."""

    run: Run
    command: subprocess.CompletedProcess[str]

    @property
    def config(self) -> RunConfig:
        return self.run.load_config()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def finished(world: World) -> FinishedRun:
    """Shared by all tests: do not change it."""
    done = wiseft("run", world.config)
    assert done.returncode == 0, done.stderr
    return FinishedRun(Run(world.folder / "run"), done)


@pytest.fixture
def copied(finished: FinishedRun, tmp_path: Path) -> Run:
    """A finished run of one's own; start it again with ``output=`` its path."""
    shutil.copytree(finished.run.path, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.config_file.write_text(run.config_file.read_text().replace(str(finished.run.path), str(run.path)))
    return run


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A folder whose files :func:`web` serves."""
    (tmp_path / "served").mkdir()
    return tmp_path / "served"


@pytest.fixture
def web(served: Path) -> Iterator[str]:
    with serve(served) as url:
        yield url


@pytest.fixture(scope="session")
def swift() -> Iterator[SwiftStore]:
    """A real S3 store with an empty bucket `bucket`; `swift.environment` is what a client needs."""
    need_swift()
    with running_swift() as store:
        yield store
