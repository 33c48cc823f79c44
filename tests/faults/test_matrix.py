"""Whatever happens to a run, it ends with the bits of one that nothing happened to."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Said
from fault_cluster import FaultCluster
from fault_world import begin_at
from faults import BY_ITSELF, FAULTS, MENDED, Fault
from scene import Scene
from tiny_run import World
from verdict import (
    assert_chunks_kept,
    assert_nobody_left,
    assert_nothing_lost,
    assert_same_end,
    assert_saved_when_told,
)

from wiseft_dist.run import Run

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def cells() -> list[Any]:
    """Every stage with every fault; those that are not tried in continuous integration are marked."""
    return [
        pytest.param(
            (stage, fault),
            id=f"{stage}-{fault.name}".replace(" ", "-"),
            marks=() if stage == fault.on_ci else pytest.mark.matrix,
        )
        for fault in FAULTS
        for stage in fault.stages
    ]


@pytest.fixture(params=cells())
def cell(request: pytest.FixtureRequest) -> tuple[str, Fault]:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def scene(
    cell: tuple[str, Fault], cluster: FaultCluster, fault_world: World, undisturbed: Run, tmp_path: Path
) -> Iterator[Scene]:
    """A run that is ready for the stage, on a disk and with a store as the fault needs them."""
    stage, fault = cell
    run = Run(tmp_path / "run")
    run.path.mkdir()
    made = Scene(stage, cluster, fault_world, undisturbed, run, tmp_path)
    with made.cleaning:
        if fault.name == "full disk":
            fault.prepared(made)
            begin_at(stage, undisturbed, run.path)
        else:
            begin_at(stage, undisturbed, run.path)
            fault.prepared(made)
        yield made
        if made.command is not None:
            made.command.kill()


def test_a_disturbed_run_ends_as_an_undisturbed_one(
    cell: tuple[str, Fault], scene: Scene, record_property: Any
) -> None:
    stage, fault = cell
    record_property("cell", (stage, fault.name))
    ending, words = fault.ending[stage], fault.words.get(stage, ())
    began = time.monotonic()
    scene.start()
    assert scene.before
    fault.happens(scene)
    said = tell(scene.ends())
    if ending == BY_ITSELF:
        assert_says(said, words)
    else:
        fault.afterwards(scene)
        if ending == MENDED and fault.ends_anew():
            said = tell(scene.again(*filter(None, [fault.edit.get(stage)])))
        assert said.code in (1, 2)
        assert_says(said, words)
        assert_nobody_left(scene.cluster.conf)
        fault.mended(scene)
        said = tell(scene.again())
    assert said.code == 0
    assert_nobody_left(scene.cluster.conf)
    assert_nothing_lost(scene.run, scene.before_without_damaged())
    if stage == "finetune" and fault.is_told:
        assert_saved_when_told(scene.run)
    if stage == "merge" and scene.damaged is None:
        assert_chunks_kept(scene.run, scene.undisturbed)
    assert_same_end(scene.run, scene.undisturbed)
    record_property("ending", ending)
    record_property("seconds", round(time.monotonic() - began))


def assert_says(said: Said, words: tuple[str, ...]) -> None:
    assert [word for word in words if word not in said.text] == []


def tell(said: Said) -> Said:
    """For whoever reads a failed test."""
    print(f"exit code {said.code}:\n{said.text}")
    return said
