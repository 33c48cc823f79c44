from __future__ import annotations

import json
import shutil

import pytest

from wiseft_dist.config import RunConfig
from wiseft_dist.errors import UserError
from wiseft_dist.pipeline import execute, plan, remaining
from wiseft_dist.run import write_atomically
from wiseft_dist.tracking import read_events


def names(steps):
    return [[job.name for job in step.jobs] for step in steps]


@pytest.fixture
def config():
    data = {"train": "t", "reference": {"photo": "p"}, "shifts": {"sketch": "s"}}
    return RunConfig.model_validate(
        {"output": "o", "model": {"architecture": "A"}, "data": data, "launch": {"merge": {"mem_gb": 7}}}
    )


def test_a_plan_has_every_stage_in_order_and_a_job_for_each_dataset(config):
    steps = plan(config, ["sketch", "photo"])
    assert names(steps) == [["finetune"], ["merge"], ["evaluate/sketch", "evaluate/photo"], ["report"]]
    assert steps[1].jobs[0].resources.mem_gb == 7
    assert steps == plan(config, ["sketch", "photo"])


def test_what_is_finished_is_not_planned_again(config):
    finished = ["finetune", "evaluate/photo"]
    assert names(plan(config, ["sketch", "photo"], finished)) == [["merge"], ["evaluate/sketch"], ["report"]]


def test_without_datasets_a_run_trains_and_merges(config):
    assert names(plan(config, [])) == [["finetune"], ["merge"]]


def test_each_stage_that_is_committed_shortens_what_remains(copied):
    config = copied.load_config()
    evaluations = ["evaluate/sketch", "evaluate/id_val", "evaluate/photo", "evaluate/clipart"]
    assert remaining(config, copied) == []
    shutil.rmtree(copied.report)
    assert names(remaining(config, copied)) == [["report"]]
    shutil.rmtree(copied.cells / "photo")
    assert names(remaining(config, copied)) == [["evaluate/photo"], ["report"]]
    shutil.rmtree(copied.cells)
    (evaluate, _) = names(remaining(config, copied))
    assert sorted(evaluate) == sorted(evaluations)
    shutil.rmtree(copied.ensemble(0.5))
    assert names(remaining(config, copied))[0] == ["merge"]
    shutil.rmtree(copied.checkpoints)
    assert [step.stage for step in remaining(config, copied)] == ["finetune", "merge", "evaluate", "report"]


def test_a_report_is_written_again_when_the_datasets_change_roles(finished):
    config = finished.config
    swapped = config.data.model_copy(
        update={
            "reference": {"sketch": config.data.shifts["sketch"]},
            "shifts": config.data.reference | {"clipart": config.data.shifts["clipart"]},
        }
    )
    assert remaining(config, finished.run) == []
    assert names(remaining(config.model_copy(update={"data": swapped}), finished.run)) == [["report"]]


def test_a_report_of_other_cells_is_not_current(copied):
    selection = json.loads(copied.selection_file.read_text())
    write_atomically(copied.selection_file, json.dumps(selection | {"cells": "others"}))
    assert names(remaining(copied.load_config(), copied)) == [["report"]]


def test_an_unknown_stage_is_refused(finished):
    with pytest.raises(UserError, match=r"fine-tune is not a stage\. Stages: finetune, merge, evaluate, report"):
        execute("fine-tune", finished.run)


def test_a_stage_that_fails_says_so_in_the_events_of_its_run(copied):
    with pytest.raises(UserError):
        execute("evaluate", copied, dataset="cubism")
    last = read_events(copied)[-1]
    assert (last["stage"], last["event"], last["kind"], last["dataset"]) == (
        "evaluate",
        "failed",
        "UserError",
        "cubism",
    )
    assert "cubism is not a dataset of this run" in last["error"]
