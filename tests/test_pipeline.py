from __future__ import annotations

import json
import shutil

import pytest

from wiseft_dist.commits import write_atomically
from wiseft_dist.config import RunConfig
from wiseft_dist.errors import UserError
from wiseft_dist.pipeline import execute, is_finished, plan, remaining
from wiseft_dist.tracking import read_events


def names(steps):
    return [[job.name for job in step.jobs] for step in steps]


@pytest.fixture
def config():
    data = {"train": "t", "reference": {"photo": "p"}, "shifts": {"sketch": "s"}}
    return RunConfig.model_validate(
        {"output": "o", "model": {"architecture": "A"}, "data": data, "launch": {"merge": {"mem_gb": 7}}}
    )


SIZES = {"sketch": 30_000, "photo": 5_000}


def test_a_plan_has_every_stage_in_order_and_a_job_for_every_twenty_thousand_images(config):
    steps = plan(config, SIZES)
    assert names(steps) == [["finetune"], ["merge"], ["evaluate/1-of-2", "evaluate/2-of-2"], ["report"]]
    assert steps[1].jobs[0].resources.mem_gb == 7
    assert steps == plan(config, SIZES)


def test_what_is_finished_is_not_planned_again(config):
    finished = ["finetune", "evaluate/2-of-2"]
    assert names(plan(config, SIZES, finished)) == [["merge"], ["evaluate/1-of-2"], ["report"]]


def test_without_datasets_a_run_trains_and_merges(config):
    assert names(plan(config, {})) == [["finetune"], ["merge"]]


def test_each_stage_that_is_committed_shortens_what_remains(copied):
    config = copied.load_config()
    assert remaining(config, copied) == []
    shutil.rmtree(copied.report)
    assert names(remaining(config, copied)) == [["report"]]
    shutil.rmtree(copied.cells / "photo")
    assert names(remaining(config, copied)) == [["evaluate/1-of-1"], ["report"]]
    shutil.rmtree(copied.ensemble(0.5))
    assert names(remaining(config, copied))[0] == ["merge"]
    shutil.rmtree(copied.checkpoints)
    assert [step.stage for step in remaining(config, copied)] == ["finetune", "merge", "evaluate", "report"]


def test_only_jobs_of_the_evaluation_with_something_left_are_run_again(copied):
    config = copied.load_config()
    config = config.model_copy(
        update={"evaluate": config.evaluate.model_copy(update={"job_images": 22, "part_samples": 20})}
    )
    assert remaining(config, copied) == []
    shutil.rmtree(copied.cells / "photo")  # 13 and 7 samples are one job's, 12 and 11 the other's
    assert names(remaining(config, copied)) == [["evaluate/2-of-2"]]
    evaluate = remaining(config, copied)[0].jobs[0]
    assert not is_finished(config, copied, evaluate)
    execute("evaluate", copied, part=evaluate.part)
    assert remaining(config, copied) == []


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


@pytest.mark.parametrize(
    "name", ["index.html", "curve.png", "curve_logit.svg", "datasets.pdf", "results.csv", "statistics.json"]
)
def test_a_report_that_lacks_a_file_is_written_again(copied, name):
    (copied.report / name).unlink()
    assert names(remaining(copied.load_config(), copied)) == [["report"]]


def test_a_report_that_was_interrupted_is_written_again(copied, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("wiseft_dist.report.stage.draw_figures", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute("report", copied)
    assert names(remaining(copied.load_config(), copied)) == [["report"]]


def test_the_files_of_a_report_are_those_that_it_consists_of(finished):
    assert sorted(finished.run.report_files) == sorted(finished.run.report.iterdir())


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
