"""Where a page says that its numbers come from."""

from __future__ import annotations

import re
from typing import Any

import pytest

from wiseft_dist.commits import digest
from wiseft_dist.config import load_config
from wiseft_dist.evaluate.cells.store import CellStore, members_of
from wiseft_dist.report.history import history, history_of
from wiseft_dist.report.page.section import Section
from wiseft_dist.report.sections.provenance import provenance_sections
from wiseft_dist.surroundings import surroundings
from wiseft_dist.weights.finetuned import describe_models


def sections(finished: Any, **changes: Any) -> dict[str, Section]:
    config, run = changes.get("config", finished.config), finished.run
    told = changes.get("told") or history(run)
    return {section.title: section for section in provenance_sections(config, run, told)}


def rows(section: Section) -> dict[str, list[str]]:
    assert section.is_folded
    return {row.name: [cell.text for cell in row.cells] for row in section.rows}


def test_every_stage_tells_the_versions_that_it_ran_with(finished) -> None:
    found = rows(sections(finished)["Software"])
    now = surroundings()
    assert found["Python"] == [now["python"]]
    assert {name: found[name] for name in now["libraries"]} == {
        name: [version] for name, version in now["libraries"].items()
    }
    assert {"torch", "deepspeed", "open_clip_torch", "webdataset", "wandb"} <= set(now["libraries"])


def test_versions_that_differ_between_stages_are_told_apart(finished) -> None:
    attempts = [
        {"time": 1.0, "stage": stage, "event": "attempt", "libraries": {"torch": version}, "version": "1", "code": "c"}
        for stage, version in (("finetune", "2.8"), ("merge", "2.9"), ("evaluate", "2.9"))
    ]
    code = {"time": 0.0, "stage": "launch", "event": "code", "code": "d", "revision": "f" * 40, "is_dirty": True}
    found = rows(sections(finished, told=history_of([code, *attempts]))["Software"])
    assert found["torch"] == ["2.8 (finetune); 2.9 (merge, evaluate)"]
    assert found["wiseft_dist"] == ["1"]
    told = sections(finished, told=history_of([code, *attempts]))["Software"]
    assert [row.cells[0].text for row in told.rows if row.name == "code"] == [
        "d, revision ffffffffffff with changes",
        "c",
    ]


def test_attempts_are_told_with_their_host_and_processes(finished) -> None:
    section = sections(finished)["Attempts"]
    first = section.rows[:4]  # other tests may have asked for a stage of this run again
    assert [row.name for row in first] == ["finetune", "merge", "evaluate/1-of-1", "report"]
    assert [row.cells[3].text for row in first] == ["2", "1", "1", "1"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", row.cells[0].text) for row in section.rows)
    assert len({row.cells[2].text for row in section.rows}) == 1  # one host


def test_gpus_are_counted_by_name(finished) -> None:
    event = {"time": 1.0, "stage": "finetune", "event": "attempt", "gpus": ["H100", "H100", "A100"], "restart": 2}
    (row,) = sections(finished, told=history_of([event]))["Attempts"].rows
    assert row.cells[4].text == "2 x H100, 1 x A100"
    assert row.cells[6].text == "2"


def test_models_ensembles_data_and_cells_are_named_by_hashes(finished) -> None:
    section = sections(finished)["Files and their hashes"]
    found = rows(section)
    config, run = finished.config, finished.run
    models = describe_models(config, run)
    assert found["zero_shot"] == [models["zero_shot"][0]["digest"], "zero_shot"]
    assert found["finetuned"] == [models["finetuned"][0]["digest"], "finetune/checkpoints/step_7"]
    assert {"ensemble, alpha 0", "ensemble, alpha 0.5", "ensemble, alpha 1"} <= set(found)
    assert found["manifest of train"][1].startswith("40 samples in 8 shards of ")
    store = CellStore.of_run(config, run)
    keys = [store.folder("sketch", member).name for member in members_of(config)]
    assert found["cells of sketch"] == [digest(keys), "3 members"]
    assert all(re.fullmatch(r"[0-9a-f]{16}", cells[0]) for cells in found.values())


def test_the_settings_are_shown_without_homes_and_secrets(finished, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "a-very-secret-word")
    given = [
        "data.cache=/home/somebody/cache",
        "wandb.project=a-very-secret-word",
        'data.train="https://me:pass@host/shards"',
    ]
    config = load_config(finished.run.config_file, given)
    found = rows(sections(finished, config=config)["Settings"])
    assert found["data.cache"] == ["~/cache"]
    assert "secret" not in str(found) and "pass@" not in str(found) and "somebody" not in str(found)
    assert found["merge.alphas"] == ["0.0, 0.5, 1.0"]
    assert found["finetune.optimizer.lr"] == ["0.003"]
    assert found["finetune.compile"] == ["false"]
    assert found["model.pretrained"] == ["–"]


def test_what_a_stage_runs_on_is_found_out_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert surroundings()["gpus"] == []
