"""docs/tracking.md says what the code does: settings, options, commands, every event and its fields, what W&B shows."""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest
import typer

from wiseft_dist.cli import app
from wiseft_dist.config import RunConfig, WandbConfig, load_config
from wiseft_dist.tracking import read_events
from wiseft_dist.tracking.replay import STAGES, TRAININGS
from wiseft_dist.tracking.shown_report import TABLE_COLUMNS, curve_rows, summary_values
from wiseft_dist.tracking.system import SystemSampler

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "tracking.md").read_text()
FLAT = " ".join(TEXT.split())
SETTINGS = re.findall(r"^\| `(wandb\.\w+)` \| `([^`]*)` \|", TEXT, re.MULTILINE)
"""Settings and defaults of the table."""
COMMANDS = re.findall(r"^wiseft (.*?)(?: +#.*)?$", TEXT, re.MULTILINE)
EVENT_ROWS = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) ?\| [^|]* \|$", TEXT.split("| Event |")[1], re.MULTILINE)
EVENTS = [(name, of, re.findall(r"`([^`]+)`", fields)) for name, of, fields in EVENT_ROWS]
"""Name, stages and fields of each row."""
EVERYWHERE = ("time", "stage", "event", "job")
NAMED_IN_CODE = re.compile(r"""(?:event=|tracker\.event\(\s*)"(\w+)\"""")


def stages_of(of: str) -> list[str]:
    named = re.findall(r"`(\w+)`", of)
    return named or list(TRAININGS if of == "trainings" else (*STAGES, "launch"))


def load(tmp_path: Path, *overrides: str) -> RunConfig:
    (tmp_path / "least.yaml").write_text("output: runs/mine\nmodel: {architecture: A}\ndata: {train: shards}\n")
    return load_config(tmp_path / "least.yaml", overrides)


def test_every_setting_of_wandb_has_one_row_and_there_is_no_other() -> None:
    assert sorted(key for key, _ in SETTINGS) == sorted(f"wandb.{name}" for name in WandbConfig.model_fields)


@pytest.mark.parametrize(("key", "default"), SETTINGS, ids=[key for key, _ in SETTINGS])
def test_a_setting_that_gets_its_documented_default_changes_nothing(tmp_path: Path, key: str, default: str) -> None:
    assert load(tmp_path, f"{key}={default}").wandb == WandbConfig()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_only_options_that_exist(command: str) -> None:
    name, *arguments = shlex.split(command)
    typer.main.get_command(app).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_every_option_of_sync_has_a_row() -> None:
    parameters = typer.main.get_command(app).commands["sync"].params  # type: ignore[attr-defined]
    options = {option for parameter in parameters for option in parameter.opts if option.startswith("--")}
    assert options - {"--help"} == set(re.findall(r"^\| `(--[a-z-]+)` \|", TEXT, re.MULTILINE))


def test_every_event_that_the_code_tells_has_a_row_and_there_is_no_other() -> None:
    told = {"metrics", "summary"}  # by methods of their own
    for file in (ROOT / "wiseft_dist").rglob("*.py"):
        told |= set(NAMED_IN_CODE.findall(file.read_text()))
    assert told == {name for name, _, _ in EVENTS}


def test_every_event_of_a_real_run_has_only_fields_that_its_row_names(finished) -> None:
    seen = set()
    for event in read_events(finished.run):
        stage, name = event["stage"], event["event"]
        rows = [fields for known, of, fields in EVENTS if known == name and stage in stages_of(of)]
        patterns = [*EVERYWHERE, *(field for fields in rows for field in fields)]
        assert rows, event
        assert [key for key in event if not any(fnmatch(key, pattern) for pattern in patterns)] == [], event
        seen.add((stage, name))
    assert {("finetune", "metrics"), ("merge", "finished"), ("evaluate", "finished"), ("report", "summary")} <= seen


def test_the_machine_is_measured_at_each_logged_step_of_a_real_run(finished) -> None:
    training = [
        e for e in read_events(finished.run) if (e["stage"], e["event"]) == ("finetune", "metrics") and "lr" in e
    ]
    assert [event["step"] for event in training] == [2, 4, 6, 7]
    for name in ("cpu_percent", "host_memory_gb", "process_memory_gb"):
        assert all(f"system/{name}" in event for event in training)


def test_what_w_and_b_shows_of_a_report_is_named(finished) -> None:
    statistics = json.loads(finished.run.statistics_file.read_text())
    told = {key for row in curve_rows(statistics) for key in row}
    names = {re.sub(r"^report/[^/]+/[^/]+$", "report/DATASET/METRIC", key) for key in told}
    assert names == {"alpha", "report/reference", "report/shift_average", "report/DATASET/METRIC"}
    for name in names | {"report/cells", "report/curve"}:
        assert f"`{name}`" in TEXT
    summary = {"chosen_alpha", "zero_shot", "finetuned", "fixed", "chosen"}
    assert {key.split("/")[0] for key in summary_values(statistics)} == summary
    (columns,) = re.findall(r"the table `report/cells` \((.*?)\);", FLAT)
    words = columns.replace(" of the 95 % interval", "").replace(" and ", ", ")
    assert tuple(words.split(", ")) == TABLE_COLUMNS


def test_every_system_value_is_named() -> None:
    told = {re.sub(r"gpu\d+", "gpuN", name.removeprefix("system/")) for name in SystemSampler().sample()}
    assert told <= set(re.findall(r"`(\w+)`", TEXT.split("`system/...`: ")[1]))


def test_the_custom_chart_is_json_of_the_documented_keys() -> None:
    (text,) = re.findall(r"^```json\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    fields = {channel["field"] for channel in json.loads(text)["encoding"].values()}
    assert fields == {"${field:reference}", "${field:shifts}", "${field:alpha}", "name"}
